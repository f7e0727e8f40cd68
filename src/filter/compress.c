/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The driver "compress": the format below stores writes compressed, as `convert -c` does for a
 * whole image.
 *
 * A format compresses whole clusters, so requests are aligned to clusters: the gate reads the rest
 * of the first and last cluster of a write. A cluster that is written again may be stored plain:
 * the format decides. Zeroes, discards and flushes are passed on.
 *
 * The image below may be exchanged, by a snapshot or the pivot of a job, for one that has larger
 * clusters, or compresses nothing: what it refuses to compress is written as it is.
 */
#include <errno.h>

#include "base/checked.h"
#include "filter/filter.h"

static int compress_co_open(struct block_node *node, struct options *opts, struct error *err)
{
    struct block_info info;
    struct block_node *format;
    int r = block_co_open_filtered(node, opts, "file", err);

    if (r < 0) {
        return r;
    }
    format = block_node_skip_filters(node->filtered->node);
    if (block_co_get_info(format, &info) < 0 || !info.compression_type) {
        return error_set(err, ENOTSUP, "Compression is not supported for underlying format: %s",
                         block_driver_name(format->driver));
    }
    node->limits.request_alignment = MAX(info.cluster_size, 1);
    return 0;
}

/* Cut a request at the end of the disk, which may be inside the last cluster. */
static int clip_to_disk(const struct block_node *node, uint64_t offset, struct iov iov,
                        struct iov_part *ret_part)
{
    return iov_part_set(ret_part, iov, 0,
                        (size_t)MIN(iov.size, block_edge_size(node->filtered) - offset));
}

static int compress_co_preadv(struct block_node *node, uint64_t offset, struct iov iov,
                              unsigned flags)
{
    IOV_PART_AUTO(part);
    int r = clip_to_disk(node, offset, iov, &part);

    if (r == 0) {
        r = block_co_preadv(node->filtered, offset, part.iov, flags);
    }
    if (r == 0 && !(flags & BLOCK_REQ_PREFETCH)) {
        iov_fill(iov, part.iov.size, 0, iov.size - part.iov.size);
    }
    return r;
}

static int compress_co_pwritev(struct block_node *node, uint64_t offset, struct iov iov,
                               unsigned flags)
{
    IOV_PART_AUTO(part);
    int r = clip_to_disk(node, offset, iov, &part);

    if (r < 0) {
        return r;
    }
    r = block_co_pwritev(node->filtered, offset, part.iov, flags | BLOCK_REQ_COMPRESSED);
    if (r == -EINVAL || r == -ENOTSUP) {
        r = block_co_pwritev(node->filtered, offset, part.iov, flags);
    }
    return r;
}

const struct block_driver compress_driver = {
    .name = "compress",
    .help = "filter: writes are compressed",
    .options = &block_format_options_type,
    .is_filter = true,
    .reopen_options = block_no_options,
    .exchanges_file = true,
    .co_open = compress_co_open,
    .co_preadv = compress_co_preadv,
    .co_pwritev = compress_co_pwritev,
};
