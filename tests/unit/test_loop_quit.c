/* SPDX-License-Identifier: Apache-2.0 */
/* A signal handler that ends the main reactor, between its decision to sleep and the sleep. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "loop/loop.h"

#define SECOND INT64_C(1000000000)

static bool signal_is_due;

/*
 * With a timer armed, a reactor looks at the clock once it has decided to sleep, to know for how
 * long.
 */
int clock_gettime(clockid_t clock, struct timespec *ret)
{
    if (signal_is_due) {
        signal_is_due = false;
        raise(SIGUSR1);
    }
    return (int)syscall(SYS_clock_gettime, clock, ret);
}

static void quit(int number)
{
    reactor_quit_main();
}

static void too_late(struct loop_timer *self)
{
    reactor_quit_main();
}

static void test_a_signal_just_before_the_sleep_ends_it(void **state)
{
    int64_t begin = loop_now_ns();
    struct loop_timer timer;

    signal(SIGUSR1, quit);
    assert_int_equal(reactor_init_main(NULL), 0);
    loop_timer_init(&timer, too_late);
    loop_timer_arm(&timer, begin + 5 * SECOND);
    signal_is_due = true;
    reactor_run_main();
    assert_false(signal_is_due);
    assert_true(loop_now_ns() - begin < 4 * SECOND);
    loop_timer_disarm(&timer);
    reactor_exit_main();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_signal_just_before_the_sleep_ends_it),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
