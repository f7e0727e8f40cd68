/* SPDX-License-Identifier: Apache-2.0 */
/* The pool of threads for what would hold up a reactor. */
#include <assert.h>
#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

#include "loop/internal.h"

#define OFFLOAD_THREADS_MIN 4
#define OFFLOAD_THREADS_MAX 256

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
    pthread_mutex_t lock; /* guards all below */
    pthread_cond_t work;  /* a job was queued, or stopping was set */
    struct list jobs;     /* oldest first */
    unsigned queued;      /* jobs in the list */
    unsigned idle;        /* threads that wait for work */
    unsigned count;
    bool stopping;
    pthread_t threads[OFFLOAD_THREADS_MAX];
} pool = {
    .lock = PTHREAD_MUTEX_INITIALIZER,
    .work = PTHREAD_COND_INITIALIZER,
    .jobs = LIST_INIT(pool.jobs),
};

static struct offload_job *next_job_locked(void)
{
    struct offload_job *job;

    while (list_is_empty(&pool.jobs)) {
        if (pool.stopping) {
            return NULL;
        }
        pool.idle++;
        pthread_cond_wait(&pool.work, &pool.lock);
        pool.idle--;
    }
    job = LIST_FIRST(&pool.jobs, struct offload_job, link);
    list_remove(&job->link);
    pool.queued--;
    return job;
}

/* The last one that ends wakes the coroutine; what is on its stack may be gone then. */
static void group_done(struct offload_group *group)
{
    struct co *co = group->co;

    if (atomic_fetch_sub(&group->left, 1) == 1) {
        co_wake(co);
    }
}

static void *offload_thread(void *arg)
{
    pthread_setname_np(pthread_self(), "offload");
    pthread_mutex_lock(&pool.lock);
    for (;;) {
        struct offload_job *job = next_job_locked();

        if (!job) {
            break;
        }
        pthread_mutex_unlock(&pool.lock);
        job->result = job->fn(job->arg);
        group_done(job->group);
        pthread_mutex_lock(&pool.lock);
    }
    pthread_mutex_unlock(&pool.lock);
    return arg;
}

static unsigned thread_limit(void)
{
    long processors = sysconf(_SC_NPROCESSORS_ONLN);

    if (processors < OFFLOAD_THREADS_MIN) {
        return OFFLOAD_THREADS_MIN;
    }
    return processors > OFFLOAD_THREADS_MAX ? OFFLOAD_THREADS_MAX : (unsigned)processors;
}

/* Whether a thread will take what was queued. */
static bool have_thread_locked(void)
{
    if (pool.queued <= pool.idle) {
        pthread_cond_signal(&pool.work);
        return true;
    }
    if (pool.count < thread_limit() &&
        loop_thread_start(&pool.threads[pool.count], offload_thread, NULL) == 0) {
        pool.count++;
    }
    return pool.count > 0;
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
        int r = fn((char *)args + i * size);

        result = result == 0 || (result > 0 && r < 0) ? r : result;
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

void loop_offload_stop(void)
{
    pthread_mutex_lock(&pool.lock);
    pool.stopping = true;
    pthread_cond_broadcast(&pool.work);
    pthread_mutex_unlock(&pool.lock);
    for (unsigned i = 0; i < pool.count; i++) {
        pthread_join(pool.threads[i], NULL);
    }
    pool.count = 0;
    pool.stopping = false;
}
