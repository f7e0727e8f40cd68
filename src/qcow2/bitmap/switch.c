/* SPDX-License-Identifier: Apache-2.0 */
/* Storing persistent bitmaps: writing the directory, and switching to it. */
#include <errno.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/strbuf.h"
#include "qcow2/bitmap/joint.h"
#include "qcow2/bitmap/store.h"
#include "qcow2/header/header.h"
#include "qcow2/table/commit.h"

/* Appends an entry. b->flags_position becomes relative to the directory. */
static void append_bitmap_entry(struct strbuf *sb, struct stored_bitmap *b)
{
    static const uint8_t padding[8];
    uint8_t e[BITMAP_ENTRY_FIXED_SIZE] = {0};
    size_t name_size = strlen(b->name), used;

    store_be64(e + BITMAP_ENTRY_TABLE_OFFSET, b->table_offset);
    store_be32(e + BITMAP_ENTRY_TABLE_SIZE, b->table_entries);
    store_be32(e + BITMAP_ENTRY_FLAGS, b->flags);
    e[BITMAP_ENTRY_TYPE] = b->type;
    e[BITMAP_ENTRY_GRANULARITY_BITS] = b->granularity_bits;
    store_be16(e + BITMAP_ENTRY_NAME_SIZE, (uint16_t)name_size);
    store_be32(e + BITMAP_ENTRY_EXTRA_SIZE, b->extra_size);
    b->flags_position = sb->len + BITMAP_ENTRY_FLAGS;
    used = sizeof(e) + b->extra_size + name_size;
    strbuf_append(sb, e, sizeof(e));
    strbuf_append(sb, b->extra, b->extra_size);
    strbuf_append(sb, b->name, name_size);
    strbuf_append(sb, padding, round_up(used, 8) - used);
}

static int co_write_directory(struct qcow2 *q, struct bitmap_store *st, const void *data,
                              size_t size, uint64_t *ret_offset)
{
    if (st->place == 0) {
        return qcow2_co_store_write_reserved(q, st, NULL, data, size, ret_offset);
    }
    if (size > q->cluster_size) {
        return -ENOSPC;
    }
    *ret_offset = st->place;
    return block_co_pwrite(q->node->file, st->place, data, size, 0);
}

int qcow2_co_write_directory(struct qcow2 *q, struct bitmap_store *st)
{
    struct stored_bitmap *b;
    STRBUF_AUTO(directory);
    int r = 0;

    LIST_FOREACH (b, &st->entries, link) {
        append_bitmap_entry(&directory, b);
    }
    if (directory.failed) {
        return -ENOMEM;
    }
    if (directory.len > 0) {
        r = co_write_directory(q, st, directory.data, directory.len, &st->directory_offset);
    }
    st->directory_size = directory.len;
    return r;
}

/* What the header records of the directory. */
struct directory_fields {
    uint64_t offset, size;
    uint64_t autoclear;
};

static struct directory_fields exchange_fields(struct qcow2 *q, struct directory_fields new)
{
    struct directory_fields old = {q->bitmaps.directory_offset, q->bitmaps.directory_size,
                                   q->header.autoclear};

    q->bitmaps.directory_offset = new.offset;
    q->bitmaps.directory_size = new.size;
    q->header.autoclear = new.autoclear;
    return old;
}

/* The header names st->entries: they become bitmaps.stored, and `old_list` is freed. */
static void adopt_switched(struct qcow2 *q, uint64_t offset, struct list *old_list)
{
    struct stored_bitmap *b;

    LIST_FOREACH (b, &q->bitmaps.stored, link) {
        b->flags_position += offset;
        if (b->loaded) {
            b->loaded->driver_state = b;
        }
    }
    LIST_FOREACH (b, old_list, link) {
        if (b->loaded && b->loaded->detached) {
            b->loaded->driver_state = NULL; /* it is removed */
        }
    }
    qcow2_stored_bitmap_free_list(old_list);
}

/* What the header says of the directory that `st` has written. */
static struct directory_fields fields_of(const struct qcow2 *q, const struct bitmap_store *st)
{
    struct directory_fields fields = {st->directory_offset, st->directory_size,
                                      q->header.autoclear};

    fields.autoclear &= ~AUTOCLEAR_BITMAPS;
    fields.autoclear |= st->directory_size > 0 ? AUTOCLEAR_BITMAPS : 0;
    fields.autoclear &= st->stays_in_use ? ~0ULL : ~AUTOCLEAR_ACTIVITY;
    return fields;
}

static void note_old_directory(struct qcow2 *q, struct bitmap_store *st,
                               const struct directory_fields *old)
{
    if (old->size > 0) {
        qcow2_store_add_run(&st->old, old->offset, round_up(old->size, q->cluster_size));
    }
}

void qcow2_switch_in_memory(struct qcow2 *q, struct bitmap_store *st)
{
    struct directory_fields old = exchange_fields(q, fields_of(q, st));
    struct list old_list;

    CO_ASSERT_HELD(&q->bitmaps.mutex);
    list_init(&old_list);
    list_splice(&old_list, &q->bitmaps.stored);
    list_splice(&q->bitmaps.stored, &st->entries);
    adopt_switched(q, st->directory_offset, &old_list);
    note_old_directory(q, st, &old);
}

int qcow2_co_switch_to_written(struct qcow2 *q, struct bitmap_store *st,
                               enum qcow2_joint_state joint, struct error *err)
{
    struct directory_fields old;
    enum qcow2_joint_state old_joint = q->joint.state;
    struct list old_list;
    int r;

    CO_ASSERT_HELD(&q->bitmaps.mutex);
    list_init(&old_list);
    list_splice(&old_list, &q->bitmaps.stored);
    list_splice(&q->bitmaps.stored, &st->entries);
    old = exchange_fields(q, fields_of(q, st));
    q->joint.state = joint;
    r = qcow2_co_write_header(q, err);
    if (r < 0) {
        list_splice(&st->entries, &q->bitmaps.stored);
        list_splice(&q->bitmaps.stored, &old_list);
        (void)exchange_fields(q, old);
        q->joint.state = old_joint;
        return r;
    }
    adopt_switched(q, st->directory_offset, &old_list);
    if (q->activity.offset > 0 && !st->stays_in_use) {
        qcow2_co_activity_ended(q);
    }
    note_old_directory(q, st, &old);
    if (old_joint == JOINT_PREPARED && joint == JOINT_NONE) {
        qcow2_co_joint_ended(q);
    }
    return 0;
}

int qcow2_co_switch_directory(struct qcow2 *q, struct bitmap_store *st, struct error *err)
{
    enum qcow2_joint_state joint = q->joint.state == JOINT_PREPARED ? JOINT_NONE : q->joint.state;
    int r = qcow2_co_write_directory(q, st);

    UNLESS_FAILED(r, qcow2_co_commit(q));
    if (r < 0) {
        return error_set_errno(err, -r, "Could not write the bitmaps of '%s'",
                               block_node_display_name(q->node));
    }
    return qcow2_co_switch_to_written(q, st, joint, err);
}
