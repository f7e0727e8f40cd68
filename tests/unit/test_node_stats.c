/* SPDX-License-Identifier: Apache-2.0 */
/* What the gate counts for a node. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/checked.h"
#include "block/driver.h"
#include "block/stats.h"
#include "co_test.h"
#include "loop/loop.h"
#include "memory_disk.h"

struct disk {
    struct block_node *node;
    struct block_root *root;
    struct block_edge *edge;
};

static struct disk attach(const char *options, unsigned perm)
{
    struct options *opts = NULL;
    struct disk d = {0};
    ERROR_AUTO(err);

    if (options_parse(options, NULL, &opts, &err) < 0 ||
        block_co_open(opts, BLOCK_OPEN_RDWR, &d.node, &err) < 0 ||
        block_co_root_new(d.node, "test", perm, BLOCK_PERM_ALL, &d.root, &err) < 0) {
        fail_msg("%s", error_message(&err));
    }
    d.edge = block_root_edge(d.root);
    return d;
}

static struct disk attach_writable(void)
{
    return attach("driver=memory-disk,size=1M,discard=unmap",
                  BLOCK_PERM_CONSISTENT_READ | BLOCK_PERM_WRITE);
}

static void detach(struct disk *d)
{
    block_co_root_release(d->root);
    block_co_unref(d->node);
}

static uint64_t value_of(struct disk *d, enum block_stat i)
{
    uint64_t values[BLOCK_STATS];

    block_node_read_stats(d->node, values);
    return values[i];
}

static uint64_t figure_of(struct disk *d, enum block_op_type type, enum block_op_figure figure)
{
    return value_of(d, (enum block_stat)BLOCK_STAT(type, figure));
}

static void each_kind_is_counted_with_its_bytes(void *arg)
{
    struct disk d = attach_writable();
    char buf[4096] = {1};

    assert_int_equal(block_co_pread(d.edge, 0, buf, 512), 0);
    assert_int_equal(block_co_pread(d.edge, 512, buf, 1024), 0);
    assert_int_equal(block_co_pwrite(d.edge, 0, buf, 4096, 0), 0);
    assert_int_equal(block_co_write_zeroes(d.edge, 0, 8192, 0), 0);
    assert_int_equal(block_co_discard(d.edge, 0, 16384), 0);
    assert_int_equal(block_co_flush(d.edge), 0);

    assert_int_equal(figure_of(&d, BLOCK_OP_READ, BLOCK_OP_DONE), 2);
    assert_int_equal(figure_of(&d, BLOCK_OP_READ, BLOCK_OP_BYTES), 1536);
    assert_int_equal(figure_of(&d, BLOCK_OP_WRITE, BLOCK_OP_DONE), 1);
    assert_int_equal(figure_of(&d, BLOCK_OP_WRITE, BLOCK_OP_BYTES), 4096);
    assert_int_equal(figure_of(&d, BLOCK_OP_ZEROES, BLOCK_OP_DONE), 1);
    assert_int_equal(figure_of(&d, BLOCK_OP_ZEROES, BLOCK_OP_BYTES), 8192);
    assert_int_equal(figure_of(&d, BLOCK_OP_DISCARD, BLOCK_OP_DONE), 1);
    assert_int_equal(figure_of(&d, BLOCK_OP_DISCARD, BLOCK_OP_BYTES), 16384);
    assert_int_equal(figure_of(&d, BLOCK_OP_FLUSH, BLOCK_OP_DONE), 1);
    assert_int_equal(value_of(&d, BLOCK_STAT_BEGUN), 6);
    assert_int_equal(value_of(&d, BLOCK_STAT_IN_FLIGHT), 0);
    assert_int_equal(value_of(&d, BLOCK_STAT_WRITE_HIGHEST), 8192);
    detach(&d);
}

static void what_the_gate_refuses_is_invalid_and_what_the_driver_fails_has_failed(void *arg)
{
    struct disk d = attach_writable();
    char buf[512] = {0};

    assert_int_equal(block_co_pread(d.edge, MiB, buf, 512), -EIO);
    assert_int_equal(block_co_pwrite(d.edge, UINT64_MAX, buf, 512, 0), -EIO);
    memory_disk_fail(memory_disk_of(d.node), MEMORY_DISK_READ | MEMORY_DISK_WRITE, EIO);
    assert_int_equal(block_co_pread(d.edge, 0, buf, 512), -EIO);
    assert_int_equal(block_co_pwrite(d.edge, 0, buf, 512, 0), -EIO);
    assert_int_equal(block_co_pwrite(d.edge, 0, buf, 512, 0), -EIO);

    assert_int_equal(figure_of(&d, BLOCK_OP_READ, BLOCK_OP_INVALID), 1);
    assert_int_equal(figure_of(&d, BLOCK_OP_READ, BLOCK_OP_FAILED), 1);
    assert_int_equal(figure_of(&d, BLOCK_OP_WRITE, BLOCK_OP_INVALID), 1);
    assert_int_equal(figure_of(&d, BLOCK_OP_WRITE, BLOCK_OP_FAILED), 2);
    assert_int_equal(figure_of(&d, BLOCK_OP_WRITE, BLOCK_OP_BYTES), 0);
    assert_int_equal(value_of(&d, BLOCK_STAT_IN_FLIGHT), 0);
    detach(&d);
}

static void a_write_without_permission_is_invalid(void *arg)
{
    struct disk d = attach("driver=memory-disk,size=1M", BLOCK_PERM_CONSISTENT_READ);

    assert_int_equal(block_co_pwrite(d.edge, 0, "a", 1, 0), -EPERM);
    assert_int_equal(block_co_write_zeroes(d.edge, 0, 512, 0), -EPERM);
    assert_int_equal(figure_of(&d, BLOCK_OP_WRITE, BLOCK_OP_INVALID), 1);
    assert_int_equal(figure_of(&d, BLOCK_OP_ZEROES, BLOCK_OP_INVALID), 1);
    detach(&d);
}

/* --- in flight, and time ---------------------------------------------------------------------- */

