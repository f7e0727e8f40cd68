/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The loop of jobs that copy: as long as a bitmap says that something is left, take a piece of it
 * and copy that, several at a time, with the job's pauses, speed limit, error policies and
 * progress.
 *
 *      bits of `todo` are set          by the job at its start, by guest writes, after an error
 *        |  take a piece: clear its bits
 *        v
 *      co_copy(piece)                  up to `workers` at a time
 *        |  failed: its bits are set again, then the policy decides
 *        v
 *      progress
 *
 * Bits of a piece are cleared before its source is read. So a guest write that comes later, and
 * sets them when it has ended, causes another copy. The first one may still be in flight then:
 * where others set bits, co_copy excludes other copies of its range.
 *
 * Main reactor, in the coroutine of the job.
 */
#ifndef TIDEMARK_JOB_COPY_LOOP_H
#define TIDEMARK_JOB_COPY_LOOP_H

#include <stdbool.h>
#include <stdint.h>

#include "bitmap/bitmap.h"
#include "job/job.h"

/* A piece of work. */
struct copy_piece_plan {
    /* bytes */
    uint64_t offset, length;
    /* how many of them count for the speed limit: not those that are known to be zero */
    uint64_t paced;
};

struct copy_loop_params {
    struct job *job;
    /* What is left. Others may set bits at any time, on any thread. */
    struct dirty_bitmap *todo;
    /* Only this part of the disk, in bytes; an end of 0 means all of it. */
    uint64_t begin, end;
    /* End when the range has been gone through once, though others may have set bits behind. */
    bool one_pass;
    /* The longest piece, in bytes; a multiple of the granularity of `todo`. */
    uint64_t chunk;
    /* Pieces in flight at a time. */
    unsigned workers;
    enum job_on_error on_source_error, on_target_error;
    /* A piece whose error is ignored is not tried again; the loop returns the error at its end. */
    bool skip_ignored;
    /* Others set bits: the total of the job's progress follows. */
    bool live;
    /*
     * The job goes through the disk once, from its beginning: its progress is the offset up to
     * which all is done, so that it says where an error is.
     */
    bool in_order;
    /* Pieces stay as long under a low speed limit, and are followed by longer waits. */
    bool whole_pieces;
    /*
     * Bytes that are left of the job's total: where others do a part of the work. NULL: pieces that
     * are done are the progress. May set the total before. Does not yield.
     */
    uint64_t (*left)(void *arg);
    /*
     * Choose the piece: `piece` comes with offset, the length that may be copied (more than `chunk`
     * if more is dirty), and the defaults: at most `chunk`, all paced. It may be made shorter, and
     * longer up to that length; multiples of the granularity. The source may still change before
     * co_copy, which looks at it again. NULL: the defaults. May yield. 0, or an error of reading
     * the source.
     */
    int (*co_plan)(void *arg, struct copy_piece_plan *piece, uint64_t max_length);
    /*
     * Copy. 0 or -errno; *ret_reading then says whether the source failed, or the target. After an
     * error the range is copied again. Yields.
     */
    int (*co_copy)(void *arg, const struct copy_piece_plan *piece, bool *ret_reading);
    void *arg;
};

/*
 * Run until nothing is left and nothing in flight: 0. -ECANCELED: the job was cancelled. Other
 * errors: of a piece, when the policy says to report it. What was not copied is set in `todo` then.
 * Yields.
 */
int copy_loop_co_run(const struct copy_loop_params *params);

#endif
