/* SPDX-License-Identifier: Apache-2.0 */
/* Locks between coroutines: who gets in, who waits, and in which order. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "co/sync.h"
#include "events.h"
#include "test_home.h"

static struct test_home home;

static int setup(void **state)
{
    test_home_init(&home);
    forget_events();
    return 0;
}

static int teardown(void **state)
{
    int left = (int)co_count();

    co_thread_cleanup();
    return left;
}

static void start(co_entry *entry, void *arg)
{
    assert_int_equal(co_spawn(&home.home, entry, arg), 0);
}

/* --- mutex */

static struct co_mutex mutex;

static void hold_mutex(void *arg)
{
    co_mutex_lock(&mutex);
    assert_true(co_mutex_is_held(&mutex));
    note(*(char *)arg);
    co_reschedule();
    co_reschedule();
    note(*(char *)arg);
    co_mutex_unlock(&mutex);
    assert_false(co_mutex_is_held(&mutex));
}

static void test_mutex_lets_one_in_at_a_time_in_order(void **state)
{
    co_mutex_init(&mutex);
    start(hold_mutex, "a");
    start(hold_mutex, "b");
    start(hold_mutex, "c");
    test_home_run(&home);
    assert_string_equal(events, "aabbcc");
    co_mutex_destroy(&mutex);
}

static void unlock_and_lock_again(void *arg)
{
    co_mutex_lock(&mutex);
    note('1');
    co_reschedule();
    co_mutex_unlock(&mutex);
    co_mutex_lock(&mutex);
    note('2');
    co_mutex_unlock(&mutex);
}

static void test_mutex_is_handed_over_so_nobody_cuts_in(void **state)
{
    co_mutex_init(&mutex);
    start(unlock_and_lock_again, NULL);
    start(hold_mutex, "w");
    test_home_run(&home);
    assert_string_equal(events, "1ww2");
    co_mutex_destroy(&mutex);
}

static void try_mutex(void *arg)
{
    note(co_mutex_trylock(&mutex) ? 'y' : 'n');
    assert_true(co_mutex_is_held(&mutex) == (events[strlen(events) - 1] == 'y'));
    if (co_mutex_is_held(&mutex)) {
        co_mutex_unlock(&mutex);
    }
}

static void test_trylock_fails_while_held(void **state)
{
    co_mutex_init(&mutex);
    start(try_mutex, NULL);
    start(hold_mutex, "a");
    start(try_mutex, NULL);
    test_home_run(&home);
    assert_string_equal(events, "yana");
    co_mutex_destroy(&mutex);
}

static void check_and_unlock_mutex(void *arg)
{
    assert_ptr_not_equal(co_self(), co_task());
    assert_true(co_mutex_is_held(&mutex));
    co_mutex_unlock(&mutex);
    assert_false(co_mutex_is_held(&mutex));
}

static void use_stack_then_call_deep(void)
{
    volatile char used[4096];

    used[0] = 1;
    if (co_stack_is_low()) {
        assert_int_equal(co_call_deep(check_and_unlock_mutex, NULL), 0);
    } else {
        use_stack_then_call_deep();
    }
    assert_int_equal(used[0], 1);
}

static void lock_and_call_deep(void *arg)
{
    co_mutex_lock(&mutex);
    use_stack_then_call_deep();
    assert_false(co_mutex_is_held(&mutex));
}

static void test_mutex_is_held_by_the_task_on_whichever_stack(void **state)
{
    co_mutex_init(&mutex);
    start(lock_and_call_deep, NULL);
    test_home_run(&home);
    co_mutex_destroy(&mutex);
}

static void test_thread_mutex_is_held_until_it_is_unlocked(void **state)
{
    pthread_mutex_t m = PTHREAD_MUTEX_INITIALIZER;

    assert_false(mutex_is_held(&m));
    pthread_mutex_lock(&m);
    assert_true(mutex_is_held(&m));
    pthread_mutex_unlock(&m);
    assert_false(mutex_is_held(&m));
}

/* --- rwlock */

static struct co_rwlock rwlock;

