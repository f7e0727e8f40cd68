/* SPDX-License-Identifier: Apache-2.0 */
/* What a reactor counts about itself. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "loop/loop.h"
#include "loop/stats.h"

static void pass(void *arg)
{
    co_reschedule();
}

static int job(void *arg)
{
    return 0;
}

static void work(void *arg)
{
    uint64_t *values = arg;

    for (int i = 0; i < 3; i++) {
        assert_int_equal(co_run(reactor_home(reactor_current()), pass, NULL), 0);
    }
    assert_int_equal(loop_co_offload(job, NULL), 0);
    loop_co_sleep(1000000);
    reactor_read_stats(reactor_current(), values);
}

static void test_main_reactor(void **state)
{
    uint64_t values[REACTOR_STATS];

    assert_int_equal(reactor_run_until_done(work, values), 0);
    assert_string_equal(reactor_name(reactor_main()), "main");
    assert_int_equal(values[REACTOR_STAT_COROUTINES], 4);
    assert_int_equal(values[REACTOR_STAT_LIVE], 1);
    assert_int_equal(values[REACTOR_STAT_OFFLOADED], 1);
    assert_true(values[REACTOR_STAT_TURNS] >= 2);
    assert_true(values[REACTOR_STAT_SLEEPS] >= 1);
    assert_true(values[REACTOR_STAT_SLEEPS] <= values[REACTOR_STAT_TURNS]);
    assert_int_equal(values[REACTOR_STAT_HANGS], 0);
}

struct elsewhere {
    struct reactor *reactor;
    uint64_t values[REACTOR_STATS];
};

static void work_elsewhere(void *arg)
{
    struct elsewhere *e = arg;
    uint64_t values[REACTOR_STATS];

    loop_co_call_on(e->reactor, work, values);
    reactor_read_stats(e->reactor, e->values);
    /* Once the reactor has nothing more to do, its coroutines have all ended. */
    while (e->values[REACTOR_STAT_LIVE] > 0) {
        loop_co_sleep(1000000);
        reactor_read_stats(e->reactor, e->values);
    }
}

static void test_another_reactor_is_read_from_the_main_one(void **state)
{
    struct elsewhere e;

    assert_int_equal(reactor_create("other", &e.reactor, NULL), 0);
    assert_string_equal(reactor_name(e.reactor), "other");
    assert_int_equal(reactor_run_until_done(work_elsewhere, &e), 0);
    assert_int_equal(e.values[REACTOR_STAT_OFFLOADED], 1);
    assert_true(e.values[REACTOR_STAT_COROUTINES] >= 4);
    reactor_destroy(e.reactor);
}

/* --- looking for work before the reactor sleeps */

static void do_nothing(void *arg)
{
}

/* The other reactor waits for the main one, for less than a second each time. */
static void call_often(void *arg)
{
    struct elsewhere *e = arg;

    for (int i = 0; i < 200; i++) {
        loop_co_call_on(e->reactor, do_nothing, NULL);
    }
    reactor_read_stats(e->reactor, e->values);
}

static void test_a_reactor_that_polls_finds_work_before_it_sleeps(void **state)
{
    struct elsewhere e;
    uint64_t polled;

    assert_int_equal(reactor_create("other", &e.reactor, NULL), 0);
    assert_int_equal(reactor_run_until_done(call_often, &e), 0);
    assert_int_equal(e.values[REACTOR_STAT_POLLED], 0);
    reactor_set_polling(e.reactor, INT64_C(1000000000), 0, 0);
    assert_int_equal(reactor_run_until_done(call_often, &e), 0);
    polled = e.values[REACTOR_STAT_POLLED];
    assert_true(polled > 0);
    reactor_set_polling(e.reactor, 0, 0, 0);
    /* It may still look for work that was looked for when this was said. */
    assert_int_equal(reactor_run_until_done(call_often, &e), 0);
    assert_true(e.values[REACTOR_STAT_POLLED] <= polled + 1);
    reactor_destroy(e.reactor);
}

/* Sleeps a lot longer than it may poll. */
static void sleep_often(void *arg)
{
    struct elsewhere *e = arg;

    for (int i = 0; i < 5; i++) {
        loop_co_sleep(2000000);
        loop_co_call_on(e->reactor, do_nothing, NULL);
    }
    reactor_read_stats(e->reactor, e->values);
}

static void test_a_reactor_that_polls_in_vain_sleeps(void **state)
{
    struct elsewhere e;

    assert_int_equal(reactor_create("other", &e.reactor, NULL), 0);
    reactor_set_polling(e.reactor, 1, 0, 0);
    assert_int_equal(reactor_run_until_done(sleep_often, &e), 0);
    assert_int_equal(e.values[REACTOR_STAT_POLLED], 0);
    assert_true(e.values[REACTOR_STAT_SLEEPS] >= 5);
    reactor_destroy(e.reactor);
}

static void test_a_lower_limit_ends_a_long_look(void **state)
{
    const int64_t hour = INT64_C(3600000000000);
    struct elsewhere e;
    uint64_t sleeps;

    assert_int_equal(reactor_create("other", &e.reactor, NULL), 0);
    reactor_set_polling(e.reactor, hour, hour, 0);
    assert_int_equal(reactor_run_until_done(call_often, &e), 0);
    assert_int_equal(reactor_run_until_done(sleep_often, &e), 0);
    sleeps = e.values[REACTOR_STAT_SLEEPS];
    reactor_set_polling(e.reactor, 1, 0, 0);
    assert_int_equal(reactor_run_until_done(sleep_often, &e), 0);
    assert_true(e.values[REACTOR_STAT_SLEEPS] >= sleeps + 4);
    reactor_destroy(e.reactor);
}

static void read_from_memory(void *arg)
{
    uint64_t values[REACTOR_STATS];
    char bytes[] = "in memory", buf[sizeof(bytes)];
    struct iovec iov = {.iov_base = buf, .iov_len = sizeof(buf)};
    int fd = memfd_create("disk", MFD_CLOEXEC);

    assert_true(fd >= 0);
    assert_int_equal(pwrite(fd, bytes, sizeof(bytes), 0), sizeof(bytes));
    assert_int_equal(loop_co_preadv(fd, &iov, 1, 0), sizeof(buf));
    assert_memory_equal(buf, bytes, sizeof(buf));
    reactor_read_stats(reactor_current(), values);
    assert_int_equal(values[REACTOR_STAT_SUBMITTED], 0);
    close(fd);
}

static void call_read_from_memory(void *arg)
{
    loop_co_call_on(arg, read_from_memory, NULL);
}

/* tmpfs knows no RWF_NOWAIT, and a thread for each read would cost more than the read. */
static void test_a_read_of_a_file_in_memory_is_done_at_once(void **state)
{
    struct reactor *r;

    assert_int_equal(reactor_create("reads", &r, NULL), 0);
    assert_int_equal(reactor_run_until_done(call_read_from_memory, r), 0);
    reactor_destroy(r);
}

static int setup(void **state)
{
    return reactor_init_main(NULL);
}

static int teardown(void **state)
{
    reactor_exit_main();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_main_reactor),
        cmocka_unit_test(test_another_reactor_is_read_from_the_main_one),
        cmocka_unit_test(test_a_reactor_that_polls_finds_work_before_it_sleeps),
        cmocka_unit_test(test_a_reactor_that_polls_in_vain_sleeps),
        cmocka_unit_test(test_a_lower_limit_ends_a_long_look),
        cmocka_unit_test(test_a_read_of_a_file_in_memory_is_done_at_once),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
