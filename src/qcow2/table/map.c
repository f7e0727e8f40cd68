/* SPDX-License-Identifier: Apache-2.0 */
/* Finding where guest bytes lie: L1 table -> slice of an L2 table -> runs of like clusters. */
#include <errno.h>
#include <stdlib.h>

#include "base/cleanup.h"
#include "qcow2/table/verdict.h"
#include "qcow2/image.h"
#include "qcow2/table/alloc.h"
#include "qcow2/table/map.h"

/* Whether a host offset of 0 means "at the beginning of the data file" rather than "nowhere". */
static bool has_place(const struct qcow2 *q, uint64_t entry)
{
    return (entry & ENTRY_OFFSET_MASK) != 0 || (q->has_data_file && (entry & ENTRY_COPIED));
}

/* The zero flag of the entry itself means nothing here, and is not looked at. */
static int decode_subcluster(const struct qcow2 *q, uint64_t entry, uint64_t bitmap, unsigned sub,
                             enum cluster_type *ret_type)
{
    bool allocated = bitmap >> sub & 1, zero = bitmap >> (SUBCLUSTERS + sub) & 1;
    bool placed = has_place(q, entry);

    if (allocated && (zero || !placed)) {
        return -EIO;
    }
    if (allocated) {
        *ret_type = CLUSTER_NORMAL;
    } else if (zero) {
        *ret_type = placed ? CLUSTER_ZERO_ALLOC : CLUSTER_ZERO;
    } else {
        *ret_type = placed ? CLUSTER_UNALLOCATED_HAS_HOST : CLUSTER_UNALLOCATED;
    }
    return 0;
}

int qcow2_decode_entry(const struct qcow2 *q, uint64_t entry, uint64_t bitmap, unsigned sub,
                       enum cluster_type *ret_type, uint64_t *ret_host)
{
    uint64_t host = entry & ENTRY_OFFSET_MASK;

    if (entry & L2_COMPRESSED) {
        *ret_type = CLUSTER_COMPRESSED;
        *ret_host = entry;
        return q->has_data_file ? -EIO : 0;
    }
    if (!is_aligned(host, q->cluster_size)) {
        return -EIO;
    }
    *ret_host = host;
    if (q->extended_l2) {
        return decode_subcluster(q, entry, bitmap, sub, ret_type);
    }
    if (entry & L2_ZERO) {
        if (q->version < 3) {
            return -EIO;
        }
        *ret_type = has_place(q, entry) ? CLUSTER_ZERO_ALLOC : CLUSTER_ZERO;
    } else {
        *ret_type = has_place(q, entry) ? CLUSTER_NORMAL : CLUSTER_UNALLOCATED;
    }
    return 0;
}

bool qcow2_entry_extent(const struct qcow2 *q, uint64_t entry, uint64_t *ret_offset,
                        uint64_t *ret_length, bool *ret_compressed)
{
    *ret_compressed = entry & L2_COMPRESSED;
    if (*ret_compressed) {
        qcow2_compressed_range(q, entry, ret_offset, ret_length);
        return !q->has_data_file;
    }
    *ret_offset = entry & ENTRY_OFFSET_MASK;
    *ret_length = q->cluster_size;
    return *ret_offset != 0 && !q->has_data_file;
}

static bool is_placed(enum cluster_type type)
{
    return type == CLUSTER_NORMAL || type == CLUSTER_ZERO_ALLOC;
}

/* How many subclusters after the first are alike; `unit` counts them from the beginning of the cluster at `index`. */
static uint64_t count_alike(struct qcow2 *q, struct cache_entry *slice, unsigned index,
                            uint64_t unit, uint64_t wanted, const struct qcow2_run *run)
{
    unsigned per_cluster_bits = q->cluster_bits - q->subcluster_bits;
    unsigned entries = qcow2_slice_entries(q);
    uint64_t n = 1;

    for (; n < wanted; n++) {
        uint64_t cluster = (unit + n) >> per_cluster_bits;
        unsigned at = index + (unsigned)cluster;
        enum cluster_type type = CLUSTER_UNALLOCATED;
        uint64_t entry, bitmap, host = 0;

        if (at >= entries) {
            break;
        }
        qcow2_load_both(q, slice, at, &entry, &bitmap);
        if (qcow2_decode_entry(q, entry, bitmap,
                               (unsigned)((unit + n) & ((1u << per_cluster_bits) - 1)), &type,
                               &host) < 0 ||
            type != run->type || ((entry & ENTRY_COPIED) != 0) != run->copied ||
            (is_placed(type) && host != run->host + (cluster << q->cluster_bits)) ||
            (type == CLUSTER_COMPRESSED && cluster != 0)) {
            break;
        }
    }
    return n;
}

