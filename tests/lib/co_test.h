/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tests that are coroutines of the main reactor: CO_TEST(f) where cmocka_unit_test(f) would stand.
 */
#ifndef TIDEMARK_TESTS_CO_TEST_H
#define TIDEMARK_TESTS_CO_TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "block/block.h"
#include "loop/loop.h"

/* Begin and end a group of them. */
static inline int co_test_setup(void)
{
    /* A failed assertion can't jump from a coroutine's stack to the runner's. */
    setenv("CMOCKA_TEST_ABORT", "1", 1);
    return reactor_init_main(NULL);
}

static inline int co_test_teardown(void **state)
{
    reactor_exit_main();
    return 0;
}

/* The test is the state that the group has for it; it leaves no node behind. */
static inline void run_in_coroutine(void **state)
{
    assert_int_equal(reactor_run_until_done((co_entry *)*state, NULL), 0);
    assert_null(block_node_next(NULL));
}

#define CO_TEST(f)                                                                                 \
    {                                                                                              \
        .name = #f, .test_func = run_in_coroutine, .initial_state = (void *)(f)                    \
    }

#endif
