/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Storing persistent bitmaps without space for new clusters.
 *
 * A program that opens the image does not use a bitmap that is marked in use. So as long as the
 * mark is on disk, the clusters and the table of the bitmap may be overwritten:
 *
 *   1. mark the bitmaps in use, and sync
 *   2. write the bits to the clusters that they have
 *   3. commit: the refcounts of clusters that could be allocated
 *   4. write the tables, and sync
 *   5. for each bitmap write the length of the table and the flags, without the mark: eight
 *      bytes within a sector; sync
 *   6. free what is no longer used
 *
 * A crash before step 5 leaves the bitmaps in use. Until then every entry of their tables, old or
 * new, names a cluster that the bitmap owns. Bits that have no cluster and get none are stored as
 * "all dirty", which needs no cluster: a superset of what is dirty, never less.
 *
 * Bitmaps that were never stored, or whose table has grown beyond its clusters, have clusters
 * reserved for the table and for a directory (reserve.c). If there is such a bitmap, switching to
 * that directory (R3) replaces step 5.
 *
 * When a bitmap is removed, one of its clusters of bits takes the new directory.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/cleanup.h"
#include "qcow2/bitmap/reserve.h"
#include "qcow2/bitmap/store.h"
#include "qcow2/table/commit.h"
#include "qcow2/table/refcount.h"

int qcow2_co_in_place_begin(struct qcow2 *q, struct error *err)
{
    struct stored_bitmap *s;
    int r = qcow2_co_reserve_bitmaps_locked(q, block_node_size(q->node), err);

    CO_ASSERT_HELD(&q->bitmaps.mutex);
    if (r < 0) {
        return r;
    }
    qcow2_reserve_begin_locked(q);
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

/*
 * Whether nothing else is known to use these clusters. The tables of a corrupt image may name any
 * cluster.
 */
static bool co_is_sole_owner(struct qcow2 *q, uint64_t offset, uint64_t length)
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

uint64_t qcow2_bitmap_clean_bytes(const struct qcow2 *q, const struct block_bitmap *b,
                                  const uint8_t *bits, uint64_t i)
{
    const uint64_t span = q->cluster_size * 8, granularity = b->granularity;
    const uint64_t begin = i * span * granularity;
    const uint64_t end = MIN(begin + span * granularity, dirty_bitmap_size(b->bits));
    uint64_t dirty = 0;

    for (uint64_t k = 0; k < q->cluster_size; k++) {
        dirty += (uint64_t)__builtin_popcount(bits[k]) * granularity;
    }
    return end > begin + dirty ? end - begin - dirty : 0;
}

int qcow2_co_in_place_bits(struct qcow2 *q, struct bitmap_store *st, struct bitmap_tables *t,
                           uint64_t i)
{
    uint64_t offset = i < t->before_entries ? t->before[i] & ENTRY_OFFSET_MASK : 0;
    int r = -ENOSPC;

    if (offset != 0 && co_is_sole_owner(q, offset, q->cluster_size)) {
        t->now[i] = offset;
        r = block_co_pwrite(q->node->file, offset, t->bits, q->cluster_size, 0);
    } else if (!st->no_room) {
        r = qcow2_co_store_write_new(q, st, t->bits, q->cluster_size, &t->now[i]);
        st->no_room = qcow2_is_no_room(r);
    }
    if (qcow2_is_no_room(r)) {
        t->now[i] = BITMAP_TABLE_ALL_ONES;
        t->overstated += qcow2_bitmap_clean_bytes(q, t->bitmap, t->bits, i);
        r = 0;
    }
    return r;
}

bool qcow2_co_in_place_table(struct qcow2 *q, struct bitmap_store *st, struct bitmap_tables *t,
                             const struct stored_bitmap *s)
{
    uint64_t has = round_up(t->before_entries * 8, q->cluster_size);
    struct waiting_table *table;

    if (!t->before || t->now_entries * 8 > has || !co_is_sole_owner(q, s->table_offset, has)) {
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
    return UNLESS_FAILED(r, block_co_flush(q->node->file));
}

/* Writes the length of the table and the flags, which are eight bytes at a multiple of eight. */
static int co_write_entry_fields(struct qcow2 *q, const struct stored_bitmap *b)
{
    uint64_t at = b->flags_position - BITMAP_ENTRY_FLAGS + BITMAP_ENTRY_TABLE_SIZE;
    uint8_t fields[8];
    int r;

    store_be32(fields, b->table_entries);
    store_be32(fields + (BITMAP_ENTRY_FLAGS - BITMAP_ENTRY_TABLE_SIZE), b->flags);
    r = qcow2_co_overlap_check(q, at, sizeof(fields), OVERLAP_BIT(OVERLAP_BITMAP_DIRECTORY));
    return UNLESS_FAILED(r, block_co_pwrite(q->node->file, at, fields, sizeof(fields), 0));
}

/*
 * It is unknown which marks are on disk: the next guest write marks again, and the bitmaps have to
 * be stored again.
 */
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
            r = co_write_entry_fields(q, b);
        }
    }
    UNLESS_FAILED(r, block_co_flush(q->node->file));
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
    struct cluster_runs *old = &st->old;
    int r = qcow2_co_read_bits_locked(q, gone->loaded); /* if it is not removed after all */

    UNLESS_FAILED(r, qcow2_co_mark_in_use_locked(q, gone));
    CO_ASSERT_HELD(&q->bitmaps.mutex);
    /*
     * The last run is the table, which must stay intact as long as the old directory refers to it.
     */
    for (size_t i = 0; i + 1 < old->count && r == 0; i++) {
        if (co_is_sole_owner(q, old->runs[i].offset, q->cluster_size)) {
            st->place = old->runs[i].offset;
            old->runs[i] = old->runs[--old->count];
            return 0;
        }
    }
    return r < 0 ? r : -ENOSPC;
}
