/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TIDEMARK_QCOW2_RESIZE_H
#define TIDEMARK_QCOW2_RESIZE_H

#include "qcow2/image.h"

/*
 * block_driver.co_truncate. The node is drained. -ENOTSUP with the name of the bitmap that can't be
 * resized. Yields.
 */
int qcow2_co_truncate(struct block_node *node, uint64_t size, enum block_prealloc prealloc,
                      struct error *err);

/* The driver's functions of these names: see struct block_driver. */
uint64_t qcow2_greatest_size(const struct block_node *node);
void qcow2_remember_size(struct block_node *node, uint64_t size);

/* Make the L1 table at least `entries` long, whatever the size of the disk. Drained. Yields. */
int qcow2_co_grow_l1(struct qcow2 *q, uint32_t entries, struct error *err);

/*
 * Give the guest range [from, to), rounded out to clusters, host clusters: mapped only (metadata),
 * with space reserved (falloc), or written (full). Clusters that have contents keep them. The disk
 * reads as before. The L1 table is long enough. -ENOTSUP if the image is encrypted and of version
 * 2. Yields.
 */
int qcow2_co_preallocate(struct qcow2 *q, uint64_t from, uint64_t to, enum block_prealloc prealloc,
                         struct error *err);

#endif
