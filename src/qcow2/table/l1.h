/* SPDX-License-Identifier: Apache-2.0 */
/* L1 tables other than the active one: those of snapshots. */
#ifndef TIDEMARK_QCOW2_TABLE_L1_H
#define TIDEMARK_QCOW2_TABLE_L1_H

#include "qcow2/image.h"
#include "qcow2/snapshot/snapshot.h"

/*
 * Whether a snapshot's L1 table has an offset and a size that are possible: -EINVAL, -EFBIG, with
 * qemu-img's sentences. Does not yield.
 */
int qcow2_check_snapshot_l1(const struct qcow2 *q, const struct qcow2_snapshot *s,
                            struct error *err);

/*
 * Read an L1 table of `entries` to host byte order; *ret_l1 is the caller's to free(). -EINVAL if
 * it is not within the file, or not aligned; -EFBIG if it is longer than any L1 table may be.
 * Yields.
 */
int qcow2_co_read_l1(struct qcow2 *q, uint64_t offset, uint32_t entries, uint64_t **ret_l1);

#endif
