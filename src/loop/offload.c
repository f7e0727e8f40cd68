/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The pool of threads for what would hold up a reactor.
 *
 * As many threads as there are processors (at least 4) take jobs in turn. Jobs may hang (a frozen file system, a server
 * that is gone), and could keep all of them. So one more thread stands by: when there are jobs and none was
 * taken for STUCK_NS, it becomes one of them, and starts another to stand by. The pool grows by what hangs, and
 * shrinks when the usual number is idle.
 */
#include <assert.h>
#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

#include "base/checked.h"
#include "loop/internal.h"

#define OFFLOAD_THREADS_MIN 4
#define OFFLOAD_THREADS_MAX 1024

#define STUCK_NS INT64_C(20000000)
#define STUCK_MIN_NS INT64_C(4000000)
/* How long to wait at the end for what hangs. */
#define STOP_SECONDS 1

/* Jobs that a coroutine waits for; on its stack, as they are. */
struct offload_group {
    struct co *co;
    atomic_uint left;
};

struct offload_job {
    struct list link;
    int (*fn)(void *arg);
    void *arg;
    int result;
    struct offload_group *group;
};

static struct {
    pthread_mutex_t lock;   /* guards all below */
    pthread_cond_t work;    /* a job was queued, or stopping was set */
    pthread_cond_t standby; /* likewise, while nobody is idle */
    pthread_cond_t ended;   /* a thread did */
    struct list jobs;       /* oldest first */
    unsigned queued;        /* jobs in the list */
    unsigned idle;          /* threads that wait for work */
    unsigned count;         /* threads */
    uint64_t taken;         /* jobs that were */
    bool has_standby;
    bool stopping;
    bool has_ended;
    pthread_t last_ended; /* to be joined, if has_ended */
} pool = {
    .lock = PTHREAD_MUTEX_INITIALIZER,
    .work = PTHREAD_COND_INITIALIZER,
    .standby = PTHREAD_COND_INITIALIZER,
    .ended = PTHREAD_COND_INITIALIZER,
    .jobs = LIST_INIT(pool.jobs),
};

static struct offload_job *take_job_locked(void)
{
    struct offload_job *job = LIST_FIRST(&pool.jobs, struct offload_job, link);

    list_remove(&job->link);
    pool.queued--;
    pool.taken++;
    return job;
}

static unsigned thread_limit(void)
{
    long processors = sysconf(_SC_NPROCESSORS_ONLN);

    return (unsigned)MIN(MAX(processors, OFFLOAD_THREADS_MIN), OFFLOAD_THREADS_MAX / 2);
}

/* Those that take jobs, beyond the usual number: others hung when they came. */
static unsigned excess_locked(void)
{
    unsigned workers = pool.count - pool.has_standby;

    return workers > thread_limit() ? workers - thread_limit() : 0;
}

/* What hangs comes in numbers: the second thread that is needed comes sooner. */
static int64_t patience_ns_locked(void)
{
    return MAX(STUCK_NS / (1 + excess_locked()), STUCK_MIN_NS);
}

/* NULL when the thread is to end. */
static struct offload_job *next_job_locked(void)
{
    while (list_is_empty(&pool.jobs)) {
        if (pool.stopping || pool.idle >= thread_limit()) {
            return NULL;
        }
        pool.idle++;
        pthread_cond_wait(&pool.work, &pool.lock);
        pool.idle--;
    }
    return take_job_locked();
}

/* The last one that ends wakes the coroutine; what is on its stack may be gone then. */
static void group_done(struct offload_group *group)
{
    struct co *co = group->co;

    if (atomic_fetch_sub(&group->left, 1) == 1) {
        co_wake(co);
    }
}

static void run_jobs_locked(void)
{
    struct offload_job *job;

    while ((job = next_job_locked())) {
        pthread_mutex_unlock(&pool.lock);
        job->result = job->fn(job->arg);
        group_done(job->group);
        pthread_mutex_lock(&pool.lock);
    }
}

/* Each thread joins the one that ended before it, and the end of the pool the last: so none is there that is not quite gone. */
static void end_thread_release(void)
{
    pthread_t before = pool.last_ended;
    bool has_before = pool.has_ended;

    pool.last_ended = pthread_self();
    pool.has_ended = true;
    pool.count--;
    pthread_cond_broadcast(&pool.ended);
    pthread_mutex_unlock(&pool.lock);
    if (has_before) {
        pthread_join(before, NULL);
    }
}

static void *offload_thread(void *arg)
{
    pthread_setname_np(pthread_self(), "offload");
    pthread_mutex_lock(&pool.lock);
    run_jobs_locked();
    end_thread_release();
    return arg;
}

static int start_thread(void *(*fn)(void *arg))
{
    pthread_t thread;

    return loop_thread_start(&thread, fn, NULL);
}

/* Wait on `cond` for so long. */
static void wait_locked(pthread_cond_t *cond, int64_t ns)
{
    int64_t until = loop_now_ns() + ns;
    struct timespec ts = ns_to_timespec(until);

    pthread_cond_clockwait(cond, &pool.lock, CLOCK_MONOTONIC, &ts);
}

