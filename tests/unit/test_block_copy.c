/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The copy engine: turns of others, pieces. Disks in memory, whose requests
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

static void co_pieces_of_huge_clusters_are_small(void)
{
    struct copying c;

    setup(&c, 16 * MiB, (struct block_copy_params){.cluster_size = 1 * GiB});
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
        CO_TEST(co_pieces_of_huge_clusters_are_small),
    };

    if (co_test_setup() < 0) {
        return 1;
    }
    block_register_driver(&memory_disk_driver);
    block_register_driver(&instant_driver);
    return cmocka_run_group_tests(tests, NULL, co_test_teardown);
}
