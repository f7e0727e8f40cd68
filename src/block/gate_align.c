/* SPDX-License-Identifier: Apache-2.0 */
#include "block/gate_align.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "block/stats.h"

/* Longest piece that goes through a bounce buffer. */
#define BOUNCE_MAX (1 * MiB)

static bool memory_fits(const struct block_node *node, struct iov iov)
{
    uintptr_t mask = (uintptr_t)(MAX(node->limits.memory_alignment, 1) - 1);
    uintptr_t bits = 0;

    if (node->limits.request_alignment <= 1 || mask == 0) {
        return true;
    }
    for (int i = 0; i < iov.count; i++) {
        bits |= (uintptr_t)iov.vec[i].iov_base | iov.vec[i].iov_len;
    }
    return (bits & mask) == 0;
}

static void *bounce_new(const struct block_node *node, size_t size)
{
    void *buf = NULL;

    return posix_memalign(&buf, MAX(node->limits.memory_alignment, 4096), size) == 0 ? buf : NULL;
}

/* --- one piece -------------------------------------------------------------------------------- */

static int co_read_bounced(struct block_node *node, uint64_t offset, struct iov iov, unsigned flags)
{
    uint64_t unit = node->limits.request_alignment;
    uint64_t first = round_down(offset, unit);
    size_t size = round_up(offset + iov.size, unit) - first;
    AUTO_FREE char *buf = bounce_new(node, size);
    struct iovec vec;
    int r;

    if (!buf) {
        return -ENOMEM;
    }
    r = node->driver->co_preadv(node, first, iov_from_buf(&vec, buf, size), flags);
    if (r == 0) {
        iov_copy_from_buf(iov, 0, buf + (offset - first), iov.size);
    }
    return r;
}

/* Read the parts of the first and last block that the write keeps. */
static int co_read_ends(struct block_node *node, char *buf, uint64_t first, size_t size,
                        uint64_t offset, uint64_t end)
{
    uint64_t unit = node->limits.request_alignment;
    uint64_t last = first + size - unit;
    struct iovec vec;
    int r = 0;

    if (offset != first) {
        bool tail_too = end != first + size && last == first;

        block_co_gate_event(node, BLOCK_EVENT_PWRITEV_RMW_HEAD);
        if (tail_too) {
            block_co_gate_event(node, BLOCK_EVENT_PWRITEV_RMW_TAIL);
        }
        r = node->driver->co_preadv(node, first, iov_from_buf(&vec, buf, unit), 0);
        block_co_gate_event(node, BLOCK_EVENT_PWRITEV_RMW_AFTER_HEAD);
        if (tail_too) {
            block_co_gate_event(node, BLOCK_EVENT_PWRITEV_RMW_AFTER_TAIL);
        }
    }
    if (r == 0 && end != first + size && (last != first || offset == first)) {
        block_co_gate_event(node, BLOCK_EVENT_PWRITEV_RMW_TAIL);
        r = node->driver->co_preadv(node, last, iov_from_buf(&vec, buf + (last - first), unit), 0);
        block_co_gate_event(node, BLOCK_EVENT_PWRITEV_RMW_AFTER_TAIL);
    }
    return r;
}

static int co_write_bounced(struct block_node *node, uint64_t offset, struct iov iov,
                            unsigned flags)
{
    uint64_t unit = node->limits.request_alignment;
    uint64_t first = round_down(offset, unit);
    size_t size = round_up(offset + iov.size, unit) - first;
    bool ragged = first != offset || size != iov.size;
    AUTO_FREE char *buf = bounce_new(node, size);
    struct range_entry entry;
    struct iovec vec;
    int r;

    if (!buf) {
        return -ENOMEM;
    }
    co_range_lock(&node->rmw, &entry, first, size, ragged);
    r = ragged ? co_read_ends(node, buf, first, size, offset, offset + iov.size) : 0;
    if (r == 0) {
        iov_copy_to_buf(iov, 0, buf + (offset - first), iov.size);
        r = block_co_driver_write(node, first, iov_from_buf(&vec, buf, size), flags);
    }
    range_unlock(&node->rmw, &entry);
    return r;
}

static int co_write_straight(struct block_node *node, uint64_t offset, struct iov iov,
                             unsigned flags)
{
    struct range_entry entry;
    int r;

    if (node->limits.request_alignment <= 1) {
        return block_co_driver_write(node, offset, iov, flags);
    }
    co_range_lock(&node->rmw, &entry, offset, iov.size, false);
    r = block_co_driver_write(node, offset, iov, flags);
    range_unlock(&node->rmw, &entry);
    return r;
}

static int co_piece(struct block_node *node, uint64_t offset, struct iov iov, unsigned flags,
                    bool write, bool straight)
{
    if (write) {
        return straight ? co_write_straight(node, offset, iov, flags)
                        : co_write_bounced(node, offset, iov, flags);
    }
    return straight ? node->driver->co_preadv(node, offset, iov, flags)
                    : co_read_bounced(node, offset, iov, flags);
}

/* --- splitting -------------------------------------------------------------------------------- */

static int co_request(struct block_node *node, uint64_t offset, struct iov iov, unsigned flags,
                      bool write)
{
    uint64_t unit = MAX(node->limits.request_alignment, 1);
    bool straight = is_aligned(offset | iov.size, unit) && memory_fits(node, iov);
    uint64_t max = node->limits.max_transfer ? node->limits.max_transfer : SIZE_MAX / 2;
    size_t done = 0;
    int r = 0;

    if (!straight) {
        max = MIN(max, BOUNCE_MAX);
    }
    max = MAX(round_down(max, unit), unit);
    if (iov.size <= max && iov.count <= IOV_MAX) {
        return co_piece(node, offset, iov, flags, write, straight);
    }
    while (done < iov.size && r == 0) {
        /* Pieces end on block boundaries, so at most the first and the last are ragged. */
        size_t size = MIN(round_down(offset + done + max, unit) - (offset + done), iov.size - done);
        IOV_PART_AUTO(part);

        while ((r = iov_part_set(&part, iov, done, size)) == 0 && part.iov.count > IOV_MAX &&
               size > unit) {
            size = MAX(round_down(size / 2, unit), unit);
        }
        UNLESS_FAILED(r, co_piece(node, offset + done, part.iov, flags, write, straight));
        if (done > 0) {
            counters_count(&node->counters, BLOCK_STAT_SPLIT);
        }
        done += size;
    }
    return r;
}

int block_co_preadv_aligned(struct block_node *node, uint64_t offset, struct iov iov,
                            unsigned flags)
{
    return co_request(node, offset, iov, flags, false);
}

int block_co_pwritev_aligned(struct block_node *node, uint64_t offset, struct iov iov,
                             unsigned flags)
{
    return co_request(node, offset, iov, flags, true);
}
