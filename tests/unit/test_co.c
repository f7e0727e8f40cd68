/* SPDX-License-Identifier: Apache-2.0 */
/* Coroutines: start, switch, wake, end; their stacks. */
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#ifdef __x86_64__
#include <xmmintrin.h>
#endif

#include "co/co.h"
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
    int left = (int)(co_count() + co_home_live(&home.home));

    co_thread_cleanup();
    return left;
}

static void start(co_entry *entry, void *arg)
{
    assert_int_equal(co_spawn(&home.home, entry, arg), 0);
}

static void note_arg(void *arg)
{
    note(*(char *)arg);
}

static void test_spawned_one_waits_for_the_scheduler(void **state)
{
    start(note_arg, "a");
    note('-');
    assert_int_equal(co_count(), 1);
    test_home_run(&home);
    assert_string_equal(events, "-a");
    assert_int_equal(co_count(), 0);
}

static void note_and_reschedule(void *arg)
{
    for (int i = 0; i < 3; i++) {
        note(*(char *)arg);
        co_reschedule();
    }
}

static void test_reschedule_takes_turns(void **state)
{
    start(note_and_reschedule, "a");
    start(note_and_reschedule, "b");
    start(note_and_reschedule, "c");
    test_home_run(&home);
    assert_string_equal(events, "abcabcabc");
}

static struct co *suspended;

static void suspend_once(void *arg)
{
    note('[');
    suspended = co_self();
    co_suspend();
    note(']');
}

static void test_run_goes_on_when_it_suspends(void **state)
{
    assert_null(co_self());
    assert_int_equal(co_run(&home.home, suspend_once, NULL), 0);
    assert_null(co_self());
    note('-');
    assert_false(test_home_step(&home));
    co_wake(suspended);
    note('-');
    test_home_run(&home);
    assert_string_equal(events, "[--]");
}

static void run_inside(void *arg)
{
    struct co *self = co_self();

    note('(');
    assert_int_equal(co_run(&home.home, suspend_once, NULL), 0);
    assert_ptr_equal(co_self(), self);
    assert_ptr_not_equal(suspended, self);
    note('-');
    co_wake(suspended);
    co_reschedule();
    note(')');
}

static void test_run_inside_a_coroutine(void **state)
{
    start(run_inside, NULL);
    test_home_run(&home);
    assert_string_equal(events, "([-])");
}

static void wake_own_then_suspend(void *arg)
{
    co_wake(co_self());
    note('w');
    co_suspend();
    note('s');
}

static void test_wake_may_come_before_the_suspend(void **state)
{
    start(wake_own_then_suspend, NULL);
    test_home_run(&home);
    assert_string_equal(events, "ws");
}

static void spawn_others(void *arg)
{
    start(note_arg, "b");
    note('a');
    start(note_arg, "c");
}

static void test_spawn_inside_a_coroutine(void **state)
{
    start(spawn_others, NULL);
    test_home_run(&home);
    assert_string_equal(events, "abc");
}

static void check_home(void *arg)
{
    assert_ptr_equal(co_get_home(co_self()), &home.home);
    assert_int_equal(co_home_live(&home.home), 2);
    note('h');
}

static void test_home_counts_those_that_live(void **state)
{
    start(check_home, NULL);
    assert_int_equal(co_run(&home.home, suspend_once, NULL), 0);
    assert_true(test_home_step(&home));
    assert_int_equal(co_home_live(&home.home), 1);
    co_wake(suspended);
    test_home_run(&home);
    assert_int_equal(co_home_live(&home.home), 0);
}

/* A value in every register that a call preserves, as far as the compiler will. */
static void keep_registers(void *arg)
{
    uint64_t seed = (uintptr_t)arg;
    uint64_t v[12];
    double d[10];

    for (int i = 0; i < 12; i++) {
        v[i] = seed * 1000 + (uint64_t)i;
    }
    for (int i = 0; i < 10; i++) {
        d[i] = (double)seed + i * 0.5;
    }
    for (int round = 0; round < 50; round++) {
        uint64_t a = v[0], b = v[1], c = v[2], e = v[3], f = v[4], g = v[5], h = v[6];
        double x = d[0], y = d[1], z = d[2];

        co_reschedule();
        assert_true(a == seed * 1000 && b == a + 1 && c == a + 2 && e == a + 3 && f == a + 4);
        assert_true(g == a + 5 && h == a + 6);
        assert_true(x == (double)seed && y == x + 0.5 && z == x + 1.0);
    }
    for (int i = 0; i < 12; i++) {
        assert_true(v[i] == seed * 1000 + (uint64_t)i);
    }
    note('k');
}

static void test_registers_survive_switches(void **state)
{
    for (uintptr_t i = 1; i <= 5; i++) {
        start(keep_registers, (void *)i);
    }
    test_home_run(&home);
    assert_string_equal(events, "kkkkk");
}

#ifdef __x86_64__
static void change_rounding(void *arg)
{
    assert_int_equal(_MM_GET_ROUNDING_MODE(), _MM_ROUND_NEAREST);
    _MM_SET_ROUNDING_MODE(_MM_ROUND_UP);
    co_reschedule();
    assert_int_equal(_MM_GET_ROUNDING_MODE(), _MM_ROUND_UP);
    _MM_SET_ROUNDING_MODE(_MM_ROUND_NEAREST);
    note('r');
}

static void test_rounding_mode_is_of_the_coroutine(void **state)
{
    start(change_rounding, NULL);
    start(change_rounding, NULL);
    assert_true(test_home_step(&home));
    assert_int_equal(_MM_GET_ROUNDING_MODE(), _MM_ROUND_NEAREST);
    test_home_run(&home);
    assert_string_equal(events, "rr");
}
#endif

