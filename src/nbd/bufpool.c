/* SPDX-License-Identifier: Apache-2.0 */
#include <malloc.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "nbd/bufpool.h"

/* The class of a buffer of at least `size` bytes. */
static unsigned class_of(size_t size)
{
    size_t pages = (size + ((1u << BUFPOOL_CLASS_MIN_SHIFT) - 1)) >> BUFPOOL_CLASS_MIN_SHIFT;

    return pages <= 1 ? 0 : (unsigned)(64 - __builtin_clzl(pages - 1));
}

/*
 * Such buffers go back to the system at once when they are freed. Out of the heap they might not.
 */
static bool is_map(unsigned size_class)
{
    return size_class >= BUFPOOL_MAP_CLASS;
}

static void *buffer_allocate(const struct pooled *b)
{
    void *data;

    if (!is_map(b->size_class)) {
        return aligned_alloc(1u << BUFPOOL_CLASS_MIN_SHIFT, pooled_size(b));
    }
    data = mmap(NULL, pooled_size(b), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return data == MAP_FAILED ? NULL : data;
}

static void buffer_release(void *data, unsigned size_class)
{
    struct pooled b = {.size_class = size_class};

    if (is_map(size_class)) {
        munmap(data, pooled_size(&b));
    } else {
        free(data);
    }
}

bool bufpool_get(struct bufpool *p, size_t size, struct pooled *ret_buffer)
{
    struct pooled b = {.size_class = class_of(size)};

    if (b.size_class >= BUFPOOL_CLASSES) {
        return false;
    }
    b.data = p->free[b.size_class];
    if (b.data) {
        memcpy(&p->free[b.size_class], b.data, sizeof(void *));
        p->kept -= pooled_size(&b);
    } else {
        b.data = buffer_allocate(&b);
        if (!b.data) {
            return false;
        }
    }
    p->used += pooled_size(&b);
    p->peak = MAX(p->peak, p->used);
    *ret_buffer = b;
    return true;
}

void bufpool_put(struct bufpool *p, struct pooled *b)
{
    if (!b->data) {
        return;
    }
    p->used -= pooled_size(b);
    if (p->kept + pooled_size(b) > BUFPOOL_KEEP) {
        buffer_release(b->data, b->size_class);
    } else {
        memcpy(b->data, &p->free[b->size_class], sizeof(void *));
        p->free[b->size_class] = b->data;
        p->kept += pooled_size(b);
    }
    b->data = NULL;
}

void bufpool_settle(struct bufpool *p)
{
    if (p->peak > BUFPOOL_PEAK && p->used < p->peak / 2) {
        p->peak = p->used;
        bufpool_trim(p);
        malloc_trim(0);
    }
}

void bufpool_trim(struct bufpool *p)
{
    for (unsigned i = 0; i < BUFPOOL_CLASSES; i++) {
        while (p->free[i]) {
            void *next;

            memcpy(&next, p->free[i], sizeof(next));
            buffer_release(p->free[i], i);
            p->free[i] = next;
        }
    }
    p->kept = 0;
}
