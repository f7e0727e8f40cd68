/* SPDX-License-Identifier: Apache-2.0 */
/* The memory that all connections of the process share for their requests. */
#include <stdatomic.h>

#include "nbd/server_internal.h"

/* Bytes out of NBD_POOL_BYTES, and connections in the transmission phase. Any thread. */
static atomic_size_t taken;
static atomic_size_t connections;

void nbd_memory_enter(void)
{
    atomic_fetch_add(&connections, 1);
}

void nbd_memory_leave(void)
{
    atomic_fetch_sub(&connections, 1);
}

/* The share of one connection: half of the pool is left when all have theirs. */
static size_t connection_share(void)
{
    size_t part = NBD_POOL_BYTES / 2 / MAX(atomic_load(&connections), 1);

    return MIN(MAX(part, (size_t)NBD_SHARE_MIN), (size_t)NBD_SHARE_MAX);
}

bool nbd_memory_take(size_t used, size_t bytes, bool lone)
{
    bool fits = used + bytes <= connection_share();
    /* A lone request may be larger than the share as long as half of the pool is free. */
    size_t limit = fits ? NBD_POOL_BYTES : lone ? NBD_POOL_BYTES / 2 : 0;

    if (limit == 0) {
        return false;
    }
    if (atomic_fetch_add(&taken, bytes) + bytes > limit) {
        atomic_fetch_sub(&taken, bytes);
        return false;
    }
    return true;
}

void nbd_memory_give(size_t bytes)
{
    atomic_fetch_sub(&taken, bytes);
}
