/* SPDX-License-Identifier: Apache-2.0 */
/* Reading the bits of a stored bitmap. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/size.h"
#include "block/bitmaps.h"
#include "qcow2/bitmap/stored.h"

/* Limit in bytes for one read of bits, whose clusters are contiguous. */
#define READ_BYTES (1 * MiB)

/* Whether its table has the length for the size of the disk. */
bool qcow2_bitmap_fits_disk(const struct qcow2 *q, const struct stored_bitmap *b)
{
    return b->table_entries ==
           qcow2_bitmap_table_entries(q, block_node_size(q->node), b->granularity_bits);
}

/* Reads and checks the table of a bitmap. */
int qcow2_co_read_checked_table(struct qcow2 *q, const struct stored_bitmap *b, uint64_t *budget,
                                uint64_t **ret_table)
{
    AUTO_FREE uint64_t *table = NULL;
    int r;

    if (!qcow2_bitmap_fits_disk(q, b)) {
        return -EINVAL;
    }
    r = qcow2_co_read_bitmap_table(q, b, &table);
    UNLESS_FAILED(r, qcow2_check_bitmap_table(q, table, b->table_entries, budget));
    if (r == 0) {
        *ret_table = TAKE_PTR(table);
    }
    return r;
}

/* --- bits ------------------------------------------------------------------------------------- */

/* How many entries from `i` have contiguous clusters of bits; limited to one read. */
static uint32_t contiguous_clusters(const struct qcow2 *q, const uint64_t *table, uint32_t entries,
                                    uint32_t i)
{
    uint32_t n = 1, most = (uint32_t)MAX(READ_BYTES >> q->cluster_bits, 1);

    while (n < most && i + n < entries && table[i + n] == table[i] + n * q->cluster_size) {
        n++;
    }
    return n;
}

/*
 * Called with `count` bits from granule `first` on, a multiple of 8. `bits` is NULL if all are set.
 */
typedef int bits_fn(void *arg, uint64_t first, const uint8_t *bits, uint64_t count);

/* Calls `fn` for all entries that have bits. */
static int co_read_bits_locked(struct qcow2 *q, const struct stored_bitmap *b,
                               const uint64_t *table, bits_fn *fn, void *arg)
{
    uint64_t span = q->cluster_size * 8; /* granules of a cluster */
    AUTO_FREE uint8_t *buf = malloc(MAX(READ_BYTES, q->cluster_size));
    uint32_t n;
    int r = buf ? 0 : -ENOMEM;

    CO_ASSERT_HELD(&q->bitmaps.bits_mutex);
    for (uint32_t i = 0; table && i < b->table_entries && r == 0; i += n) {
        uint64_t offset = table[i] & ENTRY_OFFSET_MASK;

        n = 1;
        if (offset != 0) {
            n = contiguous_clusters(q, table, b->table_entries, i);
            r = block_co_pread(q->node->file, offset, buf, n * q->cluster_size);
            UNLESS_FAILED(r, fn(arg, i * span, buf, n * span));
        } else if (table[i] & BITMAP_TABLE_ALL_ONES) {
            r = fn(arg, i * span, NULL, span);
        }
    }
    return r;
}

/* Calls `fn` for the stored bits of a bitmap. -ENOENT if it was removed meanwhile. */
static int co_visit_stored_bits_locked(struct qcow2 *q, const struct block_bitmap *bitmap,
                                       bits_fn *fn, void *arg)
{
    uint64_t budget = qcow2_bitmap_budget(q);
    AUTO_FREE uint64_t *table = NULL;
    const struct stored_bitmap *b = bitmap->driver_state;
    int r;

    CO_ASSERT_HELD(&q->bitmaps.bits_mutex);
    r = b ? qcow2_co_read_checked_table(q, b, &budget, &table) : -ENOENT;
    return UNLESS_FAILED(r, co_read_bits_locked(q, b, table, fn, arg));
}

static int co_visit_stored_bits(struct block_node *node, const struct block_bitmap *bitmap,
                                bits_fn *fn, void *arg)
{
    struct qcow2 *q = qcow2_state(node);
    int r;

    co_mutex_lock(&q->bitmaps.bits_mutex);
    r = co_visit_stored_bits_locked(q, bitmap, fn, arg);
    co_mutex_unlock(&q->bitmaps.bits_mutex);
    return r;
}

static int add_stored_bits(void *arg, uint64_t first, const uint8_t *bits, uint64_t count)
{
    struct block_bitmap *b = arg;

    if (bits) {
        return dirty_bitmap_deserialize(b->bits, first, bits, count / 8);
    }
    dirty_bitmap_set(b->bits, first * b->granularity, count * b->granularity);
    return 0;
}

