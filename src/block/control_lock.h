/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The control lock. A coroutine holds it while it uses nodes, bitmaps and exports that it has
 * looked up by name, and while it may give back the last reference to one of them. So nothing
 * vanishes during a command. It is the outermost lock: taken before drains and the graph lock.
 *
 * Steps that can take long (opening, closing, waiting for clients) pause the lock; a coroutine then
 * keeps references to what it uses afterwards, or looks it up again. Main reactor, in a coroutine.
 * Programs with one flow, such as `img`, need not take it.
 *
 * A step that waits for a disk *works apart* on its nodes: the lock is released, and whoever could
 * touch what the step works on does not get the lock before the step has ended:
 *
 *      who takes the lock              waits for the end of a step that works apart
 *      with a scope that meets it      yes
 *      with a scope, changes edges     if the step changes edges, too
 *      with a scope, else              no: commands for other disks go on
 *      without a scope                 yes, of any step: it may touch anything
 */
#ifndef TIDEMARK_BLOCK_CONTROL_LOCK_H
#define TIDEMARK_BLOCK_CONTROL_LOCK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/list.h"
#include "co/co.h"

struct block_control_work;
struct block_node;

/* Take the lock. Not recursive. Yields. */
void block_co_control_lock(void);

/* Who keeps others from the lock. Valid until the coroutine yields. */
struct block_control_holder {
    const struct co *owner;
    /* What the owner works on apart; NULL: the owner has the lock. */
    const struct block_control_work *work;
};

/*
 * Likewise, for whoever has a scope and can do without: -EBUSY, and the lock is not taken, after
 * `patience_ns` in which the same step elsewhere has kept the graph, or the lock had the same
 * owner, which *ret_holder names then. A step that works on what the scope touches is waited for
 * without a limit: the caller needs the same storage.
 */
int block_co_control_lock_within(int64_t patience_ns, struct block_control_holder *ret_holder);
/* Does not yield. */
void block_control_unlock(void);

/* The coroutine that has the lock; NULL: none. Does not yield. */
const struct co *block_control_owner(void);

/*
 * Unlock if this coroutine has the lock, or let others touch what it works on apart; returns
 * whether there was something to pause. Does not yield.
 */
bool block_control_pause(void);
/*
 * Run `entry(arg)` in a coroutine of its own, which takes the lock over from the calling one:
 * nobody else has it in between. Returns when `entry` yields or has returned; the calling coroutine
 * does not have the lock any more. -errno of co_run(): nothing has happened.
 */
int block_control_hand_over(co_entry *entry, void *arg);

/* Undo that if `held`, which block_control_pause() returned. Yields. */
void block_co_control_resume(bool held);

/* --- working apart ---------------------------------------------------------------------------- */

/* The members are private to this file and control_busy.c. */
struct block_control_work {
    struct list link;
    struct co *owner;
    struct block_node *const *nodes;
    size_t count;
    bool changes_graph;
    uint64_t number; /* no two have the same */
};

/*
 * Begin to work apart on the nodes, which the caller references, and on all that are joined with
 * them (block_node_is_joined()); the array stays until the end. `changes_graph`: a graph change is
 * under way, or may begin. The caller has the lock, which is released. Does not yield.
 */
void block_control_begin_work(struct block_control_work *work, struct block_node *const *nodes,
                              size_t count, bool changes_graph);
/* From now on the work changes no edges. Does not yield. */
void block_control_keep_graph(struct block_control_work *work);
/*
 * Take the lock again, as block_co_control_lock() does, and end the work. Drains end before that,
 * since this may wait for another command. Yields.
 */
void block_co_control_end_work(struct block_control_work *work);

/* Iterate over what coroutines work on apart: NULL begins, NULL ends. Does not yield. */
const struct block_control_work *block_control_next_work(const struct block_control_work *work);

/* --- scopes ----------------------------------------------------------------------------------- */

/* What a coroutine touches while it has the lock. The first two members are private. */
struct block_control_scope {
    struct list link;
    struct co *owner;
    /* The command, for messages to others; lives until the end. NULL: it has no name. */
    const char *command;
    /* It begins no graph change. */
    bool keeps_graph;
    /* Whether it touches something that is joined with the node; NULL: nothing. Does not yield. */
    bool (*meets)(const struct block_control_scope *scope, struct block_node *node);
};

/* The running coroutine has the scope from now on, until the end. It has no other one. */
void block_control_begin_scope(struct block_control_scope *scope);
void block_control_end_scope(struct block_control_scope *scope);
/* Of a coroutine; NULL: it has none. Does not yield. */
const struct block_control_scope *block_control_scope_of(const struct co *owner);
/* The running coroutine begins no graph change any more. It need not have a scope. */
void block_control_keep_graph_from_now(void);
/* The same, and it touches no node. */
void block_control_meet_nothing_from_now(void);

#endif
