/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The driver "compress": what is written is stored compressed by the format below, as `convert -c` does for whole images.
 *
 * A format compresses whole clusters, so that requests are aligned to those: the gate reads what a write leaves of its first
 * and last cluster. What is written anew is left to the format, which may store it plainly. Zeroes, discards and flushes
 * go through as they are.
 */
#include <errno.h>

#include "base/checked.h"
#include "filter/filter.h"

struct compress {
    struct block_edge *file;
};

static int compress_co_open(struct block_node *node, struct options *opts, struct error *err)
{
    struct compress *s = node->opaque;
    struct block_info info = {0};
    struct block_node *format;
    int r = block_co_open_child(node, opts, "file", BLOCK_ROLE_FILTERED | BLOCK_ROLE_DATA, false,
                                &s->file, err);

    if (r < 0) {
        return r;
    }
    format = block_node_skip_filters(s->file->node);
    if (!format->driver->co_get_info || format->driver->co_get_info(format, &info) < 0 ||
        !info.compression_type) {
        return error_set(err, ENOTSUP, "Compression is not supported for underlying format: %s",
                         block_driver_name(format->driver));
    }
    block_node_set_size(node, block_edge_size(s->file));
    node->discard_unmap = true; /* the file decides */
    node->limits.request_alignment = MAX(info.cluster_size, 1);
    node->supported_write_flags = BLOCK_REQ_FUA | BLOCK_REQ_UNCHANGED;
    node->supported_zero_flags =
        BLOCK_REQ_FUA | BLOCK_REQ_UNCHANGED | BLOCK_REQ_MAY_UNMAP | BLOCK_REQ_NO_FALLBACK;
    return 0;
}

/* It reads for itself, too: what a write leaves of a cluster. */
static void compress_child_perm(struct block_node *node, struct block_edge *edge,
                                unsigned parents_perm, unsigned parents_shared, unsigned *ret_perm,
                                unsigned *ret_shared)
{
    bool writes = parents_perm & (BLOCK_PERM_WRITE | BLOCK_PERM_WRITE_UNCHANGED);

    *ret_perm = parents_perm | (writes ? BLOCK_PERM_CONSISTENT_READ : 0);
    *ret_shared = parents_shared;
}

/* The last cluster may reach beyond the end of the disk. */
static int co_clip(const struct compress *s, uint64_t offset, struct iov iov, struct iov_part *ret)
{
    return iov_part_set(ret, iov, 0, (size_t)MIN(iov.size, block_edge_size(s->file) - offset));
}

static int compress_co_preadv(struct block_node *node, uint64_t offset, struct iov iov,
                              unsigned flags)
{
    struct compress *s = node->opaque;
    IOV_PART_AUTO(part);
    int r = co_clip(s, offset, iov, &part);

    if (r == 0) {
        r = block_co_preadv(s->file, offset, part.iov, flags);
    }
    if (r == 0 && !(flags & BLOCK_REQ_PREFETCH)) {
        iov_fill(iov, part.iov.size, 0, iov.size - part.iov.size);
    }
    return r;
}

static int compress_co_pwritev(struct block_node *node, uint64_t offset, struct iov iov,
                               unsigned flags)
{
    struct compress *s = node->opaque;
    IOV_PART_AUTO(part);
    int r = co_clip(s, offset, iov, &part);

    return r < 0 ? r : block_co_pwritev(s->file, offset, part.iov, flags | BLOCK_REQ_COMPRESSED);
}

static int compress_co_write_zeroes(struct block_node *node, uint64_t offset, uint64_t length,
                                    unsigned flags)
{
    struct compress *s = node->opaque;

    return block_co_write_zeroes(s->file, offset, length, flags);
}

static int compress_co_discard(struct block_node *node, uint64_t offset, uint64_t length)
{
    struct compress *s = node->opaque;

    return block_co_discard(s->file, offset, length);
}

static int compress_co_truncate(struct block_node *node, uint64_t size,
                                enum block_prealloc prealloc, struct error *err)
{
    struct compress *s = node->opaque;
    int r = block_co_truncate(s->file, size, prealloc, err);

    if (r == 0) {
        block_node_set_size(node, block_edge_size(s->file));
    }
    return r;
}

const struct block_driver compress_driver = {
    .name = "compress",
    .instance_size = sizeof(struct compress),
    .is_filter = true,
    .co_open = compress_co_open,
    .child_perm = compress_child_perm,
    .co_truncate = compress_co_truncate,
    .co_preadv = compress_co_preadv,
    .co_pwritev = compress_co_pwritev,
    .co_write_zeroes = compress_co_write_zeroes,
    .co_discard = compress_co_discard,
};
