/* SPDX-License-Identifier: Apache-2.0 */
#include "qmp/transaction.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/list.h"
#include "base/log.h"
#include "block/block.h"
#include "block/control_lock.h"
#include "loop/loop.h"
#include "qmp/command_lock.h"
#include "qmp/commands.h"
#include "qmp/concern.h"
#include "qmp/jobs.h"

/* An action of the running transaction. */
struct step {
    const struct qmp_action *action;
    struct json_object *data; /* borrowed */
    void *state;              /* owned; NULL: not opened */
};

static int co_abort_prepare(void *state, struct json_object *data, struct error *err)
{
    return error_set(err, EINVAL, "Transaction aborted using Abort action");
}

static const struct qmp_action abort_action = {.name = "abort", .co_prepare = co_abort_prepare};

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

/* --- draining what is concerned --------------------------------------------------------------- */

/* Interval between checks whether the nodes concerned are completed. */
#define COMPLETE_LOOK_NS NS_PER_MS

/*
 * Drain the nodes concerned. The graph may change while this waits for requests to end, so that the
 * actions may then concern other nodes: repeat until all are drained at one instant.
 */
static int co_drain_concern(struct step *steps, size_t count, struct qmp_concern *c,
                            struct error *err)
{
    int r = 0;

    while (r == 0) {
        for (size_t i = 0; i < count; i++) {
            if (steps[i].action->concerns) {
                steps[i].action->concerns(steps[i].state, steps[i].data, c);
            }
        }
        if (c->failed) {
            return error_out_of_memory(err);
        }
        if (c->drained == c->count && !qmp_concern_completes(c)) {
            break;
        }
        block_control_unlock();
        if (c->drained == c->count) {
            loop_co_sleep(COMPLETE_LOOK_NS);
        }
        block_co_drain_begin_many(c->nodes + c->drained, c->count - c->drained);
        c->drained = c->count;
        r = qmp_co_lock_again(err);
    }
    return r;
}

/* --- steps ------------------------------------------------------------------------------------ */

static int co_open_step(struct step *step, struct error *err)
{
    if (!step->action) {
        return error_set(err, EINVAL, "There is no action of that type");
    }
    step->state = calloc(1, step->action->state_size ? step->action->state_size : 1);
    if (!step->state) {
        return error_out_of_memory(err);
    }
    return step->action->co_open ? step->action->co_open(step->state, step->data, err) : 0;
}

/* The control lock is released meanwhile. */
static int co_open_steps(struct step *steps, size_t count, struct error *err)
{
    ERROR_AUTO(ending);
    int r = 0, r2;

    block_control_unlock();
    for (size_t i = 0; i < count && r >= 0; i++) {
        r = co_open_step(&steps[i], err);
    }
    r2 = qmp_co_lock_again(r < 0 ? &ending : err);
    return error_first(r, r2);
}

static int co_prepare_all(struct step *steps, size_t count, struct job_txn *jobs,
                          size_t *ret_prepared, struct error *err)
{
    size_t done = 0;
    int r = 0;

    qmp_set_transaction_jobs(jobs);
    while (done < count && r >= 0) {
        r = steps[done].action->co_prepare(steps[done].state, steps[done].data, err);
        done += r >= 0;
    }
    qmp_set_transaction_jobs(NULL);
    *ret_prepared = done;
    return MIN(r, 0);
}

static int co_finish_steps(struct step *steps, size_t count, struct error *err)
{
    for (size_t i = 0; i < count; i++) {
        int r = steps[i].action->co_finish ? steps[i].action->co_finish(steps[i].state, err) : 0;

        if (r < 0) {
            return r;
        }
    }
    return 0;
}

static void co_commit_steps(struct step *steps, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (steps[i].action->co_commit) {
            steps[i].action->co_commit(steps[i].state);
        }
    }
}

/* Backwards, so that each action finds the state that it left. */
static void co_abort_steps(struct step *steps, size_t count)
{
    ERROR_AUTO(err);

    for (size_t i = count; i > 0; i--) {
        if (steps[i - 1].action->co_abort) {
            steps[i - 1].action->co_abort(steps[i - 1].state);
        }
    }
    if (block_co_change_settle(&err) < 0) {
        log_error("transaction: permissions can't be taken back: %s", error_message(&err));
    }
}

static void end_drained(struct step *steps, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (steps[i].action->undrained) {
            steps[i].action->undrained(steps[i].state);
        }
    }
}

static void co_clean(struct step *steps, size_t count)
{
    for (size_t i = 0; i < count && steps[i].state; i++) {
        if (steps[i].action->co_clean) {
            steps[i].action->co_clean(steps[i].state);
        }
        free(steps[i].state);
    }
}

static int co_change_graph(struct step *steps, size_t count, struct job_txn *jobs,
                           struct error *err)
{
    size_t prepared;
    int r;

    block_co_change_begin();
    r = co_prepare_all(steps, count, jobs, &prepared, err);
    UNLESS_FAILED(r, block_co_change_settle(err));
    UNLESS_FAILED(r, co_finish_steps(steps, count, err));
    if (r < 0) {
        co_abort_steps(steps, prepared);
    } else {
        co_commit_steps(steps, count);
    }
    block_co_change_end();
    return r;
}

/* `jobs`: what jobs end together; NULL: each alone. */
static int co_run_steps(struct step *steps, size_t count, struct job_txn *jobs, struct error *err)
{
    struct qmp_concern concern = {0};
    int r = co_open_steps(steps, count, err);

    UNLESS_FAILED(r, co_drain_concern(steps, count, &concern, err));
    UNLESS_FAILED(r, co_change_graph(steps, count, jobs, err));
    qmp_concern_undrain(&concern);
    if (r >= 0) {
        end_drained(steps, count);
    }
    co_clean(steps, count);
    qmp_co_concern_clear(&concern);
    return r;
}

int qmp_co_run_action(const struct qmp_action *action, struct json_object *data, struct error *err)
{
    struct step step = {.action = action, .data = data};

    return co_run_steps(&step, 1, NULL, err);
}

/* With completion-mode "grouped" every action has to be one that starts a job. */
static int check_grouped(const struct step *steps, size_t count, struct error *err)
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

static int co_run_grouped(struct step *steps, size_t count, struct error *err)
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
    r = co_run_steps(steps, count, jobs, err);
    job_txn_unref(jobs);
    return r;
}

int qmp_co_transaction(struct qmp_call *call, struct json_object *args,
                       struct json_object **ret_value, struct error *err)
{
    struct json_object *list = qmp_get(args, "actions");
    size_t count = json_object_array_length(list);
    struct step *steps = calloc(count ? count : 1, sizeof(*steps));
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
                         : co_run_steps(steps, count, NULL, err);
    free(steps);
    return r;
}
