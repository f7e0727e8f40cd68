/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where guest data is: L1 table -> L2 table -> cluster (specification, "Cluster mapping").
 *
 * Reading entries needs no lock; storing one wants q->lock.
 */
#ifndef TIDEMARK_QCOW2_TABLE_MAP_H
#define TIDEMARK_QCOW2_TABLE_MAP_H

#include "qcow2/image.h"

/* --- entries of L2 slices, by index of the cluster in the slice; none yields ------------------ */

/* Entries in a slice. */
static inline unsigned qcow2_slice_entries(const struct qcow2 *q)
{
    return 1u << (q->caches.l2.entry_bits - 3 - q->extended_l2);
}

/* Entries in a whole table. */
static inline uint64_t qcow2_table_entries(const struct qcow2 *q)
{
    return 1ULL << q->l2_bits;
}

/* The first word of an entry, in host byte order. */
static inline uint64_t qcow2_load_entry(const struct qcow2 *q, const struct cache_entry *slice,
                                        unsigned index)
{
    return cache_load_be64(slice, index << q->extended_l2);
}

/* The subcluster bitmap; 0 without extended entries. */
static inline uint64_t qcow2_load_bitmap(const struct qcow2 *q, const struct cache_entry *slice,
                                         unsigned index)
{
    return q->extended_l2 ? cache_load_be64(slice, (index << 1) + 1) : 0;
}

/* Entry and bitmap as they were at one moment, for readers that do not hold the lock. */
static inline void qcow2_load_both(const struct qcow2 *q, struct cache_entry *slice, unsigned index,
                                   uint64_t *ret_entry, uint64_t *ret_bitmap)
{
    uint64_t pair[2] = {0};

    if (q->extended_l2) {
        cache_load_pair_be64(slice, index << 1, pair);
    } else {
        pair[0] = cache_load_be64(slice, index);
    }
    *ret_entry = pair[0];
    *ret_bitmap = pair[1];
}

/* Store both under the lock. The caller marks the slice dirty. */
static inline void qcow2_store_entry(const struct qcow2 *q, struct cache_entry *slice,
                                     unsigned index, uint64_t entry, uint64_t bitmap)
{
    if (q->extended_l2) {
        cache_store_pair_be64(slice, index << 1, entry, bitmap);
    } else {
        cache_store_be64(slice, index, entry);
    }
}

/* --- what an entry means ---------------------------------------------------------------------- */

enum cluster_type {
    CLUSTER_UNALLOCATED,
    CLUSTER_UNALLOCATED_HAS_HOST, /* unallocated subcluster of a cluster with a host cluster */
    CLUSTER_ZERO,                 /* reads as zeroes, no host cluster */
    CLUSTER_ZERO_ALLOC,           /* reads as zeroes, has a host cluster */
    CLUSTER_NORMAL,
    CLUSTER_COMPRESSED,
};

/*
 * Decode an L2 entry for its subcluster `sub` (0 without extended entries). *ret_host: file offset
 * of the host cluster; of a compressed cluster the entry itself. -EIO if the entry violates the
 * specification: reporting that, with qcow2_corrupt_entry(), is up to the caller. Does not yield.
 */
int qcow2_decode_entry(const struct qcow2 *q, uint64_t entry, uint64_t bitmap, unsigned sub,
                       enum cluster_type *ret_type, uint64_t *ret_host);

/*
 * The bytes of the file that an entry references; false if it references none. The outputs are as
 * qcow2_free_later_locked() takes them. Does not yield.
 */
bool qcow2_entry_extent(const struct qcow2 *q, uint64_t entry, uint64_t *ret_offset,
                        uint64_t *ret_length, bool *ret_compressed);

/* --- slices ----------------------------------------------------------------------------------- */

/* Where the L2 entry for a guest offset is. */
struct qcow2_slice_place {
    bool exists;     /* false: there is no L2 table; the others are not valid */
    unsigned index;  /* of the entry in its slice */
    uint64_t offset; /* of the slice, in the file */
};

/* Where the entry for guest `offset` is. -EIO if the L1 entry is corrupt. Does not yield. */
int qcow2_find_slice(struct qcow2 *q, uint64_t offset, struct qcow2_slice_place *ret_place);

/* --- mapping ---------------------------------------------------------------------------------- */

/* Guest bytes that are mapped alike: contiguous in the file where the type has a host offset. */
struct qcow2_run {
    enum cluster_type type;
    bool copied;     /* every cluster has refcount 1 (COPIED flag): may be overwritten in place */
    uint64_t host;   /* file offset of the first byte; of a compressed run: its entry */
    uint64_t length; /* bytes from the offset that was looked up; > 0 */
};

/*
 * The first run of guest bytes [offset, offset + length). Any reactor, no lock; yields if the slice
 * is not cached. -EIO if metadata is corrupt or can't be read.
 */
int qcow2_co_map(struct qcow2 *q, uint64_t offset, uint64_t length, struct qcow2_run *ret_run);

/* As qcow2_co_map() before a write: a corrupt entry is reported in other words. */
int qcow2_co_map_to_write(struct qcow2 *q, uint64_t offset, uint64_t length,
                          struct qcow2_run *ret_run);

/* As qcow2_co_map(), but a corrupt entry is no error: it counts as a normal cluster. */
int qcow2_co_map_tolerating_corruption(struct qcow2 *q, uint64_t offset, uint64_t length,
                                       struct qcow2_run *ret_run);

/*
 * The slice with the entry for guest `offset`, pinned, for changing it; *ret_index: in the slice.
 * An L2 table that does not exist is made, one that is shared is copied. Wants q->lock; yields.
 * Errors as qcow2_co_alloc_locked().
 */
int qcow2_co_l2_slice_locked(struct qcow2 *q, uint64_t offset, struct cache_entry **ret_slice,
                             unsigned *ret_index);

/* Change an L1 entry in memory. Wants q->lock; does not yield. */
void qcow2_set_l1_entry_locked(struct qcow2 *q, uint64_t l1_index, uint64_t entry);

#endif