/* Wait until jobs are queued and none is taken for a while. False at the end of the pool. */
static bool stand_by_locked(void)
{
    while (!pool.stopping) {
        int64_t until = loop_now_ns() + patience_ns_locked();
        uint64_t taken = pool.taken;

        if (pool.queued == 0) {
            pthread_cond_wait(&pool.standby, &pool.lock);
            continue;
        }
        while (pool.queued > 0 && pool.taken == taken && !pool.stopping) {
            int64_t left = until - loop_now_ns();

            if (left <= 0) {
                return true;
            }
            wait_locked(&pool.standby, left);
        }
    }
    return false;
}

static void start_standby_locked(void);

static void *standby_thread(void *arg)
{
    bool wanted;

    pthread_setname_np(pthread_self(), "offload");
    pthread_mutex_lock(&pool.lock);
    wanted = stand_by_locked();
    pool.has_standby = false;
    if (wanted) {
        start_standby_locked();
        run_jobs_locked();
    }
    end_thread_release();
    return arg;
}

static void start_standby_locked(void)
{
    if (!pool.has_standby && pool.count < OFFLOAD_THREADS_MAX &&
        start_thread(standby_thread) == 0) {
        pool.has_standby = true;
        pool.count++;
    }
}

/* Whether a thread will take what was queued. */
static bool have_thread_locked(void)
{
    if (pool.queued <= pool.idle) {
        pthread_cond_signal(&pool.work);
        return true;
    }
    if (pool.count - pool.has_standby < thread_limit()) {
        pool.count += start_thread(offload_thread) == 0;
    } else {
        start_standby_locked();
        pthread_cond_signal(&pool.standby);
    }
    return pool.count > pool.has_standby;
}

/* False if not a single thread could be started. */
static bool queue_job(struct offload_job *job)
{
    bool taken;

    pthread_mutex_lock(&pool.lock);
    list_append(&pool.jobs, &job->link);
    pool.queued++;
    taken = have_thread_locked();
    if (!taken) {
        list_remove(&job->link);
        pool.queued--;
    }
    pthread_mutex_unlock(&pool.lock);
    return taken;
}

int loop_co_offload(int (*fn)(void *arg), void *arg)
{
    return loop_co_offload_all(fn, arg, 0, 1);
}

static bool patient; /* does not change while coroutines run */

void loop_set_patient(bool value)
{
    patient = value;
}

bool loop_is_patient(void)
{
    return patient;
}

static bool serving; /* likewise */

void loop_set_serving(bool value)
{
    serving = value;
}

bool loop_is_serving(void)
{
    return serving;
}

int loop_co_brief(int (*fn)(void *arg), void *arg)
{
    return patient ? fn(arg) : loop_co_offload(fn, arg);
}

/* A seeded reactor can be repeated only if nothing depends on how threads run. */
static int run_here(int (*fn)(void *arg), void *args, size_t size, unsigned count)
{
    int result = 0;

    co_reschedule();
    for (unsigned i = 0; i < count; i++) {
        int one = fn((char *)args + i * size);

        result = result == 0 || (result > 0 && one < 0) ? one : result;
    }
    return result;
}

int loop_co_offload_all(int (*fn)(void *arg), void *args, size_t size, unsigned count)
{
    struct offload_job jobs[LOOP_OFFLOAD_ALL_MAX];
    struct offload_group group = {.co = co_self(), .left = count};
    int result = 0;

    assert(count > 0 && count <= LOOP_OFFLOAD_ALL_MAX);
    if (reactor_current() && reactor_current()->random) {
        return run_here(fn, args, size, count);
    }
    if (reactor_current()) {
        counter_add(&reactor_current()->stats[REACTOR_STAT_OFFLOADED], count);
    }
    for (unsigned i = 0; i < count; i++) {
        jobs[i] = (struct offload_job){.fn = fn, .arg = (char *)args + i * size, .group = &group};
        if (!queue_job(&jobs[i])) {
            jobs[i].result = fn(jobs[i].arg);
            group_done(&group);
        }
    }
    co_suspend();
    for (unsigned i = 0; i < count; i++) {
        result = result == 0 || (result > 0 && jobs[i].result < 0) ? jobs[i].result : result;
    }
    return result;
}

/* A thread that hangs is left behind: it ends when it can, or with the process. */
void loop_offload_stop(void)
{
    int64_t until = loop_now_ns() + STOP_SECONDS * NS_PER_SECOND;
    pthread_t last;
    bool has_last;

    pthread_mutex_lock(&pool.lock);
    pool.stopping = true;
    pthread_cond_broadcast(&pool.work);
    pthread_cond_broadcast(&pool.standby);
    while (pool.count > 0 && loop_now_ns() < until) {
        wait_locked(&pool.ended, until - loop_now_ns());
    }
    pool.stopping = false;
    has_last = pool.has_ended;
    last = pool.last_ended;
    pool.has_ended = false;
    pthread_mutex_unlock(&pool.lock);
    if (has_last) {
        pthread_join(last, NULL);
    }
}
