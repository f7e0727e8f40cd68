/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of the job layer share. job.h has the rules. Nothing here yields but `co_`. */
#ifndef TIDEMARK_JOB_JOB_INTERNAL_H
#define TIDEMARK_JOB_JOB_INTERNAL_H

#include "base/list.h"
#include "base/pacer.h"
#include "block/control_lock.h"
#include "job/job.h"

struct co;

/* Jobs that end together. */
struct job_txn {
    unsigned refs;
    struct list jobs; /* by txn_link; each has a reference */
    bool aborting;
    /*
     * Its jobs take effect: it is too late for a cancel, unless `preparing` still waits for
     * something. Closing images lets other commands run.
     */
    bool concluding;
    /* Its co_prepare runs, and can be cancelled; NULL: there is none. */
    struct job *preparing;
};

struct job {
    struct list link; /* in the list of all jobs, until NULL */
    struct list txn_link;
    struct job_txn *txn; /* NULL: the job is concluded, and has left it */
    const struct job_driver *driver;
    void *state; /* owned */
    char *id;
    /* the list of all jobs, and the coroutine */
    unsigned refs;
    enum job_status status;
    bool auto_finalize, auto_dismiss;

    struct co *starter; /* the coroutine, until the job is started or discarded */
    bool discarded;
    bool running; /* co_run has begun, and has not returned */

    bool user_paused;
    bool cancelled;       /* by force */
    int64_t cancelled_ns; /* since when */
    bool last_step;       /* job_begin_last_step() */
    bool took_effect;     /* a co_prepare that is final has succeeded */
    bool soft_cancelled;  /* the job ends with success by itself; errors end it at once */

    /* 0, or why the job failed; the sentence is in `err` */
    int result;
    struct error err;

    uint64_t current, total;
    struct pacer pacer;
    struct list sleepers; /* of struct job_sleeper */
    enum job_io_status io_status;
    int64_t next_error_event_ns; /* before that, errors that are ignored emit no event */
    struct list nodes;           /* of struct job_node */
};

/* What a coroutine of a job touches while it has the control lock. The members are private. */
struct job_scope {
    struct block_control_scope scope;
    const struct job *job;
    bool begun;
};

/* The running coroutine works for the job alone, until the end. It has no other scope. */
void job_begin_scope(struct job_scope *scope, const struct job *job);
void job_end_scope(struct job_scope *scope);

/* Of job_status_name() and the events. */
void job_emit(struct job *job, enum job_event_kind kind);
/* JOB_EVENT_ERROR. */
void job_emit_error(struct job *job, bool reading, const char *action);
void job_set_status(struct job *job, enum job_status status);
/* From now on the job is found; from NULL on no more. */
void job_enlist(struct job *job);
void job_unlist(struct job *job);
void job_unref(struct job *job);

/* The coroutine's work is done with `r`. The control lock is held. */
void job_co_work_done(struct job *job, int r);
/* End all jobs of the transaction: `first`, with its result, then the others, as cancelled. */
void job_co_txn_abort(struct job *first);
/* co_prepare and the end of all jobs of a transaction, which are PENDING. */
void job_co_txn_conclude(struct job_txn *txn);
/* End a job that has a result: its driver's functions, events, dismissal. */
void job_co_conclude(struct job *job);
/* job_co_cancel(), which waits for the end of a job for at most `wait_ns`. */
int job_co_cancel_within(struct job *job, bool force, int64_t wait_ns, struct error *err);
/* Leave the transaction. */
void job_leave_txn(struct job *job);
/* Forget the nodes of the job. May close them. */
void job_co_release_nodes(struct job *job);
/* Force the end of a job that works. */
void job_force_cancel(struct job *job);
/* A job that was paused has the status that it had before. */
void job_leave_pause(struct job *job);
/* Begin to leave what holds up a job that was cancelled by force, if it does not end soon. */
void job_begin_to_give_up(struct job *job);
/*
 * -EBUSY: it was cancelled by force a while ago, and requests hold it up that can't be taken back;
 * the sentence names the node.
 */
int job_check_held_up(const struct job *job, struct error *err);
/* The lowest of the job's nodes, and those below, that has requests in flight; NULL: none. */
struct block_node *job_find_in_flight(const struct job *job);

#endif
