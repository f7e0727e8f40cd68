/* SPDX-License-Identifier: Apache-2.0 */
/* Stopping the guests of a mirror job, whose writes may wait for a target that hangs. */
#include "base/checked.h"
#include "base/time_units.h"
#include "block/block.h"
#include "job/mirror_internal.h"
#include "loop/loop.h"

/* For how long guests are stopped at a time while requests in flight do not end. */
#define FIRST_ATTEMPT_NS (250 * NS_PER_MS)
#define LAST_ATTEMPT_NS (4 * NS_PER_SECOND)
/* How often the job looks whether writes that follow have ended. */
#define FOLLOWERS_NS NS_PER_MS

void mirror_let_guests_go(struct mirror *s)
{
    bool record = s->bitmap_taken && s->params.bitmap_mode == MIRROR_BITMAP_ALWAYS;

    mirror_top_set_mode(s->top, record ? MIRROR_TOP_BACKGROUND : MIRROR_TOP_OFF);
}

bool mirror_is_cancelled(const void *mirror)
{
    return job_is_cancelled(((const struct mirror *)mirror)->job);
}

/* An attempt to stop guests. */
struct attempt {
    const struct mirror *s;
    int64_t until_ns;
};

static bool is_attempt_over(const void *attempt)
{
    const struct attempt *a = attempt;

    return mirror_is_cancelled(a->s) || loop_now_ns() >= a->until_ns;
}

/* What is drained: nodes, or the source except for the root of the job. */
struct to_drain {
    struct block_node *const *nodes;
    size_t count;
    struct block_drain *but; /* NULL: the nodes */
};

static bool co_attempt_to_drain(struct mirror *s, const struct to_drain *d, int64_t ns)
{
    struct attempt attempt = {.s = s, .until_ns = loop_now_ns() + ns};

    return d->but ? block_co_drain_begin_but_unless(d->but, s->params.source, s->root,
                                                    is_attempt_over, &attempt)
                  : block_co_drain_begin_unless(d->nodes, d->count, is_attempt_over, &attempt);
}

/*
 * Wait until guests' writes have ended that follow now, or the job is cancelled: so the target
 * answers. Guests go on meanwhile.
 */
static void co_wait_for_answers_of_target(struct mirror *s)
{
    mirror_top_begin_turn(s->top);
    while (mirror_top_is_following_older(s->top) && !mirror_is_cancelled(s)) {
        job_co_sleep(s->job, FOLLOWERS_NS);
    }
}

/*
 * Drain, in attempts that grow longer, between which guests go on for as long: a write of one may
 * wait for a target that hangs, and the others would wait for that. While the target answers
 * nothing there is no attempt. False: the job was cancelled, and nothing is drained.
 */
static bool co_stop_guests_of(struct mirror *s, const struct to_drain *d)
{
    int64_t ns = FIRST_ATTEMPT_NS;

    for (;;) {
        co_wait_for_answers_of_target(s);
        if (mirror_is_cancelled(s)) {
            return false;
        }
        if (co_attempt_to_drain(s, d, ns)) {
            return true;
        }
        if (!mirror_is_cancelled(s)) { /* nothing would end the sleep */
            job_co_sleep(s->job, ns);
        }
        ns = MIN(2 * ns, LAST_ATTEMPT_NS);
    }
}

bool mirror_co_stop_nodes(struct mirror *s, struct block_node *const *nodes, size_t count)
{
    return co_stop_guests_of(s, &(struct to_drain){.nodes = nodes, .count = count});
}

bool mirror_co_stop_guests(struct mirror *s)
{
    return mirror_co_stop_nodes(s, &s->filter, 1);
}

bool mirror_co_stop_others(struct mirror *s, struct block_drain *drain)
{
    return co_stop_guests_of(s, &(struct to_drain){.but = drain});
}
