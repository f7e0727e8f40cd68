/* SPDX-License-Identifier: Apache-2.0 */
/* As many coroutines as there may be: more memory maps than valgrind and TSan can take. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "co/co.h"
#include "test_home.h"

static struct test_home home;

static void nothing(void *arg)
{
}

static void test_spawn_fails_at_the_cap_and_works_again(void **state)
{
    test_home_init(&home);
    for (int i = 0; i < CO_COUNT_MAX; i++) {
        assert_int_equal(co_spawn(&home.home, nothing, NULL), 0);
    }
    assert_int_equal(co_count(), CO_COUNT_MAX);
    assert_int_equal(co_spawn(&home.home, nothing, NULL), -EAGAIN);
    assert_int_equal(co_run(&home.home, nothing, NULL), -EAGAIN);
    assert_true(test_home_step(&home));
    assert_int_equal(co_spawn(&home.home, nothing, NULL), 0);
    test_home_run(&home);
    assert_int_equal(co_count(), 0);
    co_thread_cleanup();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_spawn_fails_at_the_cap_and_works_again),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
