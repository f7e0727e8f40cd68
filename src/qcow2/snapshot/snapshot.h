/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Internal snapshots (specification, "Snapshots"): the contract of this folder.
 *
 *   table.c         the snapshot table
 *   references.c    changing the references of a whole L1 table
 *   changed.c       bitmaps of a disk that goes back to a snapshot
 *   operation.c     what the operations share: create.c, apply.c, delete.c, show.c
 *
 * All `co_` functions yield. The node is drained. They return 0 or -errno, and fill `err` on
 * failure.
 */
#ifndef TIDEMARK_QCOW2_SNAPSHOT_SNAPSHOT_H
#define TIDEMARK_QCOW2_SNAPSHOT_SNAPSHOT_H

#include <stddef.h>
#include <stdint.h>

#include "base/list.h"

struct block_node;
struct block_snapshot_info;
struct block_snapshot_vm;
struct error;
struct qcow2;

/*
 * Limits, which are those of QEMU: snapshots, bytes of extra data, bytes of the table, bytes of a
 * name.
 */
#define SNAPSHOTS_MAX 65536u
#define SNAPSHOT_EXTRA_MAX 1024u
#define SNAPSHOT_TABLE_BYTES_MAX (64 * MiB)
#define SNAPSHOT_NAME_MAX 255

/* An entry of the snapshot table. */
struct qcow2_snapshot {
    struct list link; /* in snapshots.list, in the order of the table */
    /* The L1 table: file offset and number of entries. */
    uint64_t l1_offset;
    uint32_t l1_size;
    char *id, *name;
    uint32_t date_sec, date_nsec; /* since the epoch, UTC */
    uint64_t vm_clock_nsec;
    uint64_t vm_state_size; /* bytes */
    uint64_t disk_size;     /* bytes */
    uint64_t icount;        /* UINT64_MAX: none */
    /* Extra data behind the fields that we know, kept as it is. */
    uint8_t *more_extra;
    uint32_t more_extra_size;
};

/*
 * Read the table that snapshots.offset and snapshots.count name to snapshots.list, at open. -EINVAL
 * if it is invalid, -EFBIG if it is too large.
 */
int qcow2_co_read_snapshots(struct qcow2 *q, struct error *err);
/* Empty snapshots.list. Does not yield. */
void qcow2_free_snapshots(struct qcow2 *q);

/*
 * The driver's functions of these names: see struct block_driver. `vm`: NULL, or that of
 * co_snapshot_create_vm. `id_or_name`: an ID, or a name if
 * no snapshot has that ID.
 *
 * A failure of create and apply leaves the image as it was. If it is unknown which header is on
 * disk, or the refcounts could not be restored, the image takes no more writes. After a failed
 * delete the snapshot is gone, and its clusters may be leaked until the next open repairs the
 * image.
 */
int qcow2_co_snapshot_create(struct block_node *node, const char *name,
                             const struct block_snapshot_vm *vm, struct error *err);
int qcow2_co_snapshot_apply(struct block_node *node, const char *id_or_name, struct error *err);
int qcow2_co_snapshot_delete(struct block_node *node, const char *id_or_name, struct error *err);
int qcow2_co_snapshot_list(struct block_node *node, struct block_snapshot_info **ret_infos,
                           size_t *ret_count, struct error *err);
int qcow2_co_snapshot_show(struct block_node *node, const char *id, const char *name,
                           struct error *err);

#endif
