/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Zeroing and discarding: changes of entries only.
 *
 *   before            ZERO_KEEP               ZERO_UNMAP           DISCARD      DROP
 *   unallocated       zero (if backing)       zero (if backing)    unchanged    unchanged
 *   zero              unchanged               unchanged            unchanged    unallocated
 *   zero, allocated   unchanged               zero                 zero         unallocated
 *   normal            zero, allocated         zero                 zero         unallocated
 *   compressed        zero                    zero                 zero         unallocated
 *
 * DROP is for what no longer belongs to the disk.
 */
#include <errno.h>

#include "qcow2/state.h"

enum change { CHANGE_ZERO_KEEP, CHANGE_ZERO_UNMAP, CHANGE_DISCARD, CHANGE_DROP };

static int free_old_locked(struct qcow2 *q, uint64_t entry, enum cluster_type type, uint64_t host)
{
    uint64_t size = q->cluster_size;

    if (type == CLUSTER_COMPRESSED) {
        qcow2_compressed_range(q, entry, &host, &size);
    } else if (type != CLUSTER_NORMAL && type != CLUSTER_ZERO_ALLOC) {
        return 0;
    }
    return qcow2_free_later_locked(q, host, size, type == CLUSTER_COMPRESSED);
}

/* The entry that takes the place of `entry`; *ret_free: the old cluster loses its reference. */
static uint64_t new_entry(const struct qcow2 *q, uint64_t entry, enum cluster_type type,
                          enum change change, bool *ret_free)
{
    uint64_t gone = change == CHANGE_DROP ? 0 : L2_ZERO;

    *ret_free = false;
    switch (type) {
    case CLUSTER_UNALLOCATED:
        return change >= CHANGE_DISCARD || !q->node->backing ? entry : L2_ZERO;
    case CLUSTER_ZERO:
        return gone;
    case CLUSTER_ZERO_ALLOC:
    case CLUSTER_NORMAL:
        if (change == CHANGE_ZERO_KEEP && (entry & ENTRY_COPIED)) {
            return entry | L2_ZERO;
        }
        break;
    case CLUSTER_COMPRESSED:
        break;
    }
    *ret_free = true;
    return gone;
}

/* The clusters of one slice. *ret_done: how many. */
static int co_change_slice_locked(struct qcow2 *q, uint64_t offset, uint64_t clusters,
                                  enum change change, uint64_t *ret_done)
{
    unsigned end = 1u << (q->l2_cache.entry_bits - 3);
    struct cache_entry *slice;
    uint64_t n;
    unsigned index;
    int r = qcow2_co_l2_slice_locked(q, offset, &slice, &index);

    if (r < 0) {
        return r;
    }
    for (n = 0; n < clusters && index + n < end && r == 0; n++) {
        uint64_t entry = cache_load_be64(slice, index + (unsigned)n), host, changed;
        enum cluster_type type;
        bool drop;

        r = qcow2_decode_entry(q, entry, &type, &host);
        if (r < 0) {
            break;
        }
        changed = new_entry(q, entry, type, change, &drop);
        if (changed != entry) {
            cache_store_be64(slice, index + (unsigned)n, changed);
            cache_mark_dirty(&q->l2_cache, slice);
        }
        if (drop) {
            r = free_old_locked(q, entry, type, host);
        }
    }
    cache_put(slice);
    *ret_done = n;
    return r;
}

/* Areas without an L2 table need no change unless a backing file shines through. */
static int co_skip_empty(struct qcow2 *q, uint64_t offset, uint64_t length, enum change change,
                         uint64_t *ret_skip)
{
    struct qcow2_run run;
    int r = qcow2_co_map(q, offset, length, &run);

    *ret_skip = 0;
    if (r == 0 &&
        ((run.type == CLUSTER_ZERO && change != CHANGE_DROP) ||
         (run.type == CLUSTER_UNALLOCATED && (change >= CHANGE_DISCARD || !q->node->backing)))) {
        *ret_skip = round_down(run.length, q->cluster_size);
        if (run.length == length) {
            *ret_skip = length;
        }
    }
    return r;
}

