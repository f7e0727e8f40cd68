/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Storing persistent bitmaps where there is no room for new clusters.
 *
 * A bitmap that is marked in use is of no worth to anybody who opens the image, so as long as the mark is on disk its clusters
 * and its table may be overwritten:
 *
 *   mark (stable) -> bits into the clusters that they have -> commit: refcounts of what could be had -> tables -> sync
 *                 -> length of the table and flags of each bitmap, eight bytes within a sector, without the mark -> sync -> free
 *
 * A crash before the last step leaves the bitmap in use. Until its mark is gone every entry of its table, old or new, names a cluster
 * that it owns. What has no cluster and finds none becomes "all dirty", which takes none: more than is true, never less.
 *
 * Bitmaps that were never stored, or whose table has become too long for its clusters, have a place reserved (bitmap_reserve.c) for the
 * table and for a directory; then that is switched to, as usual (R3), in place of the last step.
 *
 * When a bitmap is removed, one of its clusters of bits takes the directory without it.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "qcow2/bitmap/bitmap.h"
#include "qcow2/bitmap/store.h"
#include "qcow2/table/commit.h"
#include "qcow2/table/refcount.h"

/* A table in big-endian, for the clusters that it has. */
struct waiting_table {
    struct list link;
    uint64_t *entries;
    size_t bytes;
    uint64_t offset;
};

int qcow2_co_in_place_begin(struct qcow2 *q, struct error *err)
{
    struct stored_bitmap *s;
    int r = qcow2_co_reserve_bitmaps_locked(q, block_node_size(q->node), err);

    if (r < 0) {
        return r;
    }
    qcow2_bitmap_reserve_begin(q);
    LIST_FOREACH (s, &q->bitmaps.stored, link) {
        if (s->loaded && qcow2_bitmap_is_stale(s, s->loaded)) {
            r = qcow2_co_mark_in_use_locked(q, s);
        }
        if (r < 0) {
            return error_set_errno(err, -r, "Could not mark bitmap '%s' of '%s' as in use", s->name,
                                   block_node_display_name(q->node));
        }
    }
    return 0;
}

/* Nobody else has these clusters, as far as can be seen: tables of a corrupt image may name anything. */
static bool co_is_owned(struct qcow2 *q, uint64_t offset, uint64_t length)
{
    uint64_t refcount = 1;
    bool hit = false;

    co_mutex_lock(&q->lock);
    for (uint64_t at = offset; at < offset + length && refcount == 1 && !hit;
         at += q->cluster_size) {
        if (qcow2_co_refcount_get_locked(q, qcow2_cluster_index(q, at), &refcount) < 0) {
            refcount = 0;
        }
        hit = qcow2_co_overlap_hits_locked(q, at);
    }
    co_mutex_unlock(&q->lock);
    return refcount == 1 && !hit;
}

/* What entry `i` says too much if it stands for "all dirty". */
static uint64_t clean_bytes(const struct qcow2 *q, const struct bitmap_tables *t, uint64_t i)
{
    const uint64_t span = q->cluster_size * 8, granularity = t->bitmap->granularity;
    const uint64_t begin = i * span * granularity;
    const uint64_t end = MIN(begin + span * granularity, dirty_bitmap_size(t->bitmap->bits));
    uint64_t dirty = 0;

    for (uint64_t k = 0; k < q->cluster_size; k++) {
        dirty += (uint64_t)__builtin_popcount(t->bits[k]) * granularity;
    }
    return end > begin + dirty ? end - begin - dirty : 0;
}

int qcow2_co_in_place_bits(struct qcow2 *q, struct bitmap_store *st, struct bitmap_tables *t,
                           uint64_t i)
{
    uint64_t offset = i < t->before_entries ? t->before[i] & ENTRY_OFFSET_MASK : 0;
    int r = -ENOSPC;

    if (offset != 0 && co_is_owned(q, offset, q->cluster_size)) {
        t->now[i] = offset;
        r = block_co_pwrite(q->node->file, offset, t->bits, q->cluster_size, 0);
    } else if (!st->no_room) {
        r = qcow2_co_bitmap_write_new(q, st, t->bits, q->cluster_size, &t->now[i]);
        st->no_room = qcow2_is_no_room(r);
    }
    if (qcow2_is_no_room(r)) {
        t->now[i] = BITMAP_TABLE_ALL_ONES;
        t->overstated += clean_bytes(q, t, i);
        r = 0;
    }
    return r;
}

