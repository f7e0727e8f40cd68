/* SPDX-License-Identifier: Apache-2.0 */
/* Storing persistent bitmaps: the bits and the table of one bitmap. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "block/bitmaps.h"
#include "qcow2/bitmap/store.h"

static bool is_all_ones(const uint8_t *buf, size_t size)
{
    return buf[0] == 0xff && memcmp(buf, buf + 1, size - 1) == 0;
}

static void free_tables(struct bitmap_tables *t)
{
    free(t->now);
    free(t->before);
    free(t->bits);
    free(t->stored);
}

/* Reads the stored table, and allocates the new one. */
static int co_prepare_tables(struct qcow2 *q, struct block_bitmap *b, const struct stored_bitmap *s,
                             struct bitmap_tables *t)
{
    uint64_t budget = qcow2_bitmap_budget(q);
    int r;

    t->bitmap = b;
    t->now_entries = qcow2_bitmap_table_entries(q, block_node_size(q->node),
                                                (unsigned)__builtin_ctz(b->granularity));
    if (t->now_entries * 8 > BITMAP_TABLE_BYTES_MAX) {
        return -EFBIG;
    }
    t->now = calloc(MAX(t->now_entries, 1), 8);
    t->bits = malloc(q->cluster_size);
    t->stored = malloc(q->cluster_size);
    if (!t->now || !t->bits || !t->stored) {
        return -ENOMEM;
    }
    if (!s || s->table_entries == 0) {
        return 0;
    }
    r = qcow2_co_read_bitmap_table(q, s, &t->before);
    UNLESS_FAILED(r, qcow2_check_bitmap_table(q, t->before, s->table_entries, &budget));
    if (r < 0 && r != -ENOMEM && !b->unread) {
        free(t->before); /* all bits are in memory; clusters of the invalid table leak */
        t->before = NULL;
        t->before_entries = 0;
        return 0;
    }
    t->before_entries = s->table_entries;
    return r;
}

/* Entry `i` as it is stored; 0: no bits. */
static uint64_t stored_entry(const struct bitmap_tables *t, uint64_t i)
{
    return i < t->before_entries ? t->before[i] : 0;
}

/*
 * Fills t->bits with the bits of entry `i`, those of a successor included, and those that were not
 * read from the image.
 * *ret_any: some bit is set. *ret_same: the stored cluster has the same bits. It is kept then, so
 * that a large bitmap is not written again for a few bits.
 */
static int co_gather_bits(struct qcow2 *q, struct bitmap_tables *t, uint64_t i, bool *ret_any,
                          bool *ret_same)
{
    const uint64_t entry = stored_entry(t, i), offset = entry & ENTRY_OFFSET_MASK;
    int r;

    *ret_any =
        dirty_bitmap_serialize(t->bitmap->bits, i * q->cluster_size * 8, t->bits, q->cluster_size);
    if (t->bitmap->successor) {
        *ret_any |= dirty_bitmap_serialize(t->bitmap->successor->bits, i * q->cluster_size * 8,
                                           t->stored, q->cluster_size);
        for (uint64_t k = 0; k < q->cluster_size; k++) {
            t->bits[k] |= t->stored[k];
        }
    }
    *ret_same = false;
    if (offset == 0) {
        if (t->bitmap->unread && entry == BITMAP_TABLE_ALL_ONES) {
            memset(t->bits, 0xff, q->cluster_size);
            *ret_any = true;
        }
        return 0;
    }
    if (!*ret_any) {
        *ret_same = *ret_any = t->bitmap->unread;
        return 0;
    }
    r = block_co_pread(q->node->file, offset, t->stored, q->cluster_size);
    if (r < 0) {
        return t->bitmap->unread ? r : 0;
    }
    for (uint64_t k = 0; t->bitmap->unread && k < q->cluster_size; k++) {
        t->bits[k] |= t->stored[k];
    }
    *ret_same = memcmp(t->bits, t->stored, q->cluster_size) == 0;
    return 0;
}

/* Stores the bits of entry `i`, and sets t->now[i]. */
static int co_store_entry_bits(struct qcow2 *q, struct bitmap_store *st, struct bitmap_tables *t,
                               uint64_t i)
{
    bool any, same;
    int r = co_gather_bits(q, t, i, &any, &same);

    if (r < 0) {
        /* Nothing is missing if all that they cover is dirty. */
        t->now[i] = BITMAP_TABLE_ALL_ONES;
        t->unreadable += qcow2_bitmap_clean_bytes(q, t->bitmap, t->bits, i);
        t->bitmap->counted = false;
        return 0;
    }
    if (same) {
        t->now[i] = stored_entry(t, i);
    } else if (any && is_all_ones(t->bits, q->cluster_size)) {
        t->now[i] = BITMAP_TABLE_ALL_ONES;
    } else if (any) {
        return st->in_place ? qcow2_co_in_place_bits(q, st, t, i)
                            : qcow2_co_store_write_new(q, st, t->bits, q->cluster_size, &t->now[i]);
    }
    return 0;
}

