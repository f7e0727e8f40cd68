/* SPDX-License-Identifier: Apache-2.0 */
/* The gate: reads that hand over pages of the page cache. */
#include <errno.h>

#include "base/checked.h"
#include "block/driver.h"
#include "block/gate.h"
#include "block/op.h"

/* A node where requests need more than a place in a file. */
static bool is_indirect(const struct block_node *node)
{
    return node->serialises || node->limits.request_alignment > 1 ||
           (node->limits.max_transfer && node->driver->is_filter);
}

static int co_read_pages_at(struct block_edge *edge, uint64_t offset, uint64_t length,
                            struct block_page_sink *sink);

/* Below a filter. A read that is not possible this way reaches the filter again. */
static int co_read_pages_below(struct block_node *node, uint64_t offset, uint64_t length,
                               struct block_page_sink *sink)
{
    const struct block_driver *driver = node->driver;
    int r;

    if (!driver->passes_reads && !(driver->lets_pass && driver->lets_pass(node, false, length))) {
        return -ENOTSUP;
    }
    r = co_read_pages_at(node->filtered, offset, length, sink);
    if (r == -ENOTSUP && driver->read_comes_again) {
        driver->read_comes_again(node, length);
    }
    return r;
}

static int co_read_pages_at(struct block_edge *edge, uint64_t offset, uint64_t length,
                            struct block_page_sink *sink)
{
    struct block_node *node = edge->node;
    struct block_op op;
    int r;

    if (is_indirect(node) || !range_fits(offset, length, block_node_size(node))) {
        return -ENOTSUP;
    }
    r = node->driver->co_read_pages ? node->driver->co_read_pages(node, offset, length, sink)
                                    : co_read_pages_below(node, offset, length, sink);
    /* A request that is not possible this way is counted when it is made another way. */
    if (r != -ENOTSUP) {
        block_op_begin(&op, node, counters_index());
        block_op_end(&op, BLOCK_OP_READ, offset, length, r);
    }
    return r;
}

int block_co_read_pages(struct block_edge *edge, uint64_t offset, uint64_t length,
                        struct block_page_sink *sink)
{
    int r;

    block_co_edge_enter(edge);
    r = co_read_pages_at(edge, offset, length, sink);
    block_edge_leave(edge);
    return r;
}
