/* SPDX-License-Identifier: Apache-2.0 */
#include "qcow2/table/refcount.h"

#include <errno.h>

#include "base/byteorder.h"
#include "qcow2/table/verdict.h"

uint64_t qcow2_refcount_load(const void *block, unsigned order, uint64_t index)
{
    const uint8_t *p = block;

    switch (order) {
    case 3:
        return p[index];
    case 4:
        return load_be16(p + index * 2);
    case 5:
        return load_be32(p + index * 4);
    case 6:
        return load_be64(p + index * 8);
    default: {
        /* Widths below a byte: the first refcount is in the low bits. */
        unsigned bits = 1u << order, per_byte = 8 / bits;

        return (p[index / per_byte] >> (index % per_byte * bits)) & ((1u << bits) - 1);
    }
    }
}

void qcow2_refcount_store(void *block, unsigned order, uint64_t index, uint64_t value)
{
    uint8_t *p = block;

    switch (order) {
    case 3:
        p[index] = (uint8_t)value;
        break;
    case 4:
        store_be16(p + index * 2, (uint16_t)value);
        break;
    case 5:
        store_be32(p + index * 4, (uint32_t)value);
        break;
    case 6:
        store_be64(p + index * 8, value);
        break;
    default: {
        unsigned bits = 1u << order, per_byte = 8 / bits;
        unsigned shift = (unsigned)(index % per_byte) * bits;
        unsigned mask = ((1u << bits) - 1) << shift;

        p[index / per_byte] = (uint8_t)((p[index / per_byte] & ~mask) | ((unsigned)value << shift));
    }
    }
}

/*
 * The slice with the refcount of `cluster`, pinned, and the refcount's index in the slice.
 * *ret_slice is NULL if there is no refcount block: all its counts are 0.
 */
static int co_refcount_slice_locked(struct qcow2 *q, uint64_t cluster,
                                    struct cache_entry **ret_slice, uint64_t *ret_index)
{
    uint64_t table_index = cluster >> q->refcounts.block_bits;
    uint64_t in_block = cluster & ((1ULL << q->refcounts.block_bits) - 1);
    /* log2 of refcounts per slice. */
    unsigned slice_bits = q->caches.refcounts.entry_bits + 3 - q->refcounts.order;
    uint64_t block;

    CO_ASSERT_HELD(&q->lock);
    *ret_slice = NULL;
    *ret_index = in_block & ((1ULL << slice_bits) - 1);
    if (table_index >= q->reftable.size) {
        return 0;
    }
    block = q->reftable.entries[table_index] & REFTABLE_OFFSET_MASK;
    if (block == 0) {
        return 0;
    }
    if (!is_aligned(block, q->cluster_size)) {
        return qcow2_corrupt(q, "Refblock offset %#llx unaligned (reftable index: %#llx)",
                             (unsigned long long)block, (unsigned long long)table_index);
    }
    return cache_co_get(&q->caches.refcounts,
                        block + ((in_block >> slice_bits) << q->caches.refcounts.entry_bits),
                        ret_slice);
}

int qcow2_co_refcount_get_locked(struct qcow2 *q, uint64_t cluster, uint64_t *ret_refcount)
{
    struct cache_entry *slice;
    uint64_t index;
    int r = co_refcount_slice_locked(q, cluster, &slice, &index);

    if (r < 0) {
        return r;
    }
    *ret_refcount = 0;
    if (slice) {
        *ret_refcount = qcow2_refcount_load((const void *)slice->data, q->refcounts.order, index);
        cache_put(slice);
    }
    return 0;
}

