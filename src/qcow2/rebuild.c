/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Building refcounts anew, for images whose own are beyond repair. New blocks and a new table go behind the end of the
 * file (or `first`), where they can't do harm, and are switched by the header (R3); the old ones are then referenced by nothing.
 *
 *   ... file as it is ... | refcount blocks | refcount table |
 *                         ^ first
 */
#include "qcow2/rebuild.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"

struct layout {
    uint64_t clusters; /* of the file as it is */
    uint64_t first;    /* cluster index of the first new block */
    uint64_t blocks;   /* refcount blocks that are needed */
    uint64_t table_clusters;
};

static uint64_t end_of(const struct layout *l)
{
    return l->first + l->blocks + l->table_clusters;
}

/* Mark the areas of the file that something is referenced in. */
static void mark_needed(const struct qcow2 *q, const struct counts *counts, uint64_t clusters,
                        uint8_t *needed)
{
    uint64_t n;

    for (uint64_t i = 0; i < clusters; i += n) {
        uint32_t references;

        n = counts_run(counts, i, clusters - i, &references);
        if (references > 0) {
            for (uint64_t area = i >> q->refblock_bits; area <= (i + n - 1) >> q->refblock_bits;
                 area++) {
                needed[area] = 1;
            }
        }
    }
}

/* Counting the new structures may need more of them: repeat until it fits. Only areas in use get a block. */
static int plan(struct qcow2 *q, const struct counts *counts, uint64_t clusters, uint64_t first,
                struct layout *l, uint8_t **ret_needed, uint64_t *ret_table_entries)
{
    uint64_t per_block = 1ULL << q->refblock_bits;

    *l = (struct layout){.clusters = clusters, .first = first, .blocks = 1, .table_clusters = 1};
    for (;;) {
        uint64_t areas = div_round_up(end_of(l), per_block), blocks = 0;
        uint64_t table_clusters = div_round_up(areas * 8, q->cluster_size);
        uint8_t *needed;

        if (table_clusters * q->cluster_size > REFTABLE_BYTES_MAX) {
            return -EFBIG;
        }
        needed = calloc(areas, 1);
        if (!needed) {
            return -ENOMEM;
        }
        mark_needed(q, counts, clusters, needed);
        for (uint64_t i = clusters / per_block; i < areas; i++) {
            needed[i] = 1;
        }
        for (uint64_t i = 0; i < areas; i++) {
            blocks += needed[i];
        }
        if (blocks <= l->blocks && table_clusters <= l->table_clusters) {
            *ret_needed = needed;
            *ret_table_entries = areas;
            return 0;
        }
        l->blocks = MAX(l->blocks, blocks);
        l->table_clusters = MAX(l->table_clusters, table_clusters);
        free(needed);
    }
}

static uint64_t count_of(const struct layout *l, const struct counts *counts, uint64_t cluster)
{
    if (cluster < l->clusters) {
        return counts_get(counts, cluster);
    }
    /* What lies between the file and the new blocks may be referenced. */
    return cluster < end_of(l) ? 1 : 0;
}

static int co_write_block(struct qcow2 *q, const struct layout *l, const struct counts *counts,
                          uint64_t area, uint64_t offset, uint8_t *block)
{
    uint64_t per_block = 1ULL << q->refblock_bits;

    memset(block, 0, q->cluster_size);
    for (uint64_t i = 0; i < per_block; i++) {
        uint64_t n = count_of(l, counts, area * per_block + i);

        if (n > q->refcount_max) {
            return -ERANGE;
        }
        qcow2_refcount_store(block, q->refcount_order, i, n);
    }
    block_co_event(q->node->file, BLOCK_EVENT_REFBLOCK_UPDATE);
    return block_co_pwrite(q->node->file, offset, block, q->cluster_size, 0);
}

static int co_write_all(struct qcow2 *q, const struct layout *l, const struct counts *counts,
                        const uint8_t *needed, uint64_t areas, uint64_t *table)
{
    AUTO_FREE uint8_t *block = malloc(q->cluster_size);
    AUTO_FREE uint64_t *be = calloc(l->table_clusters, q->cluster_size);
    uint64_t at = l->first << q->cluster_bits;
    int r = block && be ? 0 : -ENOMEM;

    for (uint64_t area = 0; area < areas && r == 0; area++) {
        if (needed[area]) {
            r = co_write_block(q, l, counts, area, at, block);
            table[area] = at;
            be[area] = htobe64(at);
            at += q->cluster_size;
        }
    }
    at = (l->first + l->blocks) << q->cluster_bits;
    r = r < 0 ? r : block_co_pwrite(q->node->file, at, be, l->table_clusters << q->cluster_bits, 0);
    return r < 0 ? r : block_co_flush(q->node->file);
}

/* The caches and tables of the old refcounts are void. */
static int adopt(struct qcow2 *q, const struct layout *l, uint64_t *table)
{
    uint64_t entries = l->table_clusters * q->cluster_size / 8;
    size_t entry_size = q->ref_cache.entry_size;
    uint8_t *dirty = calloc(div_round_up(entries * 8, SECTOR_SIZE) + 1, 1);
    int r;

    if (!dirty) {
        return -ENOMEM;
    }
    cache_destroy(&q->ref_cache);
    r = cache_init(&q->ref_cache, q->node->file, entry_size, MiB);
    free(q->reftable);
    free(q->reftable_dirty);
    q->reftable = table;
    q->reftable_dirty = dirty;
    q->reftable_dirty_count = 0;
    q->reftable_entries = (uint32_t)entries;
    q->reftable_offset = (l->first + l->blocks) << q->cluster_bits;
    qcow2_overlap_note_refblocks_locked(q);
    q->next_free = 0;
    q->compressed_tail = 0;
    q->zero_from = MAX(q->zero_from, end_of(l) << q->cluster_bits);
    return r;
}

int qcow2_co_rebuild_refcounts(struct qcow2 *q, const struct counts *counts, uint64_t clusters,
                               uint64_t first, struct error *err)
{
    AUTO_FREE uint8_t *needed = NULL;
    AUTO_FREE uint64_t *table = NULL;
    struct layout l;
    uint64_t areas;
    int r = plan(q, counts, clusters, first, &l, &needed, &areas);

    if (r == 0) {
        table = calloc(l.table_clusters, q->cluster_size);
        r = table ? co_write_all(q, &l, counts, needed, areas, table) : -ENOMEM;
    }
    r = r < 0 ? r : adopt(q, &l, TAKE_PTR(table));
    if (r < 0) {
        return error_set_errno(err, -r, "Could not write new refcounts of '%s'",
                               block_node_display_name(q->node));
    }
    r = qcow2_co_write_header(q, err);
    if (r < 0) {
        /* What we have in memory is not what the header names. */
        atomic_store(&q->broken, true);
    }
    return r;
}
