/* SPDX-License-Identifier: Apache-2.0 */
/* Dirty bitmaps under threads: no set bit is ever hidden or lost, and the count stays exact. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "bitmap/bitmap.h"

#define THREADS 4u
#define GRANULARITY 512ull
#define LEAF_BITS 32768ull
/* Three levels of nodes. */
#define SIZE (600 * LEAF_BITS * GRANULARITY)

struct shared {
    struct dirty_bitmap *bitmap;
    atomic_uint running;
    atomic_uint failures;
    pthread_barrier_t start;
};

struct worker {
    struct shared *shared;
    unsigned index;
    pthread_t thread;
};

static void run_workers(struct shared *shared, void *(*body)(void *),
                        void (*meanwhile)(struct shared *))
{
    struct worker workers[THREADS];

    atomic_store(&shared->running, THREADS);
    assert_int_equal(pthread_barrier_init(&shared->start, NULL, THREADS), 0);
    for (unsigned i = 0; i < THREADS; i++) {
        workers[i] = (struct worker){.shared = shared, .index = i};
        assert_int_equal(pthread_create(&workers[i].thread, NULL, body, &workers[i]), 0);
    }
    if (meanwhile) {
        meanwhile(shared);
    }
    for (unsigned i = 0; i < THREADS; i++) {
        pthread_join(workers[i].thread, NULL);
    }
    pthread_barrier_destroy(&shared->start);
    assert_int_equal(atomic_load(&shared->failures), 0);
}

/* ---- every bit is collected ---- */

#define SETS_PER_THREAD 20000u

/* Granule `k` of a worker: neighbours of other workers' in the same words, spread over leaves. */
static uint64_t granule_of(unsigned k, unsigned index)
{
    return (k % 300) * 2 * LEAF_BITS + (k / 300) * THREADS + index;
}

static void *set_each_once(void *opaque)
{
    struct worker *w = opaque;

    pthread_barrier_wait(&w->shared->start);
    for (unsigned k = 0; k < SETS_PER_THREAD; k++) {
        dirty_bitmap_set(w->shared->bitmap, granule_of(k, w->index) * GRANULARITY, 1);
    }
    atomic_fetch_sub(&w->shared->running, 1);
    return NULL;
}

static uint8_t *collected;

/* One pass of: find an extent, clear it, then note it. */
static void collect(struct dirty_bitmap *b)
{
    uint64_t offset = 0, length;

    while (dirty_bitmap_next_dirty(b, offset, SIZE, &offset, &length)) {
        dirty_bitmap_clear(b, offset, length);
        memset(collected + offset / GRANULARITY, 1, length / GRANULARITY);
        offset += length;
    }
}

static void collect_while_running(struct shared *shared)
{
    while (atomic_load(&shared->running)) {
        collect(shared->bitmap);
    }
}

static void test_a_scanner_that_clears_collects_every_bit(void **state)
{
    struct shared shared = {.bitmap = dirty_bitmap_new(SIZE, GRANULARITY)};

    collected = calloc(SIZE / GRANULARITY, 1);
    assert_non_null(shared.bitmap);
    assert_non_null(collected);
    run_workers(&shared, set_each_once, collect_while_running);
    collect(shared.bitmap);
    for (unsigned i = 0; i < THREADS; i++) {
        for (unsigned k = 0; k < SETS_PER_THREAD; k++) {
            assert_true(collected[granule_of(k, i)]);
        }
    }
    assert_int_equal(dirty_bitmap_count(shared.bitmap), 0);
    free(collected);
    dirty_bitmap_free(shared.bitmap);
}

/* ---- a set bit is seen at once, whatever others clear next to it ---- */

static void *set_see_and_clear(void *opaque)
{
    struct worker *w = opaque;
    struct dirty_bitmap *b = w->shared->bitmap;
    /* Pairs of workers share a word, and all share a directory. */
    uint64_t own = ((w->index / 2) * LEAF_BITS + 640 + w->index) * GRANULARITY;
    uint64_t offset, length;

    pthread_barrier_wait(&w->shared->start);
    for (unsigned k = 0; k < 200000; k++) {
        bool seen = false;

        dirty_bitmap_set(b, own, GRANULARITY);
        for (offset = 0; dirty_bitmap_next_dirty(b, offset, SIZE, &offset, &length);
             offset += length) {
            seen |= own >= offset && own < offset + length;
        }
        if (!seen) {
            atomic_fetch_add(&w->shared->failures, 1);
        }
        dirty_bitmap_clear(b, own, GRANULARITY);
        if (dirty_bitmap_get(b, own)) {
            atomic_fetch_add(&w->shared->failures, 1);
        }
    }
    return NULL;
}

