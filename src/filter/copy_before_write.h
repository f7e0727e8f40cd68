/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The state of a copy-before-write filter: which clusters the snapshot may read, which of them are
 * copied, and the ordering between guest writes, copies and fleecing reads. The driver is in
 * copy_before_write.c.
 *
 *     guest                       snapshot-access
 *       | write                       | read
 *       v            file             v            target
 *     cbw_co_before_write          cbw_co_snapshot_read
 *       |  \                        /      \
 *       |   +--- copy old data ----+------> temporary image (copied clusters)
 *       v                          v
 *      active disk  <--------------+ (clusters not copied)
 *
 * A cluster is in one of four states; `access` and `done` are bitmaps, `copying` a list:
 *
 *      begin: in the bitmap given          begin: not in it
 *              |                                  |
 *              v     guest write                  v
 *          UNTOUCHED ----------> COPYING     NO ACCESS (reads: EACCES, writes don't copy)
 *              |  ^  copy failed /  |             ^
 *              |  +--------------+  | copied      |
 *              |                    v             |
 *              +---------------> COPIED ----------+
 *                    snapshot discard (from each of the three)
 *
 * A copy for a guest's write may have less than a cluster: units. Units of one cluster are each
 * UNTOUCHED, COPYING or COPIED for themselves; access is by the cluster. A write that continues
 * where others have been copies the rest of its cluster, so sequential writes cost few copies.
 *
 * For a job that may (cbw_job.hold_bytes) a guest's write only reads the old data: its units are
 * COPIED when their data are in memory (held_data.h), and the job writes them to the target when it
 * comes to their cluster, together with what is around them. So the guest does not wait for the
 * target, and never for a thread of the job that writes there. This goes, too, for units that are
 * in a copy of the job: what that copies of them may be what the guest has written, so the job
 * writes the held data after it. Without room in memory the write copies as always, and waits for
 * the job's copies. Readers of frozen contents find held units in memory.
 *
 * Ordering. All transitions are made under `lock`.
 * 1. A guest write reaches the active disk only when none of its units is UNTOUCHED or COPYING (but
 *    for those that are held, see above), nor in a copy that reads it although it is NO ACCESS now.
 * 2. A fleecing read that finds its clusters not COPIED adds itself to `readers` before it releases
 *    `lock`, and stays there until it has the data. After (1) no new reader of these clusters can
 *    appear, so a guest write waits only for the readers that it finds then.
 * 3. A fleecing read waits for nobody: neither for guest writes nor for copies in flight.
 * 4. Clusters become COPIED after the write to the target has completed, so reads there are whole;
 *    or when their data are held. These stay in memory until that write has completed.
 * 5. A release of COPIED clusters waits for the reads of them in the target that are in flight (in
 *    `target_readers`), and then discards the clusters there; new reads get EACCES.
 *
 * A copy continues after its guest write has given up waiting. A drain of the disk waits until it
 * has read, a drain of the target until it has ended (cbw_is_busy()), and so does closing. A job
 * begins copies only while its root is not drained.
 */
#ifndef TIDEMARK_FILTER_COPY_BEFORE_WRITE_H
#define TIDEMARK_FILTER_COPY_BEFORE_WRITE_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/counters.h"
#include "base/list.h"
#include "base/range_index.h"
#include "bitmap/bitmap.h"
#include "block/gate.h"
#include "co/sync.h"
#include "copy/block_copy.h"
#include "filter/cbw_job.h"
#include "filter/discard_parts.h"
#include "filter/held_data.h"

enum cbw_on_error { CBW_BREAK_GUEST_WRITE, CBW_BREAK_SNAPSHOT };

struct cbw_state {
    /* constant after opening */
    const char *name; /* of the node, for messages */
    struct block_edge *file;
    struct block_edge *target;
    uint64_t size;
    uint32_t cluster_size;
    uint32_t unit; /* what guest writes copy is multiples of this; divides cluster_size */
    enum cbw_on_error on_error;
    int64_t timeout_ns; /* 0: none */
    struct block_copy *copy;
    bool has_job;
    struct cbw_job job;          /* of cbw_set_job() */
    struct block_edge *entrance; /* of cbw_set_entrance() */

    struct co_group copies_running; /* closing waits for these */
    _Atomic int64_t own_write_ns;   /* how long the disk's own writes take, on average */

    /*
     * Guards the following members. Held for work on the tables only, never across a yield. No
     * other lock is taken under it, except those for waking coroutines.
     */
    pthread_mutex_t lock;
    struct dirty_bitmap *access;       /* clusters that the snapshot may read */
    struct dirty_bitmap *done;         /* units that are in the target, or held */
    struct range_index copies;         /* of struct cbw_copy: in flight */
    unsigned copy_count;               /* of these */
    unsigned item_count;               /* of these: those that write what is held, and no more */
    struct list spare_copies;          /* of struct cbw_copy: for reuse */
    struct range_index readers;        /* of struct cbw_reader: fleecing reads of the active disk */
    struct range_index target_readers; /* likewise, of the target */
    struct held_data held;             /* old data of units that count as done */
    struct discard_parts parts;        /* discarded by the reader, of clusters not yet released */
    bool broken;                       /* a copy failed: the snapshot can't be read any more */
    int broken_by;                     /* the error of that copy, and where it failed */
    struct block_copy_failure broken_at;
    /*
     * How long guests have been held up lately, and until when that was counted: with
     * CBW_BREAK_SNAPSHOT the time limit holds for this sum, too.
     */
    int64_t held_up_ns, held_up_until_ns;
    /*
     * Bytes copied before writes; guest writes that waited for a copy, and whose copy was too slow.
     */
    uint64_t copied_bytes, waits, timeouts;
};

/* Figures of a node of this driver: a table, and a value for each row. Does not yield. */
extern const struct stat_desc cbw_stats[];
void cbw_read_stats(struct cbw_state *s, uint64_t *ret_values);

/*
 * Initialize: all clusters may be read. The caller has set the other constant members. -ENOMEM,
 * -EINVAL. Does not yield.
 */
int cbw_state_init(struct cbw_state *s, struct error *err);
/*
 * Before the first request: only clusters that are dirty in `access` (consumed; its granularity is
 * `cluster_size`) may be read. Does not yield.
 */
void cbw_state_set_access(struct cbw_state *s, struct dirty_bitmap *access);
/*
 * Whether copies are in flight; without `writing`, only those that may still read or change the
 * disk. Any thread.
 */
bool cbw_is_busy(struct cbw_state *s, bool writing);
/* Before the first request: guest writes copy multiples of `unit`. -ENOMEM. Does not yield. */
int cbw_state_set_unit(struct cbw_state *s, uint32_t unit);
/* Wait for copies in flight, then release. Yields. */
void cbw_co_state_destroy(struct cbw_state *s);

/*
 * Called before a guest write, zeroing or discard: 0 when it may go to the active disk. Another
 * result is an error of the copy, or -ETIMEDOUT, with which the guest's write has to fail. Yields.
 */
int cbw_co_before_write(struct cbw_state *s, uint64_t offset, uint64_t length);

/* A guest's write to the active disk has taken so long. Any thread; does not yield. */
void cbw_note_write(struct cbw_state *s, int64_t ns);

/*
 * Wait for the reads of [offset, offset + length) that are in `index` now. Called with `lock`,
 * returns with it released. Yields.
 */
void cbw_co_wait_readers_release(struct cbw_state *s, struct range_index *index, uint64_t offset,
                                 uint64_t length);
/*
 * Discard the clusters of the target that touch [start, end): nothing in them is needed. The last
 * one lies there as a whole, if the target has room for that. Yields.
 */
int cbw_co_discard_copies(struct cbw_state *s, uint64_t start, uint64_t end);

/* Read frozen contents. -EACCES where they may not be read, or no longer. Yields. */
int cbw_co_snapshot_read(struct cbw_state *s, uint64_t offset, struct iov iov);
/*
 * Status of the frozen contents; the extent ends where access or the place of the data changes. But
 * an area where the place changes often is data as a whole, if all of it is data on the disk: each
 * piece would cost a query. -EACCES likewise. Yields.
 */
int cbw_co_snapshot_status(struct cbw_state *s, uint64_t offset, uint64_t length,
                           struct block_status *ret_status);
/*
 * Release: clusters of which all bytes have been discarded, by this call or together with earlier
 * ones, become NO ACCESS; the target discards its copies. Yields.
 */
int cbw_co_snapshot_discard(struct cbw_state *s, uint64_t offset, uint64_t length);

#endif
