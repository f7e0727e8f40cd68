/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Transactions: several changes, all or nothing, at one instant for every client. A command that is an action, too, is a
 * transaction of one.
 *
 *   open 1..n       what takes its time: images are opened. Nothing is locked or drained meanwhile: guests and other monitors
 *                   go on, however long a server is silent
 *   drain           the nodes that the actions concern, all at one instant, and no others
 *   prepare 1..n    each does its change in such a way that abort can take it back without failing. Permissions are not
 *                   looked at yet: the graph changes as a whole (block_co_change_begin())
 *   settle          permissions of the result, flush of what is left
 *   finish 1..n     what can neither be taken back nor is sure to succeed
 *   commit 1..n     lets go of what is no longer needed, shows clients what is new
 *   undrain
 *   clean 1..n      of all that were opened: what takes its time again, such as closing
 *
 * When open fails: clean of those opened. When prepare, settle or finish fails: abort n..1 of the prepared, settle, undrain,
 * clean. Undo is complete when the answer is sent: what was never shown to a client leaves nothing in flight.
 */
#ifndef TIDEMARK_QMP_TRANSACTION_H
#define TIDEMARK_QMP_TRANSACTION_H

#include <json-c/json.h>
#include <stddef.h>

#include "base/error.h"

struct block_node;

/* The nodes that are drained for a transaction. */
struct qmp_concern;
/* Add one; NULL is fine. Doesn't yield. */
void qmp_concern_add(struct qmp_concern *concern, struct block_node *node);

/*
 * What an action keeps between its steps: its own memory of `state_size` bytes, zeroed before open. The control lock is held
 * in all steps but open; clean may pause it. A step that is NULL does nothing. `data` lives until after clean.
 */
struct qmp_action {
    const char *name; /* as in the schema's TransactionAction */
    size_t state_size;
    int (*co_open)(void *state, struct json_object *data, struct error *err);
    /* Which nodes it concerns: those whose users must not see it half done. Called again when some had to be waited for. */
    void (*concerns)(void *state, struct json_object *data, struct qmp_concern *concern);
    int (*co_prepare)(void *state, struct json_object *data, struct error *err);
    int (*co_finish)(void *state, struct error *err);
    void (*co_commit)(void *state);
    void (*co_abort)(void *state);
    void (*co_clean)(void *state); /* also where prepare failed, or was not reached */
};

/* NULL if there is none. */
const struct qmp_action *qmp_find_action(const char *name);

/* Run one action as a transaction by itself. The control lock is held, and released for a while. Yields. */
int qmp_co_run_action(const struct qmp_action *action, struct json_object *data, struct error *err);

/*
 * block_co_inactivate() of a node that stays, for an action's open: no transaction that concerns the node is in the midst of
 * its changes meanwhile. Only the start of it needs the control lock, which is held, and released for a while.
 */
int qmp_co_complete(struct block_node *node, struct error *err);

/* By file. */
extern const struct qmp_action qmp_action_bitmap_add, qmp_action_bitmap_remove,
    qmp_action_bitmap_clear, qmp_action_bitmap_enable, qmp_action_bitmap_disable,
    qmp_action_bitmap_merge;
extern const struct qmp_action qmp_action_blockdev_add, qmp_action_blockdev_del,
    qmp_action_blockdev_replace;
extern const struct qmp_action qmp_action_export_add, qmp_action_export_del;

#endif
