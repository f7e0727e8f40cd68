/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The search for free clusters goes up from alloc.next_free. An area without a refcount block gets
 * one in its second cluster, so that the block counts itself; QEMU mostly places it there as well.
 * A refcount table that is too small is replaced by a longer one, written elsewhere and switched
 * by the header (R3).
 */
#include "qcow2/stats.h"
#include "qcow2/table/alloc.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/cleanup.h"
#include "qcow2/table/refcount.h"
#include "qcow2/table/verdict.h"

/*
 * Limit of clusters beyond the end of the file that have a refcount. A crash leaves some that were
 * never written. More of them are forged, and a search through them could take hours.
 */
#define USED_BEYOND_END_MAX (1u << 20)

/* --- refcount table --------------------------------------------------------------------------- */

static int co_write_reftable_copy(struct qcow2 *q, uint64_t offset, const uint64_t *table,
                                  uint32_t entries)
{
    uint64_t *be = malloc(entries * sizeof(uint64_t));
    int r;

    if (!be) {
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < entries; i++) {
        be[i] = htobe64(table[i]);
    }
    r = block_co_pwrite(q->node->file, offset, be, entries * sizeof(uint64_t), 0);
    free(be);
    return r;
}

/* Write the two header fields that describe the table, which are in one sector, and sync. */
static int co_write_reftable_fields(struct qcow2 *q, uint64_t offset, uint64_t entries)
{
    uint8_t fields[12];
    int r;

    store_be64(fields, offset);
    store_be32(fields + 8, (uint32_t)(entries * 8 >> q->cluster_bits));
    r = block_co_pwrite(q->node->file, HDR_REFTABLE_OFFSET, fields, sizeof(fields), 0);
    return r < 0 ? r : block_co_flush(q->node->file);
}

/*
 * Write the new table's place to the header, and remember it. If that fails, the header on disk may
 * name either table, and entries may only be added to a table that it is known to name. So the
 * fields of the old table are written again; if that fails too, the image takes no more writes.
 */
static int co_switch_reftable(struct qcow2 *q, uint64_t offset, uint64_t entries)
{
    int r;

    co_mutex_lock(&q->header.mark_mutex);
    r = co_write_reftable_fields(q, offset, entries);
    if (r == 0) {
        q->reftable.offset = offset;
        q->reftable.size = (uint32_t)entries;
    } else if (co_write_reftable_fields(q, q->reftable.offset, q->reftable.size) < 0) {
        qcow2_give_up_header(q, r);
    }
    co_mutex_unlock(&q->header.mark_mutex);
    return r;
}

/* Layout of a longer table: refcount blocks that count themselves and the table, then the table. */
struct longer_table {
    uint64_t entries, clusters; /* of the table */
    uint64_t blocks;
    uint64_t first; /* cluster index of the first block; the table follows the last block */
};

/* Half as long again, at most as long as is allowed. -EFBIG */
static int plan_longer_table(const struct qcow2 *q, uint64_t index, struct longer_table *ret_table)
{
    uint64_t per_cluster = q->cluster_size / 8;
    uint64_t max = REFTABLE_BYTES_MAX / 8;
    uint64_t span = 1ULL << q->refcounts.block_bits;
    uint64_t needed = MAX(index, (uint64_t)q->reftable.size) + 1;

    ret_table->first = (uint64_t)q->reftable.size << q->refcounts.block_bits;
    ret_table->entries = MIN(round_up(needed + needed / 2, per_cluster), max);
    ret_table->clusters = ret_table->entries / per_cluster;
    ret_table->blocks = div_round_up(ret_table->clusters, span - 1);
    return index >= ret_table->entries || q->reftable.size + ret_table->blocks > ret_table->entries
               ? -EFBIG
               : 0;
}

/*
 * Wrong refcounts must not lead to overwritten tables. The header, the active L1 table and the
 * refcount table are safe even if the user has turned off overlap checks. `what`: see
 * qcow2_co_alloc_one_locked().
 */
