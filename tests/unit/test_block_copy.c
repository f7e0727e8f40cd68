/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The copy engine: turns of others, rate, pause, cancel, memory. Disks in memory, whose requests
 * never wait.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/checked.h"
#include "cbw_fixture.h"
#include "co_test.h"
#include "copy/block_copy.h"
#include "loop/loop.h"
#include "memory_disk.h"

#define MS 1000000LL

/*
 * "instant": requests that take a moment of the processor and never yield, as those of a file in
 * the page cache.
 */
static int instant_co_open(struct block_node *node, struct options *opts, struct error *err)
{
    block_node_set_size(node, 256 * MiB);
    return 0;
}

static int instant_co_request(struct block_node *node, uint64_t offset, struct iov iov,
                              unsigned flags)
{
    int64_t until = loop_now_ns() + MS / 20;

    while (loop_now_ns() < until) {
    }
    return 0;
}

static const struct block_driver instant_driver = {
    .name = "instant",
    .co_open = instant_co_open,
    .co_preadv = instant_co_request,
    .co_pwritev = instant_co_request,
};

struct copying {
    struct block_node *source, *target;
    struct block_root *source_root, *target_root;
    struct block_copy *copy;
    uint64_t length;
    int ret;
    bool done;
};

static void setup_on(struct copying *c, const char *json, struct block_copy_params params)
{
    ERROR_AUTO(err);

    memset(c, 0, sizeof(*c));
    c->source = fixture_open(json);
    c->target = fixture_open(json);
    c->length = block_node_size(c->source);
    assert_int_equal(block_co_root_new(c->source, "copy", BLOCK_PERM_CONSISTENT_READ,
                                       BLOCK_PERM_ALL, &c->source_root, &err),
                     0);
    assert_int_equal(block_co_root_new(c->target, "copy", BLOCK_PERM_WRITE, BLOCK_PERM_ALL,
                                       &c->target_root, &err),
                     0);
    assert_int_equal(block_copy_new(block_root_edge(c->source_root),
                                    block_root_edge(c->target_root), &params, &c->copy, &err),
                     0);
}

static void setup(struct copying *c, uint64_t size, struct block_copy_params params)
{
    char json[128];

    snprintf(json, sizeof(json), "{\"driver\":\"memory-disk\",\"size\":%llu}",
             (unsigned long long)size);
    setup_on(c, json, params);
    memset(memory_disk_of(c->source)->written, 1, size / 4096 + 1);
    memset(memory_disk_of(c->source)->data, 7, size);
}

static void teardown(struct copying *c)
{
    block_copy_free(c->copy);
    block_co_root_release(c->source_root);
    block_co_root_release(c->target_root);
    block_co_unref(c->source);
    block_co_unref(c->target);
}

static void co_copy_all(void *arg)
{
    struct copying *c = arg;

    c->ret = block_co_copy(c->copy, 0, c->length, NULL);
    c->done = true;
}

static void start(struct copying *c)
{
    assert_int_equal(reactor_spawn(reactor_main(), co_copy_all, c), 0);
}

static void co_wait_done(struct copying *c)
{
    while (!c->done) {
        loop_co_sleep(MS);
    }
}

static uint64_t writes(struct copying *c)
{
    return memory_disk_requests(memory_disk_of(c->target), MEMORY_DISK_WRITE);
}

/* The copy takes a hundred milliseconds of the processor. */
static void co_others_get_their_turn(void)
{
    struct copying c;
    unsigned turns = 0;

    setup_on(&c, "{\"driver\":\"instant\"}", (struct block_copy_params){.cluster_size = 64 * KiB});
    start(&c);
    while (!c.done) {
        loop_co_sleep(MS / 2);
        turns++;
    }
    assert_int_equal(c.ret, 0);
    assert_true(turns > 10);
    teardown(&c);
}

