/* SPDX-License-Identifier: Apache-2.0 */
#include "base/secret_memory.h"

#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

#include "base/checked.h"

/* What precedes the caller's bytes in the first page. */
struct secret_block {
    /* of the mapping, with this header */
    size_t mapped;
    /* that the caller asked for */
    size_t size;
};

_Static_assert(sizeof(struct secret_block) % 16 == 0, "keeps the alignment");

static struct secret_block *block_of(void *p)
{
    return (struct secret_block *)p - 1;
}

void *secret_alloc(size_t size)
{
    struct secret_block *block;
    size_t mapped;

    if (size > SIZE_MAX / 2) {
        return NULL;
    }
    mapped = round_up(sizeof(*block) + size, 4096);
    block = mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (block == MAP_FAILED) {
        return NULL;
    }
    /* Neither can fail in a way that a user could do something about. */
    (void)madvise(block, mapped, MADV_DONTDUMP);
    (void)mlock(block, mapped);
    *block = (struct secret_block){.mapped = mapped, .size = size};
    return block + 1;
}

void secret_free(void *p)
{
    struct secret_block *block = p ? block_of(p) : NULL;

    if (block) {
        size_t mapped = block->mapped;

        explicit_bzero(block, mapped);
        munmap(block, mapped);
    }
}

void *secret_realloc(void *p, size_t size)
{
    void *copy = secret_alloc(size);

    if (copy && p) {
        memcpy(copy, p, MIN(size, block_of(p)->size));
        secret_free(p);
    }
    return copy;
}

bool secret_equal(const void *a, const void *b, size_t size)
{
    const volatile unsigned char *x = a, *y = b;
    unsigned char difference = 0;

    for (size_t i = 0; i < size; i++) {
        difference |= x[i] ^ y[i];
    }
    return difference == 0;
}