static void hold_for_reading(void *arg)
{
    co_rwlock_rdlock(&rwlock);
    note(*(char *)arg);
    co_reschedule();
    co_reschedule();
    note(*(char *)arg);
    co_rwlock_unlock(&rwlock);
}

static void hold_for_writing(void *arg)
{
    co_rwlock_wrlock(&rwlock);
    note(*(char *)arg);
    co_reschedule();
    co_reschedule();
    note(*(char *)arg);
    co_rwlock_unlock(&rwlock);
}

static void test_readers_share(void **state)
{
    co_rwlock_init(&rwlock);
    start(hold_for_reading, "a");
    start(hold_for_reading, "b");
    test_home_run(&home);
    assert_string_equal(events, "abab");
    co_rwlock_destroy(&rwlock);
}

static void test_writer_is_alone_and_keeps_later_readers_waiting(void **state)
{
    co_rwlock_init(&rwlock);
    start(hold_for_reading, "a");
    start(hold_for_writing, "W");
    start(hold_for_reading, "b");
    start(hold_for_reading, "c");
    start(hold_for_writing, "X");
    test_home_run(&home);
    assert_string_equal(events, "aaWWbcbcXX");
    co_rwlock_destroy(&rwlock);
}

/* --- condition */

static struct co_cond cond;
static int tokens;

static void take_token(void *arg)
{
    co_mutex_lock(&mutex);
    while (tokens == 0) {
        co_cond_wait(&cond, &mutex);
        assert_true(co_mutex_is_held(&mutex));
    }
    tokens--;
    note(*(char *)arg);
    co_mutex_unlock(&mutex);
}

static void put_token(void *arg)
{
    co_mutex_lock(&mutex);
    tokens++;
    note('+');
    co_cond_signal(&cond);
    co_mutex_unlock(&mutex);
}

static void put_two_tokens(void *arg)
{
    co_mutex_lock(&mutex);
    tokens += 2;
    note('*');
    co_cond_broadcast(&cond);
    co_mutex_unlock(&mutex);
}

static void test_signal_wakes_the_first_and_broadcast_all(void **state)
{
    co_mutex_init(&mutex);
    co_cond_init(&cond);
    tokens = 0;
    start(take_token, "a");
    start(take_token, "b");
    start(take_token, "c");
    test_home_run(&home);
    assert_string_equal(events, "");
    start(put_token, NULL);
    test_home_run(&home);
    assert_string_equal(events, "+a");
    start(put_two_tokens, NULL);
    test_home_run(&home);
    assert_string_equal(events, "+a*bc");
    co_cond_destroy(&cond);
    co_mutex_destroy(&mutex);
}

static void test_signal_outside_a_coroutine(void **state)
{
    co_mutex_init(&mutex);
    co_cond_init(&cond);
    tokens = 0;
    start(take_token, "a");
    test_home_run(&home);
    tokens = 1;
    co_cond_signal(&cond);
    test_home_run(&home);
    assert_string_equal(events, "a");
    co_cond_destroy(&cond);
    co_mutex_destroy(&mutex);
}

static void signal_and_hold(void *arg)
{
    co_mutex_lock(&mutex);
    tokens++;
    co_cond_signal(&cond);
    note('(');
    co_reschedule();
    co_reschedule();
    note(')');
    co_mutex_unlock(&mutex);
}

static void test_who_is_signalled_waits_for_the_mutex(void **state)
{
    co_mutex_init(&mutex);
    co_cond_init(&cond);
    tokens = 0;
    start(take_token, "a");
    start(signal_and_hold, NULL);
    test_home_run(&home);
    assert_string_equal(events, "()a");
    co_cond_destroy(&cond);
    co_mutex_destroy(&mutex);
}

/* --- semaphore */

static struct co_semaphore semaphore;

static void take_units(void *arg)
{
    const char *spec = arg; /* a letter, and how many */

    co_semaphore_take(&semaphore, spec[1] - '0');
    note(spec[0]);
    co_reschedule();
    co_semaphore_give(&semaphore, spec[1] - '0');
}

