/* SPDX-License-Identifier: Apache-2.0 */
/* Changing the references of a whole L1 table at one time: for snapshots. The node is drained. */
#ifndef TIDEMARK_QCOW2_SNAPSHOT_REFERENCES_H
#define TIDEMARK_QCOW2_SNAPSHOT_REFERENCES_H

#include "qcow2/image.h"

/* One more reference to every L2 table of `l1` and everything that those map. Undone on failure. */
int qcow2_co_reference_all(struct qcow2 *q, const uint64_t *l1, uint32_t entries);

/*
 * One less at once. What nobody else refers to counts as free then, so nothing may be allocated until `l1` is gone from disk, and the
 * dirty bit has to be stable. Undone on failure.
 */
int qcow2_co_unreference_all(struct qcow2 *q, const uint64_t *l1, uint32_t entries);

/* One less; they are freed by the next commits, when whatever referred to `l1` is gone from disk. */
int qcow2_co_release_all(struct qcow2 *q, const uint64_t *l1, uint32_t entries);

/* COPIED in the active L1 and L2 tables becomes true exactly where the refcount is 1. */
int qcow2_co_update_copied(struct qcow2 *q);

/* Put another L1 table (host byte order, copied) in place of the active one in memory; nothing of it is dirty. 0 or -ENOMEM. */
int qcow2_set_active_l1(struct qcow2 *q, const uint64_t *l1, uint32_t entries);

/* Write an L1 table without COPIED flags to new clusters. */
int qcow2_co_write_l1_copy(struct qcow2 *q, const uint64_t *l1, uint32_t entries, bool keep_copied,
                           uint64_t *ret_offset);

/* New clusters in one piece with `size` bytes of data, zeroes behind it. On failure nothing is allocated. */
int qcow2_co_write_new_clusters(struct qcow2 *q, const void *data, size_t size,
                                uint64_t *ret_offset);

/* Undo the above: nothing refers to them. */
void qcow2_co_free_new_clusters(struct qcow2 *q, uint64_t offset, uint64_t size);

#endif
