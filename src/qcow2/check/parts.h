/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The parts of a check, in the order in which check.c calls them. Each one calls only parts that
 * are further down in this list of files:
 *
 *   contents.c      references made by the header, the active disk, snapshots and bitmaps
 *   snapshots.c     the snapshot table, references made by snapshots
 *   tables.c        references made by L1 and L2 tables
 *   refcounts.c     the refcount table and blocks
 *   copied.c        COPIED flags
 *
 * All return 0 or -ENOMEM or the error of a write, unless stated; what is wrong with the image is
 * reported and counted in c->result. The `co_` functions yield.
 */
#ifndef TIDEMARK_QCOW2_CHECK_PARTS_H
#define TIDEMARK_QCOW2_CHECK_PARTS_H

#include "qcow2/check/context.h"

/*
 * Count all references except those made by the refcount structures. Repairs L2 tables as c->fix
 * says.
 */
int qcow2_co_check_contents(struct check *c);

/*
 * Read the snapshot table again to q->snapshots.list, as far as it can be parsed. -EFBIG with a
 * sentence if it has too many or too large entries, and c->fix does not allow to cut them off.
 */
int qcow2_co_check_snapshot_table(struct check *c, struct error *err);
/*
 * Write the snapshot table again, which repairs c->snapshot_faults. The clusters of the old one
 * leak.
 */
int qcow2_co_fix_snapshot_table(struct check *c, struct error *err);
/* Count the references made by the snapshot table, and by all snapshots. */
int qcow2_co_check_snapshots(struct check *c);

/* Count the references made by the L1 and L2 tables of the active disk. */
int qcow2_co_check_active_tables(struct check *c);
/*
 * Count the references of a piece of an L1 table of the snapshot `arg` (struct qcow2_snapshot) to
 * L2 tables. What these refer to is counted by qcow2_co_check_snapshot_l2_tables(), once for all
 * snapshots.
 */
check_piece_fn qcow2_co_check_snapshot_l1;
int qcow2_co_check_snapshot_l2_tables(struct check *c);

/*
 * Count the references made by the refcount table and blocks, after all others. Sets
 * c->must_rebuild if a refcount block can't be used. Sets c->out_of_memory.
 */
void qcow2_check_refcount_structures(struct check *c);
/*
 * Compare the refcounts with the references, and repair what `fix` says. Sets c->refcounts_differ.
 */
int qcow2_co_check_refcounts(struct check *c, unsigned fix);

/*
 * Compare the COPIED flags of the active tables with the refcounts, and repair them as c->fix says.
 * The refcounts were repaired before.
 */
int qcow2_co_check_copied(struct check *c);

#endif
