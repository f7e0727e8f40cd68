/* SPDX-License-Identifier: Apache-2.0 */
#include "qcow2/table/map.h"

#include <errno.h>
#include <stdlib.h>

#include "base/cleanup.h"
#include "qcow2/table/alloc.h"
#include "qcow2/table/verdict.h"

/* Whether a host offset of 0 means "at the beginning of the data file" rather than "nowhere". */
static bool has_place(const struct qcow2 *q, uint64_t entry)
{
    return (entry & ENTRY_OFFSET_MASK) != 0 || (q->has_data_file && (entry & ENTRY_COPIED));
}

/* With extended entries the zero flag of the entry is reserved, and ignored. */
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

static bool has_host_offset(enum cluster_type type)
{
    return type == CLUSTER_NORMAL || type == CLUSTER_ZERO_ALLOC;
}

/*
 * Number of contiguous subclusters, at most `wanted`, that are mapped as `run` is. The first one is
 * subcluster `unit`, counted from the beginning of the cluster at `index`.
 */
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
            (has_host_offset(type) && host != run->host + (cluster << q->cluster_bits)) ||
            (type == CLUSTER_COMPRESSED && cluster != 0)) {
            break;
        }
    }
    return n;
}

/* -EIO if the first entry violates the specification. */
static int run_from_slice(struct qcow2 *q, struct cache_entry *slice, unsigned index,
                          uint64_t in_cluster, uint64_t length, struct qcow2_run *ret_run)
{
    uint64_t unit = in_cluster >> q->subcluster_bits;
    uint64_t wanted = ((in_cluster + length - 1) >> q->subcluster_bits) - unit + 1;
    uint64_t entry, bitmap;
    int r;

    qcow2_load_both(q, slice, index, &entry, &bitmap);
    r = qcow2_decode_entry(q, entry, bitmap, (unsigned)unit, &ret_run->type, &ret_run->host);
    if (r < 0) {
        return r;
    }
    ret_run->copied = entry & ENTRY_COPIED;
    unit += count_alike(q, slice, index, unit, wanted, ret_run);
    ret_run->length = MIN((unit << q->subcluster_bits) - in_cluster, length);
    if (has_host_offset(ret_run->type)) {
        ret_run->host += in_cluster;
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

static int unaligned_l2_table(struct qcow2 *q, uint64_t l1_index, uint64_t table)
{
    return qcow2_corrupt(q, "L2 table offset %#llx unaligned (L1 index: %#llx)",
                         (unsigned long long)table, (unsigned long long)l1_index);
}

/* As qcow2_find_slice(); a part of every read and write. */
static inline int find_slice(struct qcow2 *q, uint64_t offset, struct qcow2_slice_place *ret_place)
{
    uint64_t l1_index = offset >> (q->cluster_bits + q->l2_bits);
    uint64_t table = 0;

    if (l1_index < q->l1.size) {
        table = atomic_load_explicit(&q->l1.entries[l1_index], memory_order_relaxed) &
                ENTRY_OFFSET_MASK;
    }
    if (!is_aligned(table, q->cluster_size)) {
        return unaligned_l2_table(q, l1_index, table);
    }
    ret_place->exists = table != 0;
    ret_place->offset = slice_of(q, table, offset, &ret_place->index);
    return 0;
}

int qcow2_find_slice(struct qcow2 *q, uint64_t offset, struct qcow2_slice_place *ret_place)
{
    return find_slice(q, offset, ret_place);
}

enum map_purpose { MAP_TO_READ, MAP_TO_WRITE, MAP_TOLERATING_CORRUPTION };

static int co_map(struct qcow2 *q, uint64_t offset, uint64_t length, enum map_purpose purpose,
                  struct qcow2_run *ret_run)
{
    struct qcow2_slice_place place = {0};
    struct cache_entry *slice;
    unsigned index;
    int r = find_slice(q, offset, &place);

    if (r < 0) {
        return r;
    }
    if (!place.exists) {
        uint64_t span = qcow2_l2_span(q);

        *ret_run = (struct qcow2_run){
            .type = CLUSTER_UNALLOCATED,
            .length = MIN(length, span - (offset & (span - 1))),
        };
        return 0;
    }
    index = place.index;
    r = cache_co_get(&q->caches.l2, place.offset, &slice);
    if (r < 0) {
        return r;
    }
    r = run_from_slice(q, slice, index, offset & (q->cluster_size - 1), length, ret_run);
    if (r < 0 && purpose == MAP_TOLERATING_CORRUPTION) {
        uint64_t rest = q->cluster_size - (offset & (q->cluster_size - 1));

        *ret_run = (struct qcow2_run){.type = CLUSTER_NORMAL, .length = MIN(length, rest)};
        r = 0;
    } else if (r < 0) {
        r = qcow2_corrupt_entry(q, slice, index, offset, purpose == MAP_TO_WRITE);
    }
    cache_put(slice);
    return r;
}

int qcow2_co_map(struct qcow2 *q, uint64_t offset, uint64_t length, struct qcow2_run *ret_run)
{
    return co_map(q, offset, length, MAP_TO_READ, ret_run);
}

int qcow2_co_map_to_write(struct qcow2 *q, uint64_t offset, uint64_t length,
                          struct qcow2_run *ret_run)
{
    return co_map(q, offset, length, MAP_TO_WRITE, ret_run);
}

int qcow2_co_map_tolerating_corruption(struct qcow2 *q, uint64_t offset, uint64_t length,
                                       struct qcow2_run *ret_run)
{
    return co_map(q, offset, length, MAP_TOLERATING_CORRUPTION, ret_run);
}

void qcow2_set_l1_entry_locked(struct qcow2 *q, uint64_t l1_index, uint64_t entry)
{
    CO_ASSERT_HELD(&q->lock);
    qcow2_overlap_note_tables_locked(q, OVERLAP_ACTIVE_L2, &entry, 1);
    atomic_store_explicit(&q->l1.entries[l1_index], entry, memory_order_relaxed);
    if (!q->l1.dirty[l1_index * 8 / SECTOR_SIZE]) {
        q->l1.dirty[l1_index * 8 / SECTOR_SIZE] = 1;
        q->l1.dirty_count++;
    }
}

/* Allocate a cluster of zeroes for an L2 table. Nothing references it yet. */
static int co_alloc_table_locked(struct qcow2 *q, uint64_t *ret_table)
{
    uint64_t table;
    bool fresh;
    int r = qcow2_co_alloc_one_locked(q, "L2 table", &table, &fresh);

    CO_ASSERT_HELD(&q->lock);
    if (r < 0) {
        return r;
    }
    /*
     * Slices that stay clean are never written, so old contents would show. A fresh cluster is
     * zeroed as well, since the L1 entry must not point beyond the end of the file.
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

/*
 * Make the table for an empty L1 entry, which changes in memory now and on disk at the next
 * commit.
 */
static int co_new_table_locked(struct qcow2 *q, uint64_t l1_index, uint64_t *ret_table)
{
    int r = co_alloc_table_locked(q, ret_table);

    CO_ASSERT_HELD(&q->lock);
    if (r == 0) {
        qcow2_set_l1_entry_locked(q, l1_index, *ret_table | ENTRY_COPIED);
    }
    return r;
}

/* Copy the table at file offset `from`, as it is in the cache, into a buffer of one cluster. */
static int co_gather_table_locked(struct qcow2 *q, uint64_t from, uint64_t *ret_value)
{
    unsigned words = (unsigned)(q->caches.l2.entry_size / 8);
    int r = 0;

    CO_ASSERT_HELD(&q->lock);
    for (uint64_t at = 0; at < q->cluster_size && r == 0; at += q->caches.l2.entry_size) {
        struct cache_entry *slice;

        r = cache_co_get(&q->caches.l2, from + at, &slice);
        for (unsigned i = 0; i < words && r == 0; i++) {
            *ret_value++ = atomic_load_explicit(&slice->data[i], memory_order_relaxed);
        }
        if (r == 0) {
            cache_put(slice);
        }
    }
    return r;
}

/*
 * Copy a table that a snapshot shares before it changes. The refcounts of the clusters that it maps
 * count every L1 table that leads to them, so they do not change. The copy is written now: a commit
 * writes L2 slices and L1 entries without a sync between them, so the new L1 entry could become
 * stable before the table, which maps data that was flushed long ago.
 */
static int co_copy_table_locked(struct qcow2 *q, uint64_t l1_index, uint64_t *table)
{
    AUTO_FREE uint64_t *contents = malloc(q->cluster_size);
    uint64_t old = *table, new;
    bool fresh;
    int r;

    CO_ASSERT_HELD(&q->lock);
    if (!contents) {
        return -ENOMEM;
    }
    block_co_event(q->node->file, BLOCK_EVENT_L2_ALLOC_COW_READ);
    r = co_gather_table_locked(q, old, contents);
    UNLESS_FAILED(r, qcow2_co_alloc_one_locked(q, "L2 table", &new, &fresh));
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

int qcow2_co_l2_slice_locked(struct qcow2 *q, uint64_t offset, struct cache_entry **ret_slice,
                             unsigned *ret_index)
{
    uint64_t l1_index = offset >> (q->cluster_bits + q->l2_bits);
    uint64_t entry, table, slice;
    bool fresh;
    int r;

    CO_ASSERT_HELD(&q->lock);
    if (l1_index >= q->l1.size && offset >= block_node_size(q->node)) {
        return -EIO; /* the request is at fault, not the image */
    }
    if (l1_index >= q->l1.size) {
        return qcow2_corrupt(q, "L1 table too small (entries: %u)", q->l1.size);
    }
    entry = atomic_load_explicit(&q->l1.entries[l1_index], memory_order_relaxed);
    table = entry & ENTRY_OFFSET_MASK;
    if (!is_aligned(table, q->cluster_size)) {
        return unaligned_l2_table(q, l1_index, table);
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
    return fresh ? cache_co_get_zeroed(&q->caches.l2, slice, ret_slice)
                 : cache_co_get(&q->caches.l2, slice, ret_slice);
}
