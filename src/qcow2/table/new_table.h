/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tables that are written as a whole, to new clusters.
 *
 * The `co_` functions yield, and take q->lock themselves. Offsets are bytes of the file.
 */
#ifndef TIDEMARK_QCOW2_TABLE_NEW_TABLE_H
#define TIDEMARK_QCOW2_TABLE_NEW_TABLE_H

#include "qcow2/image.h"

/*
 * Allocate contiguous clusters, and write `size` bytes of data to them, with zeroes up to the end
 * of the last one. Tries again after a commit if there is no space. On failure nothing is
 * allocated.
 */
int qcow2_co_write_new_clusters(struct qcow2 *q, const void *data, size_t size,
                                uint64_t *ret_offset);
/* Undo the above. Nothing refers to the clusters. */
void qcow2_co_free_new_clusters(struct qcow2 *q, uint64_t offset, uint64_t size);

/*
 * Write an L1 table of `entries` entries (host byte order) to new clusters, at least one. The
 * COPIED flags are cleared unless `keep_copied`: the copy is to become the active table.
 */
int qcow2_co_write_l1_copy(struct qcow2 *q, const uint64_t *l1, uint32_t entries, bool keep_copied,
                           uint64_t *ret_offset);
/*
 * Replace the active L1 table in memory by a copy of `l1` (host byte order); no entry is dirty. The
 * node is drained. -ENOMEM, with nothing changed.
 */
int qcow2_co_set_active_l1(struct qcow2 *q, const uint64_t *l1, uint32_t entries);

#endif
