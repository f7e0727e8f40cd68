/* SPDX-License-Identifier: Apache-2.0 */
/* What users ask of jobs. The texts of errors are QEMU's, which clients know. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/time_units.h"
#include "block/control_lock.h"
#include "job/job_internal.h"
#include "loop/loop.h"

/* A command waits that long for the end of jobs that it has begun. */
#define ANSWER_NS NS_PER_SECOND

enum verb {
    VERB_CANCEL,
    VERB_PAUSE,
    VERB_RESUME,
    VERB_SET_SPEED,
    VERB_COMPLETE,
    VERB_FINALIZE,
    VERB_DISMISS,
    VERB_CHANGE,
};

/* The states in which a verb is accepted, as bits; and its name. */
#define AT(status) (1u << (status))
#define AT_WORK                                                                                    \
    (AT(JOB_CREATED) | AT(JOB_RUNNING) | AT(JOB_PAUSED) | AT(JOB_READY) | AT(JOB_STANDBY))

static const struct {
    const char *name;
    unsigned states;
} verbs[] = {
    [VERB_CANCEL] = {"cancel", AT_WORK | AT(JOB_WAITING) | AT(JOB_PENDING)},
    [VERB_PAUSE] = {"pause", AT_WORK},
    [VERB_RESUME] = {"resume", AT_WORK},
    [VERB_SET_SPEED] = {"set-speed", AT_WORK},
    [VERB_COMPLETE] = {"complete", AT(JOB_READY) | AT(JOB_STANDBY)},
    [VERB_FINALIZE] = {"finalize", AT(JOB_PENDING)},
    [VERB_DISMISS] = {"dismiss", AT(JOB_CONCLUDED)},
    [VERB_CHANGE] = {"change", AT_WORK},
};

/* The job has done its work, and its transaction is being cancelled. */
static bool is_being_cancelled(const struct job *job)
{
    return (job->status == JOB_WAITING || job->status == JOB_PENDING) && job->txn->aborting;
}

/* A job of a transaction that ends: only a cancel may come still. */
static bool is_too_late(const struct job *job, enum verb verb)
{
    const struct job_txn *txn = job->txn;

    if (is_being_cancelled(job)) {
        return verb != VERB_CANCEL;
    }
    if (job->status != JOB_PENDING || !txn->concluding) {
        return false;
    }
    return verb != VERB_CANCEL || !txn->preparing || txn->preparing->last_step;
}

/* The job takes effect, whatever the user says. It has left the transaction when it has ended. */
static bool takes_effect(const struct job *job)
{
    return job->txn && is_too_late(job, VERB_CANCEL);
}

bool job_awaits_end(const struct job *job)
{
    return (job->status == JOB_WAITING || job->status == JOB_PENDING) && !job->txn->aborting &&
           !job->txn->concluding;
}

static int check_verb(const struct job *job, enum verb verb, struct error *err)
{
    bool too_late = is_too_late(job, verb);

    if ((verbs[verb].states & AT(job->status)) && !too_late) {
        return 0;
    }
    return error_set(err, EPERM, "Job '%s' in state '%s' cannot accept command verb '%s'", job->id,
                     job_status_name(job->status), verbs[verb].name);
}

int job_pause(struct job *job, struct error *err)
{
    int r = check_verb(job, VERB_PAUSE, err);

    if (r == 0 && job->user_paused) {
        r = error_set(err, EINVAL, "Job is already paused");
    }
    if (r == 0) {
        job->user_paused = true;
        job_wake(job);
    }
    return r;
}

int job_resume(struct job *job, struct error *err)
{
    /* A job that is not paused says so before its state is looked at. */
    int r = job->user_paused ? check_verb(job, VERB_RESUME, err)
                             : error_set(err, EINVAL, "Can't resume a job that was not paused");

    if (r == 0) {
        job->user_paused = false;
        job->io_status = JOB_IO_OK;
        job_wake(job);
    }
    return r;
}

bool job_is_user_paused(const struct job *job)
{
    return job->user_paused;
}

int job_set_speed(struct job *job, uint64_t bytes_per_second, struct error *err)
{
    int r = check_verb(job, VERB_SET_SPEED, err);

    if (r == 0) {
        job->pacer = (struct pacer){.rate = bytes_per_second};
        if (job->driver->speed_changed) {
            job->driver->speed_changed(job, job->state);
        }
        job_wake(job);
    }
    return r;
}

