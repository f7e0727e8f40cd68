/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The snapshot table (specification, "Snapshots"), entry by entry: for this folder, and for a
 * check.
 *
 * The `co_` functions yield.
 */
#ifndef TIDEMARK_QCOW2_SNAPSHOT_TABLE_H
#define TIDEMARK_QCOW2_SNAPSHOT_TABLE_H

#include "qcow2/image.h"
#include "qcow2/snapshot/snapshot.h"

/* Hints for tables that exceed the limits. */
#define QCOW2_REMOVE_EXTRA "You can force-remove this extra metadata with qemu-img check -r all"
#define QCOW2_REMOVE_OVERHANGING                                                                   \
    "You can force-remove all %u overhanging snapshots with qemu-img check -r all"

/*
 * Fields of an entry, as offsets from its start. Extra data, id and name follow the fixed fields,
 * then padding to a multiple of 8:
 *
 *    0 l1_table_offset (8)    14 name_size (2)    24 vm_clock_nsec (8)
 *    8 l1_size (4)            16 date_sec (4)     32 vm_state_size (4)
 *   12 id_str_size (2)        20 date_nsec (4)    36 extra_data_size (4)
 */
enum {
    SNAP_L1_OFFSET = 0,
    SNAP_L1_SIZE = 8,
    SNAP_ID_SIZE = 12,
    SNAP_NAME_SIZE = 14,
    SNAP_DATE_SEC = 16,
    SNAP_DATE_NSEC = 20,
    SNAP_VM_CLOCK = 24,
    SNAP_VM_STATE_SIZE = 32,
    SNAP_EXTRA_SIZE = 36,
    SNAP_FIXED_SIZE = 40,
};

/*
 * Fields of the extra data, as offsets from its start. Fields of newer versions follow.
 *
 *    0 vm_state_size (8)    8 disk_size (8)    16 icount (8)
 */
enum {
    SNAP_EXTRA_VM_STATE = 0,
    SNAP_EXTRA_DISK_SIZE = 8,
    SNAP_EXTRA_ICOUNT = 16,
    /* Bytes of the fields that we know. */
    SNAP_EXTRA_OURS = 24,
};

/*
 * Remove a snapshot from its list, if it is on one, and free it. NULL is allowed. Does not yield.
 */
void qcow2_snapshot_free(struct qcow2_snapshot *s);

/* The position in a table that is being read. The table does not record its length. */
struct qcow2_table_reader {
    struct qcow2 *q;
    /* File offset of the next entry; begins as snapshots.offset. */
    uint64_t at;
    /* Bytes that were read. */
    uint64_t bytes;
    /* For a check: accept too much extra data. */
    bool lenient;
};

/*
 * Read the next entry. *ret becomes the caller's, and is on no list. *ret_extra_size: the size of
 * the extra data that the entry states; a lenient reader leaves out what exceeds
 * SNAPSHOT_EXTRA_MAX. Bytes past the end of the file read as zeroes. -EINVAL if the entry is
 * invalid, -EOVERFLOW if the table exceeds SNAPSHOT_TABLE_BYTES_MAX.
 */
int qcow2_co_read_snapshot(struct qcow2_table_reader *t, struct qcow2_snapshot **ret_snapshot,
                           uint32_t *ret_extra_size);

/*
 * Write snapshots.list as a new table, and switch the header to it, with all other changes of the
 * header's members (R3). The next commits free the old table. On failure snapshots.offset, size and
 * count are as before. -EFBIG if the table would be too large.
 */
int qcow2_co_switch_snapshots(struct qcow2 *q, struct error *err);

#endif
