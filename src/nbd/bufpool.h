/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Page-aligned buffers in classes of powers of two, kept for the next request. One pool per
 * reactor, used on its thread only; none of these functions yields.
 */
#ifndef TIDEMARK_NBD_BUFPOOL_H
#define TIDEMARK_NBD_BUFPOOL_H

#include <stdbool.h>
#include <stddef.h>

#include "base/checked.h"

#define BUFPOOL_CLASS_MIN_SHIFT 12 /* 4 KiB */
#define BUFPOOL_CLASSES 14         /* up to 32 MiB */
#define BUFPOOL_MAP_CLASS 4        /* from 64 KiB on: not of the heap */
#define BUFPOOL_PEAK (64 * MiB)    /* less than this in use is never much */
#define BUFPOOL_KEEP (32 * MiB)    /* bytes that free buffers may take */

struct bufpool {
    void *free[BUFPOOL_CLASSES]; /* each begins with a pointer to the next */
    size_t kept;                 /* bytes in them */
    size_t used;                 /* bytes in buffers that were got and not put back */
    size_t peak;                 /* the most of that since memory was last given back */
};

/* A buffer of the pool; data is NULL for none. */
struct pooled {
    void *data;
    unsigned size_class;
};

/* At least `size` bytes (1 .. 32 MiB). False if out of memory or out of range. */
bool bufpool_get(struct bufpool *p, size_t size, struct pooled *ret);
/* Give back and set to none. None is fine. */
void bufpool_put(struct bufpool *p, struct pooled *b);
/* Bytes that fit into it. */
static inline size_t pooled_size(const struct pooled *b)
{
    return (size_t)1 << (BUFPOOL_CLASS_MIN_SHIFT + b->size_class);
}
/*
 * When a user is gone: give memory back to the system if much less is in use than was. Can take
 * milliseconds.
 */
void bufpool_settle(struct bufpool *p);
/* Free all that is kept. */
void bufpool_trim(struct bufpool *p);

#endif
