/* SPDX-License-Identifier: Apache-2.0 */
/* The part of the gate that answers what lies where. */
#include <errno.h>

#include "base/checked.h"
#include "block/internal.h"
#include "trace/events.h"

/* What is asked for. */
enum question {
    ASK_CONTENTS, /* all of it: files below are asked about zeroes */
    ASK_LAYERS,   /* which layer decides: no file is asked */
};

static int co_node_status(struct block_node *node, uint64_t offset, uint64_t length,
                          enum question question, struct block_status *ret);

/*
 * A mapped extent may be zero in the file below though this layer does not know: preallocated, or punched. A layer that
 * says DATA keeps it, and needs no answer; one that leaves DATA to the file (raw) has nothing else to tell.
 */
static int co_refine_by_file(struct block_status *status)
{
    struct block_status below;
    int r = co_node_status(status->file, status->map, status->length, ASK_CONTENTS, &below);

    if (r == 0 && below.length == 0) {
        r = -EIO; /* the file has become shorter */
    }
    if (r < 0) {
        return status->flags & BLOCK_STATUS_DATA ? 0 : r;
    }
    status->flags |= below.flags & (BLOCK_STATUS_ZERO | BLOCK_STATUS_DATA);
    status->length = MIN(status->length, below.length);
    return 0;
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
                          enum question question, struct block_status *ret)
{
    uint64_t size = block_node_size(node);
    int r;

    if (offset >= size) {
        *ret = (struct block_status){.flags = BLOCK_STATUS_EOF};
        return 0;
    }
    length = MIN(length, size - offset);
    if (!node->driver->co_status) {
        if (node->filtered) {
            return co_node_status(node->filtered->node, offset, length, question, ret);
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
    if (question == ASK_CONTENTS && (ret->flags & BLOCK_STATUS_RECURSE) &&
        (ret->flags & BLOCK_STATUS_OFFSET) && ret->file != node) {
        r = co_refine_by_file(ret);
        if (r < 0) {
            return r;
        }
    }
    ret->flags &= ~BLOCK_STATUS_RECURSE;
    align_status(node, offset, length, ret);
    if (offset + ret->length == size) {
        ret->flags |= BLOCK_STATUS_EOF;
    }
    return ret->length > 0 ? 0 : -EIO;
}

static int co_edge_status(struct block_edge *edge, uint64_t offset, uint64_t length,
                          enum question question, struct block_status *ret)
{
    int r;

    if (edge->root) {
        block_root_enter(edge->root);
    }
    trace_block_status_begin(edge->node->name, offset, length);
    r = co_node_status(edge->node, offset, length, question, ret);
    trace_block_status_end(edge->node->name, offset, r < 0 ? 0 : ret->length,
                           r < 0 ? 0 : ret->flags, r);
    if (edge->root) {
        block_root_leave(edge->root);
    }
    return r;
}

int block_co_status(struct block_edge *edge, uint64_t offset, uint64_t length,
                    struct block_status *ret)
{
    return co_edge_status(edge, offset, length, ASK_CONTENTS, ret);
}

int block_co_is_allocated(struct block_edge *edge, uint64_t offset, uint64_t length,
                          bool *ret_allocated, uint64_t *ret_length)
{
    struct block_status status;
    int r = co_edge_status(edge, offset, length, ASK_LAYERS, &status);

    if (r == 0) {
        *ret_allocated = status.flags & BLOCK_STATUS_ALLOCATED;
        *ret_length = status.length;
    }
    return r;
}

static int co_chain_status(struct block_node *node, struct block_node *base, uint64_t offset,
                           uint64_t length, enum question question, struct block_status *ret,
                           int *ret_depth)
{
    int depth = 1, r;

    for (;; depth++) {
        struct block_node *next;

        r = co_node_status(node, offset, length, question, ret);
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

static int co_edge_chain_status(struct block_edge *edge, struct block_node *base, uint64_t offset,
                                uint64_t length, enum question question, struct block_status *ret,
                                int *ret_depth)
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
        r = co_chain_status(edge->node, base, offset, length, question, ret, ret_depth);
        /* The end that counts is the top's. */
        ret->flags &= ~BLOCK_STATUS_EOF;
        ret->flags |= offset + ret->length == size ? BLOCK_STATUS_EOF : 0;
    }
    if (edge->root) {
        block_root_leave(edge->root);
    }
    return r;
}

int block_co_status_above(struct block_edge *edge, struct block_node *base, uint64_t offset,
                          uint64_t length, struct block_status *ret, int *ret_depth)
{
    return co_edge_chain_status(edge, base, offset, length, ASK_CONTENTS, ret, ret_depth);
}

int block_co_depth(struct block_edge *edge, uint64_t offset, uint64_t length, int *ret_depth,
                   uint64_t *ret_length)
{
    struct block_status status;
    int r = co_edge_chain_status(edge, NULL, offset, length, ASK_LAYERS, &status, ret_depth);

    if (r == 0) {
        *ret_length = status.length;
    }
    return r;
}
