/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>

#include "qcow2/resize.h"
#include "qcow2/table/alloc.h"
#include "qcow2/table/commit.h"
#include "qcow2/table/map.h"

/*
 * Zero clusters of the file that are about to be mapped, or make them holes if no space is asked
 * for. Those beyond its end are zero once it grows. A data file may have old contents where nothing
 * is mapped.
 */
static int co_zero_in_file(struct qcow2 *q, uint64_t host, uint64_t bytes,
                           enum block_prealloc prealloc)
{
    uint64_t size = block_edge_size(q->data);
    unsigned flags = prealloc == BLOCK_PREALLOC_METADATA ? BLOCK_REQ_MAY_UNMAP : 0;

    return host < size ? block_co_write_zeroes(q->data, host, MIN(bytes, size - host), flags) : 0;
}

/* Most clusters that are linked while the lock is held once. */
#define CHUNK_CLUSTERS 512

/*
 * Make the file have space, and zeroes, for clusters that are about to be mapped. A raw data file
 * does not get longer than the disk, of `disk_size` bytes.
 */
static int co_reserve_space(struct qcow2 *q, uint64_t host, uint64_t bytes, bool fresh,
                            uint64_t disk_size, enum block_prealloc prealloc, struct error *err)
{
    uint64_t size = block_edge_size(q->data);
    uint64_t end = q->data_file_raw ? MIN(host + bytes, disk_size) : host + bytes;
    /* A raw data file is the disk: what it has is the contents, mapped or not. */
    bool keep = fresh || q->data_file_raw;
    int r = keep ? 0 : co_zero_in_file(q, host, bytes, prealloc);

    if (r == 0 && prealloc == BLOCK_PREALLOC_FULL && host < size && !q->data_file_raw) {
        r = block_co_write_zeroes(q->data, host, MIN(bytes, size - host), 0);
    }
    if (r == 0 && size < end) {
        r = block_co_truncate(
            q->data, end, prealloc == BLOCK_PREALLOC_METADATA ? BLOCK_PREALLOC_OFF : prealloc, err);
        error_prepend(err, "Could not resize image: ");
        /* A file that can't grow may still have free clusters. */
        r = r == -ENOTSUP || r == -EINVAL ? -ENOSPC : r;
    }
    return r;
}

/* Clusters of one slice. */
struct chunk {
    uint64_t guest, count;
    uint64_t host; /* file offset of the first one */
    bool needed;   /* they have no host clusters yet */
    bool fresh;    /* the host clusters were never written */
};

/*
 * Find the clusters from c->guest on, at most c->count, that have no host clusters yet, and
 * allocate those in one piece.
 */
static int co_place_chunk_locked(struct qcow2 *q, struct chunk *c)
{
    unsigned index, end = qcow2_slice_entries(q);
    uint64_t n = 0, most = c->count;
    struct cache_entry *slice;
    int r = qcow2_co_l2_slice_locked(q, c->guest, &slice, &index);

    if (r < 0) {
        return r;
    }
    CO_ASSERT_HELD(&q->lock);
    while (n < most && index + n < end && qcow2_load_entry(q, slice, index + (unsigned)n) == 0 &&
           qcow2_load_bitmap(q, slice, index + (unsigned)n) == 0) {
        n++;
    }
    cache_put(slice);
    c->needed = n > 0;
    c->count = MAX(n, 1);
    if (n > 0 && q->has_data_file) {
        c->host = c->guest;
        c->fresh = false;
    } else if (n > 0) {
        r = qcow2_co_alloc_locked(q, n, false, &c->host, &c->count, &c->fresh);
    }
    return r;
}

/*
 * Clusters of an encrypted image would decrypt to noise: they get the zero flag, too. With a
 * backing file, subclusters that are not allocated show it.
 */
static uint64_t flags_of_new(const struct qcow2 *q)
{
    return ENTRY_COPIED | (q->crypt_method != CRYPT_NONE && !q->extended_l2 ? L2_ZERO : 0);
}

static uint64_t subclusters_of_new(const struct qcow2 *q)
{
    if (!q->extended_l2 || q->node->backing) {
        return 0;
    }
    return q->crypt_method != CRYPT_NONE ? SUB_ALL_ZERO : SUB_ALL_ALLOCATED;
}

static int co_link_chunk_locked(struct qcow2 *q, const struct chunk *c)
{
    struct cache_entry *slice;
    unsigned index;
    int r = qcow2_co_l2_slice_locked(q, c->guest, &slice, &index);

    if (r < 0) {
        return r;
    }
    for (uint64_t i = 0; i < c->count; i++) {
        qcow2_store_entry(q, slice, index + (unsigned)i,
                          (c->host + (i << q->cluster_bits)) | flags_of_new(q),
                          subclusters_of_new(q));
    }
    cache_mark_dirty(&q->caches.l2, slice);
    cache_put(slice);
    return 0;
}

/*
 * The file gets space before the clusters are referenced, so that neither a full disk nor a crash
 * leaves a reference beyond the end of the file.
 */
static int co_preallocate_chunk(struct qcow2 *q, struct chunk *c, uint64_t disk_size,
                                enum block_prealloc prealloc, struct error *err)
{
    int r;

    co_mutex_lock(&q->lock);
    r = co_place_chunk_locked(q, c);
    co_mutex_unlock(&q->lock);
    if (r < 0 || !c->needed) {
        return r;
    }
    r = co_reserve_space(q, c->host, c->count << q->cluster_bits, c->fresh, disk_size, prealloc,
                         err);
    co_mutex_lock(&q->lock);
    UNLESS_FAILED(r, co_link_chunk_locked(q, c));
    if (r < 0 && !q->has_data_file) {
        qcow2_co_unalloc_locked(q, c->host, c->count);
    }
    co_mutex_unlock(&q->lock);
    return r < 0 ? r : qcow2_co_commit_if_much_dirty(q);
}

int qcow2_co_preallocate(struct qcow2 *q, uint64_t from, uint64_t to, enum block_prealloc prealloc,
                         struct error *err)
{
    uint64_t at = round_down(from, q->cluster_size), end = round_up(to, q->cluster_size);
    int r = 0;

    if (q->crypt_method != CRYPT_NONE && q->version < 3) {
        return error_set(err, ENOTSUP,
                         "Image '%s' is encrypted and of version 2: space can't be preallocated, "
                         "since what was not written there would not read as zeroes",
                         block_node_display_name(q->node));
    }
    while (at < end && r == 0) {
        struct chunk c = {.guest = at, .count = MIN((end - at) >> q->cluster_bits, CHUNK_CLUSTERS)};

        r = co_preallocate_chunk(q, &c, MAX(to, block_node_size(q->node)), prealloc, err);
        if (qcow2_co_make_room(q, r)) {
            error_clear(err);
            r = 0;
            continue;
        }
        at += c.count << q->cluster_bits;
    }
    if (r < 0 && !error_is_set(err)) {
        return error_set_errno(err, -r, "Could not preallocate '%s'",
                               block_node_display_name(q->node));
    }
    return r;
}
