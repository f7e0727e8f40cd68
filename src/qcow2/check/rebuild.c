/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Building refcounts again, for images whose own can't be repaired, or change their width. New
 * refcount blocks and a new refcount table go into clusters without references, the first ones of
 * the file: so the file need not grow, which a block device can't. One write of the header switches
 * to them (R3). Until then the old ones stay unchanged; afterwards nothing refers to those.
 *
 *   header | L1 | block | data | table | data | old table | old block | ...
 *                 ^ gaps         ^
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "qcow2/check/check.h"
#include "qcow2/check/reference_counts.h"
#include "qcow2/header/header.h"
#include "qcow2/image.h"
#include "qcow2/table/refcount.h"

/* Entries of the largest refcount table. */
#define AREAS_MAX (REFTABLE_BYTES_MAX / 8)
/* Memory limit of `old`, and of `placed`. */
#define COUNTS_BYTES (256 * MiB)

/* Which refcount blocks are to be written, and where. An area is what one refcount block covers. */
struct layout {
    const struct qcow2 *q;

    /* References to the clusters of the file, and how many clusters it has. */
    const struct reference_counts *counts;
    uint64_t clusters;
    /* Clusters with indexes in [clusters, beyond) may be referenced, and get the refcount 1. */
    uint64_t beyond;
    /* Indexes of clusters in `old` and `placed` are below this. */
    uint64_t limit;
    /* The clusters of the old table and blocks, and those of the new ones. */
    struct reference_counts *old, *placed;

    /* For each area: whether it needs a block, and the cluster index of the block (0: none). */
    uint8_t *needed;
    uint64_t *blocks;
    /* Index behind the last area that needs a block. */
    uint64_t areas;
    /* No cluster below this index is free. */
    uint64_t first_gap;
    /* The new table: cluster index and length in clusters. */
    uint64_t table, table_clusters;
    /* Index behind the last cluster that is written. */
    uint64_t end;
};

static void layout_release(struct layout *l)
{
    reference_counts_free(l->old);
    reference_counts_free(l->placed);
    free(l->needed);
    free(l->blocks);
}

/* --- gaps ------------------------------------------------------------------------------------- */

/*
 * The length, at least 1, of a run from `first` of clusters that are all used or all free
 * (*ret_used).
 */
static uint64_t usage_run(const struct layout *l, uint64_t first, uint64_t n, bool *ret_used)
{
    uint32_t references = 0, old, placed;

    if (first < l->clusters) {
        n = reference_counts_run(l->counts, first, MIN(n, l->clusters - first), &references);
    } else if (first < l->beyond) {
        n = MIN(n, l->beyond - first);
        references = 1;
    }
    n = reference_counts_run(l->old, first, n, &old);
    n = reference_counts_run(l->placed, first, n, &placed);
    *ret_used = references > 0 || old > 0 || placed > 0;
    return n;
}

/* The first `n` contiguous free clusters. -EFBIG: none below the limit. */
static int find_gap(struct layout *l, uint64_t n, uint64_t *ret_first)
{
    uint64_t first = l->first_gap, free_clusters = 0;

    while (free_clusters < n) {
        bool used;
        uint64_t run;

        if (first + n > l->limit) {
            return -EFBIG;
        }
        run = usage_run(l, first + free_clusters, l->limit - first - free_clusters, &used);
        if (used) {
            first += free_clusters + run;
            free_clusters = 0;
        } else {
            free_clusters += run;
        }
    }
    *ret_first = first;
    return 0;
}

/*
 * The clusters [first, first + n) have references: their areas need blocks. -EFBIG: too many areas.
 */
static int need_areas(struct layout *l, uint64_t first, uint64_t n)
{
    uint64_t last_area = (first + n - 1) >> l->q->refcounts.block_bits;

    if (last_area >= AREAS_MAX) {
        return -EFBIG;
    }
    memset(l->needed + (first >> l->q->refcounts.block_bits), 1,
           last_area + 1 - (first >> l->q->refcounts.block_bits));
    l->areas = MAX(l->areas, last_area + 1);
    return 0;
}