static void test_semaphore_limits_units_and_starves_nobody(void **state)
{
    co_semaphore_init(&semaphore, 3);
    start(take_units, "a2");
    start(take_units, "b3"); /* waits for all */
    start(take_units, "c1"); /* would fit, but is after b */
    start(take_units, "d1");
    assert_true(test_home_step(&home) && test_home_step(&home));
    assert_true(test_home_step(&home) && test_home_step(&home));
    assert_string_equal(events, "a");
    test_home_run(&home);
    assert_string_equal(events, "abcd");
    assert_int_equal(semaphore.available, 3);
    co_semaphore_destroy(&semaphore);
}

static void take_and_give_one(void *arg)
{
    co_semaphore_give(&semaphore, 1);
    note('1');
    co_reschedule();
    note('-');
    co_reschedule();
    co_semaphore_give(&semaphore, 2);
}

static void test_semaphore_does_not_grant_a_part(void **state)
{
    co_semaphore_init(&semaphore, 0);
    start(take_units, "a3");
    start(take_and_give_one, NULL);
    test_home_run(&home);
    assert_string_equal(events, "1-a");
    co_semaphore_destroy(&semaphore);
}

/* --- group */

static struct co_group group;

static void work_in_group(void *arg)
{
    co_reschedule();
    note('w');
    co_group_done(&group);
}

static void wait_for_group(void *arg)
{
    co_group_wait(&group);
    note('e');
}

static void test_group_wait_ends_with_the_last(void **state)
{
    co_group_init(&group);
    start(wait_for_group, NULL); /* nothing to wait for */
    test_home_run(&home);
    for (int i = 0; i < 3; i++) {
        co_group_add(&group);
        start(work_in_group, NULL);
    }
    start(wait_for_group, NULL);
    start(wait_for_group, NULL);
    test_home_run(&home);
    assert_string_equal(events, "ewwwee");
    co_group_destroy(&group);
}

static void leave_group(void *arg)
{
    for (int i = 0; i < *(int *)arg; i++) {
        co_reschedule();
    }
    note('w');
    co_group_done(&group);
}

static void test_group_wait_is_not_over_while_one_works(void **state)
{
    int turns[] = {1, 5};

    co_group_init(&group);
    for (int i = 0; i < 2; i++) {
        co_group_add(&group);
        start(leave_group, &turns[i]);
    }
    start(wait_for_group, NULL);
    test_home_run(&home);
    assert_string_equal(events, "wwe");
    co_group_destroy(&group);
}

/* --- range lock */

static struct range_lock ranges;

struct range_step {
    char name;
    uint64_t offset;
    uint64_t length;
    bool exclusive;
};

static void hold_range(void *arg)
{
    struct range_step *step = arg;
    struct range_entry entry;

    co_range_lock(&ranges, &entry, step->offset, step->length, step->exclusive);
    note(step->name);
    co_reschedule();
    co_reschedule();
    note(step->name);
    range_unlock(&ranges, &entry);
}

static void run_passing(uint64_t passes, struct range_step *steps, size_t count, const char *want)
{
    range_lock_init(&ranges);
    range_lock_let_pass(&ranges, passes);
    for (size_t i = 0; i < count; i++) {
        start(hold_range, &steps[i]);
    }
    test_home_run(&home);
    assert_string_equal(events, want);
    range_lock_destroy(&ranges);
}

static void run_ranges(struct range_step *steps, size_t count, const char *want)
{
    run_passing(0, steps, count, want);
}

static void test_disjoint_ranges_do_not_wait(void **state)
{
    struct range_step steps[] = {{'a', 0, 10, true}, {'b', 10, 10, true}, {'c', 20, 1, true}};

    run_ranges(steps, 3, "abcabc");
}

static void test_overlapping_exclusive_range_waits(void **state)
{
    struct range_step steps[] = {{'a', 0, 11, true}, {'b', 10, 10, true}};

    run_ranges(steps, 2, "aabb");
}

