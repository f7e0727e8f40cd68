/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>

#include "qcow2/resize.h"

/*
 * What lies beyond the end of the file is made when it grows, and reads as zeroes then. A data file may hold anything where
 * nothing is mapped, and may get a hole there.
 */
static int co_zero_in_file(struct qcow2 *q, uint64_t host, uint64_t bytes)
{
    uint64_t size = block_edge_size(q->data);
    unsigned flags = q->has_data_file ? BLOCK_REQ_MAY_UNMAP : 0;

    return host < size ? block_co_write_zeroes(q->data, host, MIN(bytes, size - host), flags) : 0;
}

/* Clusters that are linked by one hold of the lock. */
#define CHUNK_CLUSTERS 512

/* The clusters of one slice that have none yet, as far as they can be had in one piece. *ret_linked false: none needed. */
static int co_link_chunk_locked(struct qcow2 *q, uint64_t guest, uint64_t clusters,
                                uint64_t *ret_done, uint64_t *ret_host, bool *ret_linked)
{
    unsigned index, end = qcow2_slice_entries(q);
    struct cache_entry *slice;
    uint64_t n = 0, got = 0;
    bool fresh;
    int r = qcow2_co_l2_slice_locked(q, guest, &slice, &index);

    *ret_done = 1;
    *ret_host = 0;
    *ret_linked = false;
    if (r < 0) {
        return r;
    }
    while (n < clusters && index + n < end &&
           qcow2_load_entry(q, slice, index + (unsigned)n) == 0 &&
           qcow2_load_bitmap(q, slice, index + (unsigned)n) == 0) {
        n++;
    }
    if (n > 0) {
        if (q->has_data_file) {
            *ret_host = guest;
            got = n;
            fresh = false;
        } else {
            r = qcow2_co_alloc_locked(q, n, false, ret_host, &got, &fresh);
        }
        for (uint64_t i = 0; i < got && r == 0; i++) {
            qcow2_store_entry(q, slice, index + (unsigned)i,
                              (*ret_host + (i << q->cluster_bits)) | ENTRY_COPIED,
                              q->extended_l2 && !q->node->backing ? SUB_ALL_ALLOCATED : 0);
        }
        if (r == 0) {
            cache_mark_dirty(&q->l2_cache, slice);
            *ret_done = got;
            *ret_linked = true;
        }
        if (r == 0 && !fresh) {
            r = co_zero_in_file(q, *ret_host, got << q->cluster_bits);
        }
    }
    cache_put(slice);
    return r;
}

/* Space for what was mapped: up to here the file has to reach in any case. */
static int co_reserve(struct qcow2 *q, uint64_t host, uint64_t bytes, enum block_prealloc prealloc,
                      struct error *err)
{
    uint64_t size = block_edge_size(q->data), end = host + bytes;
    int r = 0;

    if (prealloc == BLOCK_PREALLOC_FULL && host < size) {
        r = block_co_write_zeroes(q->data, host, MIN(bytes, size - host), 0);
    }
    if (r == 0 && size < end) {
        r = block_co_truncate(
            q->data, end, prealloc == BLOCK_PREALLOC_METADATA ? BLOCK_PREALLOC_OFF : prealloc, err);
        error_prepend(err, "Could not resize image: ");
    }
    return r;
}

int qcow2_co_preallocate(struct qcow2 *q, uint64_t from, uint64_t to, enum block_prealloc prealloc,
                         struct error *err)
{
    uint64_t at = round_down(from, q->cluster_size), end = round_up(to, q->cluster_size);
    int r = 0;

    if (q->crypt_method != CRYPT_NONE) {
        return error_set(err, ENOTSUP,
                         "Image '%s' is encrypted: space can't be preallocated, since what was not "
                         "written there would not read as zeroes",
                         block_node_display_name(q->node));
    }
    while (at < end && r == 0) {
        uint64_t clusters = MIN((end - at) >> q->cluster_bits, CHUNK_CLUSTERS), done, host;
        bool linked;

        co_mutex_lock(&q->lock);
        r = co_link_chunk_locked(q, at, clusters, &done, &host, &linked);
        co_mutex_unlock(&q->lock);
        if (r == 0 && linked) {
            r = co_reserve(q, host, done << q->cluster_bits, prealloc, err);
        }
        r = r < 0 ? r : qcow2_co_limit_dirty(q);
        at += done << q->cluster_bits;
    }
    if (r < 0 && !error_is_set(err)) {
        return error_set_errno(err, -r, "Could not preallocate '%s'",
                               block_node_display_name(q->node));
    }
    return r;
}
