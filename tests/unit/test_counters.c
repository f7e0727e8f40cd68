/* SPDX-License-Identifier: Apache-2.0 */
/* Counters that several threads add to, and histograms. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/counters.h"

enum { ADDED, LEVEL, HIGHEST, VALUES };

static const struct stat_desc table[] = {
    [ADDED] = {"added", "What was added", STAT_COUNTER, STAT_COUNT},
    [LEVEL] = {"level", "What is there", STAT_GAUGE, STAT_COUNT},
    [HIGHEST] = {"highest", "The highest", STAT_PEAK, STAT_BYTES},
    [VALUES] = {.name = NULL},
};

#define THREADS 4
#define ADDITIONS 10000

struct worker {
    struct counters *set;
    unsigned index;
};

static void *add_much(void *arg)
{
    struct worker *w = arg;

    counters_set_index(w->index);
    for (unsigned i = 1; i <= ADDITIONS; i++) {
        struct counter *values = counters_shard(w->set);

        counter_add(&values[ADDED], 1);
        counter_add(&values[LEVEL], 2);
        counter_add(&values[LEVEL], UINT64_MAX);
        counter_raise(&values[HIGHEST], w->index * ADDITIONS + i);
    }
    return NULL;
}

static void shards_are_summed_and_the_highest_peak_is_found(void **state)
{
    struct counters set;
    struct worker workers[THREADS];
    pthread_t threads[THREADS];
    uint64_t values[VALUES];

    counters_init(&set, sizeof(values));
    for (unsigned i = 0; i < THREADS; i++) {
        workers[i] = (struct worker){.set = &set, .index = 3 * i};
        assert_int_equal(pthread_create(&threads[i], NULL, add_much, &workers[i]), 0);
    }
    /* A reader at the same time sees something between nothing and all. */
    counters_read(&set, table, values);
    assert_true(values[ADDED] <= THREADS * ADDITIONS);
    for (unsigned i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
    }
    counters_read(&set, table, values);
    assert_int_equal(values[ADDED], THREADS * ADDITIONS);
    assert_int_equal(values[LEVEL], THREADS * ADDITIONS);
    assert_int_equal(values[HIGHEST], 3 * (THREADS - 1) * ADDITIONS + ADDITIONS);
    counters_release(&set);
}

/* One reactor takes from a gauge what another has put there. */
static void a_gauge_may_be_negative_in_one_shard(void **state)
{
    struct counters set;
    uint64_t values[VALUES];

    counters_init(&set, sizeof(values));
    counters_set_index(0);
    counter_add((struct counter *)counters_shard(&set) + LEVEL, 5);
    counters_set_index(1);
    counter_add((struct counter *)counters_shard(&set) + LEVEL, -(uint64_t)3);
    counters_set_index(COUNTERS_SHARDS);
    counters_read(&set, table, values);
    assert_int_equal(values[LEVEL], 2);
    counters_release(&set);
}

static void a_thread_without_a_reactor_counts_nothing(void **state)
{
    struct counters set;
    uint64_t values[VALUES];

    counters_init(&set, sizeof(values));
    assert_int_equal(counters_index(), COUNTERS_SHARDS);
    counters_count(&set, ADDED);
    counters_read(&set, table, values);
    assert_int_equal(values[ADDED], 0);
    counters_release(&set);
}

static void shards_have_cache_lines_of_their_own(void **state)
{
    struct counters set;
    uintptr_t first, second;

    counters_init(&set, sizeof(uint64_t) * VALUES);
    counters_set_index(0);
    first = (uintptr_t)counters_shard(&set);
    counters_set_index(1);
    second = (uintptr_t)counters_shard(&set);
    counters_set_index(COUNTERS_SHARDS);
    assert_int_equal(first % 64, 0);
    assert_int_equal(second % 64, 0);
    assert_int_not_equal(first, second);
    counters_release(&set);
}

static unsigned only_bucket(int64_t ns)
{
    struct histogram h;
    unsigned found = HISTOGRAM_BUCKETS;

    memset(&h, 0, sizeof(h));
    histogram_add(&h, ns);
    for (unsigned i = 0; i < HISTOGRAM_BUCKETS; i++) {
        if (counter_read(&h.buckets[i]) > 0) {
            assert_int_equal(found, HISTOGRAM_BUCKETS);
            found = i;
        }
    }
    assert_int_equal(counter_read(&h.sum_ns), ns > 0 ? ns : 0);
    return found;
}

static void buckets_are_powers_of_two(void **state)
{
    assert_int_equal(only_bucket(-5), 0);
    assert_int_equal(only_bucket(0), 0);
    assert_int_equal(only_bucket(1), 0);
    assert_int_equal(only_bucket(2), 1);
    for (unsigned i = 1; i < HISTOGRAM_BUCKETS; i++) {
        assert_int_equal(only_bucket((INT64_C(1) << i) - 1), i - 1);
        assert_int_equal(only_bucket(INT64_C(1) << i), i);
    }
    assert_int_equal(only_bucket(INT64_MAX), HISTOGRAM_BUCKETS - 1);
}

static void a_table_counts_the_places_of_histograms(void **state)
{
    static const struct stat_desc mixed[] = {
        {"one", "One", STAT_COUNTER, STAT_COUNT},
        {"times", "Durations", STAT_HISTOGRAM, STAT_NANOSECONDS},
        {"two", "Two", STAT_PEAK, STAT_COUNT},
        {.name = NULL},
    };

    assert_int_equal(stat_table_width(mixed), 2 + HISTOGRAM_BUCKETS + 1);
    assert_int_equal(stat_table_width(table), VALUES);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shards_are_summed_and_the_highest_peak_is_found),
        cmocka_unit_test(a_gauge_may_be_negative_in_one_shard),
        cmocka_unit_test(a_thread_without_a_reactor_counts_nothing),
        cmocka_unit_test(shards_have_cache_lines_of_their_own),
        cmocka_unit_test(buckets_are_powers_of_two),
        cmocka_unit_test(a_table_counts_the_places_of_histograms),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
