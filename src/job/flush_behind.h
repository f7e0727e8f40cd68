/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Flushes while a job copies: whenever enough has been written, a flush begins, and the job goes
 * on. So the target's disk works at the same time, and the flush at the end is short; so is that of
 * a guest which writes to the same image.
 *
 * Main reactor.
 */
#ifndef TIDEMARK_JOB_FLUSH_BEHIND_H
#define TIDEMARK_JOB_FLUSH_BEHIND_H

#include <stdbool.h>
#include <stdint.h>

#include "co/sync.h"
#include "job/job.h"

struct flush_behind {
    /* Flush the target: 0 or -errno. Yields. */
    int (*co_flush)(void *arg);
    void *arg;
    /* the one in flight */
    struct co_group flushes;
    bool flushing;
    /* bytes written since the latest began */
    uint64_t unflushed;
    /* The first error that nobody has taken, or 0: the next flush may not report it again. */
    int r;
};

/* Nothing is written yet. `arg` is for co_flush. */
void flush_behind_init(struct flush_behind *f, int (*co_flush)(void *arg), void *arg);
/* Nothing is in flight. A struct that is all zero is fine. */
void flush_behind_destroy(struct flush_behind *f);

/* `bytes` more are written: a flush may begin. In a coroutine. */
void flush_behind_note(struct flush_behind *f, uint64_t bytes);

/* Wait until none is in flight. Yields. */
void flush_behind_co_wait(struct flush_behind *f);

/*
 * Wait for the one in flight. An error of it, or of an earlier one, is taken and returned; without
 * any, flush: 0 or -errno. Yields.
 */
int flush_behind_co_flush(struct flush_behind *f);

/*
 * The same for a job that cannot write again what a flush that fails may have lost: a full disk,
 * which has lost nothing, is what `policy` says; other errors fail the job. A file whose fdatasync
 * has failed fails all later flushes, whatever the error was. 0, -errno, or -ECANCELED: the job
 * is cancelled. In the job's coroutine. Yields.
 */
int flush_behind_co_flush_or_fail(struct flush_behind *f, struct job *job,
                                  enum job_on_error policy);

#endif