static int co_check_place_locked(struct qcow2 *q, const char *what, uint64_t offset,
                                 uint64_t length)
{
    const char *hit = NULL;

    CO_ASSERT_HELD(&q->lock);
    if (offset == 0 && what) {
        return qcow2_corrupt(q, "Preventing invalid allocation of %s at offset 0", what);
    }
    if (offset == 0) {
        hit = "qcow2_header";
    } else if (ranges_overlap(offset, length, q->l1.offset, (uint64_t)q->l1.size * 8)) {
        hit = "active L1 table";
    } else if (ranges_overlap(offset, length, q->reftable.offset, (uint64_t)q->reftable.size * 8)) {
        hit = "refcount table";
    }
    return hit ? qcow2_corrupt(q, "Preventing invalid write on metadata (overlaps with %s)", hit)
               : qcow2_co_overlap_check_locked(q, offset, length, 0);
}

/*
 * Replace the table by one that has an entry for block `index`. The new table and the refcount
 * blocks that count both are placed after everything that is counted now, so nothing else has to
 * be allocated. This is rare, so the syncs are made at once, under the lock.
 */
static int co_grow_reftable_locked(struct qcow2 *q, uint64_t index)
{
    AUTO_FREE uint64_t *table = NULL;
    AUTO_FREE uint8_t *dirty = NULL;
    AUTO_FREE uint8_t *blocks = NULL;
    uint64_t old_offset = q->reftable.offset, old_entries = q->reftable.size, table_offset;
    struct longer_table to;
    int r = plan_longer_table(q, index, &to);

    CO_ASSERT_HELD(&q->lock);
    if (r < 0) {
        return r;
    }
    block_co_event(q->node->file, BLOCK_EVENT_REFTABLE_GROW);
    table = calloc(to.entries, sizeof(uint64_t));
    dirty = calloc(div_round_up(to.entries * 8, SECTOR_SIZE), 1);
    blocks = calloc(to.blocks, q->cluster_size);
    if (!table || !dirty || !blocks) {
        return -ENOMEM;
    }
    memcpy(table, q->reftable.entries, old_entries * sizeof(uint64_t));
    for (uint64_t i = 0; i < to.blocks; i++) {
        table[old_entries + i] = (to.first + i) << q->cluster_bits;
    }
    /* The blocks are contiguous, so their counts form one array. */
    for (uint64_t i = 0; i < to.blocks + to.clusters; i++) {
        qcow2_refcount_store(blocks, q->refcounts.order, i, 1);
    }
    table_offset = (to.first + to.blocks) << q->cluster_bits;
    r = co_check_place_locked(q, NULL, to.first << q->cluster_bits,
                              (to.blocks + to.clusters) << q->cluster_bits);
    if (r < 0) {
        return r;
    }
    /* After a failure halfway this range no longer reads as zeroes. */
    q->alloc.zero_from = MAX(q->alloc.zero_from, table_offset + (to.clusters << q->cluster_bits));
    /*
     * All blocks that the table references are on disk: each has counted itself there from the
     * start. Dirty counts stay in the cache, since a commit may be writing an older copy of them
     * right now.
     */
    block_co_event(q->node->file, BLOCK_EVENT_REFBLOCK_ALLOC_WRITE_BLOCKS);
    r = block_co_pwrite(q->node->file, to.first << q->cluster_bits, blocks,
                        to.blocks << q->cluster_bits, 0);
    block_co_event(q->node->file, BLOCK_EVENT_REFBLOCK_ALLOC_WRITE_TABLE);
    UNLESS_FAILED(r, co_write_reftable_copy(q, table_offset, table, (uint32_t)to.entries));
    UNLESS_FAILED(r, block_co_flush(q->node->file));
    block_co_event(q->node->file, BLOCK_EVENT_REFBLOCK_ALLOC_SWITCH_TABLE);
    UNLESS_FAILED(r, co_switch_reftable(q, table_offset, to.entries));
    if (r < 0) {
        return r;
    }
    free(q->reftable.entries);
    free(q->reftable.dirty);
    q->reftable.entries = TAKE_PTR(table);
    q->reftable.dirty = TAKE_PTR(dirty);
    q->reftable.dirty_count = 0;
    qcow2_overlap_note_header_locked(q);
    for (uint64_t i = 0; i < to.blocks; i++) {
        qcow2_overlap_note_locked(q, OVERLAP_REFCOUNT_BLOCK, (to.first + i) << q->cluster_bits,
                                  q->cluster_size);
    }
    return qcow2_free_later_locked(q, old_offset, round_up(old_entries * 8, q->cluster_size), false,
                                   QCOW2_FREED_BY_OTHER);
}

