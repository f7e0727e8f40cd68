/* SPDX-License-Identifier: Apache-2.0 */
/* Jobs that were cancelled by force, and are held up by a server that does not answer. */
#include "base/time_units.h"
#include "block/block.h"
#include "block/control_lock.h"
#include "job/job_internal.h"
#include "loop/loop.h"

/* A server has this long to answer something. */
#define GIVE_UP_NS (2500 * NS_PER_MS)

static bool give_up_is_over(const struct job *job)
{
    return job->status >= JOB_CONCLUDED;
}

/* Others wake the job meanwhile. */
static void co_wait_for_answers(struct job *job)
{
    int64_t end = loop_now_ns() + GIVE_UP_NS;

    while (!give_up_is_over(job) && loop_now_ns() < end) {
        job_co_sleep(job, end - loop_now_ns());
    }
}

/* The requests that hold up the job are made by itself, or by guests whose writes it follows. */
static void co_give_up_job(void *arg)
{
    struct block_control_scope scope = {.keeps_graph = true};
    struct job *job = arg;

    /* The lock is taken to give references back, whatever else hangs. */
    block_control_begin_scope(&scope);
    while (!give_up_is_over(job)) {
        struct block_node *node = job->driver->given_up(job->state);

        if (node) {
            block_node_ref(node);
            block_co_give_up(node);
            block_co_control_lock();
            block_co_unref(node);
            block_control_unlock();
        }
        co_wait_for_answers(job);
    }
    block_control_end_scope(&scope);
    job_unref(job);
}

void job_begin_to_give_up(struct job *job)
{
    if (!job->driver->given_up) {
        return;
    }
    job->refs++;
    if (reactor_spawn(reactor_main(), co_give_up_job, job) < 0) {
        job_unref(job); /* it ends when the server answers */
    }
}
