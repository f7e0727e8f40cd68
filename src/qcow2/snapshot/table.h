/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TIDEMARK_QCOW2_SNAPSHOT_TABLE_H
#define TIDEMARK_QCOW2_SNAPSHOT_TABLE_H

#include "qcow2/snapshot/snapshot.h"

/* Ways out of what a table has too much of. */
#define QCOW2_REMOVE_EXTRA "You can force-remove this extra metadata with qemu-img check -r all"
#define QCOW2_REMOVE_OVERHANGING                                                                   \
    "You can force-remove all %u overhanging snapshots with qemu-img check -r all"

/* Also takes it off its list; NULL is fine. */
void qcow2_snapshot_free(struct qcow2_snapshot *s);

/* Reading a table entry by entry: it does not say how long it is. */
struct qcow2_table_reader {
    struct qcow2 *q;
    uint64_t at;    /* offset in the file of the next entry; begins as q->snapshots.offset */
    uint64_t bytes; /* that were read */
    bool
        lenient; /* for a check: read as far as it can be made out, zeroes behind the end of the file */
};

/*
 * The next entry; the caller's, on no list. *ret_extra_size: of its extra data as the entry says; what is too much of it is left
 * out if the reader is lenient. -EINVAL if it is invalid, -EOVERFLOW if the table is longer than it may be.
 */
int qcow2_co_read_snapshot(struct qcow2_table_reader *t, struct qcow2_snapshot **ret,
                           uint32_t *ret_extra_size);

/*
 * Write q->snapshots.list as a new table and switch the header to it, together with everything else that the header's fields say
 * by then (R3). The old table is freed by the next commits. On failure the header's fields are as before.
 */
int qcow2_co_switch_snapshots(struct qcow2 *q, struct error *err);

#endif
