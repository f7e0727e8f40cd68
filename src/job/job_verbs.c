/* SPDX-License-Identifier: Apache-2.0 */
/* What users ask of jobs. The texts of errors are QEMU's, which clients know. */
#include <errno.h>
#include <string.h>

#include "job/job_internal.h"

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

/* A job of a transaction that takes effect: only a cancel may come still. */
static bool is_too_late(const struct job *job, enum verb verb)
{
    const struct job_txn *txn = job->txn;

    if (job->status != JOB_PENDING || !txn->concluding) {
        return false;
    }
    return verb != VERB_CANCEL || !txn->preparing || txn->preparing->last_step;
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

int job_co_finalize(struct job *job, struct error *err)
{
    int r = check_verb(job, VERB_FINALIZE, err);

    if (r == 0) {
        job_co_txn_conclude(job->txn);
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

int job_co_cancel(struct job *job, bool force, struct error *err)
{
    int r = check_verb(job, VERB_CANCEL, err);

    if (r < 0) {
        return r;
    }
    if (job->status == JOB_PENDING && job->txn->concluding) {
        job_force_cancel(job->txn->preparing); /* job_co_txn_conclude() ends all of them */
    } else if (job->status == JOB_WAITING || job->status == JOB_PENDING) {
        job->result = -ECANCELED;
        job_co_txn_abort(job);
    } else if (!force && (job->status == JOB_READY || job->status == JOB_STANDBY) &&
               job->driver->cancel_softly && job->driver->cancel_softly(job, job->state)) {
        job->soft_cancelled = true;
        job_wake(job);
    } else {
        job_force_cancel(job);
    }
    return 0;
}