struct reader {
    struct block_edge *edge;
    bool done;
};

static void read_one(void *arg)
{
    struct reader *r = arg;
    char buf[512];

    assert_int_equal(block_co_pread(r->edge, 0, buf, sizeof(buf)), 0);
    r->done = true;
}

#define HELD_NS 30000000

static void a_held_request_is_in_flight_and_its_time_counts(void *arg)
{
    struct disk d = attach_writable();
    struct memory_disk *disk = memory_disk_of(d.node);
    struct reader r = {.edge = d.edge};
    uint64_t ns;

    memory_disk_hold(disk, MEMORY_DISK_READ, 1);
    assert_int_equal(reactor_spawn(reactor_current(), read_one, &r), 0);
    while (value_of(&d, BLOCK_STAT_IN_FLIGHT) == 0) {
        co_reschedule();
    }
    loop_co_sleep(HELD_NS);
    assert_int_equal(value_of(&d, BLOCK_STAT_IN_FLIGHT), 1);
    memory_disk_release(disk);
    while (!r.done) {
        co_reschedule();
    }
    assert_int_equal(value_of(&d, BLOCK_STAT_IN_FLIGHT), 0);
    ns = figure_of(&d, BLOCK_OP_READ, BLOCK_OP_TIME);
    assert_true(ns >= HELD_NS && ns < INT64_C(100) * HELD_NS);
    detach(&d);
}

/*
 * Sampled as they are, many short ones take a time that is neither none nor many times the real
 * one.
 */
/* Whether the estimate of many short reads is near the time that they took. */
static bool estimate_is_near(struct disk *d)
{
    uint64_t before = figure_of(d, BLOCK_OP_READ, BLOCK_OP_TIME), ns, elapsed;
    int64_t begin = loop_now_ns();
    char buf[512];

    for (int i = 0; i < 20000; i++) {
        assert_int_equal(block_co_pread(d->edge, 0, buf, sizeof(buf)), 0);
    }
    elapsed = (uint64_t)(loop_now_ns() - begin);
    ns = figure_of(d, BLOCK_OP_READ, BLOCK_OP_TIME) - before;
    return ns > elapsed / 8 && ns < elapsed * 4;
}

/*
 * A read that loses its processor while it is timed counts for 16: so most rounds decide, not one.
 */
static void the_time_of_short_operations_is_estimated(void *arg)
{
    struct disk d = attach_writable();
    int near = 0;

    for (int round = 0; round < 9; round++) {
        near += estimate_is_near(&d);
    }
    assert_true(near >= 5);
    detach(&d);
}

static int setup(void **state)
{
    block_register_driver(&memory_disk_driver);
    return co_test_setup();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        CO_TEST(each_kind_is_counted_with_its_bytes),
        CO_TEST(what_the_gate_refuses_is_invalid_and_what_the_driver_fails_has_failed),
        CO_TEST(a_write_without_permission_is_invalid),
        CO_TEST(a_held_request_is_in_flight_and_its_time_counts),
        CO_TEST(the_time_of_short_operations_is_estimated),
    };

    return cmocka_run_group_tests(tests, setup, co_test_teardown);
}
