/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Transactions: several changes, all or nothing, at one instant for every client.
 *
 *   drain all -> prepare 1..n -> finish 1..n -> commit 1..n -> undrain -> clean 1..n     (success)
 *                prepare k fails, or finish k -> abort n..1 of the prepared -> undrain -> clean
 *
 * Prepare does the change in such a way that abort can take it back without failing. What can neither be taken back
 * nor is sure to succeed is done in finish, after all prepares. Commit lets go of what is no longer needed. With
 * everything drained nobody sees what lies between. Clean runs undrained, once for each action that was prepared.
 */
#ifndef TIDEMARK_QMP_TRANSACTION_H
#define TIDEMARK_QMP_TRANSACTION_H

#include <json-c/json.h>
#include <stddef.h>

#include "base/error.h"

/* What an action keeps between its steps: its own memory of `state_size` bytes, zeroed before prepare. */
struct qmp_action {
    const char *name; /* as in the schema's TransactionAction */
    size_t state_size;
    int (*co_prepare)(void *state, struct json_object *data, struct error *err);
    int (*co_finish)(void *state, struct error *err); /* NULL: nothing */
    void (*co_commit)(void *state);                   /* NULL: nothing */
    void (*co_abort)(void *state);                    /* NULL: nothing to take back */
    void (*co_clean)(void *state);                    /* NULL: nothing */
};

/* NULL if there is none. */
const struct qmp_action *qmp_find_action(const char *name);

/* Run one action as a transaction by itself, without draining everything (actions drain what they change). Yields. */
int qmp_co_run_action(const struct qmp_action *action, struct json_object *data, struct error *err);

/* By file. */
extern const struct qmp_action qmp_action_bitmap_add, qmp_action_bitmap_remove,
    qmp_action_bitmap_clear, qmp_action_bitmap_enable, qmp_action_bitmap_disable,
    qmp_action_bitmap_merge;
extern const struct qmp_action qmp_action_blockdev_add, qmp_action_blockdev_del,
    qmp_action_blockdev_replace;
extern const struct qmp_action qmp_action_export_add, qmp_action_export_del;

#endif
