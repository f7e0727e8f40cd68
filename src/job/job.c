/* SPDX-License-Identifier: Apache-2.0 */
/* Making jobs, their coroutine, the end of all. */
#include "job/job.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "block/block.h"
#include "block/control_lock.h"
#include "co/co.h"
#include "job/job_internal.h"
#include "loop/loop.h"

#define ID_MAX 255

static bool no_new_jobs;

/* --- life ------------------------------------------------------------------------------------- */

static void co_do_job(struct job *job)
{
    int r = job->driver->co_run(job, job->state, &job->err);

    block_co_control_lock();
    job->running = false;
    job_co_work_done(job, r);
    block_control_unlock();
}

/* The coroutine of a job, from before its start until its work is done. */
static void co_job_main(void *arg)
{
    struct job *job = arg;
    struct job_scope scope;

    job->starter = co_self();
    co_suspend();
    job->starter = NULL;
    if (!job->discarded) {
        job->running = true;
        job_begin_scope(&scope, job);
        co_do_job(job);
        job_end_scope(&scope);
    }
    job_unref(job);
}

static bool job_id_is_wellformed(const char *id)
{
    size_t len = strlen(id);

    if (!isalpha((unsigned char)id[0]) || len > ID_MAX) {
        return false;
    }
    for (size_t i = 1; i < len; i++) {
        if (!isalnum((unsigned char)id[i]) && !strchr("-._", id[i])) {
            return false;
        }
    }
    return true;
}

static int check_new_id(const char *id, struct error *err)
{
    if (no_new_jobs) {
        return error_set(err, ESHUTDOWN, "The daemon is shutting down");
    }
    if (!id) {
        return error_set(err, EINVAL, "Invalid job ID ''");
    }
    if (!job_id_is_wellformed(id)) {
        return error_set(err, EINVAL, "Invalid job ID '%s'", id);
    }
    if (job_find(id)) {
        return error_set(err, EEXIST, "Job ID '%s' already in use", id);
    }
    return 0;
}

static struct job *alloc_job(const struct job_driver *driver, const struct job_config *config)
{
    struct job *job = calloc(1, sizeof(*job));

    if (!job) {
        return NULL;
    }
    job->refs = 1;
    job->driver = driver;
    job->id = strdup(config->id);
    job->state = calloc(1, driver->state_size ? driver->state_size : 1);
    job->auto_finalize = config->auto_finalize;
    job->auto_dismiss = config->auto_dismiss;
    job->pacer = (struct pacer){.rate = config->speed};
    list_init(&job->link);
    list_init(&job->txn_link);
    list_init(&job->sleepers);
    list_init(&job->nodes);
    if (!job->id || !job->state) {
        job_unref(job);
        return NULL;
    }
    return job;
}

/* As in QEMU, where the speed is set last, a job with a speed that is wrong has been seen. */
static int check_first_speed(const struct job_driver *driver, const struct job_config *config,
                             struct error *err)
{
    struct job *job;

    if (config->speed <= INT64_MAX) {
        return 0;
    }
    job = alloc_job(driver, config);
    if (!job) {
        return error_out_of_memory(err);
    }
    job_enlist(job);
    job_set_status(job, JOB_CREATED);
    job_unlist(job);
    return error_set(err, EINVAL, "Parameter 'speed' expects a non-negative value");
}

int job_new(const struct job_driver *driver, const struct job_config *config, struct job **ret_job,
            struct error *err)
{
    struct job_txn *txn;
    struct job *job;
    int r = check_new_id(config->id, err);

    UNLESS_FAILED(r, check_first_speed(driver, config, err));
    if (r < 0) {
        return r;
    }
    job = alloc_job(driver, config);
    txn = config->txn ?: job_txn_new();
    if (!job || !txn) {
        goto no_memory;
    }
    r = co_run(reactor_home(reactor_main()), co_job_main, job);
    if (r < 0) {
        error_set_errno(err, -r, "Job '%s' cannot be started", config->id);
        goto fail;
    }
    job->refs++;
    job->txn = txn;
    txn->refs += config->txn != NULL;
    list_append(&txn->jobs, &job->txn_link);
    job_enlist(job);
    job_set_status(job, JOB_CREATED);
    *ret_job = job;
    return 0;

no_memory:
    r = error_out_of_memory(err);
fail:
    if (!config->txn) {
        job_txn_unref(txn);
    }
    if (job) {
        job_unref(job);
    }
    return r;
}

void job_start(struct job *job)
{
    job_set_status(job, JOB_RUNNING);
    co_wake(job->starter);
}

void job_start_drained(struct job *job)
{
    job_set_status(job, JOB_RUNNING);
    job_set_status(job, JOB_PAUSED);
}

void job_end_drained_start(struct job *job)
{
    job_start(job);
}

static void co_discard_job(struct job *job, bool shows_states)
{
    job->discarded = true;
    if (shows_states) {
        job_set_status(job, JOB_ABORTING);
    }
    if (job->driver->co_abort) {
        job->driver->co_abort(job, job->state);
    }
    if (job->driver->co_clean) {
        job->driver->co_clean(job, job->state);
    }
    job_co_release_nodes(job);
    job_leave_txn(job);
    if (shows_states) {
        job_set_status(job, JOB_CONCLUDED);
    }
    co_wake(job->starter);
    job_unlist(job);
}

void job_co_discard(struct job *job)
{
    co_discard_job(job, false);
}

void job_co_undo(struct job *job)
{
    co_discard_job(job, true);
}

void *job_state(struct job *job)
{
    return job->state;
}

const char *job_type(const struct job *job)
{
    return job->driver->type;
}

const char *job_id(const struct job *job)
{
    return job->id;
}

size_t job_count_unfinished(void)
{
    size_t count = 0;

    for (struct job *job = job_next(NULL); job; job = job_next(job)) {
        count += job->status < JOB_CONCLUDED;
    }
    return count;
}

/* The control lock may be held by something that hangs, and so may what a cancel does. */
static void co_cancel_each(void *arg)
{
    struct job *job;

    block_co_control_lock();
    job = job_next(NULL);
    while (job) {
        struct job *next = job_next(job);

        /*
         * A conclusion may end jobs of the same transaction: begin again after one. Jobs that are
         * being concluded, or that end with one of their transaction, can't be cancelled any more.
         */
        if (job->status < JOB_ABORTING && !job->cancelled && !job->txn->aborting &&
            job_co_cancel_within(job, true, 0, NULL) == 0) {
            next = job_next(NULL);
        }
        job = next;
    }
    block_control_unlock();
}

bool job_co_cancel_all(void)
{
    static int64_t give_up_ns;
    size_t left = job_count_unfinished(), now;

    if (!no_new_jobs) {
        no_new_jobs = true;
        give_up_ns = loop_now_ns() + JOB_PATIENCE_MS * NS_PER_MS;
        if (reactor_spawn(reactor_main(), co_cancel_each, NULL) < 0) {
            co_cancel_each(NULL);
        }
    }
    while ((now = job_count_unfinished()) > 0 && loop_now_ns() < give_up_ns) {
        if (now < left) {
            left = now;
            give_up_ns = loop_now_ns() + JOB_PATIENCE_MS * NS_PER_MS;
        }
        loop_co_sleep(NS_PER_MS);
    }
    return now == 0;
}