int qcow2_co_read_bits_locked(struct qcow2 *q, struct block_bitmap *bitmap)
{
    int r = bitmap->unread ? co_visit_stored_bits_locked(q, bitmap, add_stored_bits, bitmap) : 0;

    CO_ASSERT_HELD(&q->bitmaps.bits_mutex);
    if (r == 0) {
        bitmap->unread = false;
    }
    return r;
}

int qcow2_co_fetch_bitmap(struct block_node *node, struct block_bitmap *bitmap)
{
    return co_visit_stored_bits(node, bitmap, add_stored_bits, bitmap);
}

struct bit_count {
    uint64_t granules; /* of the disk; bits behind them are ignored */
    uint64_t dirty;    /* granules */
    bool last;         /* the last granule is dirty */
};

static int count_stored_bits(void *arg, uint64_t first, const uint8_t *bits, uint64_t count)
{
    struct bit_count *c = arg;
    uint64_t end = MIN(first + count, c->granules);

    if (first >= end) {
        return 0;
    }
    for (uint64_t i = 0; bits && i < (end - first) / 8; i++) {
        c->dirty += (uint64_t)__builtin_popcount(bits[i]);
    }
    for (uint64_t i = bits ? round_down(end, 8) : first; bits && i < end; i++) {
        c->dirty += bits[(i - first) / 8] >> (i % 8) & 1;
    }
    c->dirty += bits ? 0 : end - first;
    if (end == c->granules) {
        c->last = !bits || bits[(end - 1 - first) / 8] >> ((end - 1) % 8) & 1;
    }
    return 0;
}

int qcow2_co_count_bitmap(struct block_node *node, const struct block_bitmap *bitmap,
                          uint64_t *ret_bytes)
{
    struct bit_count c = {.granules = dirty_bitmap_granules(bitmap->bits)};
    uint64_t size = dirty_bitmap_size(bitmap->bits);
    int r = co_visit_stored_bits(node, bitmap, count_stored_bits, &c);

    *ret_bytes = c.dirty * bitmap->granularity;
    if (c.last) {
        *ret_bytes -= c.granules * bitmap->granularity - size; /* the part behind the disk */
    }
    return r;
}

/* Counts granules, which may be larger than regions. */
uint64_t qcow2_set_hot_regions(const struct qcow2 *q, const uint8_t *hot, struct dirty_bitmap *bits)
{
    uint64_t region_size = 1ULL << q->activity.region_bits, size = dirty_bitmap_size(bits);
    uint64_t before = dirty_bitmap_count(bits);

    for (uint64_t region = 0; region * region_size < size; region++) {
        if (hot[region / 8] >> (region % 8) & 1) {
            dirty_bitmap_set(bits, region * region_size, region_size);
        }
    }
    return dirty_bitmap_count(bits) - before;
}

static int set_stored_bits(void *arg, uint64_t first, const uint8_t *bits, uint64_t count)
{
    struct dirty_bitmap *b = arg;
    uint64_t granularity = dirty_bitmap_granularity(b);

    if (bits) {
        return dirty_bitmap_deserialize(b, first, bits, count / 8);
    }
    dirty_bitmap_set(b, first * granularity, count * granularity);
    return 0;
}

int qcow2_co_read_bits_of(struct qcow2 *q, const struct stored_bitmap *b, const uint8_t *hot,
                          struct dirty_bitmap **ret_bits)
{
    struct dirty_bitmap *bits =
        dirty_bitmap_new(block_node_size(q->node), 1u << b->granularity_bits);
    uint64_t budget = qcow2_bitmap_budget(q);
    AUTO_FREE uint64_t *table = NULL;
    int r = bits ? 0 : -ENOMEM;

    co_mutex_lock(&q->bitmaps.bits_mutex);
    UNLESS_FAILED(r, qcow2_co_read_checked_table(q, b, &budget, &table));
    UNLESS_FAILED(r, co_read_bits_locked(q, b, table, set_stored_bits, bits));
    co_mutex_unlock(&q->bitmaps.bits_mutex);
    if (r < 0) {
        dirty_bitmap_free(bits);
        return r;
    }
    if (hot && (b->flags & BITMAP_FLAG_IN_USE) && (b->flags & BITMAP_FLAG_AUTO)) {
        (void)qcow2_set_hot_regions(q, hot, bits);
    }
    *ret_bits = bits;
    return 0;
}

/* Whether its type, flags and granularity are known. Other bitmaps are kept as they are. */
bool qcow2_bitmap_is_known(const struct stored_bitmap *b)
{
    return b->type == BITMAP_TYPE_DIRTY && !(b->flags & ~BITMAP_FLAGS_KNOWN) &&
           (b->extra_size == 0 || (b->flags & BITMAP_FLAG_EXTRA_COMPATIBLE)) &&
           b->granularity_bits >= 9 && b->granularity_bits <= 31;
}
