/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The job "backup": copies the contents that a disk had at one moment, the point in time, to
 * another node (QAPI schema of QEMU: BackupCommon).
 *
 *        guest, other users                         guest, other users
 *               |                                          |
 *               v              the point in time           v          job
 *           source                  ----->          copy-before-write  -----> target
 *                                                          |
 *                                                          v
 *                                                       source
 *
 * The filter is above the source from the point in time until the job is finalized. Before a guest
 * write reaches an area that the job has not copied, the old contents are copied. If that fails,
 * the job fails, not the guest's write.
 *
 * Main reactor; the control lock is held. Both functions are for an action of a transaction: the
 * first is slow work, the second is called with source and target drained, in a graph change.
 */
#ifndef TIDEMARK_JOB_BACKUP_H
#define TIDEMARK_JOB_BACKUP_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "block/bitmaps.h"
#include "job/job.h"

enum backup_sync {
    /* all that a reader of the disk sees */
    BACKUP_FULL,
    /* what the image itself has, not its backing files */
    BACKUP_TOP,
    /* what the bitmap says */
    BACKUP_BITMAP,
    /* only what guests overwrite; runs until it is cancelled */
    BACKUP_NONE,
};

/* What becomes of the bitmap. What guests write while the job runs is added in any case. */
enum backup_bitmap_mode {
    /* Success: cleared. Else: as before. */
    BACKUP_ON_SUCCESS,
    /* As before. */
    BACKUP_NEVER,
    /* What has not been copied. */
    BACKUP_ALWAYS,
};

struct backup_config {
    struct job_config job;
    /* As given to backup_co_open_filter(). */
    struct block_node *source;
    enum backup_sync sync;
    /* NULL: none. Of the source; needed for BACKUP_BITMAP. */
    struct block_bitmap *bitmap;
    enum backup_bitmap_mode bitmap_mode;
    bool compress;
    /* Give the space of what has been copied back, in the source. */
    bool discard_source;
    /* Let the system copy between files where it can. */
    bool use_copy_range;
    enum job_on_error on_source_error, on_target_error;
    /* Pieces in flight at a time; 0: 64. */
    unsigned max_workers;
    /* The longest piece in bytes; at least one cluster of the filter; 0: no limit. */
    uint64_t max_chunk;
};

/*
 * Open the filter, hidden, with references to both nodes. `filter_name` may be NULL.
 * `min_cluster_size`: of its copies, a power of two, or 0. -EINVAL: the same node twice, other
 * sizes, names; -EPERM: others use the target. Without the control lock. Yields.
 */
int backup_co_open_filter(struct block_node *source, struct block_node *target,
                          const char *filter_name, uint64_t min_cluster_size,
                          struct block_node **ret_filter, struct error *err);
/*
 * Make the job, which waits for job_start() or job_co_discard(): the filter is published and put
 * above the source, and a bitmap is frozen. The job takes references of its own. Errors of
 * job_new(); -EINVAL, -EBUSY, with QEMU's texts; then all is as before, but for the permissions
 * that the caller's graph change settles. Yields.
 */
int backup_co_new(struct block_node *filter, const struct backup_config *config,
                  struct job **ret_job, struct error *err);

#endif
