/* SPDX-License-Identifier: Apache-2.0 */
/* Locks under coroutines of three reactors at once; TSan watches what they guard. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "co/sync.h"
#include "loop/loop.h"
#include "workers.h"

#define REACTORS 3
#define WORKERS 24
#define ROUNDS 400

static struct co_mutex mutex;
static struct co_rwlock rwlock;
static struct co_cond not_empty, not_full;
static struct co_semaphore semaphore;
static struct range_lock ranges;

static int setup(void **state)
{
    return start_reactors(REACTORS);
}

static void run(co_entry *entry)
{
    run_workers((struct crew){.entry = entry, .count = WORKERS, .reactor_count = REACTORS});
}

/* --- mutex */

static int counter;

static void count_under_mutex(void *arg)
{
    for (int i = 0; i < ROUNDS; i++) {
        if (i % 8 == 0 && co_mutex_trylock(&mutex)) {
            counter++;
            co_mutex_unlock(&mutex);
            continue;
        }
        co_mutex_lock(&mutex);
        int before = counter;

        if (i % 3 == 0) {
            co_reschedule();
        }
        counter = before + 1;
        co_mutex_unlock(&mutex);
    }
    co_group_done(&group);
}

static void test_mutex_excludes(void **state)
{
    counter = 0;
    co_mutex_init(&mutex);
    run(count_under_mutex);
    co_mutex_destroy(&mutex);
    assert_int_equal(counter, WORKERS * ROUNDS);
}

/* --- rwlock */

static int twins[2];

static void read_and_write_twins(void *arg)
{
    for (unsigned i = 0; i < ROUNDS; i++) {
        if ((i + (unsigned)(uintptr_t)arg) % 5 == 0) {
            co_rwlock_wrlock(&rwlock);
            twins[0]++;
            co_reschedule();
            twins[1]++;
        } else {
            co_rwlock_rdlock(&rwlock);
            int first = twins[0];

            if (i % 2) {
                co_reschedule();
            }
            assert_int_equal(twins[1], first);
        }
        co_rwlock_unlock(&rwlock);
    }
    co_group_done(&group);
}

static void test_rwlock_excludes_writers(void **state)
{
    twins[0] = twins[1] = 0;
    co_rwlock_init(&rwlock);
    run(read_and_write_twins);
    co_rwlock_destroy(&rwlock);
    assert_int_equal(twins[0], WORKERS * ROUNDS / 5);
}

/* --- condition: a short queue between producers and consumers */

#define QUEUE_MAX 4
static int queue[QUEUE_MAX], queue_length;
static int64_t put_sum, taken_sum;

static void produce(int value)
{
    co_mutex_lock(&mutex);
    while (queue_length == QUEUE_MAX) {
        co_cond_wait(&not_full, &mutex);
    }
    queue[queue_length++] = value;
    put_sum += value;
    co_cond_signal(&not_empty);
    co_mutex_unlock(&mutex);
}

static void consume(void)
{
    co_mutex_lock(&mutex);
    while (queue_length == 0) {
        co_cond_wait(&not_empty, &mutex);
    }
    taken_sum += queue[--queue_length];
    if (taken_sum % 2) {
        co_cond_signal(&not_full);
    } else {
        co_cond_broadcast(&not_full);
    }
    co_mutex_unlock(&mutex);
}

static void produce_or_consume(void *arg)
{
    uintptr_t worker = (uintptr_t)arg;

    for (int i = 0; i < ROUNDS; i++) {
        if (worker < WORKERS / 2) {
            produce(i);
        } else {
            consume();
        }
    }
    co_group_done(&group);
}

