/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Allocating clusters of the file, and freeing them.
 *
 * All functions that are `_locked` want q->lock; those with `co_` yield. Offsets and lengths are
 * bytes of the file, offsets of clusters are aligned. Refcounts change in memory only; a commit
 * writes them.
 */
#ifndef TIDEMARK_QCOW2_TABLE_ALLOC_H
#define TIDEMARK_QCOW2_TABLE_ALLOC_H

#include "qcow2/image.h"

/*
 * Allocate up to `want` > 0 clusters in one piece, at least one, and exactly `want` if `exact`.
 * They get refcount 1. *ret_fresh: they were never written, and read as zeroes. Errors: -ENOSPC or
 * what the file returns when it can't hold a new refcount block, -EFBIG if no such offset can be
 * recorded, -EIO if the metadata is corrupt, -ENOMEM.
 */
int qcow2_co_alloc_locked(struct qcow2 *q, uint64_t want, bool exact, uint64_t *ret_offset,
                          uint64_t *ret_got, bool *ret_fresh);

/*
 * Allocate one cluster for metadata or compressed data. `what`: its purpose, for the message if the
 * only free place is the header's.
 */
int qcow2_co_alloc_one_locked(struct qcow2 *q, const char *what, uint64_t *ret_offset,
                              bool *ret_fresh);

/*
 * Allocate `size` bytes (1 to the cluster size) for compressed data. They follow other compressed
 * data where possible; each cluster that they touch gets one more reference.
 */
int qcow2_co_alloc_bytes_locked(struct qcow2 *q, size_t size, uint64_t *ret_offset);

/* Undo an allocation that nothing references. Clusters that this fails for are leaked. */
void qcow2_co_unalloc_locked(struct qcow2 *q, uint64_t offset, uint64_t clusters);

/*
 * A reference was removed in memory: the next commit frees what it referenced (R2, R8). `offset`
 * and `length` are whole clusters, or the byte range of `compressed` data. -ENOMEM: leaked. Does
 * not yield.
 */
int qcow2_free_later_locked(struct qcow2 *q, uint64_t offset, uint64_t length, bool compressed,
                            enum qcow2_freed why);

/*
 * Byte range in the file that the L2 entry of a compressed cluster describes (specification,
 * "Compressed Clusters Descriptor"). Does not yield, needs no lock.
 */
void qcow2_compressed_range(const struct qcow2 *q, uint64_t entry, uint64_t *ret_offset,
                            uint64_t *ret_size);

#endif
