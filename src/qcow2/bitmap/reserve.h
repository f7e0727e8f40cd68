/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Clusters kept for bitmaps that are not stored yet: how they are used and given back. Only for
 * this folder.
 *
 * bitmaps.mutex is held. The `co_` functions yield.
 */
#ifndef TIDEMARK_QCOW2_BITMAP_RESERVE_H
#define TIDEMARK_QCOW2_BITMAP_RESERVE_H

#include "qcow2/image.h"

/* qcow2_co_reserve_bitmaps() for a caller that holds bitmaps.mutex. */
int qcow2_co_reserve_bitmaps_locked(struct qcow2 *q, uint64_t disk_size, struct error *err);
/* Give back what is kept for a bitmap that was never stored, and is removed. */
void qcow2_co_unreserve_bitmap_locked(struct qcow2 *q, const char *name);

/*
 * An attempt to store begins, or has failed: nothing of the reserve is used. Nothing on disk refers
 * to what an earlier attempt wrote there. Does not yield.
 */
void qcow2_reserve_begin_locked(struct qcow2 *q);
/*
 * Use the clusters kept for the table of bitmap `name` (NULL: for the directory). *ret_offset is
 * their file offset. False if none are kept for it, or fewer than `bytes`.
 */
bool qcow2_co_reserve_use_locked(struct qcow2 *q, const char *name, uint64_t bytes,
                                 uint64_t *ret_offset);
/*
 * After a removal has used the clusters kept for the directory: keep others, for bitmaps that are
 * still not stored. If that fails, storing allocates them.
 */
void qcow2_co_reserve_directory_again_locked(struct qcow2 *q);
/* What the attempt uses leaves the reserve: it is appended to `ret_runs`. Does not yield. */
void qcow2_reserve_take_used_locked(struct qcow2 *q, struct cluster_runs *ret_runs);
/* All is stored: what was used belongs to the image now, the rest is given back. */
void qcow2_co_reserve_end_locked(struct qcow2 *q);

#endif