/* -EIO if the first entry breaks the specification. */
static int run_from_slice(struct qcow2 *q, struct cache_entry *slice, unsigned index,
                          uint64_t in_cluster, uint64_t length, struct qcow2_run *ret)
{
    uint64_t unit = in_cluster >> q->subcluster_bits;
    uint64_t wanted = ((in_cluster + length - 1) >> q->subcluster_bits) - unit + 1;
    uint64_t entry, bitmap;
    int r;

    qcow2_load_both(q, slice, index, &entry, &bitmap);
    r = qcow2_decode_entry(q, entry, bitmap, (unsigned)unit, &ret->type, &ret->host);
    if (r < 0) {
        return r;
    }
    ret->copied = entry & ENTRY_COPIED;
    unit += count_alike(q, slice, index, unit, wanted, ret);
    ret->length = MIN((unit << q->subcluster_bits) - in_cluster, length);
    if (is_placed(ret->type)) {
        ret->host += in_cluster;
    }
    return 0;
}

/* File offset of the slice that holds the entry for `offset`, and the entry's index in it. */
static uint64_t slice_of(const struct qcow2 *q, uint64_t table, uint64_t offset,
                         unsigned *ret_index)
{
    uint64_t index = (offset >> q->cluster_bits) & ((1ULL << q->l2_bits) - 1);
    unsigned slice_bits = q->caches.l2.entry_bits - 3 - q->extended_l2;

    *ret_index = (unsigned)(index & ((1u << slice_bits) - 1));
    return table + ((index >> slice_bits) << q->caches.l2.entry_bits);
}

static int co_unaligned_table(struct qcow2 *q, uint64_t l1_index, uint64_t table)
{
    return qcow2_corrupt(q, "L2 table offset %#llx unaligned (L1 index: %#llx)",
                         (unsigned long long)table, (unsigned long long)l1_index);
}

enum purpose { TO_READ, TO_WRITE, TO_DROP };

static int co_map(struct qcow2 *q, uint64_t offset, uint64_t length, enum purpose purpose,
                  struct qcow2_run *ret)
{
    uint64_t l1_index = offset >> (q->cluster_bits + q->l2_bits);
    uint64_t table = 0;
    struct cache_entry *slice;
    unsigned index;
    int r;

    if (l1_index < q->l1.size) {
        table = atomic_load_explicit(&q->l1.entries[l1_index], memory_order_relaxed) &
                ENTRY_OFFSET_MASK;
    }
    if (table == 0) {
        uint64_t span = qcow2_l2_span(q);

        *ret = (struct qcow2_run){
            .type = CLUSTER_UNALLOCATED,
            .length = MIN(length, span - (offset & (span - 1))),
        };
        return 0;
    }
    if (!is_aligned(table, q->cluster_size)) {
        return co_unaligned_table(q, l1_index, table);
    }
    r = cache_co_get(&q->caches.l2, slice_of(q, table, offset, &index), &slice);
    if (r < 0) {
        return r;
    }
    r = run_from_slice(q, slice, index, offset & (q->cluster_size - 1), length, ret);
    if (r < 0 && purpose == TO_DROP) {
        uint64_t rest = q->cluster_size - (offset & (q->cluster_size - 1));

        *ret = (struct qcow2_run){.type = CLUSTER_NORMAL, .length = MIN(length, rest)};
        r = 0;
    } else if (r < 0) {
        r = qcow2_corrupt_entry(q, slice, index, offset, purpose == TO_WRITE);
    }
    cache_put(slice);
    return r;
}

int qcow2_co_map(struct qcow2 *q, uint64_t offset, uint64_t length, struct qcow2_run *ret)
{
    return co_map(q, offset, length, TO_READ, ret);
}

int qcow2_co_map_to_write(struct qcow2 *q, uint64_t offset, uint64_t length, struct qcow2_run *ret)
{
    return co_map(q, offset, length, TO_WRITE, ret);
}

int qcow2_co_map_tolerating_corruption(struct qcow2 *q, uint64_t offset, uint64_t length,
                                       struct qcow2_run *ret)
{
    return co_map(q, offset, length, TO_DROP, ret);
}

void qcow2_set_l1_entry_locked(struct qcow2 *q, uint64_t l1_index, uint64_t entry)
{
    qcow2_overlap_note_tables_locked(q, OVERLAP_ACTIVE_L2, &entry, 1);
    atomic_store_explicit(&q->l1.entries[l1_index], entry, memory_order_relaxed);
    if (!q->l1.dirty[l1_index * 8 / SECTOR_SIZE]) {
        q->l1.dirty[l1_index * 8 / SECTOR_SIZE] = 1;
        q->l1.dirty_count++;
    }
}

