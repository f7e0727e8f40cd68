/* SPDX-License-Identifier: Apache-2.0 */
#include "qmp/transaction.h"

#include <errno.h>
#include <stdlib.h>

#include "base/checked.h"
#include "base/list.h"
#include "base/log.h"
#include "base/time_units.h"
#include "block/bitmaps.h"
#include "block/block.h"
#include "block/control.h"
#include "block/control_lock.h"
#include "block/reopen.h"
#include "loop/loop.h"
#include "qmp/command_lock.h"
#include "qmp/concern.h"
#include "qmp/jobs.h"
#include "qmp/named.h"

/* --- draining what is concerned --------------------------------------------------------------- */

/* Interval between checks whether the nodes concerned are completed. */
#define COMPLETE_LOOK_NS NS_PER_MS

/*
 * Wait for requests in flight without the control lock, and take that with nothing drained: no
 * guest waits for the lock. Then drain all; if that takes long, none is drained.
 */
static int co_drain_once(struct qmp_concern *c, int64_t *ns, struct error *err)
{
    int r;

    block_co_drain_begin_many(c->nodes + c->drained, c->count - c->drained);
    for (size_t i = 0; i < c->count; i++) {
        block_drain_end(c->nodes[i]);
    }
    c->drained = 0;
    r = qmp_co_lock_again(err);
    if (r == 0 && block_co_drain_begin_soon(c->nodes, c->count, ns)) {
        c->drained = c->count;
    }
    return r;
}

/*
 * Drain the nodes concerned. The graph may change while this waits for requests to end, so that the
 * actions may then concern other nodes: repeat until all are drained at one instant.
 */
static int co_drain_concern(struct qmp_step *steps, size_t count, struct qmp_concern *c,
                            struct error *err)
{
    int64_t ns = 0;
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
        r = co_drain_once(c, &ns, err);
    }
    return r;
}

/* --- steps ------------------------------------------------------------------------------------ */

static int co_open_step(struct qmp_step *step, struct error *err)
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
static int co_open_steps(struct qmp_step *steps, size_t count, struct error *err)
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

/*
 * Errors are those of the change itself, which repeats what has failed here. A disk that hangs
 * keeps those waiting who use it, and no others. No drain waits for such a flush: what it passes
 * through must stay where it is.
 */
static void co_work_ahead(struct qmp_step *steps, size_t count)
{
    struct qmp_concern flushed = {0}, completed = {0};
    struct block_control_work work;

    for (size_t i = 0; i < count; i++) {
        if (steps[i].action->ahead) {
            steps[i].action->ahead(steps[i].state, steps[i].data, &flushed, &completed);
        }
    }
    if (flushed.count + completed.count == 0) {
        return;
    }
    for (size_t i = 0; i < completed.count; i++) {
        qmp_concern_add(&flushed, completed.nodes[i]);
    }
    if (!flushed.failed) {
        block_control_begin_work(&work, flushed.nodes, flushed.count, false);
        for (size_t i = 0; i < completed.count; i++) {
            (void)block_co_await_read_only(completed.nodes[i], NULL);
        }
        for (size_t i = 0; i < flushed.count; i++) {
            (void)block_co_flush_node(flushed.nodes[i]);
        }
        block_co_control_end_work(&work);
    }
    qmp_co_concern_clear(&completed);
    qmp_co_concern_clear(&flushed);
}

/* -EBUSY: another command has added a node meanwhile, which is not worked on: it may vanish. */
static int co_check_no_newcomer(const struct qmp_step *step, const struct qmp_concern *all,
                                struct error *err)
{
    struct qmp_concern now = {0};

    if (step->action->concerns) {
        step->action->concerns(step->state, step->data, &now);
    }
    return qmp_co_concern_check(&now, all, err);
}

/* `all`: what the steps may concern; NULL: no node can have come meanwhile. */
static int co_prepare_all(struct qmp_step *steps, size_t count, const struct qmp_concern *all,
                          size_t *ret_prepared, struct error *err)
{
    size_t done = 0;
    int r = 0;

    while (done < count && r >= 0) {
        const struct qmp_step *step = &steps[done];

        r = all ? co_check_no_newcomer(step, all, err) : 0;
        UNLESS_FAILED(r, step->action->co_prepare(step->state, step->data, err));
        done += r >= 0;
    }
    *ret_prepared = done;
    return MIN(r, 0);
}

static int co_finish_steps(struct qmp_step *steps, size_t count, struct error *err)
{
    for (size_t i = 0; i < count; i++) {
        int r = steps[i].action->co_finish ? steps[i].action->co_finish(steps[i].state, err) : 0;

        if (r < 0) {
            return r;
        }
    }
    return 0;
}

/* What may fail after all steps were prepared. */
static int co_finish_changes(struct qmp_step *steps, size_t count,
                             struct block_bitmap_commits *bitmaps, struct error *err)
{
    int r = co_finish_steps(steps, count, err);

    return UNLESS_FAILED(r, block_co_bitmap_commits_run(bitmaps, err));
}

