/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The operations on internal snapshots: their steps, and what they share. Only for this folder.
 *
 * Raising and lowering refcounts makes COPIED flags wrong for a while, which a check reports as
 * corruption. So the dirty bit is set, and stable, meanwhile (version 3). After a crash the next
 * writable open repairs the image.
 *
 *   create   1. set the dirty bit
 *            2. refcounts of the disk + 1
 *            3. clear COPIED flags
 *            4. write a copy of the L1 table, and the snapshot table
 *            5. header: the table, and the dirty bit cleared
 *
 *   apply    0. what differs is set in the bitmaps that record (changed.h)
 *            1. refcounts of the snapshot + 1
 *            2. write a copy of its L1 table
 *            3. header: L1 table and disk size
 *            4. release the old references of the disk
 *
 *   apply, if a refcount can't be raised
 *            1. write a copy of the L1 table of the snapshot
 *            2. set the dirty bit
 *            3. refcounts of the disk - 1, of the snapshot + 1
 *            4. header: L1 table and disk size
 *            5. clear the dirty bit
 *
 *   delete   1. header: the table, and the dirty bit set
 *            2. release the references of the snapshot
 *            3. set COPIED flags where the refcount is 1
 *            4. clear the dirty bit
 *
 * The node is drained. The `co_` functions yield.
 */
#ifndef TIDEMARK_QCOW2_SNAPSHOT_OPERATION_H
#define TIDEMARK_QCOW2_SNAPSHOT_OPERATION_H

#include "qcow2/image.h"
#include "qcow2/snapshot/snapshot.h"

/*
 * Fill `err` with "Could not WHAT of IMAGE" and the error `r`, which is returned. Does not yield.
 */
int qcow2_snapshot_failed(struct qcow2 *q, const char *what, int r, struct error *err);

/*
 * The first snapshot with that ID and that name (NULL: any). NULL if there is none. Borrowed. Does
 * not yield.
 */
struct qcow2_snapshot *qcow2_find_snapshot(struct qcow2 *q, const char *id, const char *name);
/*
 * The snapshot with that ID, or else with that name. NULL with -ENOENT in `err` if there is none.
 * Does not yield.
 */
struct qcow2_snapshot *qcow2_find_snapshot_by_id_or_name(struct qcow2 *q, const char *id_or_name,
                                                         struct error *err);

/*
 * A copy of the active L1 table in host byte order, which the caller frees. NULL: no memory. Does
 * not yield.
 */
uint64_t *qcow2_copy_active_l1(const struct qcow2 *q);
/*
 * Read the L1 table of a snapshot, without COPIED flags, and extend it to the size of its disk. The
 * caller frees *ret_l1, which is in host byte order and has *ret_entries entries.
 */
int qcow2_co_read_snapshot_l1(struct qcow2 *q, const struct qcow2_snapshot *s, uint64_t **ret_l1,
                              uint32_t *ret_entries, struct error *err);
/* Free the clusters of an L1 table with the next commits. A table without entries has none. */
int qcow2_co_free_l1(struct qcow2 *q, uint64_t offset, uint32_t entries);
/*
 * Release the references of an L1 table and, unless `l1_offset` is 0, free its own clusters. All of
 * it is stable if the result is 0.
 */
int qcow2_co_release_l1(struct qcow2 *q, const uint64_t *l1, uint32_t entries, uint64_t l1_offset);

/* Set or clear the dirty bit, stably. Does nothing in version 2. */
int qcow2_co_write_dirty_bit(struct qcow2 *q, bool dirty, struct error *err);
/*
 * After a failure, with references that were undone: write the refcounts, correct the COPIED flags,
 * and clear the dirty bit if all of this has succeeded.
 */
void qcow2_co_recover_from_failure(struct qcow2 *q);

#endif