/* Reference a new block in the table: in memory at once, on disk by the next commit. */
static void hook_up_refblock_locked(struct qcow2 *q, uint64_t index, uint64_t offset)
{
    CO_ASSERT_HELD(&q->lock);
    for (uint64_t at = 0; at < q->cluster_size; at += q->caches.refcounts.entry_size) {
        cache_forget(&q->caches.refcounts, offset + at);
    }
    q->reftable.entries[index] = offset;
    qcow2_overlap_note_locked(q, OVERLAP_REFCOUNT_BLOCK, offset, q->cluster_size);
    if (!q->reftable.dirty[index * 8 / SECTOR_SIZE]) {
        q->reftable.dirty[index * 8 / SECTOR_SIZE] = 1;
        q->reftable.dirty_count++;
    }
}

/*
 * Make the refcount block that counts `cluster`. It takes the second cluster of its area; that of
 * the first area would be the header's cluster, which co_check_place_locked() refuses.
 */
static int co_new_refblock_locked(struct qcow2 *q, uint64_t cluster)
{
    uint64_t index = cluster >> q->refcounts.block_bits;
    uint64_t own = index > 0 ? 1 : 0; /* index of its cluster in the area, and of its own count */
    uint64_t offset = ((index << q->refcounts.block_bits) + own) << q->cluster_bits;
    uint8_t head[SECTOR_SIZE] = {0};
    int r;

    CO_ASSERT_HELD(&q->lock);
    if (index >= q->reftable.size) {
        return co_grow_reftable_locked(q, index);
    }
    r = co_check_place_locked(q, "refcount block", offset, q->cluster_size);
    if (r < 0) {
        return r;
    }
    /* Written even if it is fresh, so that a later commit does not run out of space for it. */
    r = block_co_write_zeroes(q->node->file, offset, q->cluster_size, 0);
    if (r < 0) {
        return r;
    }
    /*
     * The block counts itself on disk from the start, not only in the cache: if the refcount table
     * is replaced before the next commit, the new table references the block on disk.
     */
    qcow2_refcount_store(head, q->refcounts.order, own, 1);
    q->alloc.zero_from = MAX(q->alloc.zero_from, offset + q->cluster_size);
    block_co_event(q->node->file, BLOCK_EVENT_REFBLOCK_ALLOC_WRITE);
    r = block_co_pwrite(q->node->file, offset, head, sizeof(head), 0);
    if (r < 0) {
        return r;
    }
    hook_up_refblock_locked(q, index, offset);
    return 0;
}

static bool has_refblock_locked(const struct qcow2 *q, uint64_t cluster)
{
    uint64_t index = cluster >> q->refcounts.block_bits;

    CO_ASSERT_HELD(&q->lock);
    return index < q->reftable.size && (q->reftable.entries[index] & REFTABLE_OFFSET_MASK) != 0;
}

/* --- clusters --------------------------------------------------------------------------------- */

/* Whether the clusters have offsets that fit into an L2 entry. */
static bool is_addressable(const struct qcow2 *q, uint64_t cluster, uint64_t count)
{
    return cluster + count <= (ENTRY_OFFSET_MASK >> q->cluster_bits);
}

/* Number of free clusters from `first` on, at most `want`. Missing refcount blocks are made. */
static int co_count_free_locked(struct qcow2 *q, uint64_t first, uint64_t want, uint64_t *ret_value)
{
    uint64_t n = 0, refcount;
    int r = 0;

    CO_ASSERT_HELD(&q->lock);
    while (n < want) {
        while (!has_refblock_locked(q, first + n) && r == 0) {
            r = co_new_refblock_locked(q, first + n);
        }
        UNLESS_FAILED(r, qcow2_co_refcount_get_locked(q, first + n, &refcount));
        if (r < 0 || refcount != 0) {
            break;
        }
        n++;
    }
    *ret_value = n;
    return r;
}

/* Index of the first area after the last one that has a refcount block. */
static uint64_t first_uncounted_area(const struct qcow2 *q)
{
    uint64_t index = q->reftable.size;

    while (index > 0 && (q->reftable.entries[index - 1] & REFTABLE_OFFSET_MASK) == 0) {
        index--;
    }
    return index;
}

/*
 * Make refcount blocks for `count` areas from `index` on, in the first clusters of the first area.
 * The first block counts all of them on disk.
 */
