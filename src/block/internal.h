/* SPDX-License-Identifier: Apache-2.0 */
/* Shared between the files of the block layer only. */
#ifndef TIDEMARK_BLOCK_INTERNAL_H
#define TIDEMARK_BLOCK_INTERNAL_H

#include "block/driver.h"
#include "loop/loop.h"

#define CACHE_LINE 64

/* Requests in flight that one reactor started; written by that reactor only, summed by the drainer. */
struct inflight_counter {
    _Alignas(CACHE_LINE) _Atomic uint64_t count;
    atomic_bool used; /* the reactor has had requests here */
};

struct block_root {
    struct block_edge edge;
    struct list link; /* in the list of all roots */
    /*
     * Control I/O of the block layer itself (probing, creation) runs inside drained sections
     * and is not stopped by them.
     */
    bool exempt;
    bool closing;                     /* block_co_root_settle() has begun: quiesced for good */
    bool settled;                     /* and is through */
    const struct block_root_ops *ops; /* NULL: the owner need not be told */
    void *ops_arg;
    bool want_quiesced; /* scratch of drain.c */
    unsigned drain_mark;
    bool ending; /* block_root_begin_end() */
    /* Set by the drainer, then the counters are summed; a request increments, then looks at this. */
    atomic_bool quiesced;
    pthread_mutex_t guard;   /* guards blocked and drainer */
    struct co_queue blocked; /* requests that wait for the end of the drain */
    struct co *drainer;      /* suspended until the counters are all zero; NULL if none */
    struct inflight_counter inflight[REACTOR_MAX];
};

/* --- drain.c --- */
void block_root_enter_slow(struct block_root *root, unsigned index);
void block_root_leave_slow(struct block_root *root);
/* Bring the state of every root and node in line with what is drained. Doesn't wait for requests. */
void block_drain_update(void);

static inline void block_root_enter(struct block_root *root)
{
    unsigned index = counters_index(); /* of the reactor */

    atomic_store_explicit(&root->inflight[index].used, true, memory_order_relaxed);
    atomic_fetch_add(&root->inflight[index].count, 1);
    if (__builtin_expect(atomic_load(&root->quiesced), false)) {
        block_root_enter_slow(root, index);
    }
}

static inline void block_root_leave(struct block_root *root)
{
    atomic_fetch_sub(&root->inflight[counters_index()].count, 1);
    if (__builtin_expect(atomic_load(&root->quiesced), false)) {
        block_root_leave_slow(root);
    }
}

/* --- node.c --- main reactor only */
extern struct list block_all_nodes;    /* of struct block_node: those that are public */
extern struct list block_hidden_nodes; /* those being opened, or open and not public yet */
extern struct list block_all_roots;    /* of struct block_root */

/* --- pass_through.c --- */
/* The driver, with functions in the place of NULL where there is a default: for filters, and of co_flush. Does not yield. */
struct block_driver block_driver_with_defaults(const struct block_driver *driver);
/* Flush all children that were ever written to; returns the first error. Yields. */
int block_co_flush_children(struct block_node *node);

/* --- chain.c --- */
#define BLOCK_OPEN_CHAIN_MASK (~0u << BLOCK_OPEN_CHAIN_SHIFT)
/*
 * As block_co_open_filename(), for the file that `above`, which is being opened, names as its backing file; -ELOOP if that
 * leads into a circle. `extra` is consumed.
 */
int block_co_open_below(struct block_node *above, const char *path, const char *format,
                        struct options *extra, struct block_node **ret, struct error *err);

/* --- gate.c --- */
/* block_node.write_generation of a node that nothing was written to: more than what was flushed, as the file may be dirty. */
#define BLOCK_NOTHING_WRITTEN 1u
/* Flush a node without a root: for graph changes, in which it is drained. */
int block_co_flush_node(struct block_node *node);

/* --- graph.c --- */
/* An edge that is to go within a change: its origin there, with the reference, or NULL. */
struct block_node *block_edge_forget_move(struct block_edge *edge);
/* Within a change whose edges at `node` were changed: settle. */
int block_co_settle_at(struct block_node *node, struct error *err);

/* --- perm.c --- by graph.c, see there */
int block_co_perm_settle(struct error *err);
void block_co_perm_release(void);

/* --- open.c --- */
/* Free a node that has neither edges nor a driver's state any more. */
void block_node_free(struct block_node *node);

/* --- edge.c --- */
/* Detach a child; the caller gets the reference that the edge had. */
struct block_node *block_co_take_child(struct block_edge *edge);
/* Report the size of `node`, which may have changed, to the owners of its roots. */
void block_roots_report_size(struct block_node *node);
/* A root for control I/O, exempt from drain. */
int block_co_root_new_exempt(struct block_node *node, const char *user, unsigned perm,
                             unsigned shared, struct block_root **ret, struct error *err);

/* --- probe.c --- */
/* The format that the first bytes of `node` show; raw if none does. Yields. */
int block_co_probe(struct block_node *node, const struct block_driver **ret, struct error *err);

/* Whether a name that an image records is to be seen from where the image lies. */
bool block_is_relative(const char *name);

#endif