static size_t use_stack(size_t bytes, int depth)
{
    volatile char buffer[1024];

    memset((char *)buffer, depth, sizeof(buffer));
    if (bytes <= sizeof(buffer)) {
        co_reschedule();
        return (size_t)buffer[0];
    }
    return use_stack(bytes - sizeof(buffer), 1) + (size_t)buffer[sizeof(buffer) - 1];
}

/* Frames are larger under sanitizers, so not all is used. */
static void use_most_of_the_stack(void *arg)
{
    assert_int_equal(use_stack(CO_STACK_SIZE / 2, 1), CO_STACK_SIZE / 2 / 1024);
    note('d');
}

static void test_stacks_are_deep_and_separate(void **state)
{
    start(use_most_of_the_stack, NULL);
    start(use_most_of_the_stack, NULL);
    start(use_most_of_the_stack, NULL);
    test_home_run(&home);
    assert_string_equal(events, "ddd");
}

/* The mapping that lies directly below the one with `address` in it: its protection. */
static void protection_below(uintptr_t address, char protection[5])
{
    FILE *maps = fopen("/proc/self/maps", "re");
    char line[512], previous[5] = "";
    uintptr_t previous_end = 0;

    assert_non_null(maps);
    protection[0] = '\0';
    while (fgets(line, sizeof(line), maps)) {
        uintptr_t begin, end;
        char here[5];

        assert_int_equal(sscanf(line, "%" SCNxPTR "-%" SCNxPTR " %4s", &begin, &end, here), 3);
        if (address >= begin && address < end && previous_end == begin) {
            memcpy(protection, previous, 5);
        }
        memcpy(previous, here, 5);
        previous_end = end;
    }
    fclose(maps);
}

static uintptr_t address_in_coroutine;

static void leave_address(void *arg)
{
    address_in_coroutine = (uintptr_t)__builtin_frame_address(0);
    suspended = co_self();
    co_suspend();
}

static void test_guard_page_lies_below_the_stack(void **state)
{
    char protection[5];

    assert_int_equal(co_run(&home.home, leave_address, NULL), 0);
    protection_below(address_in_coroutine, protection);
    assert_string_equal(protection, "---p");
    co_wake(suspended);
    test_home_run(&home);
}

static int ended;

static void count_end(void *arg)
{
    co_reschedule();
    ended++;
}

static void *spawn_from_thread(void *arg)
{
    for (int i = 0; i < 300; i++) {
        if (co_spawn(&home.home, count_end, NULL) < 0) {
            return "co_spawn() failed";
        }
    }
    return NULL;
}

/* The stacks come from the threads' pools and end in this one's, which passes them on. */
static void test_stacks_move_between_threads(void **state)
{
    for (int round = 0; round < 3; round++) {
        pthread_t threads[2];

        for (int i = 0; i < 2; i++) {
            assert_int_equal(pthread_create(&threads[i], NULL, spawn_from_thread, NULL), 0);
        }
        for (int i = 0; i < 2; i++) {
            void *failure;

            pthread_join(threads[i], &failure);
            assert_null(failure);
        }
        ended = 0;
        test_home_run(&home);
        assert_int_equal(ended, 600);
        assert_int_equal(co_count(), 0);
    }
}

struct descent {
    int depth, deepest;
    struct co *task;   /* of the first */
    struct co *bottom; /* suspended at the end of the recursion */
};

/* Needs a KiB of stack for each level. */
static void descend(void *arg)
{
    struct descent *d = arg;
    volatile char room[1024];

    room[0] = (char)d->depth;
    d->task = d->depth == 0 ? co_self() : d->task;
    assert_ptr_equal(co_task(), d->task);
    if (++d->depth < d->deepest) {
        assert_int_equal(co_call_deep(descend, d), 0);
    } else {
        d->bottom = co_self();
        co_suspend();
    }
    d->depth--;
    assert_int_equal(room[0], (char)d->depth);
}

static void test_recursion_goes_on_on_other_stacks(void **state)
{
    struct descent d = {.deepest = 4 * CO_STACK_SIZE / 1024};

    start(descend, &d);
    test_home_run(&home);
    assert_int_equal(d.depth, d.deepest);
    assert_in_range(co_count(), 4, 20);
    co_wake(d.bottom);
    test_home_run(&home);
    assert_int_equal(d.depth, 0);
    assert_int_equal(co_count(), 0);
}

static void test_shallow_recursion_stays_on_its_stack(void **state)
{
    struct descent d = {.deepest = 10};

    start(descend, &d);
    test_home_run(&home);
    assert_int_equal(co_count(), 1);
    co_wake(d.bottom);
    test_home_run(&home);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_spawned_one_waits_for_the_scheduler),
        TEST(test_reschedule_takes_turns),
        TEST(test_run_goes_on_when_it_suspends),
        TEST(test_run_inside_a_coroutine),
        TEST(test_wake_may_come_before_the_suspend),
        TEST(test_spawn_inside_a_coroutine),
        TEST(test_home_counts_those_that_live),
        TEST(test_registers_survive_switches),
#ifdef __x86_64__
        TEST(test_rounding_mode_is_of_the_coroutine),
#endif
        TEST(test_stacks_are_deep_and_separate),
        TEST(test_guard_page_lies_below_the_stack),
        TEST(test_stacks_move_between_threads),
        TEST(test_recursion_goes_on_on_other_stacks),
        TEST(test_shallow_recursion_stays_on_its_stack),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
