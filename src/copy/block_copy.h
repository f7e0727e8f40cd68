/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The block-copy engine copies ranges of one edge to the same offsets of another. Filters and jobs
 * share it.
 *
 *      caller: block_co_copy(range)          on any reactor, several calls at once
 *         |
 *         +-- worker -- claim a piece --> zeroes: write_zeroes(target)
 *         +-- worker      (in order,      data:   read(source) -> bounce buffer -> write(target)
 *         +-- worker       by status)
 *
 * A piece of data has at most 256 KiB, or a cluster of up to 2 MiB; a run that reads as zeroes is
 * one piece of any length. Ranges of at most 256 KiB are read without a query, and zeroes are found
 * in what was read: such copies are made for guests that wait. All calls of one engine share at
 * most `max_memory` bytes of bounce buffers, and wait for them in FIFO order. The engine does not
 * record what has been copied, and does not exclude writes to the ranges; the caller does both.
 *
 * After each half millisecond of copying the other coroutines of the reactor run, even if all data
 * is in memory. A job that has to pause, or keeps a speed limit, copies by short ranges
 * (job/copy_loop.h).
 *
 * Functions with `co_` in their name run in a coroutine and yield; the others do not yield, and may
 * be called on any thread.
 */
#ifndef TIDEMARK_COPY_BLOCK_COPY_H
#define TIDEMARK_COPY_BLOCK_COPY_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "block/gate.h"

struct block_copy;

struct block_copy_params {
    /*
     * a power of two; pieces begin and end at multiples of it (of 2 MiB, if it is larger), or where
     * the range does
     */
    uint32_t cluster_size;
    /* bytes of bounce buffers, but at least one buffer is used; 0: 32 MiB */
    uint64_t max_memory;
    /* coroutines per call, including the caller's; 0: 16 */
    unsigned max_workers;
    /* for data: BLOCK_REQ_COMPRESSED or 0 */
    unsigned write_flags;
    /* for zeroes: BLOCK_REQ_MAY_UNMAP or 0 */
    unsigned zero_flags;
    /*
     * let the system copy data between files where it can (block_co_copy_range()); the source must
     * not change during a call. Not with write_flags
     */
    bool use_copy_range;
};

/* Where a copy failed first. */
struct block_copy_failure {
    /* the source failed; false: the target */
    bool reading;
    /* of the piece, in bytes */
    uint64_t offset;
};

/*
 * Create an engine between two edges, which must live as long as the engine. The source needs the
 * permission CONSISTENT_READ, the target WRITE. The caller owns the result. 0, -EINVAL or -ENOMEM.
 */
int block_copy_new(struct block_edge *source, struct block_edge *target,
                   const struct block_copy_params *params, struct block_copy **ret_copy,
                   struct error *err);

/* No call is running. NULL is fine. */
void block_copy_free(struct block_copy *copy);

/*
 * Copy [offset, offset + length), in bytes, a range that both edges take. Returns 0 when the target
 * has all data (not flushed), else the first error, as -errno. No request of the call is in flight
 * then; after an error the contents of the range in the target are undefined. `failure` may be
 * NULL.
 */
int block_co_copy(struct block_copy *copy, uint64_t offset, uint64_t length,
                  struct block_copy_failure *failure);

/*
 * The same for a range of which the caller has a part of the data in memory: `fill(arg, offset,
 * buf, length)` is called with what was read of [offset, offset + length), and puts these data in
 * before the rest is written. What the source has in their place, and whether that changes
 * meanwhile, does not matter. `fill` must not yield.
 */
int block_co_copy_filled(struct block_copy *copy, uint64_t offset, uint64_t length,
                         void (*fill)(void *arg, uint64_t offset, void *buf, uint64_t length),
                         void *arg, struct block_copy_failure *failure);

/* Calls in flight that will not read the source any more. */
unsigned block_copy_writing_only(const struct block_copy *copy);

#endif
