/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The block-copy engine: copies ranges of one edge to the same offsets of another. Filters and jobs share it.
 *
 *      caller: block_co_copy(range)          any reactor, several calls at once
 *         |
 *         +-- worker -- claim a piece --> zeroes: write_zeroes(target)
 *         +-- worker      (in order,      data:   read(source) -> bounce buffer -> write(target)
 *         +-- worker       by status)
 *
 * Pieces of data are at most block_copy_chunk_size() long; runs that read as zeroes are one piece whatever their
 * length. All calls of one engine together hold at most `max_memory` bytes of bounce buffers; who finds none waits
 * in FIFO order. The engine knows nothing about what has been copied or who writes meanwhile: that is its caller's
 * business.
 *
 * Others on the reactor get their turn after each half millisecond of copying, however fast the data comes (it may lie in
 * memory). A copy can be slowed down, paused and cancelled; all three act between two pieces.
 */
#ifndef TIDEMARK_COPY_BLOCK_COPY_H
#define TIDEMARK_COPY_BLOCK_COPY_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "block/gate.h"

struct block_copy;

struct block_copy_params {
    uint32_t
        cluster_size; /* power of two; pieces begin and end at multiples of it, or of 2 MiB if it is larger */
    uint64_t max_memory;  /* bytes of bounce buffers; 0: 32 MiB. At least one buffer is had. */
    unsigned max_workers; /* coroutines per call, the caller's included; 0: 16 */
    unsigned write_flags; /* for the data: BLOCK_REQ_COMPRESSED or 0 */
    unsigned zero_flags;  /* for the zeroes: BLOCK_REQ_MAY_UNMAP or 0 */
};

/* Where and why a copy failed first. */
struct block_copy_failure {
    bool reading;    /* the source failed; else the target */
    uint64_t offset; /* of the piece, bytes */
};

/*
 * An engine between two edges, which must live as long as it does. The source needs CONSISTENT_READ, the target WRITE.
 * -EINVAL, -ENOMEM. Does not yield. Any thread.
 */
int block_copy_new(struct block_edge *source, struct block_edge *target,
                   const struct block_copy_params *params, struct block_copy **ret,
                   struct error *err);
/* No call may be running. NULL is fine. */
void block_copy_free(struct block_copy *copy);

/*
 * Copy [offset, offset + length), which begins at a multiple of the cluster size and ends at one or at the end of the
 * source. Yields. Returns 0 when all of it is in the target (not flushed), else the first error, -errno; by then no
 * request of this call is in flight, and what the target holds in the range is undefined. `failure` may be NULL.
 */
int block_co_copy(struct block_copy *copy, uint64_t offset, uint64_t length,
                  struct block_copy_failure *failure);

/* At most so many bytes per second, of all calls together, zeroes not counted; 0: no limit, as at first. Any thread. */
void block_copy_set_rate(struct block_copy *copy, uint64_t bytes_per_second);
/* No new pieces from now on, until the resume. Any thread. */
void block_copy_pause(struct block_copy *copy);
void block_copy_resume(struct block_copy *copy);
/* Calls end with -ECANCELED as soon as their pieces in flight have ended, also while paused; so do new ones. Any thread. */
void block_copy_cancel(struct block_copy *copy);
/* Whether any piece is in flight: after a pause, what a drain waits for. Any thread. */
bool block_copy_is_busy(const struct block_copy *copy);

/* Longest piece of data in bytes. */
uint32_t block_copy_chunk_size(const struct block_copy *copy);

#endif
