/* SPDX-License-Identifier: Apache-2.0 */
/* The part of the gate for nodes that restrict offsets, lengths or buffers (O_DIRECT, devices). */
#ifndef TIDEMARK_BLOCK_GATE_ALIGN_H
#define TIDEMARK_BLOCK_GATE_ALIGN_H

#include "block/driver.h"

/*
 * As the driver's functions, for any offset, length and memory; split by max_transfer. They yield.
 */
int block_co_preadv_aligned(struct block_node *node, uint64_t offset, struct iov iov,
                            unsigned flags);
/*
 * A write that does not begin and end on a block boundary reads the blocks at its ends, and
 * excludes other writes of the same blocks meanwhile.
 */
int block_co_pwritev_aligned(struct block_node *node, uint64_t offset, struct iov iov,
                             unsigned flags);

/*
 * An event of the gate itself, for `node` if that is a fault filter; other nodes do not pass it on.
 */
static inline void block_co_gate_event(struct block_node *node, enum block_event event)
{
    if (__builtin_expect(node->events, false) && node->driver->co_event) {
        node->driver->co_event(node, event);
    }
}

/* The driver's write, between its events. */
static inline int block_co_driver_write(struct block_node *node, uint64_t offset, struct iov iov,
                                        unsigned flags)
{
    int r;

    block_co_gate_event(node, BLOCK_EVENT_PWRITEV);
    r = node->driver->co_pwritev(node, offset, iov, flags);
    block_co_gate_event(node, BLOCK_EVENT_PWRITEV_DONE);
    return r;
}

#endif
