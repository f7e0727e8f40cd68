/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whether it is worth while to ask the file for holes inside data clusters.
 *
 * That costs system calls, and finds something where clusters were preallocated without being written, or written in part. So
 * the file is asked only if it has clearly less storage than clusters that are in use. The rule is QEMU's, so that both
 * tell the same of a file. What has a place in the file system for nearly all of its file needs no count.
 */
#include "qcow2/data/sparse.h"

#include <errno.h>

#include "qcow2/table/refcount.h"

enum { UNKNOWN, DENSE, SPARSE };

/* Whether at least `least` clusters of the first `clusters` of the file are in use. */
static bool co_uses_locked(struct qcow2 *q, uint64_t clusters, uint64_t least)
{
    uint64_t used = 0;

    for (uint64_t at = 0, count; at < clusters && used < least; at += count) {
        uint64_t in_use;

        if (qcow2_co_count_used_locked(q, at, clusters - at, &in_use, &count) < 0) {
            return false; /* what is wrong is told to those who need it */
        }
        used += in_use;
    }
    return used >= least;
}

static bool co_lacks_storage(struct qcow2 *q)
{
    uint64_t clusters = div_round_up(block_edge_size(q->node->file), q->cluster_size);
    uint64_t stored, least;
    bool lacks;

    if (block_co_allocated_size(block_edge_node(q->node->file), &stored) < 0) {
        return false;
    }
    stored >>= q->cluster_bits;
    least = MAX(stored + stored / 9, stored + 2);
    if (clusters < least) {
        return false;
    }
    co_mutex_lock(&q->lock);
    lacks = co_uses_locked(q, clusters, least);
    co_mutex_unlock(&q->lock);
    return lacks;
}

bool qcow2_co_is_sparse(struct qcow2 *q)
{
    uint64_t size = block_node_size(q->node);

    /* What a resize has added may have been preallocated. */
    if (atomic_load_explicit(&q->sparse.answer, memory_order_acquire) == UNKNOWN ||
        atomic_load_explicit(&q->sparse.size, memory_order_relaxed) != size) {
        bool sparse = co_lacks_storage(q);

        atomic_store_explicit(&q->sparse.size, size, memory_order_relaxed);
        atomic_store_explicit(&q->sparse.answer, sparse ? SPARSE : DENSE, memory_order_release);
    }
    return atomic_load_explicit(&q->sparse.answer, memory_order_relaxed) == SPARSE;
}
