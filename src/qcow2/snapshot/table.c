/* SPDX-License-Identifier: Apache-2.0 */
/* The snapshot table: reading and writing it. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/cleanup.h"
#include "base/strbuf.h"
#include "qcow2/header/header.h"
#include "qcow2/snapshot/table.h"
#include "qcow2/table/alloc.h"
#include "qcow2/table/commit.h"
#include "qcow2/table/new_table.h"

void qcow2_snapshot_free(struct qcow2_snapshot *s)
{
    if (s) {
        list_remove(&s->link);
        free(s->id);
        free(s->name);
        free(s->more_extra);
        free(s);
    }
}

void qcow2_free_snapshots(struct qcow2 *q)
{
    struct qcow2_snapshot *s, *next;

    LIST_FOREACH_SAFE (s, next, &q->snapshots.list, link) {
        qcow2_snapshot_free(s);
    }
}

/* --- reading ---------------------------------------------------------------------------------- */

/* Reads `size` bytes, and moves on. */
static int co_read_table_bytes(struct qcow2_table_reader *t, void *buf, size_t size)
{
    uint64_t file_size = round_up(block_edge_size(t->q->node->file), t->q->cluster_size), there;
    uint64_t at = t->at;

    t->bytes += size;
    if (t->bytes > SNAPSHOT_TABLE_BYTES_MAX) {
        return -EOVERFLOW;
    }
    t->at += size;
    there = at < file_size ? MIN(size, file_size - at) : 0;
    memset((uint8_t *)buf + there, 0, size - there);
    return there > 0 ? block_co_pread(t->q->node->file, at, buf, there) : 0;
}

static int parse_snapshot_extra(struct qcow2 *q, struct qcow2_snapshot *s, const uint8_t *extra,
                                uint32_t size)
{
    s->disk_size = block_node_size(q->node);
    s->icount = UINT64_MAX;
    if (size >= SNAP_EXTRA_DISK_SIZE) {
        s->vm_state_size = load_be64(extra + SNAP_EXTRA_VM_STATE);
    }
    if (size >= SNAP_EXTRA_ICOUNT) {
        s->disk_size = load_be64(extra + SNAP_EXTRA_DISK_SIZE);
    }
    if (size >= SNAP_EXTRA_OURS) {
        s->icount = load_be64(extra + SNAP_EXTRA_ICOUNT);
        s->more_extra_size = size - SNAP_EXTRA_OURS;
        s->more_extra = malloc(MAX(s->more_extra_size, 1u));
        if (!s->more_extra) {
            return -ENOMEM;
        }
        memcpy(s->more_extra, extra + SNAP_EXTRA_OURS, s->more_extra_size);
    }
    return 0;
}

static int co_read_snapshot_entry(struct qcow2_table_reader *t, struct qcow2_snapshot *s,
                                  uint32_t *ret_extra_size)
{
    uint8_t fixed[SNAP_FIXED_SIZE];
    AUTO_FREE uint8_t *extra = NULL;
    uint32_t extra_size, id_size, name_size, kept;
    int r = co_read_table_bytes(t, fixed, sizeof(fixed));

    if (r < 0) {
        return r;
    }
    s->l1_offset = load_be64(fixed + SNAP_L1_OFFSET);
    s->l1_size = load_be32(fixed + SNAP_L1_SIZE);
    s->date_sec = load_be32(fixed + SNAP_DATE_SEC);
    s->date_nsec = load_be32(fixed + SNAP_DATE_NSEC);
    s->vm_clock_nsec = load_be64(fixed + SNAP_VM_CLOCK);
    s->vm_state_size = load_be32(fixed + SNAP_VM_STATE_SIZE);
    *ret_extra_size = extra_size = load_be32(fixed + SNAP_EXTRA_SIZE);
    id_size = load_be16(fixed + SNAP_ID_SIZE);
    name_size = load_be16(fixed + SNAP_NAME_SIZE);
    if (extra_size > SNAPSHOT_EXTRA_MAX && !t->lenient) {
        return -EINVAL;
    }
    kept = MIN(extra_size, SNAPSHOT_EXTRA_MAX);
    extra = malloc(MAX(kept, 1u));
    s->id = calloc(1, id_size + 1u);
    s->name = calloc(1, name_size + 1u);
    if (!extra || !s->id || !s->name) {
        return -ENOMEM;
    }
    if ((r = co_read_table_bytes(t, extra, kept)) < 0 ||
        (r = parse_snapshot_extra(t->q, s, extra, kept)) < 0) {
        return r;
    }
    t->at += extra_size - kept;
    if ((r = co_read_table_bytes(t, s->id, id_size)) < 0 ||
        (r = co_read_table_bytes(t, s->name, name_size)) < 0) {
        return r;
    }
    t->bytes += round_up(t->at, 8) - t->at;
    t->at = round_up(t->at, 8);
    return 0;
}

