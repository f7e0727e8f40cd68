/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whether it is worth while to ask the file for holes inside data clusters.
 *
 * That costs two system calls for each run of clusters, and finds something where clusters were preallocated without being
 * written. So some clusters are looked at, spread over the disk: only if one of them is a hole as a whole is the
 * file asked about all. An image that has a place in the file system for nearly all of its file needs no look at all.
 */
#include <errno.h>

#include "qcow2/state.h"

/* How much is looked at: slices of L2 tables, and clusters of each. */
#define SLICES_MAX 16
#define CLUSTERS_MAX 4

enum { UNKNOWN, DENSE, SPARSE };

/* Whether so much of the file has no storage that there may be unwritten clusters in it. */
static bool lacks_storage(const struct qcow2 *q)
{
    uint64_t size = block_edge_size(q->data), stored;

    if (block_co_allocated_size(block_edge_node(q->data), &stored) < 0) {
        return false;
    }
    return size > stored + stored / 9 && size - stored >= 2 * q->cluster_size;
}

/* The host offset of a cluster of plain data. */
static bool is_data(const struct qcow2 *q, struct cache_entry *slice, unsigned index,
                    uint64_t *ret_host)
{
    enum cluster_type type;
    uint64_t entry, bitmap;
    unsigned sub = 0;

    qcow2_load_both(q, slice, index, &entry, &bitmap);
    if (q->extended_l2) {
        if ((uint32_t)bitmap == 0) {
            return false;
        }
        sub = (unsigned)__builtin_ctz((uint32_t)bitmap);
    }
    return qcow2_decode_entry(q, entry, bitmap, sub, &type, ret_host) == 0 &&
           type == CLUSTER_NORMAL;
}

static bool co_is_hole(const struct qcow2 *q, uint64_t host)
{
    struct block_status status;

    return block_co_status(q->data, host, q->cluster_size, &status) == 0 &&
           (status.flags & BLOCK_STATUS_ZERO) && status.length == q->cluster_size;
}

static bool co_slice_has_hole(const struct qcow2 *q, struct cache_entry *slice)
{
    unsigned entries = qcow2_slice_entries(q), count = 0, seen = 0;
    uint64_t host;

    for (unsigned i = 0; i < entries; i++) {
        count += is_data(q, slice, i, &host);
    }
    /* Of those the first, and then each that is a step further. */
    for (unsigned i = 0; i < entries && seen < count; i++) {
        if (!is_data(q, slice, i, &host)) {
            continue;
        }
        if (seen++ % div_round_up(count, CLUSTERS_MAX) == 0 && co_is_hole(q, host)) {
            return true;
        }
    }
    return false;
}

static uint64_t table_at(const struct qcow2 *q, uint32_t l1_index)
{
    return atomic_load_explicit(&q->l1[l1_index], memory_order_relaxed) & ENTRY_OFFSET_MASK;
}

static bool co_table_has_hole(struct qcow2 *q, uint64_t table, uint64_t first, uint64_t step)
{
    uint64_t slices = qcow2_table_entries(q) / qcow2_slice_entries(q);

    for (uint64_t i = first; i < slices; i += step) {
        struct cache_entry *slice;
        bool found;

        /* What is wrong with it is told to those who need it. */
        if (!is_aligned(table, q->cluster_size) ||
            cache_co_get(&q->l2_cache, table + (i << q->l2_cache.entry_bits), &slice) < 0) {
            return false;
        }
        found = co_slice_has_hole(q, slice);
        cache_put(slice);
        if (found) {
            return true;
        }
    }
    return false;
}

/* Slices of all tables are numbered in a row; every step-th is looked at. */
static bool co_has_holes(struct qcow2 *q)
{
    uint64_t per_table = qcow2_table_entries(q) / qcow2_slice_entries(q);
    uint64_t tables = 0, step, next = 0, begin = 0;

    for (uint32_t i = 0; i < q->l1_size; i++) {
        tables += table_at(q, i) != 0;
    }
    step = MAX(div_round_up(tables * per_table, SLICES_MAX), 1);
    for (uint32_t i = 0; i < q->l1_size; i++) {
        uint64_t table = table_at(q, i);

        if (table == 0) {
            continue;
        }
        if (next < begin + per_table) {
            if (co_table_has_hole(q, table, next - begin, step)) {
                return true;
            }
            next += div_round_up(begin + per_table - next, step) * step;
        }
        begin += per_table;
    }
    return false;
}

bool qcow2_co_is_sparse(struct qcow2 *q)
{
    uint64_t size = block_node_size(q->node);

    /* What a resize has added may have been preallocated. */
    if (atomic_load_explicit(&q->sparse, memory_order_acquire) == UNKNOWN ||
        atomic_load_explicit(&q->sparse_size, memory_order_relaxed) != size) {
        bool sparse = lacks_storage(q) && co_has_holes(q);

        atomic_store_explicit(&q->sparse_size, size, memory_order_relaxed);
        atomic_store_explicit(&q->sparse, sparse ? SPARSE : DENSE, memory_order_release);
    }
    return atomic_load_explicit(&q->sparse, memory_order_relaxed) == SPARSE;
}
