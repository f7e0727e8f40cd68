/* SPDX-License-Identifier: Apache-2.0 */
#include "job/flush_behind.h"

#include <errno.h>

#include "base/checked.h"
#include "base/error.h"
#include "base/time_units.h"
#include "co/co.h"

/* Bytes that are written between two flushes. */
#define FLUSH_DISTANCE (64 * MiB)
/* Before a flush is tried again. */
#define RETRY_NS (100 * NS_PER_MS)

void flush_behind_init(struct flush_behind *f, int (*co_flush)(void *arg), void *arg)
{
    *f = (struct flush_behind){.co_flush = co_flush, .arg = arg};
    co_group_init(&f->flushes);
}

void flush_behind_destroy(struct flush_behind *f)
{
    if (f->co_flush) {
        co_group_destroy(&f->flushes);
    }
}

static void co_flush_behind(void *arg)
{
    struct flush_behind *f = arg;
    int r = f->co_flush(f->arg);

    /* What may have lost data counts for more than a full disk, which has lost nothing. */
    f->r = f->r == -ENOSPC && r < 0 ? r : error_first(f->r, r);
    f->flushing = false;
    co_group_done(&f->flushes);
}

void flush_behind_note(struct flush_behind *f, uint64_t bytes)
{
    f->unflushed += bytes;
    if (f->flushing || f->unflushed < FLUSH_DISTANCE) {
        return;
    }
    f->unflushed = 0;
    f->flushing = true;
    co_group_add(&f->flushes);
    if (co_spawn(co_get_home(co_self()), co_flush_behind, f) < 0) {
        f->flushing = false;
        co_group_done(&f->flushes);
    }
}

void flush_behind_co_wait(struct flush_behind *f)
{
    co_group_wait(&f->flushes);
}

int flush_behind_co_flush(struct flush_behind *f)
{
    int r;

    co_group_wait(&f->flushes);
    r = f->r;
    f->r = 0;
    UNLESS_FAILED(r, f->co_flush(f->arg));
    return r;
}

int flush_behind_co_flush_or_fail(struct flush_behind *f, struct job *job, enum job_on_error policy)
{
    int r = flush_behind_co_flush(f);

    while (r < 0) {
        policy = r == -ENOSPC ? policy : JOB_ON_ERROR_REPORT;
        switch (job_handle_error(job, policy, false, r)) {
        case JOB_ERROR_FAIL:
            return r;
        case JOB_ERROR_RETRY:
            job_co_sleep(job, RETRY_NS);
            break;
        case JOB_ERROR_PAUSE:
            break;
        }
        r = job_co_pause_point(job);
        UNLESS_FAILED(r, flush_behind_co_flush(f));
        if (r == -ECANCELED) {
            return r;
        }
    }
    return r;
}
