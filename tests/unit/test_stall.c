/* SPDX-License-Identifier: Apache-2.0 */
/* A long wait for a lock is traced, with the kind of the lock; a short wait is not. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "co/stall.h"
#include "co/sync.h"
#include "loop/loop.h"
#include "trace/internal.h"
#include "trace/trace.h"

#define MS INT64_C(1000000)

static char latest[300];
static unsigned stalls;

static void see(const char *line, size_t size)
{
    if (memmem(line, size, " co_stall ", 10)) {
        stalls++;
        memcpy(latest, line, size);
        latest[size] = '\0';
    }
}

/* Stalls since the process began; the last one is in `latest`. */
static unsigned count_stalls(void)
{
    stalls = 0;
    trace_ring_each(see);
    return stalls;
}

static struct {
    struct co_mutex mutex;
    struct co_rwlock rwlock;
    struct co_semaphore semaphore;
    struct range_lock range;
    int64_t hold_ns;
    struct co_group group;
} s;

static void hold(void (*unlock)(void))
{
    loop_co_sleep(s.hold_ns);
    unlock();
}

static void unlock_mutex(void)
{
    co_mutex_unlock(&s.mutex);
}

static void use_mutex(void *arg)
{
    co_mutex_lock(&s.mutex);
    hold(unlock_mutex);
    co_group_done(&s.group);
}

static void unlock_rwlock(void)
{
    co_rwlock_unlock(&s.rwlock);
}

static void use_rwlock(void *arg)
{
    co_rwlock_wrlock(&s.rwlock);
    hold(unlock_rwlock);
    co_group_done(&s.group);
}

static void give_semaphore(void)
{
    co_semaphore_give(&s.semaphore, 1);
}

static void use_semaphore(void *arg)
{
    co_semaphore_take(&s.semaphore, 1);
    hold(give_semaphore);
    co_group_done(&s.group);
}

static void use_range(void *arg)
{
    struct range_entry entry;

    co_range_lock(&s.range, &entry, 0, 1, true);
    loop_co_sleep(s.hold_ns);
    range_unlock(&s.range, &entry);
    co_group_done(&s.group);
}

/* Two coroutines hold the same lock, one after the other, for `ms` each. */
static void run_two(co_entry *use, int64_t ms)
{
    s.hold_ns = ms * MS;
    for (int i = 0; i < 2; i++) {
        co_group_add(&s.group);
        assert_int_equal(reactor_spawn(reactor_main(), use, NULL), 0);
    }
    co_group_wait(&s.group);
}

static void assert_stall(co_entry *use, const char *kind)
{
    unsigned before = count_stalls();

    run_two(use, CO_STALL_MS + 50);
    assert_int_equal(count_stalls(), before + 1);
    assert_non_null(strstr(latest, kind));
}

/* The first waits after a time without turns are as short as others. */
static void co_test_first_turn(void *arg)
{
    co_group_init(&s.group);
    co_mutex_init(&s.mutex);
    run_two(use_mutex, 1);
    assert_int_equal(count_stalls(), 0);
    co_mutex_destroy(&s.mutex);
    co_group_destroy(&s.group);
}

static void co_test_stalls(void *arg)
{
    co_group_init(&s.group);
    co_mutex_init(&s.mutex);
    co_rwlock_init(&s.rwlock);
    co_semaphore_init(&s.semaphore, 1);
    range_lock_init(&s.range);

    run_two(use_mutex, 1);
    assert_int_equal(count_stalls(), 0);
    assert_stall(use_mutex, "for=mutex ");
    assert_stall(use_rwlock, "for=rwlock ");
    assert_stall(use_semaphore, "for=semaphore ");
    assert_stall(use_range, "for=range lock ");

    range_lock_destroy(&s.range);
    co_semaphore_destroy(&s.semaphore);
    co_rwlock_destroy(&s.rwlock);
    co_mutex_destroy(&s.mutex);
    co_group_destroy(&s.group);
}

static void test_a_long_wait_for_any_lock_is_traced(void **state)
{
    setenv("CMOCKA_TEST_ABORT", "1", 1);
    trace_crash_init();
    assert_int_equal(reactor_init_main(NULL), 0);
    usleep((CO_STALL_MS + 50) * 1000);
    assert_int_equal(reactor_run_until_done(co_test_first_turn, NULL), 0);
    assert_int_equal(reactor_run_until_done(co_test_stalls, NULL), 0);
    reactor_exit_main();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_long_wait_for_any_lock_is_traced),
    };

    return cmocka_run_group_tests_name("stall", tests, NULL, NULL);
}
