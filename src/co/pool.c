/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Coroutines and their stacks are kept for reuse. The memory of one, from low to high addresses:
 *
 *     guard page | stack, CO_STACK_SIZE or a little more | struct co | colour
 *
 * The colour, 0 to 31 times 128 bytes of padding, distributes the most used ends of the stacks over
 * the sets of the processor's cache.
 *
 * Each thread has a pool of its own, used without a lock. Since one thread may make a coroutine
 * that ends on another, a full pool moves half of its stacks to the common pool, and an empty pool
 * takes from the common one before it maps new memory.
 */
#include "co/internal.h"

#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

#if __has_include(<valgrind/valgrind.h>)
#include <valgrind/valgrind.h>
#else
#define VALGRIND_STACK_REGISTER(start, end) 0
#define VALGRIND_STACK_DEREGISTER(id) ((void)(id))
#endif
#ifdef CO_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/lsan_interface.h>
#endif
#ifdef CO_TSAN
#include <sanitizer/tsan_interface.h>
#endif

#define LOCAL_POOL_MAX 64
#define COMMON_POOL_MAX 512
#define COLOURS 32
#define COLOUR_BYTES 128

/* Stacks mapped in the process, pooled ones included; CO_COUNT_MAX limits this number. */
static atomic_size_t mapped_count;

struct pool {
    /* of struct co, by link */
    struct list free;
    /* Written by the owner only; co_count() reads it on any thread. */
    atomic_size_t count;
    /* in thread_pools, once a coroutine has ended on the thread */
    struct list link;
};

/* Guards the two below. */
static pthread_mutex_t common_lock = PTHREAD_MUTEX_INITIALIZER;
static struct pool common_pool = {.free = LIST_INIT(common_pool.free)};
static struct list thread_pools = LIST_INIT(thread_pools);

static _Thread_local struct pool local_pool;

static void pool_push(struct pool *p, struct co *co)
{
    list_prepend(&p->free, &co->link);
    atomic_store_explicit(&p->count, atomic_load_explicit(&p->count, memory_order_relaxed) + 1,
                          memory_order_relaxed);
}

static struct co *pool_pop(struct pool *p)
{
    struct co *co = LIST_FIRST(&p->free, struct co, link);

    list_remove(&co->link);
    atomic_store_explicit(&p->count, atomic_load_explicit(&p->count, memory_order_relaxed) - 1,
                          memory_order_relaxed);
    return co;
}

static size_t pool_count(const struct pool *p)
{
    return atomic_load_explicit(&p->count, memory_order_relaxed);
}

static size_t map_size(size_t page)
{
    size_t size = (size_t)(CO_STACK_SIZE) + sizeof(struct co) + (size_t)(COLOURS * COLOUR_BYTES);

    return page + (size + page - 1) / page * page;
}

uintptr_t co_pool_stack_bottom(const struct co *co)
{
    return (uintptr_t)co->map + (size_t)sysconf(_SC_PAGESIZE);
}

static struct co *map_co(void (*entry)(void))
{
    static atomic_uint next_colour;
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t size = map_size(page);
    char *map = mmap(NULL, size, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK | MAP_NORESERVE, -1, 0);

    if (map == MAP_FAILED) {
        return NULL;
    }
    if (mprotect(map, page, PROT_NONE) < 0) {
        munmap(map, size);
        return NULL;
    }

    size_t colour = atomic_fetch_add(&next_colour, 1) % COLOURS * COLOUR_BYTES;
    uintptr_t top = ((uintptr_t)map + size - colour - sizeof(struct co)) & ~(uintptr_t)63;
    struct co *co = (struct co *)top;
    char *bottom = map + page;
    size_t stack_size = top - (uintptr_t)bottom;

    list_init(&co->link);
    co->map = map;
    co->valgrind_stack = (unsigned)VALGRIND_STACK_REGISTER(bottom, bottom + stack_size);
#ifdef CO_ASAN
    co->fiber.stack_bottom = bottom;
    co->fiber.stack_size = stack_size;
    __lsan_register_root_region(bottom, size - page);
#endif
#ifdef CO_TSAN
    co->fiber.tsan = __tsan_create_fiber(0);
#endif
    co_context_init(&co->fiber.context, bottom, stack_size, entry);
    return co;
}

static void unmap_co(struct co *co)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t size = map_size(page);
    char *map = co->map;

    VALGRIND_STACK_DEREGISTER(co->valgrind_stack);
#ifdef CO_TSAN
    __tsan_destroy_fiber(co->fiber.tsan);
#endif
#ifdef CO_ASAN
    __lsan_unregister_root_region(map + page, size - page);
    ASAN_UNPOISON_MEMORY_REGION(map + page, size - page);
#endif
    munmap(map, size);
    atomic_fetch_sub(&mapped_count, 1);
}

static void unmap_all(struct list *list)
{
    while (!list_is_empty(list)) {
        struct co *co = LIST_FIRST(list, struct co, link);

        list_remove(&co->link);
        unmap_co(co);
    }
}

static struct co *common_pool_get(void)
{
    struct co *co = NULL;

    pthread_mutex_lock(&common_lock);
    if (!list_is_empty(&common_pool.free)) {
        co = pool_pop(&common_pool);
    }
    pthread_mutex_unlock(&common_lock);
    return co;
}

struct co *co_pool_get(void (*entry)(void))
{
    struct co *co;

    if (pool_count(&local_pool) > 0) {
        return pool_pop(&local_pool);
    }
    co = common_pool_get();
    if (co) {
        return co;
    }
    if (atomic_fetch_add(&mapped_count, 1) >= CO_COUNT_MAX) {
        atomic_fetch_sub(&mapped_count, 1);
        errno = EAGAIN;
        return NULL;
    }
    co = map_co(entry);
    if (!co) {
        atomic_fetch_sub(&mapped_count, 1);
        errno = ENOMEM;
    }
    return co;
}

static void spill_to_common(struct pool *p)
{
    struct list surplus = LIST_INIT(surplus);

    pthread_mutex_lock(&common_lock);
    for (int i = 0; i < LOCAL_POOL_MAX / 2; i++) {
        struct co *co = pool_pop(p);

        if (pool_count(&common_pool) < COMMON_POOL_MAX) {
            pool_push(&common_pool, co);
        } else {
            list_append(&surplus, &co->link);
        }
    }
    pthread_mutex_unlock(&common_lock);
    unmap_all(&surplus);
}

void co_pool_put(struct co *co)
{
    struct pool *p = &local_pool;

    if (!p->free.next) {
        list_init(&p->free);
        pthread_mutex_lock(&common_lock);
        list_append(&thread_pools, &p->link);
        pthread_mutex_unlock(&common_lock);
    }
    if (pool_count(p) >= LOCAL_POOL_MAX) {
        spill_to_common(p);
    }
    pool_push(p, co);
}

size_t co_count(void)
{
    struct pool *p;
    size_t pooled;

    pthread_mutex_lock(&common_lock);
    pooled = pool_count(&common_pool);
    LIST_FOREACH (p, &thread_pools, link) {
        pooled += pool_count(p);
    }
    pthread_mutex_unlock(&common_lock);

    size_t mapped = atomic_load(&mapped_count);
    return mapped > pooled ? mapped - pooled : 0;
}

void co_thread_cleanup(void)
{
    struct pool *p = &local_pool;

    if (!p->free.next) {
        return;
    }
    pthread_mutex_lock(&common_lock);
    list_remove(&p->link);
    pthread_mutex_unlock(&common_lock);
    unmap_all(&p->free);
    atomic_store(&p->count, 0);
    p->free.next = p->free.prev = NULL;
}
