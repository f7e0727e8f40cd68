/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Allocating clusters, and the list of those that wait to be free.
 *
 * The search for free clusters goes up from next_free. Where a refcount block is missing, it is put into the second cluster
 * of the area that it counts, so that it counts itself (the second is where QEMU mostly has it, too); where the refcount table is too small, a larger
 * one is written elsewhere and switched by the header (R3).
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "qcow2/table/verdict.h"
#include "qcow2/image.h"
#include "qcow2/table/alloc.h"
#include "qcow2/table/refcount.h"

/*
 * Clusters behind the end of the file that are counted: a crash leaves some that were never written. Where there are more, the
 * refcounts are made up, and a search through them might go on for hours.
 */
#define USED_BEHIND_END_MAX (1u << 20)

/* --- refcount table ------------------------------------------------------------------------------ */

static int write_reftable_copy(struct qcow2 *q, uint64_t offset, const uint64_t *table,
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

/* Writes the two fields of the header that name the table; they lie in one sector. */
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
 * Name the new table. If that fails, nobody knows which table the header names, and entries may only be added to one that it
 * names for sure: the old one again, or else no more are added.
 */
static int co_switch_reftable(struct qcow2 *q, uint64_t offset, uint64_t entries)
{
    int r = co_write_reftable_fields(q, offset, entries);

    if (r < 0 && co_write_reftable_fields(q, q->reftable.offset, q->reftable.size) < 0) {
        atomic_store(&q->broken, true);
        log_info("image '%s': the header could not be written (%s); it takes no more writes",
                 block_node_display_name(q->node), strerror(-r));
    }
    return r;
}

/* How a longer table lies: refcount blocks for their own place and the table's, then the table. */
struct longer_table {
    uint64_t entries, clusters; /* of the table */
    uint64_t blocks;
    uint64_t first; /* cluster index of the first block; the table follows the last one */
};

/* Half as much again, but no more than is allowed. -EFBIG */
static int plan_longer_table(const struct qcow2 *q, uint64_t index, struct longer_table *ret)
{
    uint64_t per_cluster = q->cluster_size / 8;
    uint64_t max = REFTABLE_BYTES_MAX / 8;
    uint64_t span = 1ULL << q->refcounts.block_bits;
    uint64_t needed = MAX(index, (uint64_t)q->reftable.size) + 1;

    ret->first = (uint64_t)q->reftable.size << q->refcounts.block_bits;
    ret->entries = MIN(round_up(needed + needed / 2, per_cluster), max);
    ret->clusters = ret->entries / per_cluster;
    ret->blocks = div_round_up(ret->clusters, span - 1);
    return index >= ret->entries || q->reftable.size + ret->blocks > ret->entries ? -EFBIG : 0;
}

/*
 * Refcounts that are wrong must not let tables be overwritten. Those that everything hangs on are safe even if the user
 * wants no checks. `what` the place is to be: named where it would be the header.
 */
static int co_check_place_locked(struct qcow2 *q, const char *what, uint64_t offset,
                                 uint64_t length)
{
    const char *hit = NULL;

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
 * Replace the table by one that has room for block `index`. The new table and the refcount blocks for the place where they all
 * lie go behind everything that is counted now, so nothing else needs to be allocated. Rare: done at once, syncs included.
 */
static int co_grow_reftable_locked(struct qcow2 *q, uint64_t index)
{
    AUTO_FREE uint64_t *table = NULL;
    AUTO_FREE uint8_t *dirty = NULL;
    AUTO_FREE uint8_t *blocks = NULL;
    uint64_t old_offset = q->reftable.offset, old_entries = q->reftable.size, table_offset;
    struct longer_table to;
    int r = plan_longer_table(q, index, &to);

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
    /* The blocks lie one after the other, so do the counts in them. */
    for (uint64_t i = 0; i < to.blocks + to.clusters; i++) {
        qcow2_refcount_store(blocks, q->refcounts.order, i, 1);
    }
    table_offset = (to.first + to.blocks) << q->cluster_bits;
    r = co_check_place_locked(q, NULL, to.first << q->cluster_bits,
                              (to.blocks + to.clusters) << q->cluster_bits);
    if (r < 0) {
        return r;
    }
    /* What fails halfway is no longer zero. */
    q->alloc.zero_from = MAX(q->alloc.zero_from, table_offset + (to.clusters << q->cluster_bits));
    /*
     * The blocks that the table refers to are written: each counted itself on disk from the start. Counts in the cache
     * stay there: a commit may be writing an older copy of them right now, and must not have the last word.
     */
    block_co_event(q->node->file, BLOCK_EVENT_REFBLOCK_ALLOC_WRITE_BLOCKS);
    r = block_co_pwrite(q->node->file, to.first << q->cluster_bits, blocks,
                        to.blocks << q->cluster_bits, 0);
    block_co_event(q->node->file, BLOCK_EVENT_REFBLOCK_ALLOC_WRITE_TABLE);
    r = r < 0 ? r : write_reftable_copy(q, table_offset, table, (uint32_t)to.entries);
    r = r < 0 ? r : block_co_flush(q->node->file);
    block_co_event(q->node->file, BLOCK_EVENT_REFBLOCK_ALLOC_SWITCH_TABLE);
    r = r < 0 ? r : co_switch_reftable(q, table_offset, to.entries);
    if (r < 0) {
        return r;
    }
    free(q->reftable.entries);
    free(q->reftable.dirty);
    q->reftable.entries = TAKE_PTR(table);
    q->reftable.dirty = TAKE_PTR(dirty);
    q->reftable.dirty_count = 0;
    q->reftable.offset = table_offset;
    q->reftable.size = (uint32_t)to.entries;
    qcow2_overlap_note_header_locked(q);
    for (uint64_t i = 0; i < to.blocks; i++) {
        qcow2_overlap_note_locked(q, OVERLAP_REFCOUNT_BLOCK, (to.first + i) << q->cluster_bits,
                                  q->cluster_size);
    }
    return qcow2_free_later_locked(q, old_offset, round_up(old_entries * 8, q->cluster_size), false,
                                   QCOW2_FREED_BY_OTHER);
}

/* The table refers to a new block: in memory at once, on disk by the next commit. */
static void hook_up_refblock_locked(struct qcow2 *q, uint64_t index, uint64_t offset)
{
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

/* Make the refcount block that counts `cluster`; it takes the second cluster of its area; in that of the header it is refused. */
static int co_new_refblock_locked(struct qcow2 *q, uint64_t cluster)
{
    uint64_t index = cluster >> q->refcounts.block_bits;
    uint64_t own = index > 0 ? 1 : 0; /* its place in the area, and of its count */
    uint64_t offset = ((index << q->refcounts.block_bits) + own) << q->cluster_bits;
    uint8_t head[SECTOR_SIZE] = {0};
    int r = 0;

    if (index >= q->reftable.size) {
        return co_grow_reftable_locked(q, index);
    }
    r = co_check_place_locked(q, "refcount block", offset, q->cluster_size);
    if (r < 0) {
        return r;
    }
    /* Also where it was never written: a commit must not find that there is no space for a part of it. */
    r = block_co_write_zeroes(q->node->file, offset, q->cluster_size, 0);
    if (r < 0) {
        return r;
    }
    /*
     * It counts itself on disk from the start, not only in the cache: a refcount table that is replaced before the next
     * commit refers to it.
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

    return index < q->reftable.size && (q->reftable.entries[index] & REFTABLE_OFFSET_MASK) != 0;
}

/* --- clusters ---------------------------------------------------------------------------------- */

/* Host offsets have to fit into an L2 entry. */
static bool is_addressable(const struct qcow2 *q, uint64_t cluster, uint64_t count)
{
    return cluster + count <= (ENTRY_OFFSET_MASK >> q->cluster_bits);
}

/* How many clusters from `first` on are free, at most `want`; blocks that are missing are made. */
static int co_count_free_locked(struct qcow2 *q, uint64_t first, uint64_t want, uint64_t *ret)
{
    uint64_t n = 0, refcount;
    int r = 0;

    while (n < want) {
        while (!has_refblock_locked(q, first + n) && r == 0) {
            r = co_new_refblock_locked(q, first + n);
        }
        r = r < 0 ? r : qcow2_co_refcount_get_locked(q, first + n, &refcount);
        if (r < 0 || refcount != 0) {
            break;
        }
        n++;
    }
    *ret = n;
    return r;
}

/* The first area of those at the end of the table that have no refcount block. */
static uint64_t first_uncounted_area(const struct qcow2 *q)
{
    uint64_t index = q->reftable.size;

    while (index > 0 && (q->reftable.entries[index - 1] & REFTABLE_OFFSET_MASK) == 0) {
        index--;
    }
    return index;
}

/* Blocks for `count` areas from `index` on, in the first clusters of the first. That one's block counts all of them on disk. */
static int co_new_refblocks_locked(struct qcow2 *q, uint64_t index, uint64_t count)
{
    uint64_t offset = index << q->refcounts.block_bits << q->cluster_bits;
    AUTO_FREE uint8_t *blocks = calloc(count, q->cluster_size);
    int r;

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

/*
 * More clusters in one piece than lie between two refcount blocks where each is the first of what it counts: a long L1
 * table where clusters are small. It goes behind all that is counted now.
 */
static int co_alloc_long_locked(struct qcow2 *q, uint64_t want, uint64_t *ret_offset,
                                bool *ret_fresh)
{
    uint64_t span = 1ULL << q->refcounts.block_bits, blocks = div_round_up(want, span - 1), index,
             first;
    int r;

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
    r = r < 0 ? r : co_new_refblocks_locked(q, index, blocks);
    r = r < 0 ? r : qcow2_co_refcount_add_locked(q, first, want, 1);
    if (r < 0) {
        return r;
    }
    *ret_offset = first << q->cluster_bits;
    *ret_fresh = *ret_offset >= q->alloc.zero_from;
    q->alloc.zero_from = MAX(q->alloc.zero_from, (first + want) << q->cluster_bits);
    return 0;
}

static int co_alloc_locked(struct qcow2 *q, const char *what, uint64_t want, bool exact,
                           uint64_t *ret_offset, uint64_t *ret_got, bool *ret_fresh)
{
    uint64_t file_end = div_round_up(block_edge_size(q->node->file), q->cluster_size);
    uint64_t at = q->alloc.next_free, got = 0, first_free = UINT64_MAX, behind_end = 0;
    int r;

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
        if (at > file_end && ++behind_end > USED_BEHIND_END_MAX) {
            return qcow2_corrupt(q,
                                 "More than %u clusters behind the end of the file have refcounts",
                                 USED_BEHIND_END_MAX);
        }
    }
    r = co_check_place_locked(q, what, at << q->cluster_bits, got << q->cluster_bits);
    r = r < 0 ? r : qcow2_co_refcount_add_locked(q, at, got, 1);
    if (r < 0) {
        return r;
    }
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
    /* A failure leaves a leak, which is the worst that may happen (R6). */
    (void)qcow2_co_refcount_add_locked(q, qcow2_cluster_index(q, offset), clusters, -1);
}

int qcow2_co_alloc_bytes_locked(struct qcow2 *q, size_t size, uint64_t *ret_offset)
{
    uint64_t tail = q->alloc.compressed_tail, room = round_up(tail, q->cluster_size) - tail;
    uint64_t cluster = 0;
    bool fresh;
    int r;

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
        room = 0; /* the cluster has as many users as its refcount can count */
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
    struct free_list *f = &q->alloc.frees;

    q->alloc.freed_bytes += length;
    if (compressed) {
        /* The next one to be compressed must not share a cluster whose count is about to go down. */
        q->alloc.compressed_tail = 0;
    } else if (f->count > 0) {
        struct qcow2_free_run *last = &f->runs[f->count - 1];

        if (!last->compressed && last->why == why && last->offset + last->length == offset) {
            last->length += length;
            return 0;
        }
    }
    if (f->count == f->capacity) {
        size_t capacity = f->capacity ? f->capacity * 2 : 64;
        struct qcow2_free_run *runs = realloc(f->runs, capacity * sizeof(*runs));

        if (!runs) {
            return -ENOMEM; /* a leak on disk */
        }
        f->runs = runs;
        f->capacity = capacity;
    }
    f->runs[f->count++] = (struct qcow2_free_run){
        .offset = offset, .length = length, .compressed = compressed, .why = why};
    return 0;
}