/* A cluster of zeroes for an L2 table; nothing refers to it yet. */
static int co_alloc_table_locked(struct qcow2 *q, uint64_t *ret_table)
{
    uint64_t table;
    bool fresh;
    int r = qcow2_co_alloc_one_locked(q, "L2 table", &table, &fresh);

    if (r < 0) {
        return r;
    }
    /*
     * Slices that stay clean are never written: what is there must not show. Nor may the L1 entry point beyond
     * the end of the file, so a fresh table is zeroed too.
     */
    block_co_event(q->node->file, BLOCK_EVENT_L2_ALLOC_WRITE);
    r = block_co_write_zeroes(q->node->file, table, q->cluster_size, 0);
    if (r < 0) {
        qcow2_co_unalloc_locked(q, table, 1);
        return r;
    }
    for (uint64_t at = 0; at < q->cluster_size; at += q->caches.l2.entry_size) {
        cache_forget(&q->caches.l2, table + at);
    }
    *ret_table = table;
    return 0;
}

/* Makes the table for an empty L1 entry: in memory at once, on disk by the next commit. */
static int co_new_table_locked(struct qcow2 *q, uint64_t l1_index, uint64_t *ret_table)
{
    int r = co_alloc_table_locked(q, ret_table);

    if (r == 0) {
        qcow2_set_l1_entry_locked(q, l1_index, *ret_table | ENTRY_COPIED);
    }
    return r;
}

/* The table at `from`, as the cache has it, into a buffer of one cluster. */
static int co_gather_table_locked(struct qcow2 *q, uint64_t from, uint64_t *ret)
{
    unsigned words = (unsigned)(q->caches.l2.entry_size / 8);
    int r = 0;

    for (uint64_t at = 0; at < q->cluster_size && r == 0; at += q->caches.l2.entry_size) {
        struct cache_entry *slice;

        r = cache_co_get(&q->caches.l2, from + at, &slice);
        for (unsigned i = 0; i < words && r == 0; i++) {
            *ret++ = atomic_load_explicit(&slice->data[i], memory_order_relaxed);
        }
        if (r == 0) {
            cache_put(slice);
        }
    }
    return r;
}

/*
 * A table that a snapshot shares is copied before it changes. Refcounts of what it maps count every L1 table that leads
 * there, so they stay as they are. The copy is written at once: a commit syncs before it writes L1 entries, but writes
 * L2 slices together with them, and data that was flushed long ago hangs on this table.
 */
static int co_copy_table_locked(struct qcow2 *q, uint64_t l1_index, uint64_t *table)
{
    AUTO_FREE uint64_t *contents = malloc(q->cluster_size);
    uint64_t old = *table, new;
    bool fresh;
    int r;

    if (!contents) {
        return -ENOMEM;
    }
    block_co_event(q->node->file, BLOCK_EVENT_L2_ALLOC_COW_READ);
    r = co_gather_table_locked(q, old, contents);
    r = r < 0 ? r : qcow2_co_alloc_one_locked(q, "L2 table", &new, &fresh);
    if (r < 0) {
        return r;
    }
    block_co_event(q->node->file, BLOCK_EVENT_L2_ALLOC_WRITE);
    r = block_co_pwrite(q->node->file, new, contents, q->cluster_size, 0);
    if (r < 0) {
        qcow2_co_unalloc_locked(q, new, 1);
        return r;
    }
    for (uint64_t at = 0; at < q->cluster_size; at += q->caches.l2.entry_size) {
        cache_forget(&q->caches.l2, new + at);
    }
    qcow2_set_l1_entry_locked(q, l1_index, new | ENTRY_COPIED);
    *table = new;
    return qcow2_free_later_locked(q, old, q->cluster_size, false, QCOW2_FREED_BY_OTHER);
}

int qcow2_co_l2_slice_locked(struct qcow2 *q, uint64_t offset, struct cache_entry **ret,
                             unsigned *ret_index)
{
    uint64_t l1_index = offset >> (q->cluster_bits + q->l2_bits);
    uint64_t entry, table, slice;
    bool fresh;
    int r;

    if (l1_index >= q->l1.size) {
        return qcow2_corrupt(q, "L1 table too small (entries: %u)", q->l1.size);
    }
    entry = atomic_load_explicit(&q->l1.entries[l1_index], memory_order_relaxed);
    table = entry & ENTRY_OFFSET_MASK;
    if (!is_aligned(table, q->cluster_size)) {
        return co_unaligned_table(q, l1_index, table);
    }
    fresh = table == 0;
    if (!fresh && (entry & ENTRY_COPIED) &&
        (r = qcow2_co_overlap_check_locked(q, table, q->cluster_size,
                                           OVERLAP_BIT(OVERLAP_ACTIVE_L2))) < 0) {
        return r;
    }
    if (fresh || !(entry & ENTRY_COPIED)) {
        r = fresh ? co_new_table_locked(q, l1_index, &table)
                  : co_copy_table_locked(q, l1_index, &table);
        if (r < 0) {
            return r;
        }
    }
    slice = slice_of(q, table, offset, ret_index);
    return fresh ? cache_co_get_zeroed(&q->caches.l2, slice, ret)
                 : cache_co_get(&q->caches.l2, slice, ret);
}
