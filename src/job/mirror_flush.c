/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Flushing the target of a mirror job. While the job copies, the target is flushed now and then, so
 * that its disk works at the same time, and the flush before the job is ready is short.
 */
#include "base/checked.h"
#include "base/time_units.h"
#include "co/co.h"
#include "job/mirror_internal.h"

/* Bytes that are written between two flushes. */
#define FLUSH_BEHIND (64 * MiB)
#define RETRY_NS (100 * NS_PER_MS)

/* --- before something depends on it ----------------------------------------------------------- */

int mirror_co_flush_target(struct mirror *s)
{
    struct block_edge *edge = block_root_edge(s->root);
    int r;

    block_co_edge_enter(edge);
    r = block_co_flush(mirror_top_target(s->top));
    block_edge_leave(edge);
    return r;
}

int mirror_co_flush_or_fail(struct mirror *s)
{
    for (;;) {
        int r = s->flush_error;

        s->flush_error = 0;
        UNLESS_FAILED(r, mirror_co_flush_target(s));
        if (r == 0) {
            return 0;
        }
        s->restart.doubtful = true;
        switch (job_handle_error(s->job, s->params.on_target_error, false, r)) {
        case JOB_ERROR_FAIL:
            return r;
        case JOB_ERROR_RETRY:
            job_co_sleep(s->job, RETRY_NS);
            break;
        case JOB_ERROR_PAUSE:
            break;
        }
        r = job_co_pause_point(s->job);
        if (r < 0) {
            return r;
        }
    }
}

/* --- while the job copies --------------------------------------------------------------------- */

static void co_flush_behind(void *arg)
{
    struct mirror *s = arg;
    int r = mirror_co_flush_target(s);

    /* An error may be reported once only: mirror_co_flush_or_fail() looks at it. */
    s->flush_error = s->flush_error ?: r;
    s->flushing = false;
    co_group_done(&s->flushes);
}

void mirror_note_written(struct mirror *s, uint64_t bytes)
{
    s->unflushed += bytes;
    if (s->flushing || s->unflushed < FLUSH_BEHIND) {
        return;
    }
    s->unflushed = 0;
    s->flushing = true;
    co_group_add(&s->flushes);
    if (co_spawn(co_get_home(co_self()), co_flush_behind, s) < 0) {
        s->flushing = false;
        co_group_done(&s->flushes);
    }
}
