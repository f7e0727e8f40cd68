/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Transactions: several changes, all or nothing, at one instant for every client. A command that is
 * an action as well runs as a transaction of one.
 *
 *   open 1..n       slow work: images are opened. Nothing is locked or drained, so guests and
 *                   other monitors continue even if a server is silent
 *   ahead           storage that the changes need is written to first, while guests and other
 *                   monitors continue: as a rule nothing is left to wait for in the change
 *   drain           the nodes that the actions concern, all at one instant, and no others
 *   prepare 1..n    each action makes its change so that abort can undo it without failing.
 *                   Permissions are not checked yet: the graph changes as a whole
 *                   (block_co_change_begin())
 *   settle          permissions of the result; what is left unflushed is flushed
 *   finish 1..n     changes that cannot be undone, and may fail
 *   bitmaps         changes of persistent bitmaps become stable (block_co_bitmap_commits_run())
 *   commit 1..n     releases what is no longer needed, shows clients what is new
 *   undrain         then undrained 1..n: what begins only now
 *   clean 1..n      of all actions that were opened: slow work again, such as closing
 *
 * When open fails: clean of those that were opened. When prepare, settle or finish fails: abort
 * n..1 of those that were prepared, settle, undrain, clean. The undo is complete when the answer is
 * sent: what no client has seen leaves nothing in flight.
 */
#ifndef TIDEMARK_QMP_TRANSACTION_H
#define TIDEMARK_QMP_TRANSACTION_H

#include <json-c/json.h>
#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"

struct block_node;
struct job_txn;

/* The nodes that are drained for a transaction. */
struct qmp_concern;
/* Add a node; NULL is ignored. Does not yield. */
void qmp_concern_add(struct qmp_concern *concern, struct block_node *node);

/*
 * An action. Its state between the steps is `state_size` bytes, zeroed before open. From prepare to
 * commit, or abort, and in undrained, the transaction works apart on the nodes concerned and those
 * that `data` names (block/control_lock.h): nobody else touches them, but commands for other disks
 * go on. The control lock is held in clean, which may pause it. A step that is NULL does nothing.
 * `data` is valid until after clean.
 */
struct qmp_action {
    const char *name; /* as in the schema's TransactionAction */
    size_t state_size;
    /* It starts a job, which may be one of a group (completion-mode). */
    bool starts_job;
    /* It attaches, moves and detaches no edges: others may change the graph meanwhile. */
    bool keeps_graph;
    int (*co_open)(void *state, struct json_object *data, struct error *err);
    /*
     * Add the nodes that prepare or settle will flush, and those that it will complete, unless they
     * have writers then.
     */
    void (*ahead)(void *state, struct json_object *data, struct qmp_concern *flushed,
                  struct qmp_concern *completed);
    /*
     * Add the nodes whose users must not see the action half done. Called again if the graph may
     * have changed while some of them were drained.
     */
    void (*concerns)(void *state, struct json_object *data, struct qmp_concern *concern);
    int (*co_prepare)(void *state, struct json_object *data, struct error *err);
    int (*co_finish)(void *state, struct error *err);
    void (*co_commit)(void *state);
    void (*co_abort)(void *state);
    /*
     * In place of co_abort, for the last action, when the result of all is refused: the undo looks
     * like that of an action that could not be prepared. May be NULL.
     */
    void (*co_refused)(void *state);
    void (*undrained)(void *state); /* after a commit, when the drains have ended */
    void (*co_clean)(void *state);  /* called also if prepare failed or was not reached */
};

/* The action of this name (actions.c); NULL: there is none. Does not yield. */
const struct qmp_action *qmp_find_action(const char *name);

/* An action of a transaction. */
struct qmp_step {
    const struct qmp_action *action; /* NULL: there is none of the name that was given */
    struct json_object *data;        /* borrowed */
    void *state;                     /* owned by the transaction; NULL: not opened */
};

/*
 * Run a transaction. `jobs`: the jobs that it starts end together; NULL: each alone. The control
 * lock is held, and released for a while. 0, or the error of the step that failed. Yields.
 */
int qmp_co_run_steps(struct qmp_step *steps, size_t count, struct job_txn *jobs, struct error *err);

/* Likewise of one action. */
int qmp_co_run_action(const struct qmp_action *action, struct json_object *data, struct error *err);

/*
 * For the open step of an action: block_co_inactivate() of a node that stays in the graph. No
 * transaction that concerns the node makes its changes meanwhile. The control lock is held, and
 * released for most of the time. Yields.
 */
int qmp_co_complete(struct block_node *node, struct error *err);

/* The actions, by the file that defines them. */
extern const struct qmp_action qmp_action_bitmap_add, qmp_action_bitmap_remove,
    qmp_action_bitmap_clear, qmp_action_bitmap_enable, qmp_action_bitmap_disable,
    qmp_action_bitmap_merge;
extern const struct qmp_action qmp_action_blockdev_backup, qmp_action_drive_backup;
extern const struct qmp_action qmp_action_blockdev_add, qmp_action_blockdev_del,
    qmp_action_blockdev_replace;
extern const struct qmp_action qmp_action_snapshot, qmp_action_snapshot_sync,
    qmp_action_snapshot_internal;
extern const struct qmp_action qmp_action_export_add, qmp_action_export_del;

#endif
