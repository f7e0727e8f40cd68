/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What filters do by default: everything goes to the child that they filter. These functions are
 * put in the places that a filter's struct block_driver leaves NULL, when the driver is registered.
 * So NULL has one meaning for the gates: the driver can't do that, and has no node that could.
 */
#include <errno.h>

#include "block/internal.h"

static int pass_co_open(struct block_node *node, struct options *opts, struct error *err)
{
    return block_co_open_filtered(node, opts, "file", err);
}

static int pass_co_preadv(struct block_node *node, uint64_t offset, struct iov iov, unsigned flags)
{
    return block_co_preadv(node->filtered, offset, iov, flags);
}

static int pass_co_pwritev(struct block_node *node, uint64_t offset, struct iov iov, unsigned flags)
{
    return block_co_pwritev(node->filtered, offset, iov, flags);
}

static int pass_co_write_zeroes(struct block_node *node, uint64_t offset, uint64_t length,
                                unsigned flags)
{
    return block_co_write_zeroes(node->filtered, offset, length, flags);
}

static int pass_co_copy_from(struct block_node *node, uint64_t offset, struct block_node *source,
                             uint64_t source_offset, uint64_t length)
{
    return block_co_copy_from(node->filtered, offset, source, source_offset, length, 0);
}

static int pass_co_discard(struct block_node *node, uint64_t offset, uint64_t length)
{
    return block_co_discard(node->filtered, offset, length);
}

static int pass_co_truncate(struct block_node *node, uint64_t size, enum block_prealloc prealloc,
                            struct error *err)
{
    int r = block_co_truncate(node->filtered, size, prealloc, err);

    if (r == 0) {
        block_node_set_size(node, block_edge_size(node->filtered));
    }
    return r;
}

static int pass_co_preadv_snapshot(struct block_node *node, uint64_t offset, struct iov iov)
{
    return block_co_preadv_snapshot(node->filtered, offset, iov);
}

static int pass_co_snapshot_status(struct block_node *node, uint64_t offset, uint64_t length,
                                   struct block_status *ret_status)
{
    return block_co_snapshot_status(node->filtered, offset, length, ret_status);
}

static int pass_co_discard_snapshot(struct block_node *node, uint64_t offset, uint64_t length)
{
    return block_co_discard_snapshot(node->filtered, offset, length);
}

bool block_node_has_snapshot_access(const struct block_node *node)
{
    while (node->filtered && node->driver->co_preadv_snapshot == pass_co_preadv_snapshot) {
        node = node->filtered->node;
    }
    return node->driver->co_preadv_snapshot != NULL;
}

#define DEFAULT(driver, member, function) ((driver)->member = (driver)->member ?: (function))

static struct block_driver with_defaults(const struct block_driver *driver)
{
    struct block_driver d = *driver;
    bool changes_writes = d.co_pwritev != NULL;

    DEFAULT(&d, co_flush, block_co_flush_children);
    if (!d.is_filter) {
        return d;
    }
    DEFAULT(&d, co_open, pass_co_open);
    d.passes_reads = !d.co_preadv;
    DEFAULT(&d, co_preadv, pass_co_preadv);
    d.passes_writes = !d.co_pwritev;
    DEFAULT(&d, co_pwritev, pass_co_pwritev);
    DEFAULT(&d, co_write_zeroes, pass_co_write_zeroes);
    DEFAULT(&d, co_discard, pass_co_discard);
    d.passes_size = !d.co_truncate;
    DEFAULT(&d, co_truncate, pass_co_truncate);
    DEFAULT(&d, co_preadv_snapshot, pass_co_preadv_snapshot);
    DEFAULT(&d, co_snapshot_status, pass_co_snapshot_status);
    DEFAULT(&d, co_discard_snapshot, pass_co_discard_snapshot);
    /*
     * It is a write, which a filter that changes writes has to see: then the copy is made by
     * reading and writing.
     */
    if (!changes_writes) {
        DEFAULT(&d, co_copy_from, pass_co_copy_from);
    }
    return d;
}

void block_register_driver(const struct block_driver *driver)
{
    struct block_driver completed = with_defaults(driver);

    block_drivers_add(&completed);
}
