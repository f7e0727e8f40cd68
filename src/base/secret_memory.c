/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libgcrypt takes memory of a few bytes for each iteration of PBKDF2. So blocks of one page are
 * kept for the next one who asks, erased; calls of the system would take ten times as long as the
 * rest of the iteration.
 */
#include "base/secret_memory.h"

#include <pthread.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

#include "base/checked.h"

#define SECRET_PAGE 4096u
#define SPARE_MAX 16u

/* What precedes the caller's bytes in the first page. */
struct secret_block {
    /* of the mapping, with this header */
    size_t mapped;
    union {
        /* that the caller asked for */
        size_t size;
        /* while it is spare */
        struct secret_block *next;
    };
};

static struct {
    pthread_mutex_t lock;
    /* guarded by `lock`: blocks of one page, erased but for their headers */
    struct secret_block *first;
    unsigned count;
} spare = {.lock = PTHREAD_MUTEX_INITIALIZER};

_Static_assert(sizeof(struct secret_block) % 16 == 0, "keeps the alignment");

static struct secret_block *block_of(void *p)
{
    return (struct secret_block *)p - 1;
}

static struct secret_block *take_spare(void)
{
    struct secret_block *block;

    pthread_mutex_lock(&spare.lock);
    block = spare.first;
    if (block) {
        spare.first = block->next;
        spare.count--;
    }
    pthread_mutex_unlock(&spare.lock);
    return block;
}

/* False: there are enough. */
static bool keep_spare(struct secret_block *block)
{
    bool keep;

    pthread_mutex_lock(&spare.lock);
    keep = spare.count < SPARE_MAX;
    if (keep) {
        block->next = spare.first;
        spare.first = block;
        spare.count++;
    }
    pthread_mutex_unlock(&spare.lock);
    return keep;
}

static struct secret_block *map_block(size_t mapped)
{
    struct secret_block *block =
        mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (block == MAP_FAILED) {
        return NULL;
    }
    /* Neither can fail in a way that a user could do something about. */
    (void)madvise(block, mapped, MADV_DONTDUMP);
    (void)mlock(block, mapped);
    block->mapped = mapped;
    return block;
}

void *secret_alloc(size_t size)
{
    struct secret_block *block = NULL;
    size_t mapped;

    if (size > SIZE_MAX / 2) {
        return NULL;
    }
    mapped = round_up(sizeof(*block) + size, SECRET_PAGE);
    block = mapped == SECRET_PAGE ? take_spare() : NULL;
    block = block ? block : map_block(mapped);
    if (!block) {
        return NULL;
    }
    block->size = size;
    return block + 1;
}

void secret_free(void *p)
{
    struct secret_block *block = p ? block_of(p) : NULL;

    if (block) {
        explicit_bzero(p, block->size);
        if (block->mapped != SECRET_PAGE || !keep_spare(block)) {
            munmap(block, block->mapped);
        }
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
