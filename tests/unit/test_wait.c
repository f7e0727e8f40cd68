/* SPDX-License-Identifier: Apache-2.0 */
/* What coroutines are reported to wait for. */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/strbuf.h"
#include "co/sync.h"
#include "co/wait.h"
#include "loop/loop.h"

static struct co *waiter;

static void assert_waits_for(const char *expected)
{
    STRBUF_AUTO(text);

    assert_int_equal(co_wait_describe(waiter, &text), expected[0] != '\0');
    assert_string_equal(strbuf_str(&text), expected);
}

/* Run `entry` until it suspends; it has stored itself in `waiter`. */
static void start(co_entry *entry, void *arg)
{
    assert_int_equal(co_run(reactor_home(reactor_current()), entry, arg), 0);
}

static void take_mutex(void *arg)
{
    struct co_mutex *m = arg;

    waiter = co_self();
    co_mutex_lock(m);
    co_mutex_unlock(m);
    co_suspend();
}

static void a_mutex(void *arg)
{
    struct co_mutex m;

    co_mutex_init(&m);
    co_mutex_lock(&m);
    start(take_mutex, &m);
    assert_waits_for("a lock");
    co_mutex_unlock(&m);
    co_reschedule();
    assert_waits_for("");
    co_wake(waiter);
    co_reschedule();
    co_mutex_destroy(&m);
}

static void take_range(void *arg)
{
    struct range_entry e;

    waiter = co_self();
    co_range_lock(arg, &e, 0, 10, true);
    range_unlock(arg, &e);
}

static void a_range(void *arg)
{
    struct range_lock l;
    struct range_entry e;

    range_lock_init(&l);
    co_range_lock(&l, &e, 5, 10, true);
    start(take_range, &l);
    assert_waits_for("an overlapping request");
    range_unlock(&l, &e);
    co_reschedule();
    range_lock_destroy(&l);
}

static void sleep_within(void *arg)
{
    struct co_wait outer;

    waiter = co_self();
    co_wait_begin(&outer, "a copy to", "tmp", -1);
    loop_co_sleep(1000000);
    co_wait_end(&outer);
    co_suspend();
}

static void a_wait_within_another(void *arg)
{
    start(sleep_within, NULL);
    assert_waits_for("a copy to 'tmp', in it a pause to end");
    loop_co_sleep(20000000);
    assert_waits_for("");
    co_wake(waiter);
    co_reschedule();
}

static void wait_for_file(void *arg)
{
    const int *fd = arg;
    struct co_wait wait;

    waiter = co_self();
    co_wait_begin(&wait, "a read of", NULL, *fd);
    co_suspend();
    co_wait_end(&wait);
}

static void a_file_by_its_descriptor(void *arg)
{
    int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);

    assert_true(fd >= 0);
    start(wait_for_file, &fd);
    assert_waits_for("a read of '/dev/null'");
    close(fd);
    co_wake(waiter);
    co_reschedule();
}

static void sleep_deep(void *arg)
{
    loop_co_sleep(1000000);
}

static void call_deep(void *arg)
{
    waiter = co_self();
    /* As a recursion without end: sooner or later another stack is taken. */
    if (co_stack_is_low()) {
        assert_int_equal(co_call_deep(sleep_deep, NULL), 0);
        co_suspend();
    } else {
        volatile char room[16384];

        room[0] = 0;
        call_deep(arg);
        room[1] = room[0];
    }
}

static void a_step_on_another_stack_belongs_to_its_task(void *arg)
{
    start(call_deep, NULL);
    assert_waits_for("a pause to end");
    loop_co_sleep(20000000);
    assert_waits_for("");
    co_wake(waiter);
    co_reschedule();
}

static void run_in_coroutine(void **state)
{
    assert_int_equal(reactor_run_until_done((co_entry *)*state, NULL), 0);
}

static int setup(void **state)
{
    setenv("CMOCKA_TEST_ABORT", "1", 1);
    return reactor_init_main(NULL);
}

static int teardown(void **state)
{
    reactor_exit_main();
    return 0;
}

#define WAIT_TEST(f)                                                                               \
    {                                                                                              \
        .name = #f, .test_func = run_in_coroutine, .initial_state = (void *)(f)                    \
    }

int main(void)
{
    const struct CMUnitTest tests[] = {
        WAIT_TEST(a_mutex),
        WAIT_TEST(a_range),
        WAIT_TEST(a_wait_within_another),
        WAIT_TEST(a_file_by_its_descriptor),
        WAIT_TEST(a_step_on_another_stack_belongs_to_its_task),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
