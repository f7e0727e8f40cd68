/* SPDX-License-Identifier: Apache-2.0 */
/* Flushing the target of a mirror job. */
#include "base/time_units.h"
#include "co/co.h"
#include "job/mirror_internal.h"

#define RETRY_NS (100 * NS_PER_MS)

int mirror_co_flush_target(void *mirror)
{
    struct mirror *s = mirror;

    return mirror_top_co_flush_target(s->top, block_root_edge(s->root));
}

/* A server, or a disk behind a file system, may report once that it could not write, and forget. */
static void co_send_again(struct mirror *s)
{
    struct dirty_bitmap *todo = mirror_top_todo(s->top);

    if (!mirror_co_stop_guests(s)) { /* what guests have in flight counts as sent */
        return;
    }
    if (dirty_bitmap_merge(todo, mirror_top_sent(s->top)) < 0) {
        dirty_bitmap_set(todo, 0, dirty_bitmap_size(todo));
    }
    s->doubtful = false;
    block_drain_end(s->filter);
}

int mirror_co_flush_or_fail(struct mirror *s)
{
    for (;;) {
        int r = flush_behind_co_flush(&s->flushes);

        if (r == 0 && !s->doubtful) {
            return 0;
        }
        if (r == 0) {
            co_send_again(s);
            return 1;
        }
        s->doubtful = s->restart.doubtful = true;
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