static int co_new_refblocks_locked(struct qcow2 *q, uint64_t index, uint64_t count)
{
    uint64_t offset = index << q->refcounts.block_bits << q->cluster_bits;
    AUTO_FREE uint8_t *blocks = calloc(count, q->cluster_size);
    int r;

    CO_ASSERT_HELD(&q->lock);
    if (!blocks) {
        return -ENOMEM;
    }
    for (uint64_t i = 0; i < count; i++) {
        qcow2_refcount_store(blocks, q->refcounts.order, i, 1);
    }
    q->alloc.zero_from = MAX(q->alloc.zero_from, offset + count * q->cluster_size);
    block_co_event(q->node->file, BLOCK_EVENT_REFBLOCK_ALLOC_WRITE);
    r = block_co_pwrite(q->node->file, offset, blocks, count * q->cluster_size, 0);
    for (uint64_t i = 0; i < count && r == 0; i++) {
        hook_up_refblock_locked(q, index + i, offset + i * q->cluster_size);
    }
    return r;
}

static void count_allocated(struct qcow2 *q, uint64_t clusters)
{
    struct counter *stats = counters_shard(&q->counters);

    counter_add(&stats[QCOW2_STAT_ALLOCATED], clusters);
}

/*
 * Allocate more contiguous clusters than there are between the refcount blocks of two areas: a long
 * L1 table in small clusters. They are placed after everything that is counted now, with their
 * refcount blocks in front.
 */
static int co_alloc_long_locked(struct qcow2 *q, uint64_t want, uint64_t *ret_offset,
                                bool *ret_fresh)
{
    uint64_t span = 1ULL << q->refcounts.block_bits, blocks = div_round_up(want, span - 1);
    uint64_t index, first;
    int r;

    CO_ASSERT_HELD(&q->lock);
    for (index = first_uncounted_area(q); index + blocks > q->reftable.size;
         index = first_uncounted_area(q)) {
        r = co_grow_reftable_locked(q, index + blocks - 1);
        if (r < 0) {
            return r;
        }
    }
    first = (index << q->refcounts.block_bits) + blocks;
    if (blocks > span || !is_addressable(q, first, want)) {
        return -EFBIG;
    }
    r = co_check_place_locked(q, NULL, index << q->refcounts.block_bits << q->cluster_bits,
                              (blocks + want) << q->cluster_bits);
    UNLESS_FAILED(r, co_new_refblocks_locked(q, index, blocks));
    UNLESS_FAILED(r, qcow2_co_refcount_add_locked(q, first, want, 1));
    if (r < 0) {
        return r;
    }
    count_allocated(q, want);
    *ret_offset = first << q->cluster_bits;
    *ret_fresh = *ret_offset >= q->alloc.zero_from;
    q->alloc.zero_from = MAX(q->alloc.zero_from, (first + want) << q->cluster_bits);
    return 0;
}

static int co_alloc_locked(struct qcow2 *q, const char *what, uint64_t want, bool exact,
                           uint64_t *ret_offset, uint64_t *ret_got, bool *ret_fresh)
{
    uint64_t file_end = div_round_up(block_edge_size(q->node->file), q->cluster_size);
    uint64_t at = q->alloc.next_free, got = 0, first_free = UINT64_MAX, beyond_end = 0;
    int r;

    CO_ASSERT_HELD(&q->lock);
    block_co_event(q->node->file, BLOCK_EVENT_CLUSTER_ALLOC);
    if (exact && want >> q->refcounts.block_bits) {
        *ret_got = want;
        return co_alloc_long_locked(q, want, ret_offset, ret_fresh);
    }
    for (;;) {
        if (!is_addressable(q, at, want)) {
            return -EFBIG;
        }
        r = co_count_free_locked(q, at, want, &got);
        if (r < 0) {
            return r;
        }
        if (got > 0 && first_free == UINT64_MAX) {
            first_free = at;
        }
        if (got == want || (got > 0 && !exact)) {
            break;
        }
        at += got + 1;
        if (at > file_end && ++beyond_end > USED_BEYOND_END_MAX) {
            return qcow2_corrupt(q,
                                 "More than %u clusters beyond the end of the file have refcounts",
                                 USED_BEYOND_END_MAX);
        }
    }
    r = co_check_place_locked(q, what, at << q->cluster_bits, got << q->cluster_bits);
    UNLESS_FAILED(r, qcow2_co_refcount_add_locked(q, at, got, 1));
    if (r < 0) {
        return r;
    }
    count_allocated(q, got);
    q->alloc.next_free = first_free == at ? at + got : first_free;
    *ret_offset = at << q->cluster_bits;
    *ret_got = got;
    *ret_fresh = *ret_offset >= q->alloc.zero_from;
    q->alloc.zero_from = MAX(q->alloc.zero_from, (at + got) << q->cluster_bits);
    return 0;
}

