/* SPDX-License-Identifier: Apache-2.0 */
/* The state of a virtual machine, which a format can keep in the image of the disk. */
#include <errno.h>

#include "block/internal.h"

/*
 * The node that keeps VM state: the first one with that operation, down filters and files; NULL:
 * none.
 */
static struct block_node *find_keeper(struct block_node *node)
{
    while (node && !node->driver->co_pwritev_vmstate) {
        node = node->file ? node->file->node : block_node_filter_or_backing(node);
    }
    return node;
}

int block_co_preadv_vmstate(struct block_edge *edge, uint64_t offset, struct iov iov)
{
    struct block_node *node = find_keeper(edge->node);
    int r;

    if (!node) {
        return -ENOTSUP;
    }
    if (offset > INT64_MAX || iov.size > INT64_MAX - offset) {
        return -EIO;
    }
    block_co_drain_begin(node);
    r = node->driver->co_preadv_vmstate(node, offset, iov);
    block_drain_end(node);
    return r;
}

int block_co_pwritev_vmstate(struct block_edge *edge, uint64_t offset, struct iov iov)
{
    struct block_node *node = find_keeper(edge->node);
    int r;

    if (!node) {
        return -ENOTSUP;
    }
    if (!(edge->perm & BLOCK_PERM_WRITE) || node->read_only) {
        return -EROFS;
    }
    if (offset > INT64_MAX || iov.size > INT64_MAX - offset) {
        return -EFBIG;
    }
    block_co_drain_begin(node);
    r = node->driver->co_pwritev_vmstate(node, offset, iov);
    atomic_fetch_add(&node->write_generation, 1);
    atomic_fetch_add(&edge->node->write_generation, 1); /* so that a filter above is flushed too */
    block_drain_end(node);
    return r;
}
