/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Persistent bitmaps: what an open reads of them, and their bits.
 *
 * At open only the tables are read. The bits stay in the image until somebody asks for them (struct block_bitmap, `unread`): those
 * of a large disk may take a quarter of a gigabyte, and most opens have no use for them. What guests write
 * meanwhile is set in an empty bitmap, and joined with what is stored when that is read, or when all is stored.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "qcow2/bitmap/bitmap.h"

/* Bits are read in pieces of so much, where their clusters lie one behind the other. */
#define READ_BYTES (1 * MiB)
/* An open reads so much of tables. */
#define OPEN_TABLE_BYTES (256 * MiB)

/* --- tables ---------------------------------------------------------------------------------------- */

int qcow2_co_read_bitmap_table(struct qcow2 *q, const struct stored_bitmap *b, uint64_t **ret)
{
    size_t bytes = (size_t)b->table_entries * 8;
    AUTO_FREE uint64_t *table = NULL;
    int r;

    if (bytes > BITMAP_TABLE_BYTES_MAX || !is_aligned(b->table_offset, q->cluster_size) ||
        !range_fits(b->table_offset, bytes, block_edge_size(q->node->file))) {
        return -EINVAL;
    }
    table = malloc(bytes ? bytes : 8);
    if (!table) {
        return -ENOMEM;
    }
    r = block_co_pread(q->node->file, b->table_offset, table, bytes);
    if (r < 0) {
        return r;
    }
    for (uint32_t i = 0; i < b->table_entries; i++) {
        table[i] = be64toh(table[i]);
    }
    *ret = TAKE_PTR(table);
    return 0;
}

/*
 * Tables and bits of different bitmaps lie in different places, so all together they are no longer than the file. A small file in
 * which they lie upon each other can't make us read or allocate any more than that.
 */
uint64_t qcow2_bitmap_budget(const struct qcow2 *q)
{
    return round_up(block_edge_size(q->node->file), q->cluster_size);
}

static int take_budget(uint64_t *budget, uint64_t bytes)
{
    if (*budget < bytes) {
        return -EINVAL;
    }
    *budget -= bytes;
    return 0;
}

int qcow2_check_bitmap_table(const struct qcow2 *q, const uint64_t *table, uint32_t entries,
                             uint64_t *budget)
{
    uint64_t file_size = qcow2_bitmap_budget(q);
    int r = take_budget(budget, (uint64_t)entries * 8);

    for (uint32_t i = 0; i < entries && r == 0; i++) {
        uint64_t offset = table[i] & ENTRY_OFFSET_MASK;

        if (offset == 0) {
            continue;
        }
        if (!is_aligned(offset, q->cluster_size) || (table[i] & ~ENTRY_OFFSET_MASK) ||
            !range_fits(offset, q->cluster_size, file_size)) {
            return -EINVAL;
        }
        r = take_budget(budget, q->cluster_size);
    }
    return r;
}

static bool is_of_disk(const struct qcow2 *q, const struct stored_bitmap *b)
{
    return b->table_entries ==
           qcow2_bitmap_table_entries(q, block_node_size(q->node), b->granularity_bits);
}

/* The table of a bitmap of this disk, checked. */
static int co_read_checked_table(struct qcow2 *q, const struct stored_bitmap *b, uint64_t *budget,
                                 uint64_t **ret)
{
    AUTO_FREE uint64_t *table = NULL;
    int r;

    if (!is_of_disk(q, b)) {
        return -EINVAL;
    }
    r = qcow2_co_read_bitmap_table(q, b, &table);
    r = r < 0 ? r : qcow2_check_bitmap_table(q, table, b->table_entries, budget);
    if (r == 0) {
        *ret = TAKE_PTR(table);
    }
    return r;
}

/* --- bits ------------------------------------------------------------------------------------------ */

/* How many clusters from entry `i` on have their bits one behind the other, as far as one read goes. */
static uint32_t run_of_clusters(const struct qcow2 *q, const uint64_t *table, uint32_t entries,
                                uint32_t i)
{
    uint32_t n = 1, most = (uint32_t)MAX(READ_BYTES >> q->cluster_bits, 1);

    while (n < most && i + n < entries && table[i + n] == table[i] + n * q->cluster_size) {
        n++;
    }
    return n;
}

/* What to do with `count` bits from granule `first` on; NULL: all are set. `first` is a multiple of 8. */
typedef int bits_fn(void *arg, uint64_t first, const uint8_t *bits, uint64_t count);

static int co_read_bits(struct qcow2 *q, const struct stored_bitmap *b, const uint64_t *table,
                        bits_fn *fn, void *arg)
{
    uint64_t span = q->cluster_size * 8; /* granules of a cluster */
    AUTO_FREE uint8_t *buf = malloc(MAX(READ_BYTES, q->cluster_size));
    uint32_t n;
    int r = buf ? 0 : -ENOMEM;

    for (uint32_t i = 0; table && i < b->table_entries && r == 0; i += n) {
        uint64_t offset = table[i] & ENTRY_OFFSET_MASK;

        n = 1;
        if (offset != 0) {
            n = run_of_clusters(q, table, b->table_entries, i);
            r = block_co_pread(q->node->file, offset, buf, n * q->cluster_size);
            r = r < 0 ? r : fn(arg, i * span, buf, n * span);
        } else if (table[i] & BITMAP_TABLE_ALL_ONES) {
            r = fn(arg, i * span, NULL, span);
        }
    }
    return r;
}