static void test_shared_ranges_wait_for_exclusive_ones_only(void **state)
{
    struct range_step steps[] = {
        {'a', 0, 10, false}, {'b', 5, 10, false}, {'c', 9, 1, true}, {'d', 0, 10, false}};

    run_ranges(steps, 4, "ababccdd");
}

static void test_ranges_are_granted_in_order_where_they_overlap(void **state)
{
    struct range_step steps[] = {
        {'a', 0, 10, true}, {'b', 0, 30, true}, {'c', 20, 5, true}, {'d', 40, 5, true}};

    run_ranges(steps, 4, "adadbbcc");
}

static void test_range_that_waits_is_passed_where_that_is_let(void **state)
{
    struct range_step steps[] = {
        {'a', 0, 10, true}, {'b', 0, 30, true}, {'c', 20, 5, true}, {'d', 0, 5, true}};

    run_passing(2, steps, 4, "acacbbdd");
}

static void test_range_that_waits_is_passed_so_often_only(void **state)
{
    struct range_step steps[] = {{'a', 0, 10, true}, {'b', 0, 30, true}, {'c', 20, 1, true},
                                 {'d', 21, 1, true}, {'e', 22, 1, true}, {'f', 40, 1, true}};

    run_passing(2, steps, 6, "acdfacdfbbee");
}

static void test_empty_range_overlaps_nothing(void **state)
{
    struct range_step steps[] = {{'a', 0, 10, true}, {'b', 5, 0, true}, {'c', 0, 0, true}};

    run_ranges(steps, 3, "abcabc");
}

static void test_range_at_the_end_of_the_number_space(void **state)
{
    struct range_step steps[] = {
        {'a', UINT64_MAX - 9, 10, true}, {'b', UINT64_MAX, UINT64_MAX, true}, {'c', 0, 10, true}};

    run_ranges(steps, 3, "acacbb");
}

static void test_range_trylock_fails_behind_one_that_waits(void **state)
{
    struct range_step steps[] = {{'a', 0, 10, true}, {'b', 0, 20, true}};
    struct range_entry entry;

    range_lock_init(&ranges);
    start(hold_range, &steps[0]);
    start(hold_range, &steps[1]);
    assert_true(test_home_step(&home) && test_home_step(&home));
    assert_false(range_trylock(&ranges, &entry, 15, 1, true));
    assert_false(range_trylock(&ranges, &entry, 5, 1, false));
    assert_true(range_trylock(&ranges, &entry, 20, 1, true));
    range_unlock(&ranges, &entry);
    test_home_run(&home);
    assert_true(range_trylock(&ranges, &entry, 0, 20, true));
    range_unlock(&ranges, &entry);
    range_lock_destroy(&ranges);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_mutex_lets_one_in_at_a_time_in_order),
        TEST(test_mutex_is_handed_over_so_nobody_cuts_in),
        TEST(test_trylock_fails_while_held),
        TEST(test_mutex_is_held_by_the_task_on_whichever_stack),
        TEST(test_thread_mutex_is_held_until_it_is_unlocked),
        TEST(test_readers_share),
        TEST(test_writer_is_alone_and_keeps_later_readers_waiting),
        TEST(test_signal_wakes_the_first_and_broadcast_all),
        TEST(test_signal_outside_a_coroutine),
        TEST(test_who_is_signalled_waits_for_the_mutex),
        TEST(test_semaphore_limits_units_and_starves_nobody),
        TEST(test_semaphore_does_not_grant_a_part),
        TEST(test_group_wait_ends_with_the_last),
        TEST(test_group_wait_is_not_over_while_one_works),
        TEST(test_disjoint_ranges_do_not_wait),
        TEST(test_overlapping_exclusive_range_waits),
        TEST(test_shared_ranges_wait_for_exclusive_ones_only),
        TEST(test_ranges_are_granted_in_order_where_they_overlap),
        TEST(test_range_that_waits_is_passed_where_that_is_let),
        TEST(test_range_that_waits_is_passed_so_often_only),
        TEST(test_empty_range_overlaps_nothing),
        TEST(test_range_at_the_end_of_the_number_space),
        TEST(test_range_trylock_fails_behind_one_that_waits),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