static void co_commit_steps(struct qmp_step *steps, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (steps[i].action->co_commit) {
            steps[i].action->co_commit(steps[i].state);
        }
    }
}

/*
 * Backwards, so that each action finds the state that it left. `refused`: permissions did not allow
 * what the last one has done.
 */
static void co_abort_steps(struct qmp_step *steps, size_t count, bool refused)
{
    for (size_t i = count; i > 0; i--) {
        const struct qmp_action *action = steps[i - 1].action;

        if (refused && i == count && action->co_refused) {
            action->co_refused(steps[i - 1].state);
        } else if (action->co_abort) {
            action->co_abort(steps[i - 1].state);
        }
    }
}

/* After the abort of steps that have changed the graph. */
static void co_settle_again(void)
{
    ERROR_AUTO(err);

    if (block_co_change_settle(&err) < 0) {
        log_error("transaction: permissions can't be taken back: %s", error_message(&err));
    }
}

static void end_drained(struct qmp_step *steps, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (steps[i].action->undrained) {
            steps[i].action->undrained(steps[i].state);
        }
    }
}

static void co_clean(struct qmp_step *steps, size_t count)
{
    for (size_t i = 0; i < count && steps[i].state; i++) {
        if (steps[i].action->co_clean) {
            steps[i].action->co_clean(steps[i].state);
        }
        free(steps[i].state);
    }
}

static bool keeps_graph(const struct qmp_step *steps, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (!steps[i].action->keeps_graph) {
            return false;
        }
    }
    return true;
}

static int co_make_changes(struct qmp_step *steps, size_t count, const struct qmp_concern *concern,
                           struct error *err)
{
    struct block_bitmap_commits bitmaps;
    size_t prepared;
    int r;

    block_bitmap_commits_begin(&bitmaps);
    r = co_prepare_all(steps, count, concern, &prepared, err);
    UNLESS_FAILED(r, co_finish_changes(steps, count, &bitmaps, err));
    if (r < 0) {
        co_abort_steps(steps, prepared, false);
        block_co_bitmap_commits_retry(&bitmaps);
    } else {
        co_commit_steps(steps, count);
    }
    block_bitmap_commits_end(&bitmaps);
    return r;
}

static int co_change_graph(struct qmp_step *steps, size_t count, struct job_txn *jobs,
                           struct error *err)
{
    struct block_bitmap_commits bitmaps;
    bool refused = false;
    size_t prepared;
    int r;

    block_bitmap_commits_begin(&bitmaps);
    block_co_change_begin();
    qmp_set_transaction_jobs(jobs);
    r = co_prepare_all(steps, count, NULL, &prepared, err);
    qmp_set_transaction_jobs(NULL);
    if (r >= 0) {
        r = block_co_change_settle(err);
        refused = r < 0;
    }
    UNLESS_FAILED(r, co_finish_changes(steps, count, &bitmaps, err));
    if (r < 0) {
        co_abort_steps(steps, prepared, refused);
        co_settle_again();
        block_co_bitmap_commits_retry(&bitmaps);
    } else {
        co_commit_steps(steps, count);
    }
    block_co_change_end();
    block_bitmap_commits_end(&bitmaps);
    return r;
}

static void concern_named_node(struct block_node *node, void *concern)
{
    qmp_concern_add(concern, node);
}

/*
 * Without the control lock: the steps may wait for disks. The drains end before the lock is taken
 * again, for which another command may have to be waited for.
 */
static int co_change_apart(struct qmp_step *steps, size_t count, struct job_txn *jobs,
                           struct qmp_concern *concern, struct error *err)
{
    bool keeps = keeps_graph(steps, count);
    struct block_control_work work;
    int r;

    for (size_t i = 0; i < count; i++) {
        qmp_foreach_named_node(steps[i].data, concern_named_node, concern);
    }
    if (concern->failed) {
        qmp_concern_undrain(concern);
        return error_out_of_memory(err);
    }
    block_control_begin_work(&work, concern->nodes, concern->count, !keeps);
    r = keeps ? co_make_changes(steps, count, concern, err)
              : co_change_graph(steps, count, jobs, err);
    qmp_concern_undrain(concern);
    if (r >= 0) {
        end_drained(steps, count);
    }
    block_co_control_end_work(&work);
    return r;
}

int qmp_co_run_steps(struct qmp_step *steps, size_t count, struct job_txn *jobs, struct error *err)
{
    struct qmp_concern concern = {0};
    int r = co_open_steps(steps, count, err);

    if (r >= 0) {
        co_work_ahead(steps, count);
    }
    UNLESS_FAILED(r, co_drain_concern(steps, count, &concern, err));
    if (r >= 0) {
        r = co_change_apart(steps, count, jobs, &concern, err);
    } else {
        qmp_concern_undrain(&concern);
    }
    co_clean(steps, count);
    qmp_co_concern_clear(&concern);
    return r;
}

int qmp_co_run_action(const struct qmp_action *action, struct json_object *data, struct error *err)
{
    struct qmp_step step = {.action = action, .data = data};

    return qmp_co_run_steps(&step, 1, NULL, err);
}