static int co_visit_bits(struct block_node *node, const struct block_bitmap *bitmap, bits_fn *fn,
                         void *arg)
{
    struct qcow2 *q = qcow2_state(node);
    uint64_t budget = qcow2_bitmap_budget(q);
    AUTO_FREE uint64_t *table = NULL;
    const struct stored_bitmap *b;
    int r;

    co_mutex_lock(&q->bitmaps.bits_mutex);
    b = bitmap->driver_state;
    r = b ? co_read_checked_table(q, b, &budget, &table) : -ENOENT;
    r = r < 0 ? r : co_read_bits(q, b, table, fn, arg);
    co_mutex_unlock(&q->bitmaps.bits_mutex);
    return r;
}

static int set_bits(void *arg, uint64_t first, const uint8_t *bits, uint64_t count)
{
    struct block_bitmap *b = arg;

    if (bits) {
        return dirty_bitmap_deserialize(b->bits, first, bits, count / 8);
    }
    dirty_bitmap_set(b->bits, first * b->granularity, count * b->granularity);
    return 0;
}

int qcow2_co_fetch_bitmap(struct block_node *node, struct block_bitmap *bitmap)
{
    return co_visit_bits(node, bitmap, set_bits, bitmap);
}

struct count {
    uint64_t granules, dirty;
    bool last; /* is dirty */
};

static int count_bits(void *arg, uint64_t first, const uint8_t *bits, uint64_t count)
{
    struct count *c = arg;
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

int qcow2_co_count_bitmap(struct block_node *node, const struct block_bitmap *bitmap, uint64_t *ret)
{
    struct count c = {.granules = dirty_bitmap_granules(bitmap->bits)};
    uint64_t size = dirty_bitmap_size(bitmap->bits);
    int r = co_visit_bits(node, bitmap, count_bits, &c);

    *ret = c.dirty * bitmap->granularity;
    if (c.last) {
        *ret -= c.granules * bitmap->granularity - size; /* of its last granule */
    }
    return r;
}

/* --- open ------------------------------------------------------------------------------------------ */

/* Whether this is a bitmap that we can load; others are kept as they are. */
static bool is_known(const struct stored_bitmap *b)
{
    return b->type == BITMAP_TYPE_DIRTY && !(b->flags & ~BITMAP_FLAGS_KNOWN) &&
           (b->extra_size == 0 || (b->flags & BITMAP_FLAG_EXTRA_COMPATIBLE)) &&
           b->granularity_bits >= 9 && b->granularity_bits <= 31;
}

/* What an open may do with tables. */
struct budgets {
    uint64_t bytes; /* what is left of the file, see qcow2_bitmap_budget() */
    uint64_t
        tables; /* bytes of tables that are read; what is wrong with others turns out when their bits are wanted */
};

/* Nothing set yet, if what is stored looks as it should; NULL if it can't be used. */
static int co_prepare_bits(struct qcow2 *q, const struct stored_bitmap *b, struct budgets *budgets,
                           struct dirty_bitmap **ret, struct error *err)
{
    uint64_t bytes = (uint64_t)b->table_entries * 8;
    AUTO_FREE uint64_t *table = NULL;
    int r;

    *ret = NULL;
    if (b->flags & BITMAP_FLAG_IN_USE) {
        return 0;
    }
    r = bytes <= budgets->tables || !is_of_disk(q, b)
            ? co_read_checked_table(q, b, &budgets->bytes, &table)
            : 0;
    budgets->tables -= MIN(bytes, budgets->tables);
    if (r < 0 && r != -ENOMEM) {
        log_warning("image '%s': bitmap '%s' can't be read (%s); it is inconsistent",
                    block_node_display_name(q->node), b->name, strerror(-r));
        return 0;
    }
    *ret = r == 0 ? dirty_bitmap_new(block_node_size(q->node), 1u << b->granularity_bits) : NULL;
    return *ret ? 0 : error_set(err, ENOMEM, "Out of memory");
}

/* A bitmap that can't be trusted is there, but can only be removed; it never keeps the image from opening. */
static int co_load_one(struct qcow2 *q, struct stored_bitmap *b, struct budgets *budgets,
                       struct error *err)
{
    struct dirty_bitmap *bits;
    struct block_bitmap *loaded;
    int r;

    if (!is_known(b)) {
        log_warning(
            "image '%s': bitmap '%s' has an unknown type or flags; it is kept, but not used",
            block_node_display_name(q->node), b->name);
        return 0;
    }
    r = co_prepare_bits(q, b, budgets, &bits, err);
    if (r < 0) {
        return r;
    }
    r = block_bitmap_attach_loaded(q->node, b->name, bits, 1u << b->granularity_bits, &loaded, err);
    if (r < 0) {
        return r;
    }
    loaded->unread = bits != NULL;
    loaded->enabled = bits && (b->flags & BITMAP_FLAG_AUTO);
    loaded->read_only = q->read_only;
    loaded->driver_state = b;
    b->loaded = loaded;
    return 0;
}

int qcow2_co_load_bitmaps(struct qcow2 *q, struct error *err)
{
    struct budgets budgets = {.bytes = qcow2_bitmap_budget(q), .tables = OPEN_TABLE_BYTES};
    struct stored_bitmap *b;
    int r;

    if (q->bitmaps.directory_size == 0) {
        return 0;
    }
    r = qcow2_co_read_bitmap_directory(q, err);
    if (r < 0) {
        return r;
    }
    if (q->node->open_flags & BLOCK_OPEN_CHECK) {
        return 0; /* check looks at the directory alone */
    }
    LIST_FOREACH (b, &q->bitmaps.stored, link) {
        r = co_load_one(q, b, &budgets, err);
        if (r < 0) {
            return r;
        }
    }
    return 0;
}
