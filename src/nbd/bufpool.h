/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Page-aligned buffers in classes of powers of two, kept for the next request. One pool for each
 * reactor, used on its thread only. Nothing here yields.
 */
#ifndef TIDEMARK_NBD_BUFPOOL_H
#define TIDEMARK_NBD_BUFPOOL_H

#include <stdbool.h>
#include <stddef.h>

#include "base/checked.h"

enum {
    /* The smallest class: 4 KiB. */
    BUFPOOL_CLASS_MIN_SHIFT = 12,
    /* Up to 32 MiB. */
    BUFPOOL_CLASSES = 14,
    /* From this class on (64 KiB) buffers are maps of their own, not of the heap. */
    BUFPOOL_MAP_CLASS = 4,
    /* Memory is given back to the system only after more than this was in use. Bytes. */
    BUFPOOL_PEAK = 64 * 1024 * 1024,
    /* Free buffers that are kept. Bytes. */
    BUFPOOL_KEEP = 32 * 1024 * 1024,
};

struct bufpool {
    /* Free buffers of each class; each begins with a pointer to the next. */
    void *free[BUFPOOL_CLASSES];
    /* Bytes in free buffers. */
    size_t kept;
    /* Bytes in buffers that are in use, and the most of that since memory was last given back. */
    size_t used;
    size_t peak;
};

/* A buffer of the pool; data NULL: none. */
struct pooled {
    void *data;
    unsigned size_class;
};

/* Get at least `size` bytes (1 to 32 MiB). False: out of memory, or out of range. */
bool bufpool_get(struct bufpool *p, size_t size, struct pooled *ret_buffer);
/* Give a buffer back, and set it to none. None is fine. */
void bufpool_put(struct bufpool *p, struct pooled *b);
/* The size of a buffer. Bytes. */
static inline size_t pooled_size(const struct pooled *b)
{
    return (size_t)1 << (BUFPOOL_CLASS_MIN_SHIFT + b->size_class);
}
/*
 * When a user is gone: give memory back to the system if much less is in use than was. Can take
 * milliseconds.
 */
void bufpool_settle(struct bufpool *p);
/* Free all buffers that are kept. */
void bufpool_trim(struct bufpool *p);

#endif
