/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a job uses of a copy-before-write filter: it copies the contents that a disk had at the
 * moment when the filter was put on it, while guest writes copy what they are about to overwrite.
 * Each cluster is copied once, by whoever comes first.
 *
 *      open the filter    block_co_open_hidden({driver: copy-before-write, file: DISK,
 *                              target: TARGET, on-cbw-error: break-snapshot, ...})
 *      say what it is for cbw_set_job()            the node is still hidden
 *      the moment         drain the disk; publish; cbw_restrict(); move the disk's users to the
 *                         filter; attach the job's root to it; end the drain
 *      copy               cbw_next_uncopied(), cbw_co_copy(), on any reactor, several at once
 *      at the end         cbw_merge_uncopied() for a bitmap that keeps what is not copied;
 *                         cbw_stop() if guest writes are to copy no more; then take the filter out:
 *                         give back the job's root, and move the users to the disk, as one change
 *
 * A failed copy for a guest write breaks the snapshot (with on-cbw-error=break-snapshot): the guest
 * goes on, cbw_co_copy() returns the error from then on, and `broken` is called. A failed copy of
 * the job concerns only the job: it may try again, and a guest write that waited for it copies by
 * itself.
 */
#ifndef TIDEMARK_FILTER_CBW_JOB_H
#define TIDEMARK_FILTER_CBW_JOB_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "bitmap/bitmap.h"
#include "block/block.h"

struct cbw_state;

struct cbw_job {
    /* Store data compressed in the target, also for guest writes. */
    bool compress;
    /* Discard in the disk what has been copied, before a guest write can reach it. */
    bool discard_source;
    /* Copy only what the disk's own layer has, not what is in its backing files. */
    bool skip_unallocated;
    /* Let the system copy between files where it can. */
    bool use_copy_range;
    /*
     * Guest writes may leave that many bytes of old data in memory, and the job writes them to the
     * target when it copies the cluster. 0: none. For a target that nobody reads before the job has
     * ended. Without effect with one of the others above.
     */
    uint64_t hold_bytes;
    /* Bytes of bounce buffers for all copies together; 0: the default of block_copy. */
    uint64_t max_memory;
    /*
     * `bytes` more are in the target; `by_guest`: because of a guest write. On any reactor,
     * several at once; must not yield.
     */
    void (*copied)(void *arg, uint64_t bytes, bool by_guest);
    /* A copy for a guest write has failed, as cbw_error() says. Likewise; called once at most. */
    void (*broken)(void *arg);
    void *arg;
};

/* The state of a copy-before-write node; lives as long as the node. NULL: another driver. */
struct cbw_state *cbw_of_node(struct block_node *node);

/*
 * The filter is for a job, whose parameters are copied. While the node is hidden. From now on,
 * while the filter has a user, the disk may change through the filter only, and others may use the
 * target, which may have the disk as its backing file. -ENOMEM, -EINVAL. Does not yield.
 */
int cbw_set_job(struct cbw_state *s, const struct cbw_job *job, struct error *err);

/*
 * Before the first copy of the job: the edge of its root, on the filter or above. While that is
 * drained, no copy of the job begins; a drain waits for those in flight as cbw_is_busy() says, and
 * not for the calls below. NULL: the caller sees to that. Does not yield.
 */
void cbw_set_entrance(struct cbw_state *s, struct block_edge *entrance);

/*
 * Only clusters with a dirty byte in `bits` (of the same size; stays the caller's) are copied. No
 * request has reached the filter yet. -EINVAL, -ENOMEM. Does not yield.
 */
int cbw_restrict(struct cbw_state *s, const struct dirty_bitmap *bits, struct error *err);

/*
 * The unit of the job's pieces, in bytes: at least 64 KiB, min-cluster-size and the target's
 * clusters. Guest writes may copy parts of clusters.
 */
uint32_t cbw_cluster_size(const struct cbw_state *s);

/*
 * Find the first run in [offset, end) that needs a copy and has none; runs that are being copied
 * count. It may begin and end within clusters. False: there is none. Any thread; does not yield.
 */
bool cbw_next_uncopied(struct cbw_state *s, uint64_t offset, uint64_t end, uint64_t *ret_offset,
                       uint64_t *ret_length);

/*
 * Copy the clusters that touch [offset, offset + length) and need it, and what is held of them;
 * wait for copies of them that are in flight. 0: all are in the target (not flushed). Else -errno,
 * and *ret_reading says whether the disk failed or the target; nothing of the caller's is in flight
 * then. Guest writes to the clusters wait meanwhile, so pieces should be short (a few MiB at most).
 * Yields.
 */
int cbw_co_copy(struct cbw_state *s, uint64_t offset, uint64_t length, bool *ret_reading);

/*
 * The clusters that lie in [offset, offset + length) as a whole (the last one: as far as the disk
 * has it) need no copy. Those copied already stay copied. Any thread; does not yield.
 */
void cbw_skip(struct cbw_state *s, uint64_t offset, uint64_t length);

/* Bytes that need a copy and have none, nor are held. Any thread; does not yield. */
uint64_t cbw_uncopied_bytes(struct cbw_state *s);

/* Bytes that have been copied, by whomever. Any thread; does not yield. */
uint64_t cbw_copied_bytes(struct cbw_state *s);

/*
 * Set in `dest`, a bitmap of the same size, what needs a copy and has none in the target. Exact
 * when no copy is in flight. Any thread; does not yield.
 */
void cbw_merge_uncopied(struct cbw_state *s, struct dirty_bitmap *dest);
/* Likewise what is held only (`hold_bytes`); false: nothing is. */
bool cbw_merge_held(struct cbw_state *s, struct dirty_bitmap *dest);
/* A step of cbw_co_write_held(). */
struct cbw_held_step {
    bool held_only;  /* copy nothing that is not held: for a job with a speed limit */
    uint64_t copied; /* bytes that the step has copied are added */
    bool more;       /* another step may be due */
    bool reading;    /* after an error: the side, as of cbw_co_copy() */
};
/*
 * Get memory to hold more, and, if much is held, copy the area of the oldest of that: a job calls
 * this between its pieces, again and again until `more` is false. So the job goes first where
 * guests write, and these need not copy by themselves when nothing more can be held. Results of
 * cbw_co_copy(), but 0 after cbw_stop(). Yields.
 */
int cbw_co_write_held(struct cbw_state *s, struct cbw_held_step *step);

/* 0, or the error that has broken the snapshot, with its side as of cbw_co_copy(). Any thread. */
int cbw_error(struct cbw_state *s, bool *ret_reading);

/*
 * Guest writes copy nothing from now on, and cbw_co_copy() returns -ECANCELED, or the error that
 * has broken the snapshot before. Copies in flight end as they are. Any thread; does not yield.
 */
void cbw_stop(struct cbw_state *s);

#endif
