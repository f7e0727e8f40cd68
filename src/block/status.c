/* SPDX-License-Identifier: Apache-2.0 */
/* Block status: the part of the gate that says which areas are data, zero or unallocated. */
#include <errno.h>

#include "base/checked.h"
#include "block/internal.h"
#include "trace/events.h"

static int co_edge_status(struct block_edge *edge, uint64_t offset, uint64_t length, bool contents,
                          struct block_status *ret_status)
{
    unsigned index = counters_index();
    int r;

    if (edge->root) {
        block_co_root_enter(edge->root, index);
    }
    trace_block_status_begin(edge->node->name, offset, length);
    /* What is said of zeroes and holes has to hold while another process writes. */
    r = edge->root && edge->node->handed_over
            ? -EPERM
            : block_co_node_status(edge->node, offset, length, contents, ret_status);
    trace_block_status_end(edge->node->name, offset, r < 0 ? 0 : ret_status->length,
                           r < 0 ? 0 : ret_status->flags, r);
    if (edge->root) {
        block_root_leave(edge->root, index);
    }
    return r;
}

int block_co_status(struct block_edge *edge, uint64_t offset, uint64_t length,
                    struct block_status *ret_status)
{
    return co_edge_status(edge, offset, length, true, ret_status);
}

int block_co_is_allocated(struct block_edge *edge, uint64_t offset, uint64_t length,
                          bool *ret_allocated, uint64_t *ret_length)
{
    struct block_status status;
    int r = co_edge_status(edge, offset, length, false, &status);

    if (r == 0) {
        *ret_allocated = status.flags & BLOCK_STATUS_ALLOCATED;
        *ret_length = status.length;
    }
    return r;
}

static int co_chain_status(struct block_node *node, struct block_node *base, uint64_t offset,
                           uint64_t length, bool contents, struct block_status *ret_status,
                           int *ret_depth)
{
    int depth = 1, r;

    for (;; depth++) {
        struct block_node *next;

        r = block_co_node_status(node, offset, length, contents, ret_status);
        if (r < 0 || (ret_status->flags & BLOCK_STATUS_ALLOCATED)) {
            break;
        }
        if (ret_status->length == 0) {
            /* This backing file is shorter than the layer above: the rest reads as zeroes. */
            ret_status->length = length;
            ret_status->flags = BLOCK_STATUS_ZERO | (depth > 1 ? BLOCK_STATUS_ALLOCATED : 0);
            break;
        }
        next = block_node_backing(node);
        if (!next || next == base) {
            depth = 0;
            ret_status->flags |= next ? 0 : BLOCK_STATUS_ZERO;
            break;
        }
        length = ret_status->length;
        node = next;
    }
    if (ret_depth) {
        *ret_depth = depth;
    }
    return r;
}

/* The first node of the chain that serialises; NULL: none. */
static struct block_node *find_serialising(struct block_node *node)
{
    while (node && !node->serialises) {
        node = block_node_filter_or_backing(node);
    }
    return node;
}

/* The status of a chain while it is asked for. */
struct chain_query {
    struct block_edge *edge;
    unsigned index;
    struct block_node *serialising; /* locked by `entry`; NULL: none */
    struct range_entry entry;
};

/*
 * What is found in one layer has to be true until the layers below have been asked as well. Returns
 * the bytes that may be asked for, at most `length`: 0 at or beyond the end; or -EPERM.
 */
static int64_t co_begin_query(struct chain_query *q, struct block_edge *edge, uint64_t offset,
                              uint64_t length)
{
    uint64_t size;

    *q = (struct chain_query){.edge = edge, .index = counters_index()};
    if (edge->root) {
        block_co_root_enter(edge->root, q->index);
    }
    size = block_node_size(edge->node);
    if (edge->root && edge->node->handed_over) {
        return -EPERM; /* as in co_edge_status() */
    }
    if (offset >= size) {
        return 0;
    }
    length = MIN(length, size - offset);
    q->serialising = find_serialising(edge->node);
    if (q->serialising) {
        co_range_lock(&q->serialising->serial, &q->entry, offset, length, false);
    }
    return (int64_t)length;
}

static void end_query(struct chain_query *q)
{
    if (q->serialising) {
        range_unlock(&q->serialising->serial, &q->entry);
    }
    if (q->edge->root) {
        block_root_leave(q->edge->root, q->index);
    }
}

static int co_edge_chain_status(struct block_edge *edge, struct block_node *base, uint64_t offset,
                                uint64_t length, bool contents, struct block_status *ret_status,
                                int *ret_depth)
{
    struct chain_query q;
    int64_t below_end = co_begin_query(&q, edge, offset, length);
    int r = below_end < 0 ? (int)below_end : 0;

    if (below_end == 0) {
        *ret_status = (struct block_status){.flags = BLOCK_STATUS_EOF};
        if (ret_depth) {
            *ret_depth = 0;
        }
    } else if (below_end > 0) {
        r = co_chain_status(edge->node, base, offset, (uint64_t)below_end, contents, ret_status,
                            ret_depth);
        /* EOF is about the end of the top node. */
        ret_status->flags &= ~BLOCK_STATUS_EOF;
        ret_status->flags |=
            offset + ret_status->length == block_node_size(edge->node) ? BLOCK_STATUS_EOF : 0;
    }
    end_query(&q);
    return r;
}

int block_co_status_above(struct block_edge *edge, struct block_node *base, uint64_t offset,
                          uint64_t length, struct block_status *ret_status, int *ret_depth)
{
    return co_edge_chain_status(edge, base, offset, length, true, ret_status, ret_depth);
}

int block_co_status_runs(struct block_edge *edge, bool contents, uint64_t offset, uint64_t length,
                         struct block_run *ret_runs, unsigned max, unsigned *ret_count)
{
    struct chain_query q;
    int64_t below_end = co_begin_query(&q, edge, offset, length);
    int r = below_end < 0 ? (int)below_end : 0;

    *ret_count = 0;
    if (below_end > 0) {
        r = block_co_chain_runs(edge->node, contents, offset, (uint64_t)below_end, ret_runs, max,
                                ret_count);
    }
    end_query(&q);
    return r;
}

int block_co_depth(struct block_edge *edge, uint64_t offset, uint64_t length, int *ret_depth,
                   uint64_t *ret_length)
{
    struct block_status status;
    int r = co_edge_chain_status(edge, NULL, offset, length, false, &status, ret_depth);

    if (r == 0) {
        *ret_length = status.length;
    }
    return r;
}
