/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Building refcounts anew, for images whose own are beyond repair, or become wider or narrower. New blocks and a new table go into
 * clusters that nothing refers to: from the beginning of the file, so that it need not grow, which a device can't. They are switched by
 * the header (R3); until then the old ones stay as they are, and then nothing refers to those.
 *
 *   header | L1 | block | data | table | data | old table | old block | ...
 *                 ^ gaps         ^
 */
#include "qcow2/check/rebuild.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "qcow2/header/header.h"
#include "qcow2/table/refcount.h"

#define AREAS_MAX (REFTABLE_BYTES_MAX / 8)
#define COUNTS_BYTES (256 * MiB)

/* What is to be written, and where. An area is what one refcount block counts. */
struct layout {
    const struct qcow2 *q;
    const struct counts *counts; /* references to clusters of the file */
    uint64_t clusters;           /* of the file as it is */
    uint64_t beyond;             /* between them and this index something may be referenced */
    uint64_t limit;              /* indexes that `old` and `placed` can have */
    struct counts *old;          /* clusters of the old table and blocks */
    struct counts *placed;       /* of the new ones */
    uint8_t *needed;             /* by area: it has to have a block */
    uint64_t *blocks;            /* by area: cluster index of its block; 0: none */
    uint64_t areas;              /* behind the last one that has */
    uint64_t first_gap;          /* there is none below this index */
    uint64_t table, table_clusters;
    uint64_t end; /* index behind the last one that is written */
};

static void layout_release(struct layout *l)
{
    counts_free(l->old);
    counts_free(l->placed);
    free(l->needed);
    free(l->blocks);
}

/* --- gaps -------------------------------------------------------------------------------------- */

/* Clusters of [first, first + n) that are used alike, at least one: *ret_used says how. */
static uint64_t run_of(const struct layout *l, uint64_t first, uint64_t n, bool *ret_used)
{
    uint32_t references = 0, old, placed;

    if (first < l->clusters) {
        n = counts_run(l->counts, first, MIN(n, l->clusters - first), &references);
    } else if (first < l->beyond) {
        n = MIN(n, l->beyond - first);
        references = 1;
    }
    n = counts_run(l->old, first, n, &old);
    n = counts_run(l->placed, first, n, &placed);
    *ret_used = references > 0 || old > 0 || placed > 0;
    return n;
}

/* The first `n` clusters in a row that nothing refers to. -EFBIG */
static int find_gap(struct layout *l, uint64_t n, uint64_t *ret)
{
    uint64_t first = l->first_gap, free_clusters = 0;

    while (free_clusters < n) {
        bool used;
        uint64_t run;

        if (first + n > l->limit) {
            return -EFBIG;
        }
        run = run_of(l, first + free_clusters, l->limit - first - free_clusters, &used);
        if (used) {
            first += free_clusters + run;
            free_clusters = 0;
        } else {
            free_clusters += run;
        }
    }
    *ret = first;
    return 0;
}

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

/* Take a gap of `n` clusters. Those have to be counted, too. */
static int place(struct layout *l, uint64_t n, uint64_t *ret)
{
    uint64_t done;
    int r = find_gap(l, n, ret);

    r = r < 0 ? r : counts_add(l->placed, *ret, n, &done);
    if (r < 0) {
        return r;
    }
    l->first_gap = n == 1 ? *ret + 1 : l->first_gap;
    l->end = MAX(l->end, *ret + n);
    return need_areas(l, *ret, n);
}

/* --- planning ---------------------------------------------------------------------------------- */

/* Areas that something is referenced in. */
static int need_referenced(struct layout *l)
{
    uint64_t n;
    int r = 0;

    for (uint64_t i = 0; i < l->clusters && r == 0; i += n) {
        uint32_t references;

        n = counts_run(l->counts, i, l->clusters - i, &references);
        r = references > 0 ? need_areas(l, i, n) : 0;
    }
    if (r == 0 && l->beyond > l->clusters) {
        r = need_areas(l, l->clusters, l->beyond - l->clusters);
    }
    return r;
}

/* A block for each area that needs one. A block can lie in an area that had nothing so far, which needs one then. */
static int place_blocks(struct layout *l)
{
    bool again = true;
    int r = 0;

    while (again && r == 0) {
        again = false;
        for (uint64_t area = 0; area < l->areas && r == 0; area++) {
            if (l->needed[area] && l->blocks[area] == 0) {
                r = place(l, 1, &l->blocks[area]);
                again = true;
            }
        }
    }
    return r;
}