int qcow2_co_read_snapshot(struct qcow2_table_reader *t, struct qcow2_snapshot **ret_snapshot,
                           uint32_t *ret_extra_size)
{
    struct qcow2_snapshot *s = calloc(1, sizeof(*s));
    int r = -ENOMEM;

    if (s) {
        list_init(&s->link);
        r = co_read_snapshot_entry(t, s, ret_extra_size);
    }
    if (r < 0) {
        qcow2_snapshot_free(s);
        return r;
    }
    *ret_snapshot = s;
    return 0;
}

/* Sets the error for entry `index`, which could not be read with the result `r`. */
static int refuse_table_entry(struct qcow2 *q, uint32_t index, uint32_t extra_size, int r,
                              struct error *err)
{
    if (r == -EOVERFLOW) {
        error_set(err, EFBIG, "Snapshot table is too big");
        error_hint(err, QCOW2_REMOVE_OVERHANGING, q->snapshots.count - index);
        return -EFBIG;
    }
    if (r == -EINVAL && extra_size > SNAPSHOT_EXTRA_MAX) {
        error_set(err, EINVAL, "Too much extra metadata in snapshot table entry %u", index);
        error_hint(err, QCOW2_REMOVE_EXTRA);
        return -EINVAL;
    }
    return error_set(err, -r, "Image '%s': entry %u of the snapshot table at %#llx is invalid",
                     block_node_display_name(q->node), index,
                     (unsigned long long)q->snapshots.offset);
}

int qcow2_co_read_snapshots(struct qcow2 *q, struct error *err)
{
    struct qcow2_table_reader t = {.q = q, .at = q->snapshots.offset};

    for (uint32_t i = 0; i < q->snapshots.count; i++) {
        struct qcow2_snapshot *s;
        uint32_t extra_size = 0;
        int r = qcow2_co_read_snapshot(&t, &s, &extra_size);

        if (r < 0) {
            return refuse_table_entry(q, i, extra_size, r, err);
        }
        list_append(&q->snapshots.list, &s->link);
    }
    q->snapshots.size = t.at - q->snapshots.offset;
    return 0;
}

/* --- writing ---------------------------------------------------------------------------------- */