/* Appends the stored clusters of bits that the new table does not use. */
static void collect_replaced(struct qcow2 *q, const struct bitmap_tables *t,
                             struct cluster_runs *old)
{
    for (uint64_t i = 0; i < t->before_entries; i++) {
        uint64_t offset = t->before[i] & ENTRY_OFFSET_MASK;

        if (offset != 0 && (i >= t->now_entries || t->now[i] != offset)) {
            qcow2_store_add_run(old, offset, q->cluster_size);
        }
    }
}

/*
 * Stores the table, and makes t->now big-endian. *ret_offset: its file offset, unchanged if it is
 * stored over the old one (of `s`).
 */
static int co_store_table(struct qcow2 *q, struct bitmap_store *st, struct bitmap_tables *t,
                          const struct stored_bitmap *s, uint64_t *ret_offset)
{
    const char *name = t->bitmap->name;
    uint64_t size = t->now_entries * 8, kept = 0;
    uint64_t before = round_up(t->before_entries * 8, q->cluster_size);
    int r = 0;

    for (uint64_t i = 0; i < t->now_entries; i++) {
        t->now[i] = htobe64(t->now[i]);
    }
    if (st->in_place && s && qcow2_co_in_place_table(q, st, t, s)) {
        kept = round_up(size, q->cluster_size);
    } else {
        st->moved = true;
        r = size > 0 ? qcow2_co_store_write_reserved(q, st, name, t->now, size, ret_offset) : 0;
    }
    if (r == 0 && t->before && before > kept) {
        qcow2_store_add_run(&st->old, s->table_offset + kept, before - kept);
    }
    return r;
}

int qcow2_co_store_bits(struct qcow2 *q, struct bitmap_store *st, struct block_bitmap *b,
                        const struct stored_bitmap *s, struct stored_bitmap *ret_entry)
{
    struct bitmap_tables t = {0};
    int r = co_prepare_tables(q, b, s, &t);

    if (r < 0 && b->unread && r != -ENOMEM && r != -EFBIG) {
        block_bitmap_lose(b, "its table could not be read from the image");
    }
    for (uint64_t i = 0; i < t.now_entries && r == 0; i++) {
        r = co_store_entry_bits(q, st, &t, i);
    }
    if (r == 0) {
        collect_replaced(q, &t, &st->old);
        r = co_store_table(q, st, &t, s, &ret_entry->table_offset);
    }
    if (r == 0 && t.overstated > 0) {
        log_warning("image '%s': no space to store bitmap '%s' exactly: %llu bytes are stored as "
                    "dirty that are not",
                    block_node_display_name(q->node), b->name, (unsigned long long)t.overstated);
        block_bitmap_add_excess(b, t.overstated, qcow2_excess_no_space);
    }
    if (r == 0 && t.unreadable > 0) {
        log_warning("image '%s': a part of bitmap '%s' can't be read: all that it covers is stored "
                    "as dirty, up to %llu bytes that are not",
                    block_node_display_name(q->node), b->name, (unsigned long long)t.unreadable);
        block_bitmap_add_excess(b, t.unreadable, qcow2_excess_unreadable);
    }
    ret_entry->table_entries = (uint32_t)t.now_entries;
    ret_entry->granularity_bits = (uint8_t)__builtin_ctz(b->granularity);
    ret_entry->type = BITMAP_TYPE_DIRTY;
    ret_entry->is_void = false;
    ret_entry->flags = (b->enabled ? BITMAP_FLAG_AUTO : 0) |
                       (st->stays_in_use && (b->borrowed || (b->enabled && q->activity.offset > 0))
                            ? BITMAP_FLAG_IN_USE
                            : 0) |
                       (ret_entry->flags & BITMAP_FLAG_EXTRA_COMPATIBLE);
    free_tables(&t);
    return r;
}

void qcow2_co_collect_clusters(struct qcow2 *q, const struct stored_bitmap *b,
                               struct cluster_runs *old)
{
    uint64_t budget = qcow2_bitmap_budget(q);
    AUTO_FREE uint64_t *table = NULL;

    if (b->table_entries == 0 || qcow2_co_read_bitmap_table(q, b, &table) < 0) {
        return;
    }
    if (qcow2_check_bitmap_table(q, table, b->table_entries, &budget) < 0) {
        return; /* its entries may name anything */
    }
    for (uint32_t i = 0; i < b->table_entries; i++) {
        uint64_t offset = table[i] & ENTRY_OFFSET_MASK;

        if (offset != 0) {
            qcow2_store_add_run(old, offset, q->cluster_size);
        }
    }
    qcow2_store_add_run(old, b->table_offset,
                        round_up((uint64_t)b->table_entries * 8, q->cluster_size));
}