/* Cluster-aligned, but for an end at the end of the disk. Guest range held exclusively. */
static int co_change(struct qcow2 *q, uint64_t offset, uint64_t length, enum change change)
{
    uint64_t end = offset + length;
    int r = 0;

    while (offset < end && r == 0) {
        uint64_t done;

        r = co_skip_empty(q, offset, end - offset, change, &done);
        if (r == 0 && done == 0) {
            uint64_t clusters = div_round_up(end - offset, q->cluster_size);

            co_mutex_lock(&q->lock);
            r = co_change_slice_locked(q, offset, clusters, change, &done);
            co_mutex_unlock(&q->lock);
            done <<= q->cluster_bits;
        }
        offset += done;
        r = r < 0 ? r : qcow2_co_limit_dirty(q);
    }
    return r;
}

static int check_writable(struct qcow2 *q)
{
    if (atomic_load_explicit(&q->broken, memory_order_relaxed)) {
        return -EIO;
    }
    return atomic_load_explicit(&q->bitmaps_marked, memory_order_acquire)
               ? 0
               : qcow2_co_mark_bitmaps(q);
}

static int co_change_range(struct qcow2 *q, uint64_t offset, uint64_t length, enum change change)
{
    struct range_entry range;
    int r = check_writable(q);

    if (r < 0) {
        return r;
    }
    co_range_lock(&q->guest, &range, offset, round_up(length, q->cluster_size), true);
    r = co_change(q, offset, length, change);
    range_unlock(&q->guest, &range);
    return r;
}

/*
 * A part of a cluster: -ENOTSUP makes the gate write zeroes there, unless the whole cluster reads as zeroes already. Looking and
 * changing are one step: another write may be about to put data into the rest of the cluster.
 */
static int co_zero_partial(struct qcow2 *q, uint64_t offset)
{
    uint64_t cluster = round_down(offset, q->cluster_size);
    uint64_t size = MIN(q->cluster_size, block_node_size(q->node) - cluster);
    struct range_entry range;
    bool zero;
    int r = check_writable(q);

    if (r < 0) {
        return r;
    }
    co_range_lock(&q->guest, &range, cluster, q->cluster_size, true);
    r = qcow2_co_is_zero(q, cluster, size, &zero);
    if (r == 0) {
        r = zero ? co_change(q, cluster, size, CHANGE_ZERO_KEEP) : -ENOTSUP;
    }
    range_unlock(&q->guest, &range);
    return r;
}

int qcow2_co_write_zeroes(struct block_node *node, uint64_t offset, uint64_t length, unsigned flags)
{
    struct qcow2 *q = qcow2_state(node);
    bool ends_at_end = offset + length == block_node_size(node);

    if (q->version < 3) {
        /* There is no zero flag: only what has no backing file can lose its mapping. */
        return flags & BLOCK_REQ_MAY_UNMAP ? qcow2_co_discard(node, offset, length) : -ENOTSUP;
    }
    if (!is_aligned(offset, q->cluster_size) ||
        (!is_aligned(length, q->cluster_size) && !ends_at_end)) {
        return co_zero_partial(q, offset);
    }
    return co_change_range(q, offset, length,
                           flags & BLOCK_REQ_MAY_UNMAP ? CHANGE_ZERO_UNMAP : CHANGE_ZERO_KEEP);
}

int qcow2_co_discard(struct block_node *node, uint64_t offset, uint64_t length)
{
    struct qcow2 *q = qcow2_state(node);

    if (q->version >= 3) {
        return co_change_range(q, offset, length, CHANGE_DISCARD);
    }
    /* Without the zero flag a discard would bring the backing file's old contents to light. */
    if (node->backing || !is_aligned(offset, q->cluster_size) ||
        (!is_aligned(length, q->cluster_size) && offset + length != block_node_size(node))) {
        return -ENOTSUP;
    }
    return co_change_range(q, offset, length, CHANGE_DROP);
}

int qcow2_co_zero_clusters(struct qcow2 *q, uint64_t offset, uint64_t length)
{
    return co_change_range(q, offset, length, CHANGE_ZERO_UNMAP);
}

int qcow2_co_drop_clusters(struct qcow2 *q, uint64_t offset, uint64_t length)
{
    return co_change_range(q, offset, length, CHANGE_DROP);
}
