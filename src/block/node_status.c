/* SPDX-License-Identifier: Apache-2.0 */
/* Block status of one node: what its driver says, and what the file below knows of zeroes. */
#include <errno.h>

#include "base/checked.h"
#include "block/internal.h"

/*
 * A mapped extent may be zero in the file below although this layer does not know (preallocated or
 * punched). An error of the file is ignored if this layer has set DATA, which stays; a layer that
 * leaves DATA to the file (raw) needs the answer.
 */
static int co_refine_by_file(struct block_status *status)
{
    struct block_status below;
    int r = block_co_node_status(status->file, status->map, status->length, true, &below);

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

/* In a node that is read in blocks, a block with some data counts as data whole. */
static void align_status(const struct block_node *node, uint64_t offset, uint64_t length,
                         struct block_status *ret_status)
{
    uint64_t unit = node->limits.request_alignment;
    uint64_t end = offset + ret_status->length;

    if (unit <= 1 || is_aligned(end, unit) || ret_status->length == length) {
        return;
    }
    if (round_down(end, unit) > offset) {
        ret_status->length = round_down(end, unit) - offset;
        return;
    }
    ret_status->length = MIN(round_up(end, unit) - offset, length);
    ret_status->flags |= BLOCK_STATUS_DATA | BLOCK_STATUS_ALLOCATED;
    ret_status->flags &= ~BLOCK_STATUS_ZERO;
    if (ret_status->file != node) {
        ret_status->flags &= ~BLOCK_STATUS_OFFSET; /* the added part may lie elsewhere */
    }
}

int block_co_node_status(struct block_node *node, uint64_t offset, uint64_t length, bool contents,
                         struct block_status *ret_status)
{
    uint64_t size = block_node_size(node);
    int r;

    if (offset >= size) {
        *ret_status = (struct block_status){.flags = BLOCK_STATUS_EOF};
        return 0;
    }
    length = MIN(length, size - offset);
    if (!node->driver->co_status) {
        if (node->filtered) {
            return block_co_node_status(node->filtered->node, offset, length, contents, ret_status);
        }
        *ret_status = (struct block_status){
            .flags = BLOCK_STATUS_DATA | BLOCK_STATUS_ALLOCATED | BLOCK_STATUS_OFFSET,
            .length = length,
            .map = offset,
            .file = node,
        };
    } else {
        *ret_status = (struct block_status){0};
        r = node->driver->co_status(node, offset, length, ret_status);
        if (r < 0) {
            return r;
        }
        ret_status->length = MIN(ret_status->length, length);
    }
    if (contents && (ret_status->flags & BLOCK_STATUS_RECURSE) &&
        (ret_status->flags & BLOCK_STATUS_OFFSET) && ret_status->file != node) {
        r = co_refine_by_file(ret_status);
        if (r < 0) {
            return r;
        }
    }
    ret_status->flags &= ~BLOCK_STATUS_RECURSE;
    align_status(node, offset, length, ret_status);
    if (offset + ret_status->length == size) {
        ret_status->flags |= BLOCK_STATUS_EOF;
    }
    return ret_status->length > 0 ? 0 : -EIO;
}
