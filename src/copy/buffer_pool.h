/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Buffers of one size that are used again and again: memory that is fresh from the system costs a
 * fault for each page. Without a lock; nothing here yields.
 */
#ifndef TIDEMARK_COPY_BUFFER_POOL_H
#define TIDEMARK_COPY_BUFFER_POOL_H

#include <stddef.h>

struct buffer_pool {
    size_t size; /* of each buffer, in bytes; at least that of a pointer */
    void *free;  /* the buffers that nobody uses; each begins with the address of the next */
};

/* A buffer, aligned to 4096 bytes. NULL: no memory. */
void *buffer_pool_get(struct buffer_pool *pool);
/* NULL is fine. */
void buffer_pool_put(struct buffer_pool *pool, void *buffer);
/* Free what is not in use. */
void buffer_pool_clear(struct buffer_pool *pool);

#endif