static void append_snapshot_entry(struct strbuf *sb, const struct qcow2_snapshot *s)
{
    static const uint8_t padding[8];
    uint8_t fixed[SNAP_FIXED_SIZE] = {0}, extra[SNAP_EXTRA_OURS];
    size_t id_size = strlen(s->id), name_size = strlen(s->name);

    store_be64(fixed + SNAP_L1_OFFSET, s->l1_offset);
    store_be32(fixed + SNAP_L1_SIZE, s->l1_size);
    store_be16(fixed + SNAP_ID_SIZE, (uint16_t)id_size);
    store_be16(fixed + SNAP_NAME_SIZE, (uint16_t)name_size);
    store_be32(fixed + SNAP_DATE_SEC, s->date_sec);
    store_be32(fixed + SNAP_DATE_NSEC, s->date_nsec);
    store_be64(fixed + SNAP_VM_CLOCK, s->vm_clock_nsec);
    store_be32(fixed + SNAP_VM_STATE_SIZE,
               s->vm_state_size <= UINT32_MAX ? (uint32_t)s->vm_state_size : 0);
    store_be32(fixed + SNAP_EXTRA_SIZE, SNAP_EXTRA_OURS + s->more_extra_size);
    store_be64(extra + SNAP_EXTRA_VM_STATE, s->vm_state_size);
    store_be64(extra + SNAP_EXTRA_DISK_SIZE, s->disk_size);
    store_be64(extra + SNAP_EXTRA_ICOUNT, s->icount);
    strbuf_append(sb, fixed, sizeof(fixed));
    strbuf_append(sb, extra, sizeof(extra));
    strbuf_append(sb, s->more_extra, s->more_extra_size);
    strbuf_append(sb, s->id, id_size);
    strbuf_append(sb, s->name, name_size);
    strbuf_append(sb, padding, round_up(sb->len, 8) - sb->len);
}

/*
 * Writes snapshots.list as a new table, and makes it stable with its refcounts (R1). *ret_offset: 0
 * if the list is empty. On failure nothing is allocated.
 */
static int co_write_snapshot_table(struct qcow2 *q, uint64_t *ret_offset, uint64_t *ret_size,
                                   uint32_t *ret_count)
{
    const struct qcow2_snapshot *s;
    STRBUF_AUTO(table);
    uint64_t offset = 0;
    uint32_t count = 0;
    int r = 0;

    LIST_FOREACH (s, &q->snapshots.list, link) {
        append_snapshot_entry(&table, s);
        count++;
    }
    if (table.failed) {
        return -ENOMEM;
    }
    if (table.len > SNAPSHOT_TABLE_BYTES_MAX) {
        return -EFBIG;
    }
    if (count > 0) {
        r = qcow2_co_write_new_clusters(q, table.data, table.len, &offset);
    }
    UNLESS_FAILED(r, qcow2_co_commit(q));
    if (r < 0) {
        if (offset != 0) {
            qcow2_co_free_new_clusters(q, offset, table.len);
        }
        return r;
    }
    *ret_offset = offset;
    *ret_size = table.len;
    *ret_count = count;
    return 0;
}

/* Frees the clusters of a table that the header does not name any more. */
static int co_free_old_table(struct qcow2 *q, uint64_t offset, uint64_t size)
{
    int r = 0;

    if (size > 0) {
        co_mutex_lock(&q->lock);
        r = qcow2_free_later_locked(q, offset, round_up(size, q->cluster_size), false,
                                    QCOW2_FREED_BY_SNAPSHOT);
        co_mutex_unlock(&q->lock);
    }
    return r;
}

int qcow2_co_switch_snapshots(struct qcow2 *q, struct error *err)
{
    uint64_t old_offset = q->snapshots.offset, old_size = q->snapshots.size, offset, size;
    uint32_t old_count = q->snapshots.count, count;
    int r = co_write_snapshot_table(q, &offset, &size, &count);

    if (r < 0) {
        return error_set_errno(err, -r, "Could not write the snapshot table of '%s'",
                               block_node_display_name(q->node));
    }
    q->snapshots.offset = offset;
    q->snapshots.size = size;
    q->snapshots.count = count;
    r = qcow2_co_write_header(q, err);
    if (r < 0) {
        q->snapshots.offset = old_offset;
        q->snapshots.size = old_size;
        q->snapshots.count = old_count;
        /* If the image is broken, it is unknown which table the header names. */
        if (offset != 0 && !atomic_load(&q->broken)) {
            qcow2_co_free_new_clusters(q, offset, size);
        }
        return r;
    }
    return co_free_old_table(q, old_offset, old_size);
}