/* Takes a gap of `n` clusters, which then have references themselves. */
static int place_clusters(struct layout *l, uint64_t n, uint64_t *ret_first)
{
    uint64_t done;
    int r = find_gap(l, n, ret_first);

    if (r < 0) {
        return r;
    }
    r = reference_counts_add(l->placed, *ret_first, n, &done);
    if (r < 0) {
        return r;
    }
    l->first_gap = n == 1 ? *ret_first + 1 : l->first_gap;
    l->end = MAX(l->end, *ret_first + n);
    return need_areas(l, *ret_first, n);
}

/* --- planning --------------------------------------------------------------------------------- */

/* The areas of all referenced clusters need blocks. */
static int need_referenced(struct layout *l)
{
    uint64_t n;
    int r = 0;

    for (uint64_t i = 0; i < l->clusters && r == 0; i += n) {
        uint32_t references;

        n = reference_counts_run(l->counts, i, l->clusters - i, &references);
        r = references > 0 ? need_areas(l, i, n) : 0;
    }
    if (r == 0 && l->beyond > l->clusters) {
        r = need_areas(l, l->clusters, l->beyond - l->clusters);
    }
    return r;
}

/*
 * Places a block for each area that needs one. A block may lie in an area without references, which
 * then needs a block too: hence the loop.
 */
static int place_blocks(struct layout *l)
{
    bool again = true;
    int r = 0;

    while (again && r == 0) {
        again = false;
        for (uint64_t area = 0; area < l->areas && r == 0; area++) {
            if (l->needed[area] && l->blocks[area] == 0) {
                r = place_clusters(l, 1, &l->blocks[area]);
                again = true;
            }
        }
    }
    return r;
}

/* Places all blocks, and a table of l->table_clusters, which may turn out to be too short. */
static int place_all(struct layout *l)
{
    int r;

    reference_counts_free(l->placed);
    l->placed = reference_counts_new(l->limit, 1, COUNTS_BYTES);
    memset(l->needed, 0, AREAS_MAX);
    memset(l->blocks, 0, AREAS_MAX * sizeof(*l->blocks));
    l->areas = l->end = 0;
    l->first_gap = 1; /* behind the header */
    if (!l->placed) {
        return -ENOMEM;
    }
    r = need_referenced(l);
    /* In the order of QEMU: the blocks that cover the table itself come last. */
    UNLESS_FAILED(r, place_blocks(l));
    UNLESS_FAILED(r, place_clusters(l, l->table_clusters, &l->table));
    return UNLESS_FAILED(r, place_blocks(l));
}

/*
 * Notes clusters of the old table and blocks. A damaged table may name any offset; those out of
 * range are ignored.
 */
static void note_old(struct layout *l, uint64_t offset, uint64_t bytes)
{
    uint64_t first = qcow2_cluster_index(l->q, offset), done;
    uint64_t n = div_round_up(bytes, l->q->cluster_size);

    if (first < l->limit && n <= l->limit - first && n > 0) {
        (void)reference_counts_add(l->old, first, n, &done);
    }
}

/*
 * Finds the shortest table that holds all areas, including those that table and blocks themselves
 * need.
 */
static int plan_refcounts(struct layout *l)
{
    const struct qcow2 *q = l->q;
    int r;

    l->limit = MAX(l->clusters, l->beyond) + 4 * AREAS_MAX;
    l->old = reference_counts_new(l->limit, UINT32_MAX, COUNTS_BYTES);
    l->needed = malloc(AREAS_MAX);
    l->blocks = calloc(AREAS_MAX, sizeof(*l->blocks));
    if (!l->old || !l->needed || !l->blocks) {
        return -ENOMEM;
    }
    note_old(l, q->reftable.offset, (uint64_t)q->reftable.size * 8);
    for (uint32_t i = 0; i < q->reftable.size; i++) {
        if (q->reftable.entries[i] & REFTABLE_OFFSET_MASK) {
            note_old(l, q->reftable.entries[i] & REFTABLE_OFFSET_MASK, q->cluster_size);
        }
    }
    for (l->table_clusters = 1;;) {
        uint64_t wanted;

        r = place_all(l);
        wanted = div_round_up(l->areas * 8, q->cluster_size);
        if (r < 0 || wanted <= l->table_clusters) {
            return r;
        }
        l->table_clusters = wanted;
    }
}

/* --- writing ---------------------------------------------------------------------------------- */

/* The refcount that a cluster gets. */
static uint64_t new_refcount(const struct layout *l, uint64_t cluster)
{
    uint64_t placed = cluster < l->limit ? reference_counts_get(l->placed, cluster) : 0;

    if (cluster < l->clusters) {
        return placed + reference_counts_get(l->counts, cluster);
    }
    return cluster < l->beyond ? 1 : placed;
}

