/* SPDX-License-Identifier: Apache-2.0 */
/* Internal snapshots on disk and in memory (specification, "Snapshots"). */
#ifndef TIDEMARK_QCOW2_SNAPSHOT_SNAPSHOT_H
#define TIDEMARK_QCOW2_SNAPSHOT_SNAPSHOT_H

#include "qcow2/image.h"

/*
 * Snapshot table entry:
 *   0 l1_table_offset (8), 8 l1_size (4), 12 id_str_size (2), 14 name_size (2), 16 date_sec (4), 20 date_nsec (4),
 *   24 vm_clock_nsec (8), 32 vm_state_size (4), 36 extra_data_size (4), 40 extra data, id, name, padding to 8
 * Extra data: 0 vm_state_size (8), 8 disk_size (8), 16 icount (8), then what newer versions add
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
    SNAP_EXTRA_VM_STATE = 0,
    SNAP_EXTRA_DISK_SIZE = 8,
    SNAP_EXTRA_ICOUNT = 16,
    SNAP_EXTRA_OURS = 24,
};

#define SNAPSHOTS_MAX 65536u
#define SNAPSHOT_EXTRA_MAX 1024u
#define SNAPSHOT_TABLE_BYTES_MAX (64 * MiB)
#define SNAPSHOT_NAME_MAX 255

struct qcow2_snapshot {
    struct list link; /* in qcow2.snapshots, in the order of the table */
    uint64_t l1_offset;
    uint32_t l1_size;
    char *id, *name;
    uint32_t date_sec, date_nsec;
    uint64_t vm_clock_nsec, vm_state_size, disk_size, icount;
    uint8_t *more_extra; /* extra data behind what we know, kept */
    uint32_t more_extra_size;
};

/* The table named by q->snapshots.offset and q->snapshots.count to q->snapshots.list. -EINVAL if it is invalid. */
int qcow2_co_read_snapshots(struct qcow2 *q, struct error *err);
void qcow2_free_snapshots(struct qcow2 *q);

int qcow2_co_snapshot_create(struct block_node *node, const char *name, struct error *err);
int qcow2_co_snapshot_apply(struct block_node *node, const char *id_or_name, struct error *err);
int qcow2_co_snapshot_delete(struct block_node *node, const char *id_or_name, struct error *err);
int qcow2_co_snapshot_list(struct block_node *node, struct block_snapshot_info **ret,
                           size_t *ret_count, struct error *err);
int qcow2_co_snapshot_show(struct block_node *node, const char *id, const char *name,
                           struct error *err);

#endif