int qcow2_co_alloc_locked(struct qcow2 *q, uint64_t want, bool exact, uint64_t *ret_offset,
                          uint64_t *ret_got, bool *ret_fresh)
{
    return co_alloc_locked(q, NULL, want, exact, ret_offset, ret_got, ret_fresh);
}

int qcow2_co_alloc_one_locked(struct qcow2 *q, const char *what, uint64_t *ret_offset,
                              bool *ret_fresh)
{
    uint64_t got;

    return co_alloc_locked(q, what, 1, true, ret_offset, &got, ret_fresh);
}

void qcow2_co_unalloc_locked(struct qcow2 *q, uint64_t offset, uint64_t clusters)
{
    CO_ASSERT_HELD(&q->lock);
    /* A failure leaves a leak, which R6 allows. */
    (void)qcow2_co_refcount_add_locked(q, qcow2_cluster_index(q, offset), clusters, -1);
}

int qcow2_co_alloc_bytes_locked(struct qcow2 *q, size_t size, uint64_t *ret_offset)
{
    uint64_t tail = q->alloc.compressed_tail, room = round_up(tail, q->cluster_size) - tail;
    uint64_t cluster = 0;
    bool fresh;
    int r;

    CO_ASSERT_HELD(&q->lock);
    block_co_event(q->node->file, BLOCK_EVENT_CLUSTER_ALLOC_BYTES);
    if (tail != 0 && room >= size) {
        r = qcow2_co_refcount_add_locked(q, qcow2_cluster_index(q, tail), 1, 1);
        if (r == 0) {
            *ret_offset = tail;
            q->alloc.compressed_tail = tail + size;
            return 0;
        }
        if (r != -ERANGE) {
            return r;
        }
        room = 0; /* the cluster has as many references as its refcount can count */
    }
    r = qcow2_co_alloc_one_locked(q, "compressed cluster", &cluster, &fresh);
    if (r < 0) {
        return r;
    }
    if (tail != 0 && room > 0 && cluster == tail + room &&
        qcow2_co_refcount_add_locked(q, qcow2_cluster_index(q, tail), 1, 1) == 0) {
        *ret_offset = tail;
    } else {
        *ret_offset = cluster;
    }
    q->alloc.compressed_tail = *ret_offset + size;
    if (is_aligned(q->alloc.compressed_tail, q->cluster_size)) {
        q->alloc.compressed_tail = 0;
    }
    return 0;
}

void qcow2_compressed_range(const struct qcow2 *q, uint64_t entry, uint64_t *ret_offset,
                            uint64_t *ret_size)
{
    unsigned offset_bits = 62 - (q->cluster_bits - 8);
    uint64_t offset = entry & ((1ULL << offset_bits) - 1);
    uint64_t sectors = ((entry & (L2_COMPRESSED - 1)) >> offset_bits) + 1;

    *ret_offset = offset;
    *ret_size = sectors * SECTOR_SIZE - (offset & (SECTOR_SIZE - 1));
}

int qcow2_free_later_locked(struct qcow2 *q, uint64_t offset, uint64_t length, bool compressed,
                            enum qcow2_freed why)
{
    struct cluster_runs *frees = &q->alloc.frees;
    struct cluster_run *last = frees->count > 0 ? &frees->runs[frees->count - 1] : NULL;

    CO_ASSERT_HELD(&q->lock);
    q->alloc.freed_bytes += length;
    if (compressed) {
        /* New compressed data must not share a cluster whose refcount is about to be lowered. */
        q->alloc.compressed_tail = 0;
    } else if (last && !last->compressed && last->why == why &&
               last->offset + last->length == offset) {
        last->length += length;
        return 0;
    }
    return cluster_runs_add(
        frees, (struct cluster_run){
                   .offset = offset, .length = length, .compressed = compressed, .why = why});
}