static int co_write_refblock(struct qcow2 *q, const struct layout *l, uint64_t area, uint8_t *block)
{
    uint64_t per_block = 1ULL << q->refcounts.block_bits;

    memset(block, 0, q->cluster_size);
    for (uint64_t i = 0; i < per_block; i++) {
        uint64_t n = new_refcount(l, area * per_block + i);

        if (n > q->refcounts.max) {
            return -ERANGE;
        }
        qcow2_refcount_store(block, q->refcounts.order, i, n);
    }
    block_co_event(q->node->file, BLOCK_EVENT_REFBLOCK_UPDATE);
    return block_co_pwrite(q->node->file, l->blocks[area] << q->cluster_bits, block,
                           q->cluster_size, 0);
}

/* Writes blocks and table, and syncs. `table` becomes the refcount table in host byte order. */
static int co_write_new_refcounts(struct qcow2 *q, const struct layout *l, uint64_t *table)
{
    AUTO_FREE uint8_t *block = malloc(q->cluster_size);
    AUTO_FREE uint64_t *be = calloc(l->table_clusters, q->cluster_size);
    int r;

    if (!block || !be) {
        return -ENOMEM;
    }
    /* R8: a reference that a repair removed is gone from disk before its cluster is used. */
    r = block_co_flush(q->node->file);
    for (uint64_t area = 0; area < l->areas && r == 0; area++) {
        if (l->needed[area]) {
            r = co_write_refblock(q, l, area, block);
            table[area] = l->blocks[area] << q->cluster_bits;
            be[area] = htobe64(table[area]);
        }
    }
    UNLESS_FAILED(r, block_co_pwrite(q->node->file, l->table << q->cluster_bits, be,
                                     l->table_clusters << q->cluster_bits, 0));
    return UNLESS_FAILED(r, block_co_flush(q->node->file));
}

/* Replaces the refcounts in memory: table, cache and what was derived from them. Takes `table`. */
static int co_adopt_refcounts(struct qcow2 *q, const struct layout *l, uint64_t *table)
{
    uint64_t entries = l->table_clusters * q->cluster_size / 8;
    size_t entry_size = q->caches.refcounts.entry_size;
    uint8_t *dirty = calloc(div_round_up(entries * 8, SECTOR_SIZE) + 1, 1);
    int r;

    if (!dirty) {
        free(table);
        return -ENOMEM;
    }
    cache_destroy(&q->caches.refcounts);
    r = cache_init(&q->caches.refcounts, q->node->file, entry_size, MiB);
    free(q->reftable.entries);
    free(q->reftable.dirty);
    q->reftable.entries = table;
    q->reftable.dirty = dirty;
    q->reftable.dirty_count = 0;
    q->reftable.size = (uint32_t)entries;
    q->reftable.offset = l->table << q->cluster_bits;
    co_mutex_lock(&q->lock);
    qcow2_overlap_note_refblocks_locked(q);
    co_mutex_unlock(&q->lock);
    q->alloc.next_free = 0;
    q->alloc.compressed_tail = 0;
    q->alloc.zero_from = MAX(q->alloc.zero_from, l->end << q->cluster_bits);
    return r;
}

int qcow2_co_rebuild_refcounts(struct qcow2 *q, const struct reference_counts *counts,
                               uint64_t clusters, uint64_t beyond, struct error *err)
{
    CLEANUP(layout_release)
    struct layout l = {.q = q, .counts = counts, .clusters = clusters, .beyond = beyond};
    AUTO_FREE uint64_t *table = NULL;
    int r = plan_refcounts(&l);

    if (r == 0) {
        table = calloc(l.table_clusters, q->cluster_size);
        r = table ? co_write_new_refcounts(q, &l, table) : -ENOMEM;
    }
    UNLESS_FAILED(r, co_adopt_refcounts(q, &l, TAKE_PTR(table)));
    if (r < 0) {
        return error_set_errno(err, -r, "Could not write new refcounts of '%s'",
                               block_node_display_name(q->node));
    }
    r = qcow2_co_write_header(q, err);
    if (r < 0) {
        /* The header does not name the refcounts that are in memory. */
        atomic_store(&q->broken, true);
    }
    return r;
}
