/* SPDX-License-Identifier: Apache-2.0 */
/* The pool of threads for what would hold up a reactor. */
#include <pthread.h>
#include <unistd.h>

#include "loop/internal.h"

#define OFFLOAD_THREADS_MIN 4
#define OFFLOAD_THREADS_MAX 256

/* On the stack of the coroutine that waits. */
struct offload_job {
    struct list link;
    int (*fn)(void *arg);
    void *arg;
    int result;
    struct co *co;
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
        co_wake(job->co);
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

int loop_co_offload(int (*fn)(void *arg), void *arg)
{
    struct offload_job job = {.fn = fn, .arg = arg, .co = co_self()};
    bool taken;

    pthread_mutex_lock(&pool.lock);
    list_append(&pool.jobs, &job.link);
    pool.queued++;
    taken = have_thread_locked();
    if (!taken) {
        list_remove(&job.link);
        pool.queued--;
    }
    pthread_mutex_unlock(&pool.lock);
    if (!taken) {
        /* Not a single thread could be started. */
        return fn(arg);
    }
    co_suspend();
    return job.result;
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
