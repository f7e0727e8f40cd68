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
    return !node->driver->co_read_pages || node->serialises || node->limits.request_alignment > 1;
}

int block_co_read_pages(struct block_edge *edge, uint64_t offset, uint64_t length,
                        struct block_page_sink *sink)
{
    struct block_node *node;
    struct block_op op;
    int r = -ENOTSUP;

    block_co_edge_enter(edge);
    node = edge->node;
    if (!is_indirect(node) && range_fits(offset, length, block_node_size(node))) {
        r = node->driver->co_read_pages(node, offset, length, sink);
    }
    /* A request that is not possible this way is counted when it is made another way. */
    if (r != -ENOTSUP) {
        block_op_begin(&op, node, counters_index());
        block_op_end(&op, BLOCK_OP_READ, offset, length, r);
    }
    block_edge_leave(edge);
    return r;
}
