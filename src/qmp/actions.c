/* SPDX-License-Identifier: Apache-2.0 */
/* The actions of transactions by their names, and the command `transaction`. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "block/bitmaps.h"
#include "job/job.h"
#include "qmp/commands.h"
#include "qmp/transaction.h"

static int co_abort_prepare(void *state, struct json_object *data, struct error *err)
{
    return error_set(err, EINVAL, "Transaction aborted using Abort action");
}

static const struct qmp_action abort_action = {
    .name = "abort",
    .keeps_graph = true,
    .co_prepare = co_abort_prepare,
};

static const struct qmp_action *const actions[] = {
    &abort_action,
    &qmp_action_bitmap_add,
    &qmp_action_bitmap_remove,
    &qmp_action_bitmap_clear,
    &qmp_action_bitmap_enable,
    &qmp_action_bitmap_disable,
    &qmp_action_bitmap_merge,
    &qmp_action_blockdev_add,
    &qmp_action_blockdev_backup,
    &qmp_action_blockdev_del,
    &qmp_action_blockdev_replace,
    &qmp_action_drive_backup,
    &qmp_action_snapshot,
    &qmp_action_snapshot_sync,
    &qmp_action_snapshot_internal,
    &qmp_action_export_add,
    &qmp_action_export_del,
};

const struct qmp_action *qmp_find_action(const char *name)
{
    for (size_t i = 0; i < ARRAY_SIZE(actions); i++) {
        if (strcmp(actions[i]->name, name) == 0) {
            return actions[i];
        }
    }
    return NULL;
}

/* --- the command ------------------------------------------------------------------------------ */

/* With completion-mode "grouped" every action has to be one that starts a job. */
static int check_grouped(const struct qmp_step *steps, size_t count, struct error *err)
{
    for (size_t i = 0; i < count; i++) {
        if (steps[i].action && !steps[i].action->starts_job) {
            return error_set(err, ENOTSUP,
                             "Action '%s' does not support transaction property completion-mode = "
                             "grouped",
                             steps[i].action->name);
        }
    }
    return 0;
}

static bool is_grouped(struct json_object *args)
{
    struct json_object *properties = qmp_get(args, "properties");
    const char *mode = properties ? qmp_get_str(properties, "completion-mode") : NULL;

    return mode && strcmp(mode, "grouped") == 0;
}

static int co_run_grouped(struct qmp_step *steps, size_t count, struct error *err)
{
    struct job_txn *jobs;
    int r = check_grouped(steps, count, err);

    if (r < 0) {
        return r;
    }
    jobs = job_txn_new();
    if (!jobs) {
        return error_out_of_memory(err);
    }
    r = qmp_co_run_steps(steps, count, jobs, err);
    job_txn_unref(jobs);
    return r;
}

/* Whose bitmaps a crash could have left as they were while others changed. */
static struct json_object *list_changed_apart(void)
{
    struct json_object *value = NULL, *names = NULL;
    struct block_node *node = NULL;

    while ((node = block_bitmap_next_changed_apart(node))) {
        if (!value) {
            value = json_object_new_object();
            names = json_object_new_array();
            json_object_object_add(value, "x-tidemark-apart", names);
        }
        json_object_array_add(names, json_object_new_string(block_node_name(node)));
    }
    return value;
}

int qmp_co_transaction(struct qmp_call *call, struct json_object *args,
                       struct json_object **ret_value, struct error *err)
{
    struct json_object *list = qmp_get(args, "actions");
    size_t count = json_object_array_length(list);
    struct qmp_step *steps = calloc(count ? count : 1, sizeof(*steps));
    int r;

    if (!steps) {
        return error_out_of_memory(err);
    }
    for (size_t i = 0; i < count; i++) {
        struct json_object *item = json_object_array_get_idx(list, i);

        steps[i].action = qmp_find_action(qmp_get_str(item, "type"));
        steps[i].data = qmp_get(item, "data");
    }
    r = is_grouped(args) ? co_run_grouped(steps, count, err)
                         : qmp_co_run_steps(steps, count, NULL, err);
    free(steps);
    if (r >= 0) {
        *ret_value = list_changed_apart();
    }
    return r;
}
