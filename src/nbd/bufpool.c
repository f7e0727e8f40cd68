/* SPDX-License-Identifier: Apache-2.0 */
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "nbd/bufpool.h"

static unsigned class_of(size_t size)
{
    size_t pages = (size + ((1u << BUFPOOL_CLASS_MIN_SHIFT) - 1)) >> BUFPOOL_CLASS_MIN_SHIFT;

    return pages <= 1 ? 0 : (unsigned)(64 - __builtin_clzl(pages - 1));
}

bool bufpool_get(struct bufpool *p, size_t size, struct pooled *ret)
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
        b.data = aligned_alloc(1u << BUFPOOL_CLASS_MIN_SHIFT, pooled_size(&b));
        if (!b.data) {
            return false;
        }
    }
    *ret = b;
    return true;
}

void bufpool_put(struct bufpool *p, struct pooled *b)
{
    if (!b->data) {
        return;
    }
    if (p->kept + pooled_size(b) > BUFPOOL_KEEP) {
        free(b->data);
    } else {
        memcpy(b->data, &p->free[b->size_class], sizeof(void *));
        p->free[b->size_class] = b->data;
        p->kept += pooled_size(b);
    }
    b->data = NULL;
}

void bufpool_trim(struct bufpool *p)
{
    for (unsigned i = 0; i < BUFPOOL_CLASSES; i++) {
        while (p->free[i]) {
            void *next;

            memcpy(&next, p->free[i], sizeof(next));
            free(p->free[i]);
            p->free[i] = next;
        }
    }
    p->kept = 0;
}