int qcow2_co_count_used_locked(struct qcow2 *q, uint64_t first, uint64_t count, uint64_t *ret_used,
                               uint64_t *ret_done)
{
    uint64_t per_slice = 1ULL << (q->caches.refcounts.entry_bits + 3 - q->refcounts.order);
    struct cache_entry *slice;
    uint64_t index;
    int r = co_refcount_slice_locked(q, first, &slice, &index);

    if (r < 0) {
        return r;
    }
    *ret_done = MIN(count, per_slice - index);
    *ret_used = 0;
    if (slice) {
        for (uint64_t i = index; i < index + *ret_done; i++) {
            *ret_used += qcow2_refcount_load((const void *)slice->data, q->refcounts.order, i) != 0;
        }
        cache_put(slice);
    }
    return 0;
}

/*
 * The part of [first, first + count) in the first slice, *ret_done clusters: all change, or none.
 */
static int co_add_in_slice_locked(struct qcow2 *q, uint64_t first, uint64_t count, int64_t delta,
                                  uint64_t *ret_done)
{
    uint64_t per_slice = 1ULL << (q->caches.refcounts.entry_bits + 3 - q->refcounts.order);
    struct cache_entry *slice;
    uint64_t index, n;
    int r;

    if (delta > 0) {
        block_co_event(q->node->file, BLOCK_EVENT_REFBLOCK_ALLOC);
    }
    /* For blkdebug: mostly the search for free clusters has cached the slice already. */
    block_co_event(q->node->file, BLOCK_EVENT_REFBLOCK_LOAD);
    r = co_refcount_slice_locked(q, first, &slice, &index);
    if (r < 0) {
        return r;
    }
    if (!slice && delta > 0) {
        /* A reference to a cluster that is not counted: refused, so nothing is damaged further. */
        return first >> q->refcounts.block_bits < REFTABLE_BYTES_MAX / 8 ? -EAGAIN : -EFBIG;
    }
    if (!slice) {
        return qcow2_corrupt(q, "Cluster %#llx is in use, but has no refcount block",
                             (unsigned long long)first << q->cluster_bits);
    }
    r = qcow2_co_overlap_check_locked(q, slice->offset, q->caches.refcounts.entry_size,
                                      OVERLAP_BIT(OVERLAP_REFCOUNT_BLOCK));
    n = MIN(count, per_slice - index);
    for (uint64_t i = 0; i < n && r == 0; i++) {
        uint64_t value =
            qcow2_refcount_load((const void *)slice->data, q->refcounts.order, index + i);

        if (delta < 0 && value < (uint64_t)-delta) {
            r = qcow2_corrupt(q,
                              "The refcount of cluster %#llx is %llu, but it is referenced more "
                              "often",
                              (unsigned long long)(first + i) << q->cluster_bits,
                              (unsigned long long)value);
        } else if (delta > 0 && value > q->refcounts.max - (uint64_t)delta) {
            r = -ERANGE;
        }
    }
    for (uint64_t i = 0; i < n && r == 0; i++) {
        uint64_t value =
            qcow2_refcount_load((const void *)slice->data, q->refcounts.order, index + i);

        qcow2_refcount_store((void *)slice->data, q->refcounts.order, index + i,
                             value + (uint64_t)delta);
        if (value + (uint64_t)delta == 0 && first + i < q->alloc.next_free) {
            q->alloc.next_free = first + i;
        }
    }
    if (r == 0) {
        cache_mark_dirty(&q->caches.refcounts, slice);
    }
    cache_put(slice);
    *ret_done = n;
    return r;
}

int qcow2_co_refcount_add_locked(struct qcow2 *q, uint64_t first, uint64_t count, int64_t delta)
{
    uint64_t done = 0, n = 0;
    int r = 0;

    while (done < count && r == 0) {
        r = co_add_in_slice_locked(q, first + done, count - done, delta, &n);
        done += r == 0 ? n : 0;
    }
    if (r < 0 && done > 0) {
        uint64_t undone = 0;

        /* Take back what was added; the slices are in the cache and the counts fit. */
        while (undone < done &&
               co_add_in_slice_locked(q, first + undone, done - undone, -delta, &n) == 0) {
            undone += n;
        }
    }
    return r;
}