/* With a table of l->table_clusters, which may turn out to be too short. */
static int place_all(struct layout *l)
{
    int r;

    counts_free(l->placed);
    l->placed = counts_new(l->limit, 1, COUNTS_BYTES);
    memset(l->needed, 0, AREAS_MAX);
    memset(l->blocks, 0, AREAS_MAX * sizeof(*l->blocks));
    l->areas = l->end = 0;
    l->first_gap = 1; /* behind the header */
    if (!l->placed) {
        return -ENOMEM;
    }
    r = need_referenced(l);
    /* In the order of QEMU; the blocks that the table needs for itself come last. */
    r = r < 0 ? r : place_blocks(l);
    r = r < 0 ? r : place(l, l->table_clusters, &l->table);
    return r < 0 ? r : place_blocks(l);
}

/* A table that is broken may name anything: what it names twice, or nowhere, matters to nobody. */
static void note_old(struct layout *l, uint64_t offset, uint64_t bytes)
{
    uint64_t first = qcow2_cluster_index(l->q, offset), done;
    uint64_t n = div_round_up(bytes, l->q->cluster_size);

    if (first < l->limit && n <= l->limit - first && n > 0) {
        (void)counts_add(l->old, first, n, &done);
    }
}

static int plan(struct layout *l)
{
    const struct qcow2 *q = l->q;
    int r;

    l->limit = MAX(l->clusters, l->beyond) + 4 * AREAS_MAX;
    l->old = counts_new(l->limit, UINT32_MAX, COUNTS_BYTES);
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

/* --- writing ----------------------------------------------------------------------------------- */

static uint64_t count_of(const struct layout *l, uint64_t cluster)
{
    uint64_t placed = cluster < l->limit ? counts_get(l->placed, cluster) : 0;

    if (cluster < l->clusters) {
        return placed + counts_get(l->counts, cluster);
    }
    return cluster < l->beyond ? 1 : placed;
}

static int co_write_block(struct qcow2 *q, const struct layout *l, uint64_t area, uint8_t *block)
{
    uint64_t per_block = 1ULL << q->refcounts.block_bits;

    memset(block, 0, q->cluster_size);
    for (uint64_t i = 0; i < per_block; i++) {
        uint64_t n = count_of(l, area * per_block + i);

        if (n > q->refcounts.max) {
            return -ERANGE;
        }
        qcow2_refcount_store(block, q->refcounts.order, i, n);
    }
    block_co_event(q->node->file, BLOCK_EVENT_REFBLOCK_UPDATE);
    return block_co_pwrite(q->node->file, l->blocks[area] << q->cluster_bits, block,
                           q->cluster_size, 0);
}

static int co_write_all(struct qcow2 *q, const struct layout *l, uint64_t *table)
{
    AUTO_FREE uint8_t *block = malloc(q->cluster_size);
    AUTO_FREE uint64_t *be = calloc(l->table_clusters, q->cluster_size);
    int r = block && be ? 0 : -ENOMEM;

    /* What referred to the gaps until now is gone from disk. */
    r = r < 0 ? r : block_co_flush(q->node->file);
    for (uint64_t area = 0; area < l->areas && r == 0; area++) {
        if (l->needed[area]) {
            r = co_write_block(q, l, area, block);
            table[area] = l->blocks[area] << q->cluster_bits;
            be[area] = htobe64(table[area]);
        }
    }
    r = r < 0 ? r
              : block_co_pwrite(q->node->file, l->table << q->cluster_bits, be,
                                l->table_clusters << q->cluster_bits, 0);
    return r < 0 ? r : block_co_flush(q->node->file);
}

/* The caches and tables of the old refcounts are void. */
static int adopt(struct qcow2 *q, const struct layout *l, uint64_t *table)
{
    uint64_t entries = l->table_clusters * q->cluster_size / 8;
    size_t entry_size = q->caches.refcounts.entry_size;
    uint8_t *dirty = calloc(div_round_up(entries * 8, SECTOR_SIZE) + 1, 1);
    int r;

    if (!dirty) {
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
    qcow2_overlap_note_refblocks_locked(q);
    q->alloc.next_free = 0;
    q->alloc.compressed_tail = 0;
    q->alloc.zero_from = MAX(q->alloc.zero_from, l->end << q->cluster_bits);
    return r;
}

int qcow2_co_rebuild_refcounts(struct qcow2 *q, const struct counts *counts, uint64_t clusters,
                               uint64_t beyond, struct error *err)
{
    CLEANUP(layout_release)
    struct layout l = {.q = q, .counts = counts, .clusters = clusters, .beyond = beyond};
    AUTO_FREE uint64_t *table = NULL;
    int r = plan(&l);

    if (r == 0) {
        table = calloc(l.table_clusters, q->cluster_size);
        r = table ? co_write_all(q, &l, table) : -ENOMEM;
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
