/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Persistent bitmaps: loading them at open, and reading their bits.
 *
 * An open reads the tables only. The bits stay in the image until they are needed (struct
 * block_bitmap, `unread`): those of a large disk may take a quarter of a gigabyte, and most opens
 * do not use them. Guest writes meanwhile set bits in an empty bitmap, which is merged with the
 * stored bits when those are read or stored.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "block/bitmaps.h"
#include "qcow2/bitmap/stored.h"
#include "trace/events.h"

/* Limit in bytes for one read of bits, whose clusters are contiguous. */
#define READ_BYTES (1 * MiB)
/* Limit in bytes for the tables that an open reads. */
#define OPEN_TABLE_BYTES (256 * MiB)

/* Whether its table has the length for the size of the disk. */
static bool fits_disk_size(const struct qcow2 *q, const struct stored_bitmap *b)
{
    return b->table_entries ==
           qcow2_bitmap_table_entries(q, block_node_size(q->node), b->granularity_bits);
}

/* Reads and checks the table of a bitmap. */
static int co_read_checked_table(struct qcow2 *q, const struct stored_bitmap *b, uint64_t *budget,
                                 uint64_t **ret_table)
{
    AUTO_FREE uint64_t *table = NULL;
    int r;

    if (!fits_disk_size(q, b)) {
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
static int co_visit_stored_bits(struct block_node *node, const struct block_bitmap *bitmap,
                                bits_fn *fn, void *arg)
{
    struct qcow2 *q = qcow2_state(node);
    uint64_t budget = qcow2_bitmap_budget(q);
    AUTO_FREE uint64_t *table = NULL;
    const struct stored_bitmap *b;
    int r;

    co_mutex_lock(&q->bitmaps.bits_mutex);
    b = bitmap->driver_state;
    r = b ? co_read_checked_table(q, b, &budget, &table) : -ENOENT;
    UNLESS_FAILED(r, co_read_bits_locked(q, b, table, fn, arg));
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

/* --- open ------------------------------------------------------------------------------------- */

/* Whether its type, flags and granularity are known. Other bitmaps are kept as they are. */
static bool is_known(const struct stored_bitmap *b)
{
    return b->type == BITMAP_TYPE_DIRTY && !(b->flags & ~BITMAP_FLAGS_KNOWN) &&
           (b->extra_size == 0 || (b->flags & BITMAP_FLAG_EXTRA_COMPATIBLE)) &&
           b->granularity_bits >= 9 && b->granularity_bits <= 31;
}

/* Limits for the tables of all bitmaps at open. */
struct budgets {
    /* Bytes that are left of the file: see qcow2_bitmap_budget(). */
    uint64_t bytes;
    /*
     * Bytes of tables that may still be read. Errors in the other tables are found when their bits
     * are needed.
     */
    uint64_t tables;
};

/*
 * *ret_bits is an empty bitmap, or NULL if what is stored can't be used: it is marked in use, or
 * its table is invalid.
 */
static int co_prepare_bits(struct qcow2 *q, const struct stored_bitmap *b, struct budgets *budgets,
                           struct dirty_bitmap **ret_bits, struct error *err)
{
    uint64_t bytes = (uint64_t)b->table_entries * 8;
    AUTO_FREE uint64_t *table = NULL;
    int r;

    *ret_bits = NULL;
    if (b->flags & BITMAP_FLAG_IN_USE) {
        return 0;
    }
    r = bytes <= budgets->tables || !fits_disk_size(q, b)
            ? co_read_checked_table(q, b, &budgets->bytes, &table)
            : 0;
    budgets->tables -= MIN(bytes, budgets->tables);
    if (r < 0 && r != -ENOMEM) {
        log_warning("image '%s': bitmap '%s' can't be read (%s); it is inconsistent",
                    block_node_display_name(q->node), b->name, strerror(-r));
        return 0;
    }
    *ret_bits =
        r == 0 ? dirty_bitmap_new(block_node_size(q->node), 1u << b->granularity_bits) : NULL;
    return *ret_bits ? 0 : error_out_of_memory(err);
}

/*
 * A bitmap that can't be used is added as inconsistent, and can only be removed. It does not keep
 * the image from opening.
 */
static int co_load_bitmap(struct qcow2 *q, struct stored_bitmap *b, struct budgets *budgets,
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
    trace_qcow2_bitmap_load(q->node->name, b->name, r == 0 && !bits, r);
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
        return 0; /* a check needs the directory only */
    }
    LIST_FOREACH (b, &q->bitmaps.stored, link) {
        r = co_load_bitmap(q, b, &budgets, err);
        if (r < 0) {
            return r;
        }
    }
    return 0;
}
