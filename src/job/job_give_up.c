/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Jobs that were cancelled by force, and are held up by storage that does not answer.
 *
 * A server is left: when its connection is cut, no request can reach the image any more. A request
 * that the kernel has taken can't be called back: a write may still change the file, a read the
 * memory that it was given. If the job ended before, its filter would be gone and its images would
 * be free, for users to write to or delete; then a late write would put old data over new ones. So
 * the job stays, and says what it waits for.
 */
#include <errno.h>

#include "base/log.h"
#include "base/time_units.h"
#include "block/block.h"
#include "block/control_lock.h"
#include "job/job_internal.h"
#include "loop/loop.h"

/* A server has this long to answer something. */
#define GIVE_UP_NS (2500 * NS_PER_MS)
/* After this time a cancel is refused that can do no more than the one before. */
#define HELD_UP_NS (2 * GIVE_UP_NS)

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
    bool told = false;

    /* The lock is taken to give references back, whatever else hangs. */
    block_control_begin_scope(&scope);
    while (!give_up_is_over(job)) {
        struct block_node *node = job->driver->given_up ? job->driver->given_up(job->state) : NULL;
        ERROR_AUTO(err);

        if (!told && job_check_held_up(job, &err) < 0) {
            log_warning("%s", error_message(&err));
            told = true;
        }
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

int job_check_held_up(const struct job *job, struct error *err)
{
    const struct block_node *node = NULL;
    int64_t ns = loop_now_ns() - job->cancelled_ns;

    if (job->cancelled && !give_up_is_over(job) && ns >= HELD_UP_NS) {
        node = job_find_in_flight(job);
    }
    if (!node) {
        return 0;
    }
    error_set(err, EBUSY,
              "Job '%s' was cancelled %.0f s ago, and can't end yet: its storage has requests in "
              "flight to '%s', which can't be taken back",
              job->id, (double)ns / NS_PER_SECOND, block_node_display_name(node));
    error_hint(err, "It ends when they do; until then its images stay in use");
    return -EBUSY;
}

void job_begin_to_give_up(struct job *job)
{
    job->refs++;
    if (reactor_spawn(reactor_main(), co_give_up_job, job) < 0) {
        job_unref(job); /* it ends when the server answers */
    }
}
