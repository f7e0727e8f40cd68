/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Refcounts of clusters (specification, "Host cluster management"). Clusters are named by their
 * index: file offset / cluster size.
 *
 * The `_locked` functions want q->lock, and yield to read refcount blocks. They return -EIO if the
 * metadata is corrupt or can't be read.
 */
#ifndef TIDEMARK_QCOW2_TABLE_REFCOUNT_H
#define TIDEMARK_QCOW2_TABLE_REFCOUNT_H

#include "qcow2/image.h"

/* The refcount of one cluster; 0 where there is no refcount block. */
int qcow2_co_refcount_get_locked(struct qcow2 *q, uint64_t cluster, uint64_t *ret_refcount);

/*
 * How many clusters of [first, first + count) are in use, up to the end of the first one's slice:
 * *ret_done clusters were looked at, at least one.
 */
int qcow2_co_count_used_locked(struct qcow2 *q, uint64_t first, uint64_t count, uint64_t *ret_used,
                               uint64_t *ret_done);

/*
 * Add `delta` to the refcounts of [first, first + count), in memory. All or none are changed.
 * -ERANGE if a refcount would exceed its width, -EIO if one would fall below zero, -EAGAIN if the
 * refcount block for an addition does not exist yet, -EFBIG if it can't exist.
 */
int qcow2_co_refcount_add_locked(struct qcow2 *q, uint64_t first, uint64_t count, int64_t delta);

/*
 * The refcount at `index` of a refcount block on disk, and how to set it. `order`: log2 of the
 * width in bits, 0 to 6; `value` fits into it. Neither yields.
 */
uint64_t qcow2_refcount_load(const void *block, unsigned order, uint64_t index);
void qcow2_refcount_store(void *block, unsigned order, uint64_t index, uint64_t value);

#endif