static void co_rate_is_kept(void)
{
    struct copying c;
    int64_t began = loop_now_ns();

    setup(&c, 8 * MiB, (struct block_copy_params){.cluster_size = 64 * KiB});
    block_copy_set_rate(c.copy, 40 * MiB);
    start(&c);
    co_wait_done(&c);
    assert_int_equal(c.ret, 0);
    assert_true(loop_now_ns() - began > 180 * MS); /* 200, less the last piece */
    teardown(&c);
}

static void co_higher_rate_ends_the_wait(void)
{
    struct copying c;
    int64_t began = loop_now_ns();

    setup(&c, 8 * MiB, (struct block_copy_params){.cluster_size = 64 * KiB});
    block_copy_set_rate(c.copy, 64 * KiB); /* two minutes */
    start(&c);
    loop_co_sleep(5 * MS);
    assert_false(c.done);
    block_copy_set_rate(c.copy, 0);
    co_wait_done(&c);
    assert_int_equal(c.ret, 0);
    assert_true(loop_now_ns() - began < 5000 * MS);
    teardown(&c);
}

static void co_pause_stops_pieces_until_the_resume(void)
{
    struct copying c;
    uint64_t before;

    setup(&c, 64 * MiB, (struct block_copy_params){.cluster_size = 64 * KiB});
    memory_disk_hold(memory_disk_of(c.target), MEMORY_DISK_WRITE, 1);
    start(&c);
    while (memory_disk_held(memory_disk_of(c.target)) == 0) {
        loop_co_sleep(MS / 10);
    }
    block_copy_pause(c.copy);
    assert_true(block_copy_is_busy(c.copy));
    memory_disk_release(memory_disk_of(c.target));
    while (block_copy_is_busy(c.copy)) {
        loop_co_sleep(MS / 10);
    }
    before = writes(&c);
    loop_co_sleep(10 * MS);
    assert_int_equal(writes(&c), before);
    assert_false(c.done);
    block_copy_resume(c.copy);
    co_wait_done(&c);
    assert_int_equal(c.ret, 0);
    assert_true(writes(&c) > before);
    teardown(&c);
}

static void co_cancel_ends_a_copy_that_is_paused_or_slow(void)
{
    struct copying c;

    for (int slow = 0; slow < 2; slow++) {
        setup(&c, 8 * MiB, (struct block_copy_params){.cluster_size = 64 * KiB});
        if (slow) {
            block_copy_set_rate(c.copy, 64 * KiB);
        } else {
            block_copy_pause(c.copy);
        }
        start(&c);
        loop_co_sleep(5 * MS);
        assert_false(c.done);
        block_copy_cancel(c.copy);
        co_wait_done(&c);
        assert_int_equal(c.ret, -ECANCELED);
        assert_true(writes(&c) < 32);
        assert_int_equal(block_co_copy(c.copy, 0, c.length, NULL), -ECANCELED);
        teardown(&c);
    }
}

static void co_pieces_of_huge_clusters_are_small(void)
{
    struct copying c;

    setup(&c, 16 * MiB, (struct block_copy_params){.cluster_size = 1 * GiB});
    assert_true(block_copy_chunk_size(c.copy) <= 2 * MiB);
    start(&c);
    co_wait_done(&c);
    assert_int_equal(c.ret, 0);
    assert_memory_equal(memory_disk_of(c.target)->data, memory_disk_of(c.source)->data, c.length);
    assert_true(writes(&c) >= 8);
    teardown(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        CO_TEST(co_others_get_their_turn),
        CO_TEST(co_rate_is_kept),
        CO_TEST(co_higher_rate_ends_the_wait),
        CO_TEST(co_pause_stops_pieces_until_the_resume),
        CO_TEST(co_cancel_ends_a_copy_that_is_paused_or_slow),
        CO_TEST(co_pieces_of_huge_clusters_are_small),
    };

    if (co_test_setup() < 0) {
        return 1;
    }
    block_register_driver(&memory_disk_driver);
    block_register_driver(&instant_driver);
    return cmocka_run_group_tests(tests, NULL, co_test_teardown);
}
