/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The driver "snapshot-access": shows the frozen contents of its child `file`, a copy-before-write
 * node. Writes fail. Discards are allowed: the filter below then knows that the area will not be
 * read any more. So the node is not read-only, and an export of it must be writable to pass
 * discards on.
 */
#include <errno.h>

#include "filter/filter.h"

struct snapshot_access {
    struct block_edge *file;
};

static int snapshot_access_co_open(struct block_node *node, struct options *opts, struct error *err)
{
    struct snapshot_access *s = node->opaque;
    int r;

    r = block_co_open_child(node, opts, "file", BLOCK_ROLE_DATA, false, &s->file, err);
    if (r < 0) {
        return r;
    }
    if (!block_node_has_snapshot_access(block_edge_node(s->file))) {
        return error_set(err, ENOTSUP,
                         "Node '%s' (driver %s) has no frozen contents to show; snapshot-access "
                         "needs a copy-before-write node as its file",
                         block_node_name(block_edge_node(s->file)),
                         block_driver_name(block_edge_node(s->file)->driver));
    }
    block_node_set_size(node, block_edge_size(s->file));
    node->discard_unmap = true; /* a discard releases an area, whether or not space is given back */
    return 0;
}

/* No write to the filter can change the frozen contents, so all permissions are shared. */
static void snapshot_access_child_perm(struct block_node *node, struct block_edge *edge,
                                       unsigned parents_perm, unsigned parents_shared,
                                       unsigned *ret_perm, unsigned *ret_shared)
{
    *ret_perm = BLOCK_PERM_CONSISTENT_READ;
    *ret_shared = BLOCK_PERM_ALL;
}

static int snapshot_access_co_preadv(struct block_node *node, uint64_t offset, struct iov iov,
                                     unsigned flags)
{
    struct snapshot_access *s = node->opaque;

    if (flags & BLOCK_REQ_PREFETCH) {
        return 0; /* a hint; there is no cache to fill */
    }
    return block_co_preadv_snapshot(s->file, offset, iov);
}

static int snapshot_access_co_pwritev(struct block_node *node, uint64_t offset, struct iov iov,
                                      unsigned flags)
{
    return -EROFS;
}

static int snapshot_access_co_write_zeroes(struct block_node *node, uint64_t offset,
                                           uint64_t length, unsigned flags)
{
    return -EROFS;
}

static int snapshot_access_co_discard(struct block_node *node, uint64_t offset, uint64_t length)
{
    struct snapshot_access *s = node->opaque;

    return block_co_discard_snapshot(s->file, offset, length);
}

static int snapshot_access_co_flush(struct block_node *node)
{
    return 0; /* nothing is written through this node */
}

static int snapshot_access_co_status(struct block_node *node, uint64_t offset, uint64_t length,
                                     struct block_status *ret_status)
{
    struct snapshot_access *s = node->opaque;

    return block_co_snapshot_status(s->file, offset, length, ret_status);
}

const struct block_driver snapshot_access_driver = {
    .name = "snapshot-access",
    .help = "the point in time that a copy-before-write filter keeps",
    .options = &block_format_options_type,
    .instance_size = sizeof(struct snapshot_access),
    .is_frozen_view = true,
    .co_open = snapshot_access_co_open,
    .child_perm = snapshot_access_child_perm,
    .co_preadv = snapshot_access_co_preadv,
    .co_pwritev = snapshot_access_co_pwritev,
    .co_write_zeroes = snapshot_access_co_write_zeroes,
    .co_discard = snapshot_access_co_discard,
    .co_flush = snapshot_access_co_flush,
    .co_status = snapshot_access_co_status,
};
