/* SPDX-License-Identifier: Apache-2.0 */
#include "copy/buffer_pool.h"

#include <stdlib.h>

#define ALIGNMENT 4096

void *buffer_pool_get(struct buffer_pool *pool)
{
    void *buffer = pool->free;

    if (buffer) {
        pool->free = *(void **)buffer;
    } else if (posix_memalign(&buffer, ALIGNMENT, pool->size) != 0) {
        return NULL;
    }
    return buffer;
}

void buffer_pool_put(struct buffer_pool *pool, void *buffer)
{
    if (buffer) {
        *(void **)buffer = pool->free;
        pool->free = buffer;
    }
}

void buffer_pool_clear(struct buffer_pool *pool)
{
    while (pool->free) {
        free(buffer_pool_get(pool));
    }
}