static void test_a_set_bit_is_never_hidden_by_clears_beside_it(void **state)
{
    struct shared shared = {.bitmap = dirty_bitmap_new(SIZE, GRANULARITY)};

    assert_non_null(shared.bitmap);
    run_workers(&shared, set_see_and_clear, NULL);
    assert_int_equal(dirty_bitmap_count(shared.bitmap), 0);
    dirty_bitmap_free(shared.bitmap);
}

/* Every worker sets the same granules; often one finds a bit set by another that is still at it. */
static void *set_the_same_and_see(void *opaque)
{
    struct worker *w = opaque;
    const uint64_t word = 64 * GRANULARITY;

    pthread_barrier_wait(&w->shared->start);
    for (uint64_t k = 0; k < 30 * LEAF_BITS / 128; k++) {
        uint64_t offset = (2 * k + 1) * word;
        uint64_t got_offset, length;

        dirty_bitmap_set(w->shared->bitmap, offset, 1);
        /* From the clean word before, so that only the summary leads there. */
        if (!dirty_bitmap_next_dirty(w->shared->bitmap, offset - word, offset + 1, &got_offset,
                                     &length)) {
            atomic_fetch_add(&w->shared->failures, 1);
        }
    }
    return NULL;
}

static void test_a_bit_found_already_set_is_seen_at_once(void **state)
{
    for (unsigned round = 0; round < 100; round++) {
        struct shared shared = {.bitmap = dirty_bitmap_new(SIZE, GRANULARITY)};

        assert_non_null(shared.bitmap);
        run_workers(&shared, set_the_same_and_see, NULL);
        dirty_bitmap_free(shared.bitmap);
    }
}

/* ---- nodes appear once ---- */

static void *set_the_same(void *opaque)
{
    struct worker *w = opaque;

    pthread_barrier_wait(&w->shared->start);
    for (unsigned k = 0; k < 600; k++) {
        dirty_bitmap_set(w->shared->bitmap, (k * LEAF_BITS + k) * GRANULARITY, 3 * GRANULARITY);
    }
    return NULL;
}

static void test_racing_allocations_leave_one_leaf_and_count_once(void **state)
{
    struct dirty_bitmap *alone = dirty_bitmap_new(SIZE, GRANULARITY);
    struct worker single = {.shared = &(struct shared){.bitmap = alone}};

    assert_non_null(alone);
    pthread_barrier_init(&single.shared->start, NULL, 1);
    set_the_same(&single);
    pthread_barrier_destroy(&single.shared->start);
    for (unsigned round = 0; round < 50; round++) {
        struct shared shared = {.bitmap = dirty_bitmap_new(SIZE, GRANULARITY)};

        assert_non_null(shared.bitmap);
        run_workers(&shared, set_the_same, NULL);
        assert_int_equal(dirty_bitmap_count(shared.bitmap), 600 * 3 * GRANULARITY);
        assert_int_equal(dirty_bitmap_memory(shared.bitmap), dirty_bitmap_memory(alone));
        dirty_bitmap_free(shared.bitmap);
    }
    dirty_bitmap_free(alone);
}

/* ---- regions set as a whole, cleared in parts ---- */

static void *clear_own_share(void *opaque)
{
    struct worker *w = opaque;

    pthread_barrier_wait(&w->shared->start);
    for (uint64_t k = w->index; k < 6 * LEAF_BITS / 64; k += THREADS) {
        dirty_bitmap_clear(w->shared->bitmap, k * 64 * GRANULARITY, 32 * GRANULARITY);
    }
    return NULL;
}

static void test_parts_of_a_whole_region_are_cleared_once(void **state)
{
    const uint64_t size = 6 * LEAF_BITS * GRANULARITY;

    for (unsigned round = 0; round < 100; round++) {
        struct shared shared = {.bitmap = dirty_bitmap_new(size, GRANULARITY)};

        assert_non_null(shared.bitmap);
        dirty_bitmap_set(shared.bitmap, 0, size);
        run_workers(&shared, clear_own_share, NULL);
        assert_int_equal(dirty_bitmap_count(shared.bitmap), size / 2);
        dirty_bitmap_free(shared.bitmap);
    }
}

/* ---- anything at once ---- */

