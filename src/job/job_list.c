/* SPDX-License-Identifier: Apache-2.0 */
/* The list of jobs, their transactions, and what they look like from outside: status and events. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "job/job_internal.h"

static struct list all_jobs = LIST_INIT(all_jobs);
static void (*event_fn)(const struct job_event *event);

static const char *const status_names[JOB_STATUS_COUNT] = {
    [JOB_CREATED] = "created", [JOB_RUNNING] = "running",   [JOB_PAUSED] = "paused",
    [JOB_READY] = "ready",     [JOB_STANDBY] = "standby",   [JOB_WAITING] = "waiting",
    [JOB_PENDING] = "pending", [JOB_ABORTING] = "aborting", [JOB_CONCLUDED] = "concluded",
    [JOB_NULL] = "null",
};

const char *job_status_name(enum job_status status)
{
    return status_names[status];
}

/* --- events ----------------------------------------------------------------------------------- */

void job_set_event_fn(void (*fn)(const struct job_event *event))
{
    event_fn = fn;
}

void job_emit(struct job *job, enum job_event_kind kind)
{
    if (event_fn && (job->driver->block_job || kind == JOB_EVENT_STATUS)) {
        event_fn(&(struct job_event){.kind = kind, .info = job_get_info(job)});
    }
}

void job_emit_error(struct job *job, bool reading, const char *action)
{
    if (event_fn) {
        event_fn(&(struct job_event){.kind = JOB_EVENT_ERROR,
                                     .info = job_get_info(job),
                                     .reading = reading,
                                     .action = action});
    }
}

void job_set_status(struct job *job, enum job_status status)
{
    job->status = status;
    log_debug("job '%s' (%s): %s", job->id, job->driver->type, status_names[status]);
    job_emit(job, JOB_EVENT_STATUS);
}

struct job_info job_get_info(const struct job *job)
{
    enum job_status s = job->status;

    return (struct job_info){
        .id = job->id,
        .type = job->driver->type,
        .status = s,
        .block_job = job->driver->block_job,
        .auto_finalize = job->auto_finalize,
        .auto_dismiss = job->auto_dismiss,
        .paused = job->user_paused,
        .busy = (s == JOB_RUNNING || s == JOB_READY) && list_is_empty(&job->sleepers),
        .ready = s == JOB_READY || s == JOB_STANDBY,
        .has_synced = job->driver->is_synced != NULL,
        .synced = job->driver->is_synced && job->running && job->driver->is_synced(job, job->state),
        .current = job->current,
        .total = job->total,
        .speed = job->pacer.rate,
        .io_status = job->io_status,
        .error = job->result >= 0          ? NULL
                 : error_is_set(&job->err) ? error_message(&job->err)
                                           : "Operation canceled",
    };
}

/* --- the list --------------------------------------------------------------------------------- */

struct job *job_next(struct job *job)
{
    struct list *l = job ? job->link.next : all_jobs.next;

    return l == &all_jobs ? NULL : container_of(l, struct job, link);
}

struct job *job_previous(struct job *job)
{
    struct list *l = job ? job->link.prev : all_jobs.prev;

    return l == &all_jobs ? NULL : container_of(l, struct job, link);
}

struct job *job_find(const char *id)
{
    for (struct job *job = job_next(NULL); job; job = job_next(job)) {
        if (strcmp(job->id, id) == 0) {
            return job;
        }
    }
    return NULL;
}

void job_unref(struct job *job)
{
    if (--job->refs == 0) {
        error_clear(&job->err);
        free(job->state);
        free(job->id);
        free(job);
    }
}

void job_enlist(struct job *job)
{
    list_append(&all_jobs, &job->link);
}

void job_unlist(struct job *job)
{
    job_set_status(job, JOB_NULL);
    list_remove(&job->link);
    job_unref(job);
}

/* --- transactions ----------------------------------------------------------------------------- */

struct job_txn *job_txn_new(void)
{
    struct job_txn *txn = calloc(1, sizeof(*txn));

    if (txn) {
        txn->refs = 1;
        list_init(&txn->jobs);
    }
    return txn;
}

void job_txn_unref(struct job_txn *txn)
{
    if (txn && --txn->refs == 0) {
        free(txn);
    }
}

void job_leave_txn(struct job *job)
{
    if (job->txn) {
        list_remove(&job->txn_link);
        job_txn_unref(job->txn);
        job->txn = NULL;
    }
}
