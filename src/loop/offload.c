/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A pool of threads for jobs that would delay a reactor.
 *
 * As many threads as there are processors (at least 4), or as were asked for, take jobs in turn.
 * Jobs may hang (a frozen file system, a server that does not answer) and keep all of these
 * threads. So one more thread stands by: when jobs are queued and none was taken for STUCK_NS, it
 * becomes a worker, and starts another thread that stands by. So the pool grows by one thread per
 * job that hangs. It shrinks when the usual number of threads is idle.
 */
#include <assert.h>
#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/debug.h"
#include "loop/internal.h"
#include "trace/events.h"

#define OFFLOAD_THREADS_MIN 4
#define OFFLOAD_THREADS_MAX 1024

#define STUCK_NS (20 * NS_PER_MS)
/* Once threads hang, the standby thread waits less, down to this. */
#define STUCK_MIN_NS (4 * NS_PER_MS)
/* How long the end of the pool waits for jobs that hang. */
#define STOP_SECONDS 1

/* The jobs that one coroutine waits for. It has them and this struct on its stack. */
struct offload_group {
    struct co *co;
    atomic_uint left;
};

struct offload_job {
    struct list link;
    int (*fn)(void *arg);
    void *arg;
    int result;
    unsigned ends; /* pool.ends, when the job was queued */
    struct offload_group *group;
};

static struct {
    /* guards all below */
    pthread_mutex_t lock;
    /* for idle threads: a job was queued, or `stopping` was set */
    pthread_cond_t work;
    /* for the standby thread: a job was queued while no thread was idle, or `stopping` was set */
    pthread_cond_t standby;
    /* a thread has ended */
    pthread_cond_t ended;
    /* of struct offload_job, oldest first */
    struct list jobs;
    /* jobs in the list */
    unsigned queued;
    /* threads that wait for `work` */
    unsigned idle;
    /* all threads */
    unsigned count;
    /* jobs taken out of the list so far */
    uint64_t taken;
    /* loop_offload_set_threads() */
    unsigned min, max;
    /* 0: not known yet */
    long processors;
    /* one of the threads stands by */
    bool has_standby;
    bool stopping;
    /* how often the pool has ended; set with the lock held */
    atomic_uint ends;
    /* last_ended has to be joined */
    bool has_ended;
    pthread_t last_ended;
} pool = {
    .lock = PTHREAD_MUTEX_INITIALIZER,
    .work = PTHREAD_COND_INITIALIZER,
    .standby = PTHREAD_COND_INITIALIZER,
    .ended = PTHREAD_COND_INITIALIZER,
    .jobs = LIST_INIT(pool.jobs),
};

static struct offload_job *take_job_locked(void)
{
    struct offload_job *job;

    MUTEX_ASSERT_HELD(&pool.lock);
    job = LIST_FIRST(&pool.jobs, struct offload_job, link);
    list_remove(&job->link);
    pool.queued--;
    pool.taken++;
    return job;
}

/* The usual number of workers. */
static unsigned thread_limit_locked(void)
{
    unsigned usual;

    MUTEX_ASSERT_HELD(&pool.lock);
    if (pool.processors == 0) { /* asked once: glibc reads a file in /sys */
        pool.processors = MAX(sysconf(_SC_NPROCESSORS_ONLN), 1);
    }
    usual = (unsigned)MIN(MAX(pool.processors, OFFLOAD_THREADS_MIN), OFFLOAD_THREADS_MAX / 2);
    usual = MAX(usual, MIN(pool.min, OFFLOAD_THREADS_MAX / 2));
    return pool.max ? MIN(usual, pool.max) : usual;
}

/* How many workers there are above the usual number: as many were hanging when they started. */
static unsigned excess_locked(void)
{
    unsigned workers;

    MUTEX_ASSERT_HELD(&pool.lock);
    workers = pool.count - pool.has_standby;
    return workers > thread_limit_locked() ? workers - thread_limit_locked() : 0;
}

/*
 * How long the standby thread waits. If one job hangs, others probably will, so it waits less then.
 */
static int64_t patience_ns_locked(void)
{
    MUTEX_ASSERT_HELD(&pool.lock);
    return MAX(STUCK_NS / (1 + excess_locked()), STUCK_MIN_NS);
}

/* Wait for a job and take it. NULL: the thread is to end. */
static struct offload_job *next_job_locked(void)
{
    MUTEX_ASSERT_HELD(&pool.lock);
    while (list_is_empty(&pool.jobs)) {
        if (pool.stopping || pool.idle >= thread_limit_locked()) {
            return NULL;
        }
        pool.idle++;
        pthread_cond_wait(&pool.work, &pool.lock);
        pool.idle--;
    }
    return take_job_locked();
}

/*
 * The last job wakes the coroutine. Then the group, which is on the coroutine's stack, may be gone.
 */
static void group_done(struct offload_group *group)
{
    struct co *co = group->co;

    if (atomic_fetch_sub(&group->left, 1) == 1) {
        co_wake(co);
    }
}

/* After the end of the pool nobody waits for a job, and the reactor may be gone. */
static void run_jobs_locked(void)
{
    struct offload_job *job;

    MUTEX_ASSERT_HELD(&pool.lock);
    while ((job = next_job_locked())) {
        pthread_mutex_unlock(&pool.lock);
        job->result = job->fn(job->arg);
        if (atomic_load(&pool.ends) == job->ends) {
            group_done(job->group);
        }
        pthread_mutex_lock(&pool.lock);
    }
}

