/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writes. Clusters have 512 bytes in images with a backing file, and new ones over that are flushed
 * before their entries (blockmap/blockmap.h): so whole clusters that the image does not have are
 * allocated, written, flushed and linked together. Parts of clusters, and what the image has, are
 * the blockmap's.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "qcow1/image.h"

/* How many whole clusters from `offset` on the image does not have, all in one page of a table. */
static int co_count_absent(struct block_node *node, uint64_t offset, uint64_t length,
                           size_t *ret_count)
{
    const struct qcow1 *q = node->opaque;
    uint64_t index = offset / q->cluster_size;
    struct blockmap_run run;
    int r = qcow1_co_find(node, offset, length, &run);

    if (r < 0) {
        return r;
    }
    *ret_count =
        offset % q->cluster_size == 0 && run.kind == BLOCKMAP_ABSENT
            ? (size_t)MIN(run.length / q->cluster_size, q->page_entries - index % q->page_entries)
            : 0;
    return 0;
}

/*
 * The bytes of `iov` become what `count` clusters from `offset` on have; `entry` is the first one.
 * A stream is flushed before its entry: without its bytes the cluster could not be read at all.
 */
static int co_store_locked(struct block_node *node, uint64_t offset, struct iov iov, size_t count,
                           const struct blockmap_place *place, uint64_t table, uint64_t entry)
{
    const struct qcow1 *q = node->opaque;
    uint64_t values[QCOW1_PAGE_ENTRIES];
    int r;

    CO_ASSERT_HELD(&q->map.lock);
    block_co_event(node->file, BLOCK_EVENT_WRITE_AIO);
    r = block_co_pwritev(node->file, place->host, iov, 0);
    if (node->backing || !place->is_zero || (entry & QCOW1_COMPRESSED)) {
        UNLESS_FAILED(r, block_co_flush(node->file));
    }
    if (r < 0) {
        qcow1_co_give_back_locked(node, place);
        return r;
    }
    for (size_t i = 0; i < count; i++) {
        values[i] = entry + i * q->cluster_size;
    }
    return qcow1_co_set_entries(node, table, offset / q->cluster_size % q->table_entries, values,
                                count);
}

/* *ret_done: bytes; 0: another request has allocated them. */
static int co_write_new_locked(struct block_node *node, uint64_t offset, struct iov iov,
                               size_t *ret_done)
{
    const struct qcow1 *q = node->opaque;
    struct blockmap_place place;
    uint64_t table;
    size_t count;
    IOV_PART_AUTO(part);
    int r = co_count_absent(node, offset, iov.size, &count);

    if (r < 0 || count == 0) {
        return r;
    }
    r = qcow1_co_make_table_locked(node, offset, &table);
    UNLESS_FAILED(r, iov_part_set(&part, iov, 0, count * q->cluster_size));
    UNLESS_FAILED(
        r, qcow1_co_take_place_locked(node, count * q->cluster_size, q->cluster_size, &place));
    UNLESS_FAILED(r, co_store_locked(node, offset, part.iov, count, &place, table, place.host));
    *ret_done = r < 0 ? 0 : count * q->cluster_size;
    return r;
}

/* As above, for one cluster; 0: it does not become smaller, or the image has it already. */
static int co_write_compressed(struct block_node *node, uint64_t offset, struct iov iov,
                               size_t *ret_done)
{
    struct qcow1 *q = node->opaque;
    AUTO_FREE uint8_t *cluster = calloc(1, q->cluster_size);
    AUTO_FREE uint8_t *out = calloc(1, q->cluster_size);
    size_t size = 0, n = MIN(iov.size, q->cluster_size);
    struct blockmap_place place;
    struct blockmap_run run;
    struct iovec vec;
    uint64_t table;
    int r = cluster && out ? 0 : -ENOMEM;

    if (r < 0) {
        return r;
    }
    iov_copy_to_buf(iov, 0, cluster, n);
    r = qcow1_co_compress(q, cluster, out, &size);
    if (r < 0 || size == 0) {
        return r;
    }
    co_mutex_lock(&q->map.lock);
    r = qcow1_co_find(node, offset, n, &run);
    if (r == 0 && run.kind == BLOCKMAP_ABSENT && run.length == n) {
        uint64_t length = round_up(size, QCOW1_SECTOR);

        r = qcow1_co_make_table_locked(node, offset, &table);
        UNLESS_FAILED(r, qcow1_co_take_place_locked(node, length, QCOW1_SECTOR, &place));
        UNLESS_FAILED(r, co_store_locked(node, offset, iov_from_buf(&vec, out, length), 1, &place,
                                         table,
                                         QCOW1_COMPRESSED | place.host |
                                             (uint64_t)size << (63u - q->header.cluster_bits)));
        *ret_done = r < 0 ? 0 : n;
    }
    co_mutex_unlock(&q->map.lock);
    return r;
}

/* Whole clusters, as far as they are new. */
static int co_write_whole(struct block_node *node, uint64_t offset, struct iov iov, unsigned flags,
                          size_t *ret_done)
{
    struct qcow1 *q = node->opaque;
    bool ends_disk = offset + iov.size == block_node_size(node);
    IOV_PART_AUTO(part);
    size_t count;
    int r = 0;

    if (offset % q->cluster_size != 0 || (iov.size < q->cluster_size && !ends_disk)) {
        return 0;
    }
    if (flags & BLOCK_REQ_COMPRESSED) {
        r = co_write_compressed(node, offset, iov, ret_done);
    }
    if (r < 0 || *ret_done > 0 || iov.size < q->cluster_size) {
        return r;
    }
    r = co_count_absent(node, offset, iov.size, &count);
    if (r < 0 || count == 0) {
        return r;
    }
    /* Of the others each is compressed by itself. */
    r = iov_part_set(&part, iov, 0, flags & BLOCK_REQ_COMPRESSED ? q->cluster_size : iov.size);
    if (r < 0) {
        return r;
    }
    co_mutex_lock(&q->map.lock);
    r = co_write_new_locked(node, offset, part.iov, ret_done);
    co_mutex_unlock(&q->map.lock);
    return r;
}

/* The beginning of a request that is not new, or a part of a cluster. */
static int co_write_old(struct block_node *node, uint64_t offset, struct iov iov, size_t *ret_done)
{
    const struct qcow1 *q = node->opaque;
    uint64_t rest = q->cluster_size - offset % q->cluster_size;
    struct blockmap_run run;
    IOV_PART_AUTO(part);
    size_t n;
    int r = qcow1_co_find(node, offset, iov.size, &run);

    if (r < 0) {
        return r;
    }
    n = (size_t)MIN(run.kind == BLOCKMAP_DATA ? run.length : rest, iov.size);
    r = iov_part_set(&part, iov, 0, n);
    UNLESS_FAILED(r, blockmap_co_pwritev(node, offset, part.iov, 0));
    *ret_done = n;
    return r;
}

int qcow1_co_pwritev(struct block_node *node, uint64_t offset, struct iov iov, unsigned flags)
{
    int r = 0;

    for (size_t done = 0, n; r == 0 && done < iov.size; done += n) {
        IOV_PART_AUTO(part);

        n = 0;
        r = iov_part_set(&part, iov, done, iov.size - done);
        UNLESS_FAILED(r, co_write_whole(node, offset + done, part.iov, flags, &n));
        if (r == 0 && n == 0) {
            r = co_write_old(node, offset + done, part.iov, &n);
        }
    }
    return r;
}