bool qcow2_co_in_place_table(struct qcow2 *q, struct bitmap_store *st, struct bitmap_tables *t,
                             const struct stored_bitmap *s)
{
    uint64_t has = round_up(t->before_entries * 8, q->cluster_size);
    struct waiting_table *table;

    if (!t->before || t->now_entries * 8 > has || !co_is_owned(q, s->table_offset, has)) {
        return false;
    }
    table = calloc(1, sizeof(*table));
    if (!table) {
        return false;
    }
    list_init(&table->link);
    table->entries = TAKE_PTR(t->now);
    table->bytes = t->now_entries * 8;
    table->offset = s->table_offset;
    list_append(&st->tables, &table->link);
    return true;
}

int qcow2_co_in_place_write_tables(struct qcow2 *q, struct bitmap_store *st)
{
    struct waiting_table *table;
    int r = qcow2_co_commit(q); /* R1 */

    LIST_FOREACH (table, &st->tables, link) {
        if (r == 0) {
            st->written = true;
            r = block_co_pwrite(q->node->file, table->offset, table->entries, table->bytes, 0);
        }
    }
    return r < 0 ? r : block_co_flush(q->node->file);
}

void qcow2_in_place_free_tables(struct bitmap_store *st)
{
    while (!list_is_empty(&st->tables)) {
        struct waiting_table *table = LIST_FIRST(&st->tables, struct waiting_table, link);

        list_remove(&table->link);
        free(table->entries);
        free(table);
    }
}

/* Length of the table and flags lie side by side, at a multiple of eight. */
static int co_write_fields(struct qcow2 *q, const struct stored_bitmap *b)
{
    uint64_t at = b->flags_position - BITMAP_ENTRY_FLAGS + BITMAP_ENTRY_TABLE_SIZE;
    uint8_t fields[8];
    int r;

    store_be32(fields, b->table_entries);
    store_be32(fields + (BITMAP_ENTRY_FLAGS - BITMAP_ENTRY_TABLE_SIZE), b->flags);
    r = qcow2_co_overlap_check(q, at, sizeof(fields), OVERLAP_BIT(OVERLAP_BITMAP_DIRECTORY));
    return r < 0 ? r : block_co_pwrite(q->node->file, at, fields, sizeof(fields), 0);
}

/* Nobody knows which marks are on disk: they are written before the next guest write, and the bitmaps stored again. */
static void forget_marks(struct qcow2 *q)
{
    struct stored_bitmap *s;

    LIST_FOREACH (s, &q->bitmaps.stored, link) {
        if (s->loaded && qcow2_bitmap_is_stale(s, s->loaded)) {
            s->flags &= ~BITMAP_FLAG_IN_USE;
            s->loaded->unstored = true;
        }
    }
    atomic_store(&q->bitmaps.marked, false);
}

int qcow2_co_in_place_finish(struct qcow2 *q, struct bitmap_store *st)
{
    struct stored_bitmap *b;
    int r = 0;

    LIST_FOREACH (b, &st->entries, link) {
        if (b->loaded && r == 0 && qcow2_bitmap_is_stale(b->loaded->driver_state, b->loaded)) {
            r = co_write_fields(q, b);
        }
    }
    r = r < 0 ? r : block_co_flush(q->node->file);
    if (r < 0) {
        forget_marks(q);
        return r;
    }
    qcow2_adopt_entries(q, &st->entries);
    return 0;
}

int qcow2_co_in_place_directory(struct qcow2 *q, struct stored_bitmap *gone,
                                struct bitmap_store *st)
{
    struct free_list *old = &st->old;
    int r = qcow2_co_mark_in_use_locked(q, gone);

    /* The last one is the table, which has to stay whole as long as it is referred to. */
    for (size_t i = 0; i + 1 < old->count && r == 0; i++) {
        if (co_is_owned(q, old->runs[i].offset, q->cluster_size)) {
            st->place = old->runs[i].offset;
            old->runs[i] = old->runs[--old->count];
            /* What is only there is lost, also if the bitmap stays after all. */
            gone->loaded->inconsistent |= gone->loaded->unread;
            return 0;
        }
    }
    return r < 0 ? r : -ENOSPC;
}