static void test_condition_loses_nothing(void **state)
{
    queue_length = 0;
    put_sum = taken_sum = 0;
    co_mutex_init(&mutex);
    co_cond_init(&not_empty);
    co_cond_init(&not_full);
    run(produce_or_consume);
    co_cond_destroy(&not_full);
    co_cond_destroy(&not_empty);
    co_mutex_destroy(&mutex);
    assert_int_equal(queue_length, 0);
    assert_int_equal(put_sum, taken_sum);
    assert_int_equal(put_sum, (int64_t)WORKERS / 2 * ROUNDS * (ROUNDS - 1) / 2);
}

/* --- semaphore */

static atomic_int units_taken;

static void take_and_give(void *arg)
{
    int units = 1 + (int)((uintptr_t)arg % 3);

    for (int i = 0; i < ROUNDS; i++) {
        co_semaphore_take(&semaphore, units);
        assert_true(atomic_fetch_add(&units_taken, units) + units <= 5);
        if (i % 2) {
            co_reschedule();
        }
        atomic_fetch_sub(&units_taken, units);
        co_semaphore_give(&semaphore, units);
    }
    co_group_done(&group);
}

static void test_semaphore_keeps_its_limit(void **state)
{
    co_semaphore_init(&semaphore, 5);
    run(take_and_give);
    assert_int_equal(semaphore.available, 5);
    co_semaphore_destroy(&semaphore);
}

/* --- range lock */

#define CELLS 32
static int cells[CELLS];

static void change_cells(void *arg)
{
    uint32_t random = 12345 + (uint32_t)(uintptr_t)arg;

    for (int i = 0; i < ROUNDS; i++) {
        struct range_entry entry;
        uint32_t first, count;

        random = random * 1664525 + 1013904223;
        first = random >> 27;
        count = 1 + (random >> 20) % (CELLS - first);
        if (i % 4 != 0) {
            co_range_lock(&ranges, &entry, first, count, true);
        } else if (!range_trylock(&ranges, &entry, first, count, true)) {
            co_range_lock(&ranges, &entry, first, count, true);
        }
        for (uint32_t c = first; c < first + count; c++) {
            cells[c]++;
        }
        if (i % 2) {
            co_reschedule();
        }
        range_unlock(&ranges, &entry);

        co_range_lock(&ranges, &entry, 0, CELLS, false);
        assert_true(cells[first] > 0);
        range_unlock(&ranges, &entry);
    }
    co_group_done(&group);
}

static void test_range_lock_guards_its_range(void **state)
{
    memset(cells, 0, sizeof(cells));
    range_lock_init(&ranges);
    run(change_cells);
    range_lock_destroy(&ranges);
}

/* --- destroyed at once by the one who was let in last */

struct brief {
    struct co_mutex mutex;
    int users;
};

static void use_and_free(void *arg)
{
    struct brief *b = arg;
    int left;

    co_mutex_lock(&b->mutex);
    left = --b->users;
    co_mutex_unlock(&b->mutex);
    if (left == 0) {
        co_mutex_destroy(&b->mutex);
        free(b);
    }
    co_group_done(&group);
}

static void make_brief_ones(void *arg)
{
    co_group_init(&group);
    for (int i = 0; i < 2 * ROUNDS; i++) {
        struct brief *brief = malloc(sizeof(*brief));

        assert_non_null(brief);
        co_mutex_init(&brief->mutex);
        brief->users = REACTORS;
        for (int r = 0; r < REACTORS; r++) {
            co_group_add(&group);
            assert_int_equal(reactor_spawn(reactors[r], use_and_free, brief), 0);
        }
        co_group_wait(&group);
    }
    co_group_destroy(&group);
}

static void test_mutex_may_be_freed_by_its_last_user(void **state)
{
    assert_int_equal(reactor_run_until_done(make_brief_ones, NULL), 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, stop_reactors)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_mutex_excludes),
        TEST(test_rwlock_excludes_writers),
        TEST(test_condition_loses_nothing),
        TEST(test_semaphore_keeps_its_limit),
        TEST(test_range_lock_guards_its_range),
        TEST(test_mutex_may_be_freed_by_its_last_user),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
