/* SPDX-License-Identifier: Apache-2.0 */
/* What drivers call while they work: pauses, sleeps, the speed limit, progress, errors. */
#include <errno.h>

#include "base/time_units.h"
#include "co/co.h"
#include "job/job_internal.h"
#include "loop/loop.h"

/* Between two events of errors that are ignored. */
#define ERROR_EVENT_NS (100 * NS_PER_MS)

struct job_sleeper {
    struct list link; /* in job->sleepers while it sleeps */
    struct loop_timer timer;
    struct co *co;
};

bool job_is_cancelled(const struct job *job)
{
    return job->cancelled;
}

bool job_begin_last_step(struct job *job)
{
    job->last_step = !job->cancelled;
    return job->last_step;
}

bool job_should_stop(const struct job *job)
{
    return job->cancelled || job->user_paused;
}

/* --- sleeping --------------------------------------------------------------------------------- */

/* On the main reactor, as everything here: no lock. */
static void end_sleep(struct job_sleeper *s)
{
    list_remove(&s->link);
    loop_timer_disarm(&s->timer);
    co_wake(s->co);
}

static void sleep_is_over(struct loop_timer *timer)
{
    end_sleep(container_of(timer, struct job_sleeper, timer));
}

void job_co_sleep(struct job *job, int64_t ns)
{
    struct job_sleeper s = {.co = co_self()};

    loop_timer_init(&s.timer, sleep_is_over);
    list_append(&job->sleepers, &s.link);
    if (ns >= 0) {
        loop_timer_arm(&s.timer, loop_now_ns() + ns);
    }
    co_suspend();
}

void job_wake(struct job *job)
{
    while (!list_is_empty(&job->sleepers)) {
        end_sleep(LIST_FIRST(&job->sleepers, struct job_sleeper, link));
    }
}

void job_leave_pause(struct job *job)
{
    if (job->status == JOB_PAUSED || job->status == JOB_STANDBY) {
        job_set_status(job, job->status == JOB_STANDBY ? JOB_READY : JOB_RUNNING);
    }
}

int job_co_pause_point(struct job *job)
{
    if (job_is_cancelled(job)) {
        return -ECANCELED;
    }
    if (!job->user_paused) {
        return 0;
    }
    job_set_status(job, job->status == JOB_READY ? JOB_STANDBY : JOB_PAUSED);
    while (job_should_stop(job) && !job_is_cancelled(job)) {
        job_co_sleep(job, -1);
    }
    job_leave_pause(job);
    return job_is_cancelled(job) ? -ECANCELED : 0;
}

/* --- speed ------------------------------------------------------------------------------------ */

uint64_t job_speed(const struct job *job)
{
    return job->pacer.rate;
}

bool job_co_pace(struct job *job, uint64_t bytes)
{
    struct pacer before = job->pacer;
    int64_t end = loop_now_ns();

    end += pacer_take(&job->pacer, bytes, end);
    while (loop_now_ns() < end && before.rate == job->pacer.rate) {
        if (job_should_stop(job)) {
            job->pacer = before;
            return false;
        }
        job_co_sleep(job, end - loop_now_ns());
    }
    return true;
}

void job_pace_after(struct job *job, uint64_t bytes)
{
    (void)pacer_take(&job->pacer, bytes, loop_now_ns());
}

/* --- progress --------------------------------------------------------------------------------- */

void job_progress_add(struct job *job, uint64_t bytes)
{
    job->current += bytes;
    if (job->current > job->total) {
        job->total = job->current;
    }
}

void job_progress_set_total(struct job *job, uint64_t bytes)
{
    job->total = bytes < job->current ? job->current : bytes;
}

void job_set_ready(struct job *job)
{
    job_set_status(job, JOB_READY);
    job_emit(job, JOB_EVENT_READY);
}

/* --- errors ----------------------------------------------------------------------------------- */

static enum job_error_action choose_action(const struct job *job, enum job_on_error policy, int r)
{
    if (job->cancelled || job->soft_cancelled) {
        return JOB_ERROR_FAIL;
    }
    switch (policy) {
    case JOB_ON_ERROR_IGNORE:
        return JOB_ERROR_RETRY;
    case JOB_ON_ERROR_STOP:
        return JOB_ERROR_PAUSE;
    case JOB_ON_ERROR_ENOSPC:
        return r == -ENOSPC ? JOB_ERROR_PAUSE : JOB_ERROR_FAIL;
    default:
        return JOB_ERROR_FAIL;
    }
}

enum job_error_action job_handle_error(struct job *job, enum job_on_error policy, bool reading,
                                       int r)
{
    static const char *const names[] = {"report", "ignore", "stop"};
    enum job_error_action action = choose_action(job, policy, r);
    int64_t now = loop_now_ns();

    if (action == JOB_ERROR_PAUSE) {
        job->user_paused = true;
        if (job->io_status == JOB_IO_OK) {
            job->io_status = r == -ENOSPC ? JOB_IO_NOSPACE : JOB_IO_FAILED;
        }
    }
    if (action != JOB_ERROR_RETRY || now >= job->next_error_event_ns) {
        job->next_error_event_ns = now + ERROR_EVENT_NS;
        job_emit_error(job, reading, names[action]);
    }
    return action;
}
