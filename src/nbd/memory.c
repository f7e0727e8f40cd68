/* SPDX-License-Identifier: Apache-2.0 */
/* The memory that all connections of the process share for their requests. */
#include <stdatomic.h>

#include "nbd/server_internal.h"

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

/* So that half of it is left when all have their share. */
static size_t share(void)
{
    size_t part = NBD_POOL_BYTES / 2 / MAX(atomic_load(&connections), 1);

    return MIN(MAX(part, NBD_SHARE_MIN), NBD_SHARE_MAX);
}

bool nbd_memory_take(size_t used, size_t bytes, bool lone)
{
    bool fits = used + bytes <= share();
    /* One that is larger than its share is welcome as long as half is free. */
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