static void *change_at_random(void *opaque)
{
    struct worker *w = opaque;
    unsigned seed = w->index;

    pthread_barrier_wait(&w->shared->start);
    for (unsigned k = 0; k < 3000; k++) {
        uint64_t leaf = (uint64_t)rand_r(&seed) % 4 * LEAF_BITS * GRANULARITY;
        uint64_t offset = leaf + (uint64_t)rand_r(&seed) % LEAF_BITS * GRANULARITY;
        uint64_t length = (uint64_t)rand_r(&seed) % 200 * GRANULARITY;

        switch (rand_r(&seed) % 8) {
        case 0:
            dirty_bitmap_set(w->shared->bitmap, leaf, LEAF_BITS * GRANULARITY);
            break;
        case 1:
            dirty_bitmap_clear(w->shared->bitmap, leaf, LEAF_BITS * GRANULARITY);
            break;
        case 2:
        case 3:
            dirty_bitmap_clear(w->shared->bitmap, offset, length);
            break;
        default:
            dirty_bitmap_set(w->shared->bitmap, offset, length);
        }
    }
    return NULL;
}

static void test_the_count_does_not_drift(void **state)
{
    const uint64_t size = 4 * LEAF_BITS * GRANULARITY;

    for (unsigned round = 0; round < 30; round++) {
        struct shared shared = {.bitmap = dirty_bitmap_new(size, GRANULARITY)};
        uint64_t offset = 0, length, sum = 0;

        assert_non_null(shared.bitmap);
        run_workers(&shared, change_at_random, NULL);
        while (dirty_bitmap_next_dirty(shared.bitmap, offset, size, &offset, &length)) {
            sum += length;
            offset += length;
        }
        assert_int_equal(dirty_bitmap_count(shared.bitmap), sum);
        for (uint64_t i = 0; i < size; i += GRANULARITY) {
            sum -= dirty_bitmap_get(shared.bitmap, i) ? GRANULARITY : 0;
        }
        assert_int_equal(sum, 0); /* the scan by summaries missed none */
        dirty_bitmap_clear_all(shared.bitmap);
        assert_int_equal(dirty_bitmap_count(shared.bitmap), 0);
        dirty_bitmap_free(shared.bitmap);
    }
}

/* ---- every change is collected, also of what is written again and again ---- */

#define DISK_GRANULES 256u
#define CHANGES_PER_THREAD 100000u

/* What the disk has: a number that grows with each change. And what the collector has read. */
static _Atomic uint64_t disk[DISK_GRANULES];
static uint64_t copied[DISK_GRANULES];

static void *change_and_set(void *opaque)
{
    struct worker *w = opaque;
    unsigned at = w->index;

    pthread_barrier_wait(&w->shared->start);
    for (unsigned k = 0; k < CHANGES_PER_THREAD; k++) {
        at = (at * 5 + w->index * 2 + 1) % DISK_GRANULES;
        atomic_fetch_add(&disk[at], 1);
        dirty_bitmap_set(w->shared->bitmap, at * GRANULARITY, 1);
    }
    atomic_fetch_sub(&w->shared->running, 1);
    return NULL;
}

static void copy_what_is_dirty(struct dirty_bitmap *b)
{
    uint64_t offset = 0, length;

    while (dirty_bitmap_next_dirty(b, offset, DISK_GRANULES * GRANULARITY, &offset, &length)) {
        dirty_bitmap_clear(b, offset, GRANULARITY);
        copied[offset / GRANULARITY] = atomic_load(&disk[offset / GRANULARITY]);
        offset += GRANULARITY;
    }
}

static void copy_while_running(struct shared *shared)
{
    while (atomic_load(&shared->running)) {
        copy_what_is_dirty(shared->bitmap);
    }
}

static void test_a_copy_has_every_change(void **state)
{
    struct shared shared = {.bitmap = dirty_bitmap_new(SIZE, GRANULARITY)};

    assert_non_null(shared.bitmap);
    run_workers(&shared, change_and_set, copy_while_running);
    copy_what_is_dirty(shared.bitmap);
    for (unsigned i = 0; i < DISK_GRANULES; i++) {
        assert_int_equal(copied[i], atomic_load(&disk[i]));
    }
    dirty_bitmap_free(shared.bitmap);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_scanner_that_clears_collects_every_bit),
        cmocka_unit_test(test_a_copy_has_every_change),
        cmocka_unit_test(test_a_set_bit_is_never_hidden_by_clears_beside_it),
        cmocka_unit_test(test_a_bit_found_already_set_is_seen_at_once),
        cmocka_unit_test(test_racing_allocations_leave_one_leaf_and_count_once),
        cmocka_unit_test(test_parts_of_a_whole_region_are_cleared_once),
        cmocka_unit_test(test_the_count_does_not_drift),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
