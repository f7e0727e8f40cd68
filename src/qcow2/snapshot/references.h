/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Changing the references of a whole L1 table, for snapshots.
 *
 * `l1` has `entries` entries in host byte order. The node is drained. All functions yield, and take
 * q->lock themselves. They return 0 or -errno; -EIO if the metadata violates the specification.
 */
#ifndef TIDEMARK_QCOW2_SNAPSHOT_REFERENCES_H
#define TIDEMARK_QCOW2_SNAPSHOT_REFERENCES_H

#include "qcow2/image.h"

/*
 * Add one to the refcounts of every L2 table of `l1` and of every cluster that those map. -ERANGE
 * if a refcount can't be larger. Undone on failure.
 */
int qcow2_co_reference_all(struct qcow2 *q, const uint64_t *l1, uint32_t entries);

/*
 * Subtract one at once. Clusters without further references count as free then. So nothing may be
 * allocated until `l1` is gone from disk, and the dirty bit has to be stable. Undone on failure.
 */
int qcow2_co_unreference_all(struct qcow2 *q, const uint64_t *l1, uint32_t entries);

/*
 * Subtract one at the next commits, for a table to which nothing on disk refers any more, or never
 * did (R2). On failure the remaining references leak.
 */
int qcow2_co_release_all(struct qcow2 *q, const uint64_t *l1, uint32_t entries);

/* Set COPIED in the active L1 and L2 tables exactly where the refcount is 1. */
int qcow2_co_update_copied(struct qcow2 *q);

#endif
