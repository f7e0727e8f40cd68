/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Kernels whose io_uring lacks what we need: played by this program, whose function comes before
 * liburing's.
 */
#include <dlfcn.h>
#include <errno.h>
#include <liburing.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "loop/loop.h"

typedef int init_params(unsigned entries, struct io_uring *ring, struct io_uring_params *params);

static unsigned lacking; /* IORING_FEAT_ bits */
static unsigned rings_made;

/* As such a kernel: without the features, and without what came after them. */
int io_uring_queue_init_params(unsigned entries, struct io_uring *ring,
                               struct io_uring_params *params)
{
    init_params *real = (init_params *)dlsym(RTLD_NEXT, "io_uring_queue_init_params");
    int ret;

    if (!real) {
        return -ENOSYS;
    }
    if (lacking && (params->flags & ~(unsigned)IORING_SETUP_CQSIZE)) {
        return -EINVAL;
    }
    ret = real(entries, ring, params);
    if (ret == 0) {
        rings_made++;
        ring->features &= ~lacking;
        params->features &= ~lacking;
    }
    return ret;
}

static void sleep_a_little(void *arg)
{
    for (int i = 0; i < 3; i++) {
        loop_co_sleep(2000000);
    }
    *(bool *)arg = true;
}

static void try_without(unsigned features, const char *engine)
{
    bool slept = false;

    unsetenv("TIDEMARK_LOOP");
    lacking = features;
    rings_made = 0;
    assert_int_equal(reactor_init_main(NULL), 0);
    /* Where io_uring is forbidden altogether, it is not used either. */
    assert_string_equal(reactor_engine(), rings_made > 0 ? engine : "epoll");
    assert_int_equal(reactor_run_until_done(sleep_a_little, &slept), 0);
    assert_true(slept);
    reactor_exit_main();
}

static void test_all_features(void **state)
{
    try_without(0, "io_uring");
}

static void test_kernel_that_may_lose_completions(void **state)
{
    try_without(IORING_FEAT_NODROP, "epoll");
}

static void test_kernel_without_time_limits_of_waits(void **state)
{
    try_without(IORING_FEAT_EXT_ARG, "epoll");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_all_features),
        cmocka_unit_test(test_kernel_that_may_lose_completions),
        cmocka_unit_test(test_kernel_without_time_limits_of_waits),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
