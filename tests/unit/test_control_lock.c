/* SPDX-License-Identifier: Apache-2.0 */
/* The control lock, waited for with a limit of time. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/error.h"
#include "block/control_busy.h"
#include "block/control_lock.h"
#include "co/co.h"
#include "loop/loop.h"

#define PATIENCE_NS (100 * NS_PER_MS)

/* How long each of the others holds the lock. */
static int64_t hold_ns;
static int holders;

static void co_hold(void *arg)
{
    block_co_control_lock();
    loop_co_sleep(hold_ns);
    block_control_unlock();
    holders--;
}

/* `count` others hold the lock, one after the other. */
static void let_others_hold(int count, int64_t ns)
{
    hold_ns = ns;
    holders = count;
    for (int i = 0; i < count; i++) {
        assert_int_equal(reactor_spawn(reactor_main(), co_hold, NULL), 0);
    }
    while (!block_control_owner()) {
        co_reschedule();
    }
}

static void await_holders(void)
{
    while (holders > 0) {
        loop_co_sleep(NS_PER_MS);
    }
}

static void run(co_entry *entry)
{
    assert_int_equal(reactor_init_main(NULL), 0);
    assert_int_equal(reactor_run_until_done(entry, NULL), 0);
    reactor_exit_main();
    assert_int_equal(co_count(), 0);
}

static void co_wait_in_a_queue(void *arg)
{
    struct block_control_holder holder;

    /* Together they hold the lock three times as long as this one would wait for one of them. */
    let_others_hold(6, PATIENCE_NS / 2);
    assert_int_equal(block_co_control_lock_within(PATIENCE_NS, &holder), 0);
    assert_int_equal(holders, 0);
    block_control_unlock();
}

static void test_a_queue_that_moves_is_waited_for(void **state)
{
    run(co_wait_in_a_queue);
}

static void co_give_up(void *arg)
{
    struct block_control_holder holder;
    size_t coroutines;

    let_others_hold(1, 20 * PATIENCE_NS);
    coroutines = co_count();
    for (int i = 0; i < 4; i++) {
        ERROR_AUTO(err);

        assert_int_equal(block_co_control_lock_within(PATIENCE_NS / 4, &holder), -EBUSY);
        assert_int_equal(block_control_set_busy(&holder, &err), -EBUSY);
        assert_string_equal(err.message,
                            "A job or another user of the block nodes keeps all other commands "
                            "waiting: it waits for a pause to end");
        assert_true(co_count() <= coroutines + 1);
    }
    await_holders();
    for (int i = 0; i < 2; i++) {
        assert_int_equal(block_co_control_lock_within(PATIENCE_NS, &holder), 0);
        block_control_unlock();
    }
}

static void test_one_that_is_held_for_long_is_not(void **state)
{
    run(co_give_up);
}

static void co_come_back(void *arg)
{
    struct block_control_holder holder;

    let_others_hold(1, 2 * PATIENCE_NS);
    assert_int_equal(block_co_control_lock_within(PATIENCE_NS / 4, &holder), -EBUSY);
    assert_int_equal(block_co_control_lock_within(INT64_MAX, &holder), 0);
    assert_int_equal(holders, 0);
    block_control_unlock();
}

static void test_who_comes_back_gets_the_lock(void **state)
{
    run(co_come_back);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_queue_that_moves_is_waited_for),
        cmocka_unit_test(test_one_that_is_held_for_long_is_not),
        cmocka_unit_test(test_who_comes_back_gets_the_lock),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
