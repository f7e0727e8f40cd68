/* SPDX-License-Identifier: Apache-2.0 */
/* The part of the gate that answers what lies where. */
#include <errno.h>

#include "base/checked.h"
#include "block/internal.h"

static int co_node_status(struct block_node *node, uint64_t offset, uint64_t length,
                          struct block_status *ret);

static struct block_edge *filtered_edge(struct block_node *node)
{
    struct block_edge *edge;

    LIST_FOREACH (edge, &node->children, sibling) {
        if (edge->role & BLOCK_ROLE_FILTERED) {
            return edge;
        }
    }
    return NULL;
}

/*
 * A mapped extent may be zero in the file below though this layer does not know: preallocated, or punched. A layer that
 * leaves DATA to the file (raw) gets its answer, one that says DATA keeps it.
 */
static void refine_by_file(struct block_status *status)
{
    struct block_status below;

    if (co_node_status(status->file, status->map, status->length, &below) < 0 ||
        below.length == 0) {
        status->flags |= BLOCK_STATUS_DATA;
        return;
    }
    status->flags |= below.flags & (BLOCK_STATUS_ZERO | BLOCK_STATUS_DATA);
    status->length = MIN(status->length, below.length);
}

/* A node that is read in blocks has data in the whole of a block that has some. */
static void align_status(const struct block_node *node, uint64_t offset, uint64_t length,
                         struct block_status *ret)
{
    uint64_t unit = node->limits.request_alignment;
    uint64_t end = offset + ret->length;

    if (unit <= 1 || is_aligned(end, unit) || ret->length == length) {
        return;
    }
    if (round_down(end, unit) > offset) {
        ret->length = round_down(end, unit) - offset;
        return;
    }
    ret->length = MIN(round_up(end, unit) - offset, length);
    ret->flags |= BLOCK_STATUS_DATA | BLOCK_STATUS_ALLOCATED;
    ret->flags &= ~BLOCK_STATUS_ZERO;
    if (ret->file != node) {
        ret->flags &= ~BLOCK_STATUS_OFFSET; /* what was added may lie anywhere else */
    }
}

static int co_node_status(struct block_node *node, uint64_t offset, uint64_t length,
                          struct block_status *ret)
{
    uint64_t size = block_node_size(node);
    int r;

    if (offset >= size) {
        *ret = (struct block_status){.flags = BLOCK_STATUS_EOF};
        return 0;
    }
    length = MIN(length, size - offset);
    if (!node->driver->co_status) {
        struct block_edge *edge = node->driver->is_filter ? filtered_edge(node) : NULL;

        if (edge) {
            return co_node_status(edge->node, offset, length, ret);
        }
        *ret = (struct block_status){
            .flags = BLOCK_STATUS_DATA | BLOCK_STATUS_ALLOCATED | BLOCK_STATUS_OFFSET,
            .length = length,
            .map = offset,
            .file = node,
        };
    } else {
        *ret = (struct block_status){0};
        r = node->driver->co_status(node, offset, length, ret);
        if (r < 0) {
            return r;
        }
        ret->length = MIN(ret->length, length);
    }
    if ((ret->flags & BLOCK_STATUS_RECURSE) && (ret->flags & BLOCK_STATUS_OFFSET) &&
        ret->file != node) {
        refine_by_file(ret);
        ret->flags &= ~BLOCK_STATUS_RECURSE;
    }
    align_status(node, offset, length, ret);
    if (offset + ret->length == size) {
        ret->flags |= BLOCK_STATUS_EOF;
    }
    return ret->length > 0 ? 0 : -EIO;
}

int block_co_status(struct block_edge *edge, uint64_t offset, uint64_t length,
                    struct block_status *ret)
{
    int r;

    if (edge->root) {
        block_root_enter(edge->root);
    }
    r = co_node_status(edge->node, offset, length, ret);
    if (edge->root) {
        block_root_leave(edge->root);
    }
    return r;
}

static int co_chain_status(struct block_node *node, struct block_node *base, uint64_t offset,
                           uint64_t length, struct block_status *ret, int *ret_depth)
{
    int depth = 1, r;

    for (;; depth++) {
        struct block_node *next;

        r = co_node_status(node, offset, length, ret);
        if (r < 0 || (ret->flags & BLOCK_STATUS_ALLOCATED)) {
            break;
        }
        if (ret->length == 0) {
            /* This backing file ends before the layer above: from here on it is all zeroes. */
            ret->length = length;
            ret->flags = BLOCK_STATUS_ZERO | (depth > 1 ? BLOCK_STATUS_ALLOCATED : 0);
            break;
        }
        next = block_node_backing(node);
        if (!next || next == base) {
            depth = 0;
            ret->flags |= next ? 0 : BLOCK_STATUS_ZERO;
            break;
        }
        length = ret->length;
        node = next;
    }
    if (ret_depth) {
        *ret_depth = depth;
    }
    return r;
}

int block_co_status_above(struct block_edge *edge, struct block_node *base, uint64_t offset,
                          uint64_t length, struct block_status *ret, int *ret_depth)
{
    uint64_t size;
    int r = 0;

    if (edge->root) {
        block_root_enter(edge->root);
    }
    size = block_node_size(edge->node);
    if (offset >= size) {
        *ret = (struct block_status){.flags = BLOCK_STATUS_EOF};
        if (ret_depth) {
            *ret_depth = 0;
        }
    } else {
        length = MIN(length, size - offset);
        r = co_chain_status(edge->node, base, offset, length, ret, ret_depth);
        /* The end that counts is the top's. */
        ret->flags &= ~BLOCK_STATUS_EOF;
        ret->flags |= offset + ret->length == size ? BLOCK_STATUS_EOF : 0;
    }
    if (edge->root) {
        block_root_leave(edge->root);
    }
    return r;
}