/*
 * The thread ends; releases the lock. Each thread joins the one that ended before it, and the end
 * of the pool joins the last, so that no thread still exists after that.
 */
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

static int start_offload_thread(void *(*fn)(void *arg))
{
    pthread_t thread;

    return loop_thread_start(&thread, fn, NULL);
}

/* Wait for `cond`, at most for `ns`. */
static void wait_offload_locked(pthread_cond_t *cond, int64_t ns)
{
    struct timespec until = ns_to_timespec(loop_now_ns() + ns);

    MUTEX_ASSERT_HELD(&pool.lock);
    pthread_cond_clockwait(cond, &pool.lock, CLOCK_MONOTONIC, &until);
}

/* Wait until jobs are queued and none was taken for some time. False at the end of the pool. */
static bool stand_by_locked(void)
{
    MUTEX_ASSERT_HELD(&pool.lock);
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
            wait_offload_locked(&pool.standby, left);
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
    MUTEX_ASSERT_HELD(&pool.lock);
    if (!pool.has_standby && pool.count < OFFLOAD_THREADS_MAX &&
        start_offload_thread(standby_thread) == 0) {
        pool.has_standby = true;
        pool.count++;
    }
}

/* Wake or start a thread for the job that was queued. False: there is no thread at all. */
static bool have_thread_locked(void)
{
    MUTEX_ASSERT_HELD(&pool.lock);
    if (pool.queued <= pool.idle) {
        pthread_cond_signal(&pool.work);
        return true;
    }
    if (pool.count - pool.has_standby < thread_limit_locked()) {
        pool.count += start_offload_thread(offload_thread) == 0;
    } else {
        start_standby_locked();
        pthread_cond_signal(&pool.standby);
    }
    return pool.count > pool.has_standby;
}

/* False, and nothing is queued, if there is no thread and none can be started. */
static bool queue_job(struct offload_job *job)
{
    bool taken;

    pthread_mutex_lock(&pool.lock);
    job->ends = atomic_load(&pool.ends);
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

void loop_offload_set_threads(unsigned min, unsigned max)
{
    pthread_mutex_lock(&pool.lock);
    pool.min = min;
    pool.max = max;
    pthread_cond_broadcast(&pool.work); /* threads that are too many end */
    pthread_mutex_unlock(&pool.lock);
}

int loop_co_offload(int (*fn)(void *arg), void *arg)
{
    return loop_co_offload_all(fn, arg, 0, 1);
}

/* Neither changes while coroutines run. */
static bool program_may_block;
static bool main_is_serving;

void loop_set_may_block(bool may_block)
{
    program_may_block = may_block;
}

bool loop_may_block(void)
{
    return program_may_block;
}

void loop_set_serving(bool serving)
{
    main_is_serving = serving;
}

bool loop_is_serving(void)
{
    return main_is_serving;
}

int loop_co_brief(int (*fn)(void *arg), void *arg)
{
    return program_may_block ? fn(arg) : loop_co_offload(fn, arg);
}

/* The first negative result of two, else the first that is not 0. */
static int first_result(int before, int next)
{
    return before == 0 || (before > 0 && next < 0) ? next : before;
}

/*
 * In the calling coroutine: the run of a seeded reactor must not depend on the timing of threads.
 */
static int co_run_here(int (*fn)(void *arg), void *args, size_t size, unsigned count)
{
    int r = 0;

    co_reschedule();
    for (unsigned i = 0; i < count; i++) {
        r = first_result(r, fn((char *)args + i * size));
    }
    return r;
}

int loop_co_offload_all(int (*fn)(void *arg), void *args, size_t size, unsigned count)
{
    struct offload_job jobs[LOOP_OFFLOAD_ALL_MAX];
    struct offload_group group = {.co = co_self(), .left = count};
    struct co_wait wait;
    int r = 0;

    assert(count > 0 && count <= LOOP_OFFLOAD_ALL_MAX);
    if (reactor_current() && reactor_current()->random) {
        return co_run_here(fn, args, size, count);
    }
    if (reactor_current()) {
        counter_add(&reactor_current()->stats[REACTOR_STAT_OFFLOADED], count);
    }
    if (trace_loop_offload_begin_is_on()) {
        pthread_mutex_lock(&pool.lock);
        trace_loop_offload_begin(count, pool.queued);
        pthread_mutex_unlock(&pool.lock);
    }
    for (unsigned i = 0; i < count; i++) {
        jobs[i] = (struct offload_job){.fn = fn, .arg = (char *)args + i * size, .group = &group};
        if (!queue_job(&jobs[i])) {
            jobs[i].result = fn(jobs[i].arg);
            group_done(&group);
        }
    }
    co_wait_begin(&wait, "a thread of the pool", NULL, -1);
    co_suspend();
    co_wait_end(&wait);
    for (unsigned i = 0; i < count; i++) {
        r = first_result(r, jobs[i].result);
    }
    trace_loop_offload_end(count, r);
    return r;
}

/* A thread that hangs ends when its call returns, or with the process. */
void loop_offload_stop(void)
{
    int64_t until = loop_now_ns() + STOP_SECONDS * NS_PER_SECOND;
    pthread_t last;
    bool has_last;

    pthread_mutex_lock(&pool.lock);
    pool.stopping = true;
    atomic_fetch_add(&pool.ends, 1);
    pthread_cond_broadcast(&pool.work);
    pthread_cond_broadcast(&pool.standby);
    while (pool.count > 0 && loop_now_ns() < until) {
        wait_offload_locked(&pool.ended, until - loop_now_ns());
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
