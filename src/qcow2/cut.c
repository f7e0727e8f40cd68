/* SPDX-License-Identifier: Apache-2.0 */
#include "qcow2/cut.h"

#include <errno.h>

#include "qcow2/check/check.h"
#include "qcow2/check/reference_counts.h"
#include "qcow2/table/refcount.h"
#include "qcow2/table/verdict.h"

/* --- refcount blocks ---------------------------------------------------------------------------*/

/* The refcount block that entry `i` of the refcount table names has a refcount itself. */
static int co_check_own_count_locked(struct qcow2 *q, uint32_t i)
{
    uint64_t block = q->reftable.entries[i] & REFTABLE_OFFSET_MASK, refcount = 0;
    uint64_t cluster = qcow2_cluster_index(q, block), area = cluster >> q->refcounts.block_bits;
    int r;

    CO_ASSERT_HELD(&q->lock);
    if (!is_aligned(block, q->cluster_size)) {
        return qcow2_corrupt(q, "Refblock offset %#llx unaligned (reftable index: %#x)",
                             (unsigned long long)block, i);
    }
    if (area >= q->reftable.size || !(q->reftable.entries[area] & REFTABLE_OFFSET_MASK)) {
        return qcow2_corrupt(q, "Refblock at %#llx is not covered by the refcount structures",
                             (unsigned long long)block);
    }
    r = qcow2_co_refcount_get_locked(q, cluster, &refcount);
    if (r == 0 && refcount == 0) {
        r = qcow2_corrupt(q, "Refblock at %#llx has the refcount 0 (reftable index: %#x)",
                          (unsigned long long)block, i);
    }
    return r;
}

int qcow2_co_check_refcount_blocks(struct qcow2 *q, struct error *err)
{
    bool any = false;
    int r = 0;

    co_mutex_lock(&q->lock);
    for (uint32_t i = 0; i < q->reftable.size && r == 0; i++) {
        if (q->reftable.entries[i] & REFTABLE_OFFSET_MASK) {
            any = true;
            r = co_check_own_count_locked(q, i);
        }
    }
    if (!any) {
        r = qcow2_corrupt(q, "There are no references in the refcount table.");
    }
    co_mutex_unlock(&q->lock);
    return r < 0 ? error_set_errno(err, -r, "Failed to discard unused refblocks") : 0;
}

/* --- the end of the file -----------------------------------------------------------------------*/

/* Index after the last cluster of the file that has a refcount. */
static int co_used_end_locked(struct qcow2 *q, uint64_t *ret_value)
{
    uint64_t end = div_round_up(block_edge_size(q->node->file), q->cluster_size);
    uint64_t area = 1ULL << q->refcounts.block_bits, refcount = 0;
    int r = 0;

    CO_ASSERT_HELD(&q->lock);
    while (end > 0 && r == 0) {
        uint64_t index = (end - 1) >> q->refcounts.block_bits;

        if (index >= q->reftable.size || !(q->reftable.entries[index] & REFTABLE_OFFSET_MASK)) {
            end = MIN(round_down(end - 1, area), q->reftable.size * area);
            continue;
        }
        r = qcow2_co_refcount_get_locked(q, end - 1, &refcount);
        if (refcount != 0) {
            break;
        }
        end--;
    }
    *ret_value = end;
    return r;
}

/* The first cluster from index `end` on to which metadata refers, or UINT64_MAX. */
static uint64_t first_in_use(const struct qcow2 *q, const struct reference_counts *counts,
                             uint64_t end, uint64_t clusters)
{
    uint64_t table = qcow2_cluster_index(q, q->reftable.offset), n;
    uint64_t table_end = table + div_round_up((uint64_t)q->reftable.size * 8, q->cluster_size);
    uint64_t found = end < table_end ? MAX(end, table) : UINT64_MAX;

    for (uint64_t i = end; i < MIN(clusters, found); i += n) {
        uint32_t references;

        n = reference_counts_run(counts, i, clusters - i, &references);
        if (references > 0) {
            found = i;
        }
    }
    return found;
}

/*
 * Compares the free end with all references. Refcount blocks have refcounts (see above). An image
 * whose metadata has other errors keeps its end (*ret_free).
 */
static int co_check_free_end(struct qcow2 *q, uint64_t end, bool *ret_free)
{
    struct reference_counts *counts = NULL;
    uint64_t clusters = 0, found;
    int r = qcow2_co_count_references(q, q->refcounts.max, &counts, &clusters, NULL);

    *ret_free = false;
    if (r < 0) {
        return 0;
    }
    found = first_in_use(q, counts, end, clusters);
    reference_counts_free(counts);
    if (found < UINT64_MAX) {
        return qcow2_corrupt(q, "Cluster %#llx is in use, but its refcount is 0",
                             (unsigned long long)found << q->cluster_bits);
    }
    *ret_free = true;
    return 0;
}

int qcow2_co_cut_file(struct qcow2 *q)
{
    struct block_edge *file = q->node->file;
    bool is_free = false;
    uint64_t end;
    int r;

    co_mutex_lock(&q->lock);
    r = co_used_end_locked(q, &end);
    co_mutex_unlock(&q->lock);
    if (r < 0 || end << q->cluster_bits >= block_edge_size(file)) {
        return 0;
    }
    r = co_check_free_end(q, end, &is_free);
    if (is_free && block_co_truncate(file, end << q->cluster_bits, BLOCK_PREALLOC_OFF, NULL) == 0 &&
        q->alloc.zero_from != UINT64_MAX) {
        q->alloc.zero_from = end << q->cluster_bits;
    }
    return r;
}
