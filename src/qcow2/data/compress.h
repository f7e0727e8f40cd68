/* SPDX-License-Identifier: Apache-2.0 */
/* Reading and writing compressed clusters. The `co_` functions yield. */
#ifndef TIDEMARK_QCOW2_DATA_COMPRESS_H
#define TIDEMARK_QCOW2_DATA_COMPRESS_H

#include "qcow2/image.h"

enum {
    /* Most clusters that are read or written together. */
    QCOW2_BATCH_CLUSTERS = 64,
    /* Most bytes, unless one cluster has more. */
    QCOW2_BATCH_BYTES = 2 * MiB,
};

/* Clusters of a batch, at least one. */
static inline unsigned qcow2_batch_clusters(const struct qcow2 *q)
{
    return (unsigned)MAX(MIN(QCOW2_BATCH_BYTES >> q->cluster_bits, QCOW2_BATCH_CLUSTERS), 1);
}

/*
 * Write guest bytes [offset, offset + iov.size) compressed: whole clusters, except at the end of
 * the disk. A cluster that does not get smaller, or has contents already, is written uncompressed.
 * -EINVAL if the range is not aligned, -ENOTSUP with a data file or encryption.
 */
int qcow2_co_write_compressed(struct qcow2 *q, uint64_t offset, struct iov iov);

/*
 * Read the compressed clusters that the request begins with, at most one batch. *ret_done: bytes
 * read; 0 if the first cluster is not compressed. The caller holds the guest range.
 */
int qcow2_co_read_compressed(struct qcow2 *q, uint64_t offset, struct iov iov, size_t *ret_done);

#endif
