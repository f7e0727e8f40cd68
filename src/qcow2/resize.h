/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TIDEMARK_QCOW2_RESIZE_H
#define TIDEMARK_QCOW2_RESIZE_H

#include "qcow2/image.h"

/* block_driver.co_truncate. -ENOTSUP names the bitmap that is in the way. */
int qcow2_co_truncate(struct block_node *node, uint64_t size, enum block_prealloc prealloc,
                      struct error *err);

/* A longer L1 table; the size stays as it is. The node is drained. */
int qcow2_co_grow_l1(struct qcow2 *q, uint32_t entries, struct error *err);

/*
 * Give the guest range [from, to) (rounded out to clusters, the L1 table is long enough) host clusters: mapped only (metadata), with space
 * reserved (falloc), or written (full). Clusters that have contents already are left alone. Reads as before.
 */
int qcow2_co_preallocate(struct qcow2 *q, uint64_t from, uint64_t to, enum block_prealloc prealloc,
                         struct error *err);

#endif
