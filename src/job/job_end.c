/* SPDX-License-Identifier: Apache-2.0 */
/* How jobs end, alone or with those of their transaction. The control lock is held throughout. */
#include <errno.h>

#include "job/job_internal.h"
#include "loop/loop.h"

void job_co_conclude(struct job *job)
{
    const struct job_driver *d = job->driver;
    bool failed = job->result < 0;

    job->refs++;
    if (job->result == -ECANCELED) {
        job_force_cancel(job); /* one that has done its work may have guests' writes in flight */
    }
    if (failed) {
        job_set_status(job, JOB_ABORTING);
    }
    if (failed && d->co_abort) {
        d->co_abort(job, job->state);
    } else if (!failed && d->co_commit) {
        d->co_commit(job, job->state);
    }
    if (d->co_clean) {
        d->co_clean(job, job->state);
    }
    job_co_release_nodes(job);
    job_leave_txn(job);
    job_emit(job, job->result == -ECANCELED ? JOB_EVENT_CANCELLED : JOB_EVENT_COMPLETED);
    job_set_status(job, JOB_CONCLUDED);
    job_wake(job);
    if (job->auto_dismiss) {
        job_unlist(job);
    }
    job_unref(job);
}

void job_force_cancel(struct job *job)
{
    if (!job->cancelled) {
        job->cancelled = true;
        job->cancelled_ns = loop_now_ns();
        if (job->driver->cancelled) {
            job->driver->cancelled(job, job->state);
        }
        job_begin_to_give_up(job);
    }
    job->user_paused = false;
    job_leave_pause(job);
    job_wake(job);
}

/* The next job of a transaction that has done its work, or else one that works; NULL: none. */
static struct job *next_other(struct job_txn *txn)
{
    struct job *job;

    LIST_FOREACH (job, &txn->jobs, txn_link) {
        if (job->status == JOB_WAITING || job->status == JOB_PENDING) {
            return job;
        }
    }
    return NULL;
}

void job_co_txn_abort(struct job *first)
{
    struct job_txn *txn = first->txn;
    struct job *job;

    txn->refs++;
    if (!txn->aborting) {
        txn->aborting = true;
        LIST_FOREACH (job, &txn->jobs, txn_link) {
            if (job != first && job->status < JOB_WAITING) {
                job_force_cancel(job); /* its coroutine concludes it */
            }
        }
    }
    job_co_conclude(first);
    while ((job = next_other(txn))) {
        job->result = job->took_effect ? 0 : -ECANCELED;
        job_co_conclude(job);
    }
    job_txn_unref(txn);
}

static int co_prepare_job(struct job *job)
{
    const struct job_driver *d = job->driver;

    job->txn->preparing = d->cancels_prepare ? job : NULL;
    job->result = d->co_prepare ? d->co_prepare(job, job->state, &job->err) : 0;
    job->txn->preparing = NULL;
    if (job->result < 0 && job->cancelled) {
        job->result = -ECANCELED;
        error_clear(&job->err);
    }
    job->took_effect = job->result >= 0 && d->prepare_is_final;
    return job->result;
}

/* The first job whose co_prepare fails, of those with final ones or of the others; NULL: none. */
static struct job *co_prepare_jobs(struct job_txn *txn, bool final)
{
    struct job *job;

    LIST_FOREACH (job, &txn->jobs, txn_link) {
        if (job->driver->prepare_is_final == final && co_prepare_job(job) < 0) {
            return job;
        }
    }
    return NULL;
}

void job_co_txn_conclude(struct job_txn *txn)
{
    struct job *failed;

    txn->refs++;
    txn->concluding = true;
    failed = co_prepare_jobs(txn, false);
    failed = failed ?: co_prepare_jobs(txn, true);
    if (failed) {
        job_co_txn_abort(failed);
    }
    while (!txn->aborting && !list_is_empty(&txn->jobs)) {
        job_co_conclude(LIST_FIRST(&txn->jobs, struct job, txn_link));
    }
    job_txn_unref(txn);
}

/* All jobs of the transaction have done their work: let them be finalized. */
static void co_txn_pend(struct job_txn *txn)
{
    bool wait_for_user = false;
    struct job *job;

    LIST_FOREACH (job, &txn->jobs, txn_link) {
        job_set_status(job, JOB_PENDING);
        if (!job->auto_finalize) {
            wait_for_user = true;
            job_emit(job, JOB_EVENT_PENDING);
        }
    }
    if (!wait_for_user) {
        job_co_txn_conclude(txn);
    }
}

void job_co_work_done(struct job *job, int r)
{
    struct job *other;

    job->user_paused = false;
    if (job->cancelled || job->txn->aborting) {
        job->result = -ECANCELED;
        error_clear(&job->err);
    } else {
        job->result = r < 0 ? r : 0;
    }
    if (job->result < 0) {
        if (job->result != -ECANCELED && !error_is_set(&job->err)) {
            error_set_errno(&job->err, -job->result, "%s", "The job failed");
        }
        job_co_txn_abort(job);
        return;
    }
    job_set_status(job, JOB_WAITING);
    LIST_FOREACH (other, &job->txn->jobs, txn_link) {
        if (other->status != JOB_WAITING) {
            return;
        }
    }
    co_txn_pend(job->txn);
}
