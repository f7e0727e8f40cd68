/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Dirty bitmaps of an image whose disk goes back to a snapshot. Going back is a write to everything
 * that differs: the bitmaps that record get it, before the switch; frozen ones stay as they are.
 *
 *   qcow2_co_bitmaps_before_apply()  set what differs -> store, so that a crash loses nothing; if
 *                                    the size changes, as in a resize: check -> mark in use (R5)
 *                                    those that are not durable -> longer, if the disk grows -> set
 *                                    what differs
 *   qcow2_co_bitmaps_switch_size()   as long as the disk, with the header; a failure leaves them
 *                                    with more bits than necessary
 *   qcow2_co_bitmaps_after_apply()   stored, if their length has changed and they are not yet
 *
 * The node is drained. The functions yield, and do nothing without bitmaps.
 */
#ifndef TIDEMARK_QCOW2_SNAPSHOT_CHANGED_H
#define TIDEMARK_QCOW2_SNAPSHOT_CHANGED_H

#include "qcow2/image.h"

struct error;

/* An L1 table in host byte order, borrowed. */
struct l1_view {
    const uint64_t *l1;
    uint32_t entries;
};

/*
 * The disk, mapped by `now`, is about to be mapped by `then`, with `size` bytes. -ENOTSUP with the
 * name of a bitmap that can't follow it to another size; errors of reading tables and of marking.
 */
int qcow2_co_bitmaps_before_apply(struct qcow2 *q, struct l1_view now, struct l1_view then,
                                  uint64_t size, struct error *err);
/*
 * The switch: write the header with the L1 table and the size that the node has now, and bitmaps
 * for that size if it was `old_size` before.
 */
int qcow2_co_bitmaps_switch_size(struct qcow2 *q, uint64_t old_size, struct error *err);
/*
 * After the switch, or a failure before or after it. The disk had `old_size` bytes. Returns
 * `result`, or if that is 0 the error of storing.
 */
int qcow2_co_bitmaps_after_apply(struct qcow2 *q, uint64_t old_size, int result, struct error *err);

#endif
