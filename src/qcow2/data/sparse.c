/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whether it is worth asking the file for holes in data clusters.
 *
 * That costs system calls, and only finds holes where clusters were preallocated, or written in
 * part. So the file is asked only if it has clearly less storage than clusters in use. The rule is
 * QEMU's, so that both report the same map. A file with storage for nearly all of its size is not
 * counted.
 */
#include "qcow2/data/sparse.h"

#include <errno.h>

#include "qcow2/table/refcount.h"

enum sparse_answer { UNKNOWN, DENSE, SPARSE };

/* A data file of this size is read about as fast as it is asked for holes. */
#define DATA_FILE_SMALL (256 * MiB)

/* Whether at least `least` clusters of the first `clusters` of the file are in use. */
static bool co_uses_locked(struct qcow2 *q, uint64_t clusters, uint64_t least)
{
    uint64_t used = 0;

    CO_ASSERT_HELD(&q->lock);
    for (uint64_t at = 0, count; at < clusters && used < least; at += count) {
        uint64_t in_use;

        if (qcow2_co_count_used_locked(q, at, clusters - at, &in_use, &count) < 0) {
            return false; /* errors are reported to those who need the refcounts */
        }
        used += in_use;
    }
    return used >= least;
}

/* UNKNOWN: the file system does not answer in time. */
static enum sparse_answer co_look_for_storage(struct qcow2 *q)
{
    uint64_t clusters = div_round_up(block_edge_size(q->node->file), q->cluster_size);
    uint64_t stored, least;
    bool lacks;
    int r;

    if (q->has_data_file && block_edge_size(q->data) <= DATA_FILE_SMALL) {
        return DENSE; /* as in QEMU */
    }
    r = block_co_allocated_size(block_edge_node(q->node->file), &stored);
    if (r < 0) {
        return r == -ETIMEDOUT ? UNKNOWN : DENSE;
    }
    stored >>= q->cluster_bits;
    least = MAX(stored + stored / 9, stored + 2);
    if (clusters < least) {
        return DENSE;
    }
    co_mutex_lock(&q->lock);
    lacks = co_uses_locked(q, clusters, least);
    co_mutex_unlock(&q->lock);
    return lacks ? SPARSE : DENSE;
}

bool qcow2_co_is_sparse(struct qcow2 *q)
{
    uint64_t size = block_node_size(q->node);

    /* Clusters that a resize added may be preallocated. */
    if (atomic_load_explicit(&q->sparse.answer, memory_order_acquire) == UNKNOWN ||
        atomic_load_explicit(&q->sparse.size, memory_order_relaxed) != size) {
        enum sparse_answer answer = co_look_for_storage(q);

        atomic_store_explicit(&q->sparse.size, size, memory_order_relaxed);
        atomic_store_explicit(&q->sparse.answer, answer, memory_order_release);
    }
    return atomic_load_explicit(&q->sparse.answer, memory_order_relaxed) == SPARSE;
}
