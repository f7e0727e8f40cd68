/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reactors when there are as many coroutines as there may be: more memory maps than valgrind and
 * TSan can take.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "co/sync.h"
#include "loop/loop.h"

static struct reactor *other;

static void note_index(void *arg)
{
    *(unsigned *)arg = reactor_index(reactor_current());
}

static void wait_at_gate(void *arg)
{
    co_semaphore_take(arg, 1);
}

/* All coroutines that may exist do, and wait. */
static void call_without_a_coroutine_left(void *arg)
{
    struct co_semaphore gate;
    unsigned index = 99;
    int count = 0;

    co_semaphore_init(&gate, 0);
    while (co_run(reactor_home(reactor_main()), wait_at_gate, &gate) == 0) {
        count++;
    }
    loop_co_call_on(other, note_index, &index);
    assert_int_equal(index, 1);
    assert_int_equal(reactor_index(reactor_current()), 0);
    co_semaphore_give(&gate, count);
    co_reschedule();
    co_semaphore_destroy(&gate);
}

static void test_call_on_needs_no_coroutine(void **state)
{
    assert_int_equal(reactor_init_main(NULL), 0);
    assert_int_equal(reactor_create("other", &other, NULL), 0);
    assert_int_equal(reactor_run_until_done(call_without_a_coroutine_left, NULL), 0);
    reactor_exit_main();
    assert_int_equal(co_count(), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_call_on_needs_no_coroutine),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