int job_complete(struct job *job, struct error *err)
{
    int r = check_verb(job, VERB_COMPLETE, err);

    if (r == 0 && (job->cancelled || job->soft_cancelled || !job->driver->complete)) {
        r = error_set(err, EINVAL, "The active block job '%s' cannot be completed", job->id);
    }
    if (r == 0) {
        r = job->driver->complete(job, job->state, err);
        job_wake(job);
    }
    return r;
}

int job_change(struct job *job, const void *args, const char *type, struct error *err)
{
    int r = check_verb(job, VERB_CHANGE, err);

    if (r == 0 && (!job->driver->change || strcmp(type, job->driver->type) != 0)) {
        r = error_set(err, ENOTSUP, "Job type does not support change");
    }
    if (r == 0) {
        r = job->driver->change(job, job->state, args, err);
        job_wake(job);
    }
    return r;
}

/* --- the end of jobs that have done their work ------------------------------------------------ */

/*
 * The storage that the end needs may hang. So the end runs in a coroutine of its own, and the
 * command waits for a while only.
 */
struct job_ending {
    struct job *job; /* referenced */
    void (*co_end)(struct job *job);
    bool is_over;
    bool is_left; /* the command is gone */
};

static void free_ending(struct job_ending *e)
{
    job_unref(e->job);
    free(e);
}

static void co_run_ending(void *arg)
{
    struct job_ending *e = arg;

    e->co_end(e->job);
    e->is_over = true;
    job_wake(e->job);
    if (e->is_left) {
        free_ending(e);
    }
}

static void co_run_ending_apart(void *arg)
{
    const struct job_ending *e = arg;
    struct job_scope scope;

    job_begin_scope(&scope, e->job);
    co_run_ending(arg);
    job_end_scope(&scope);
}

/* End the job by `co_end`; wait for that, for `wait_ns` at most. */
static void co_end_beside(struct job *job, void (*co_end)(struct job *job), int64_t wait_ns)
{
    int64_t until = loop_now_ns() + wait_ns;
    struct job_ending *e = calloc(1, sizeof(*e));

    if (!e) {
        co_end(job);
        return;
    }
    *e = (struct job_ending){.job = job, .co_end = co_end};
    job->refs++;
    if (block_control_hand_over(co_run_ending_apart, e) < 0) {
        co_run_ending(e);
    } else {
        while (!e->is_over && loop_now_ns() < until) {
            job_co_sleep(job, until - loop_now_ns());
        }
        block_control_keep_graph_from_now(); /* the other coroutine changes it */
        block_co_control_lock();
    }
    e->is_left = !e->is_over;
    if (e->is_over) {
        free_ending(e);
    }
}

static void co_conclude_all(struct job *job)
{
    job_co_txn_conclude(job->txn);
}

static void co_abort_all(struct job *job)
{
    job->result = -ECANCELED;
    job_co_txn_abort(job);
}

void job_co_await_effect(struct job *job)
{
    int64_t until = loop_now_ns() + ANSWER_NS;
    bool held;

    if (!takes_effect(job)) {
        return;
    }
    job->refs++;
    held = block_control_pause();
    while (takes_effect(job) && loop_now_ns() < until) {
        job_co_sleep(job, until - loop_now_ns());
    }
    block_co_control_resume(held);
    job_unref(job);
}

int job_co_finalize(struct job *job, struct error *err)
{
    int r = check_verb(job, VERB_FINALIZE, err);

    if (r == 0) {
        co_end_beside(job, co_conclude_all, ANSWER_NS);
    }
    return r;
}

int job_dismiss(struct job *job, struct error *err)
{
    int r = check_verb(job, VERB_DISMISS, err);

    if (r == 0) {
        job_unlist(job);
    }
    return r;
}

int job_co_cancel_within(struct job *job, bool force, int64_t wait_ns, struct error *err)
{
    int r = check_verb(job, VERB_CANCEL, err);

    UNLESS_FAILED(r, job_check_held_up(job, err));
    if (r < 0 || is_being_cancelled(job)) {
        return r;
    }
    if (job->status == JOB_PENDING && job->txn->concluding) {
        job_force_cancel(job->txn->preparing); /* job_co_txn_conclude() ends all of them */
    } else if (job->status == JOB_WAITING || job->status == JOB_PENDING) {
        co_end_beside(job, co_abort_all, wait_ns);
    } else if (!force && (job->status == JOB_READY || job->status == JOB_STANDBY) &&
               job->driver->cancel_softly && job->driver->cancel_softly(job, job->state)) {
        job->soft_cancelled = true;
        job_wake(job);
    } else {
        job_force_cancel(job);
    }
    return 0;
}

int job_co_cancel(struct job *job, bool force, struct error *err)
{
    return job_co_cancel_within(job, force, ANSWER_NS, err);
}
