/* SPDX-License-Identifier: Apache-2.0 */
/* The gate: who may do what, where a node ends, and which flushes go through. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/checked.h"
#include "block/driver.h"
#include "co/co.h"
#include "co_test.h"
#include "loop/loop.h"
#include "memory_disk.h"

#define READ BLOCK_PERM_CONSISTENT_READ
#define RW (READ | BLOCK_PERM_WRITE)
#define DISK "driver=memory-disk,size=1M"

/* --- helpers ---------------------------------------------------------------------------------- */

struct disk {
    struct block_node *node;
    struct block_root *root;
    struct block_edge *edge;
};

static struct disk attach(const char *options, unsigned flags, unsigned perm)
{
    struct options *opts = NULL;
    struct disk d = {0};
    ERROR_AUTO(err);

    if (options_parse(options, NULL, &opts, &err) < 0 ||
        block_co_open(opts, flags, &d.node, &err) < 0 ||
        block_co_root_new(d.node, "test", perm, BLOCK_PERM_ALL, &d.root, &err) < 0) {
        fail_msg("%s", error_message(&err));
    }
    d.edge = block_root_edge(d.root);
    return d;
}

static void detach(struct disk *d)
{
    block_co_root_release(d->root);
    block_co_unref(d->node);
}

static uint64_t writes_of(struct disk *d)
{
    return memory_disk_requests(memory_disk_of(d->node), MEMORY_DISK_WRITE);
}

static uint64_t flushes_of(struct disk *d)
{
    return memory_disk_requests(memory_disk_of(d->node), MEMORY_DISK_FLUSH);
}

static int write_one(struct disk *d, unsigned flags)
{
    return block_co_pwrite(d->edge, 4096, "a", 1, flags);
}

/* --- who may do what -------------------------------------------------------------------------- */

static void who_may_only_read_changes_nothing(void *arg)
{
    struct disk d = attach(DISK, BLOCK_OPEN_RDWR, READ);

    assert_int_equal(write_one(&d, 0), -EPERM);
    assert_int_equal(write_one(&d, BLOCK_REQ_UNCHANGED), -EPERM);
    assert_int_equal(block_co_write_zeroes(d.edge, 0, 4096, 0), -EPERM);
    assert_int_equal(block_co_discard(d.edge, 0, 4096), -EPERM);
    assert_int_equal(block_co_truncate(d.edge, 2 * MiB, BLOCK_PREALLOC_OFF, NULL), -EPERM);
    assert_int_equal(writes_of(&d), 0);
    detach(&d);
}

static void who_may_keep_contents_can_only_write_what_is_there(void *arg)
{
    struct disk d = attach(DISK, BLOCK_OPEN_RDWR, READ | BLOCK_PERM_WRITE_UNCHANGED);

    assert_int_equal(write_one(&d, 0), -EPERM);
    assert_int_equal(write_one(&d, BLOCK_REQ_UNCHANGED), 0);
    detach(&d);
}

static void a_root_sees_the_end_of_its_node(void *arg)
{
    struct disk d = attach(DISK, BLOCK_OPEN_RDWR, RW);
    char two[2];

    assert_int_equal(block_co_pread(d.edge, MiB - 1, two, 1), 0);
    assert_int_equal(block_co_pread(d.edge, MiB - 1, two, 2), -EIO);
    assert_int_equal(block_co_pread(d.edge, MiB, two, 1), -EIO);
    assert_int_equal(block_co_pread(d.edge, UINT64_MAX, two, 2), -EIO);
    assert_int_equal(block_co_pwrite(d.edge, MiB - 1, two, 2, 0), -EIO);
    assert_int_equal(block_co_pwrite(d.edge, UINT64_MAX, two, 2, 0), -EIO);
    assert_int_equal(block_co_write_zeroes(d.edge, MiB - 1, 2, 0), -EIO);
    assert_int_equal(writes_of(&d), 0);
    detach(&d);
}

/* --- flush ------------------------------------------------------------------------------------ */

static void each_write_gets_its_flush_and_none_is_made_twice(void *arg)
{
    struct disk d = attach(DISK, BLOCK_OPEN_RDWR, RW);

    for (unsigned n = 1; n < 4; n++) {
        assert_int_equal(write_one(&d, 0), 0);
        assert_int_equal(block_co_flush(d.edge), 0);
        assert_int_equal(flushes_of(&d), n);
        assert_int_equal(block_co_flush(d.edge), 0);
        assert_int_equal(flushes_of(&d), n);
    }
    detach(&d);
}

static void what_the_driver_can_not_make_stable_is_flushed(void *arg)
{
    struct disk d = attach(DISK ",discard=unmap", BLOCK_OPEN_RDWR, RW);

    assert_int_equal(write_one(&d, BLOCK_REQ_FUA), 0);
    assert_int_equal(flushes_of(&d), 1);
    assert_int_equal(block_co_write_zeroes(d.edge, 0, 64 * KiB, BLOCK_REQ_FUA), 0);
    assert_int_equal(flushes_of(&d), 2);
    assert_int_equal(block_co_write_zeroes(d.edge, 0, 64 * KiB, BLOCK_REQ_MAY_UNMAP), 0);
    assert_int_equal(flushes_of(&d), 2);
    detach(&d);
}

static void a_flush_that_failed_is_tried_again(void *arg)
{
    struct disk d = attach(DISK, BLOCK_OPEN_RDWR, RW);

    assert_int_equal(write_one(&d, 0), 0);
    memory_disk_fail(memory_disk_of(d.node), MEMORY_DISK_FLUSH, EIO);
    assert_int_equal(block_co_flush(d.edge), -EIO);
    assert_int_equal(write_one(&d, BLOCK_REQ_FUA), -EIO);
    memory_disk_fail(memory_disk_of(d.node), 0, 0);
    assert_int_equal(block_co_flush(d.edge), 0);
    assert_true(flushes_of(&d) >= 3);
    detach(&d);
}

struct flush_job {
    struct disk *disk;
    struct co_group group;
};

static void flush(void *arg)
{
    struct flush_job *job = arg;

    assert_int_equal(block_co_flush(job->disk->edge), 0);
    co_group_done(&job->group);
}

static void a_write_during_a_flush_is_not_covered_by_it(void *arg)
{
    struct disk d = attach(DISK, BLOCK_OPEN_RDWR, RW);
    struct flush_job job = {.disk = &d};
    struct memory_disk *m = memory_disk_of(d.node);

    assert_int_equal(write_one(&d, 0), 0);
    memory_disk_hold(m, MEMORY_DISK_FLUSH, 1);
    co_group_init(&job.group);
    co_group_add(&job.group);
    assert_int_equal(reactor_spawn(reactor_main(), flush, &job), 0);
    while (memory_disk_held(m) == 0) {
        co_reschedule();
    }
    assert_int_equal(write_one(&d, 0), 0);
    memory_disk_release(m);
    co_group_wait(&job.group);
    co_group_destroy(&job.group);
    assert_int_equal(flushes_of(&d), 1);
    assert_int_equal(block_co_flush(d.edge), 0);
    assert_int_equal(flushes_of(&d), 2);
    detach(&d);
}

/* --- a node over two -------------------------------------------------------------------------- */

static int pair_co_open(struct block_node *node, struct options *opts, struct error *err)
{
    static const char *const names[] = {"file", "second"};
    int r = 0;

    for (int i = 0; i < 2 && r == 0; i++) {
        r = block_co_open_child(node, opts, names[i], BLOCK_ROLE_DATA, false, NULL, err);
    }
    block_node_set_size(node, MiB);
    return r;
}

static int pair_co_pwritev(struct block_node *node, uint64_t offset, struct iov iov, unsigned flags)
{
    struct block_edge *edge;
    int r = 0;

    LIST_FOREACH (edge, &node->children, sibling) {
        r = r < 0 ? r : block_co_pwritev(edge, offset, iov, 0);
    }
    return r;
}

static const struct block_driver pair_driver = {
    .name = "pair",
    .co_open = pair_co_open,
    .co_pwritev = pair_co_pwritev,
};

static void a_flush_fails_if_that_of_any_child_does(void *arg)
{
    struct disk d = attach("driver=pair,file.driver=memory-disk,file.size=1M,"
                           "second.driver=memory-disk,second.size=1M",
                           BLOCK_OPEN_RDWR, RW);
    struct block_edge *failing;

    LIST_FOREACH (failing, &d.node->children, sibling) {
        assert_int_equal(write_one(&d, 0), 0);
        memory_disk_fail(memory_disk_of(failing->node), MEMORY_DISK_FLUSH, EIO);
        assert_int_equal(block_co_flush(d.edge), -EIO);
        memory_disk_fail(memory_disk_of(failing->node), 0, 0);
    }
    assert_int_equal(block_co_flush(d.edge), 0);
    LIST_FOREACH (failing, &d.node->children, sibling) {
        assert_int_equal(memory_disk_requests(memory_disk_of(failing->node), MEMORY_DISK_WRITE), 2);
    }
    detach(&d);
}

/*
 * A flush by one who may only read makes stable what another wrote before he left; or it must not
 * count as one.
 */
static void a_reader_s_flush_is_one_too(void *arg)
{
    struct disk d = attach("driver=pair,file.driver=memory-disk,file.size=1M,"
                           "second.driver=memory-disk,second.size=1M",
                           BLOCK_OPEN_RDWR, RW);
    struct block_edge *child;

    assert_int_equal(write_one(&d, 0), 0);
    assert_int_equal(block_co_root_set_perm(d.root, READ, BLOCK_PERM_ALL, NULL), 0);
    assert_int_equal(block_co_flush(d.edge), 0);
    assert_int_equal(block_co_root_set_perm(d.root, RW, BLOCK_PERM_ALL, NULL), 0);
    assert_int_equal(block_co_flush(d.edge), 0);
    LIST_FOREACH (child, &d.node->children, sibling) {
        assert_int_equal(memory_disk_requests(memory_disk_of(child->node), MEMORY_DISK_FLUSH), 1);
    }
    detach(&d);
}

/* --- space ------------------------------------------------------------------------------------ */

static unsigned last_zero_flags;

static int notes_co_open(struct block_node *node, struct options *opts, struct error *err)
{
    block_node_set_size(node, MiB);
    node->supported_zero_flags = BLOCK_REQ_MAY_UNMAP;
    return 0;
}

static int notes_co_pwritev(struct block_node *node, uint64_t offset, struct iov iov,
                            unsigned flags)
{
    return 0;
}

static int notes_co_write_zeroes(struct block_node *node, uint64_t offset, uint64_t length,
                                 unsigned flags)
{
    last_zero_flags = flags;
    return 0;
}

static int notes_co_truncate(struct block_node *node, uint64_t size, enum block_prealloc prealloc,
                             struct error *err)
{
    block_node_set_size(node, size);
    return 0;
}

static int notes_co_preadv_snapshot(struct block_node *node, uint64_t offset, struct iov iov)
{
    return 0;
}

static const struct block_driver notes_driver = {
    .name = "notes",
    .co_open = notes_co_open,
    .co_truncate = notes_co_truncate,
    .co_preadv_snapshot = notes_co_preadv_snapshot,
    .co_pwritev = notes_co_pwritev,
    .co_write_zeroes = notes_co_write_zeroes,
};

static void zeroes_give_space_back_only_where_that_is_allowed(void *arg)
{
    struct disk d = attach("driver=notes,discard=unmap", BLOCK_OPEN_RDWR, RW);

    assert_int_equal(block_co_write_zeroes(d.edge, 0, MiB, BLOCK_REQ_MAY_UNMAP), 0);
    assert_int_equal(last_zero_flags, BLOCK_REQ_MAY_UNMAP);
    detach(&d);
    d = attach("driver=notes,discard=ignore", BLOCK_OPEN_RDWR, RW);
    assert_int_equal(block_co_write_zeroes(d.edge, 0, MiB, BLOCK_REQ_MAY_UNMAP), 0);
    assert_int_equal(last_zero_flags, 0);
    detach(&d);
}

static void a_discard_goes_through_only_where_that_is_allowed(void *arg)
{
    struct disk d = attach(DISK, BLOCK_OPEN_RDWR, RW);
    struct memory_disk *m = memory_disk_of(d.node);

    assert_int_equal(block_co_discard(d.edge, 0, MiB), 0);
    assert_int_equal(memory_disk_requests(m, MEMORY_DISK_DISCARD), 1);
    d.node->discard_unmap = false;
    assert_int_equal(block_co_discard(d.edge, 0, MiB), 0);
    assert_int_equal(memory_disk_requests(m, MEMORY_DISK_DISCARD), 1);
    detach(&d);
}

/* --- size ------------------------------------------------------------------------------------- */

static void bitmaps_follow_a_change_of_size(void *arg)
{
    struct disk d = attach("driver=notes", BLOCK_OPEN_RDWR, RW | BLOCK_PERM_RESIZE);
    struct block_bitmap *b = NULL;

    assert_int_equal(block_co_bitmap_add(d.node, "b", 64 * KiB, false, false, &b, NULL), 0);
    assert_int_equal(block_co_truncate(d.edge, 2 * MiB, BLOCK_PREALLOC_OFF, NULL), 0);
    assert_int_equal(dirty_bitmap_size(block_bitmap_bits(b)), 2 * MiB);
    assert_int_equal(block_co_pwrite(d.edge, 2 * MiB - 1, "a", 1, 0), 0);
    assert_true(dirty_bitmap_get(block_bitmap_bits(b), 2 * MiB - 1));
    assert_int_equal(block_co_bitmap_remove(b, NULL), 0);
    detach(&d);
}

static void frozen_contents_end_with_the_node(void *arg)
{
    struct disk d = attach("driver=notes", BLOCK_OPEN_RDWR, READ);
    char two[2];
    struct iovec vec;

    assert_int_equal(block_co_preadv_snapshot(d.edge, MiB - 2, iov_from_buf(&vec, two, 2)), 0);
    assert_int_equal(block_co_preadv_snapshot(d.edge, MiB - 1, iov_from_buf(&vec, two, 2)), -EIO);
    assert_int_equal(block_co_discard_snapshot(d.edge, MiB - 1, 2), -EIO);
    detach(&d);
}

/* --- reads that exclude changes --------------------------------------------------------------- */

struct piece {
    struct disk *disk;
    uint64_t offset;
    bool write, zero, done;
    int r;
};

static void co_do_piece(void *arg)
{
    struct piece *p = arg;
    char buf[4096];

    p->r = p->zero    ? block_co_write_zeroes(p->disk->edge, p->offset, sizeof(buf), 0)
           : p->write ? block_co_pwrite(p->disk->edge, p->offset, memset(buf, 1, sizeof(buf)),
                                        sizeof(buf), 0)
                      : block_co_pread(p->disk->edge, p->offset, buf, sizeof(buf));
    p->done = true;
}

static void begin_piece(struct piece *p, struct disk *d, uint64_t offset, bool write, bool zero)
{
    *p = (struct piece){.disk = d, .offset = offset, .write = write, .zero = zero, .r = -1};
    assert_int_equal(co_spawn(co_get_home(co_self()), co_do_piece, p), 0);
}

static void wait_a_moment(void)
{
    for (int i = 0; i < 20; i++) {
        loop_co_sleep(100000);
    }
}

static void changes_wait_for_reads_where_they_exclude_each_other(void *arg)
{
    struct disk d = attach(DISK, BLOCK_OPEN_RDWR, RW);
    struct memory_disk *m = memory_disk_of(d.node);
    struct piece read, write, zeroes, elsewhere, late;

    for (int on = 0; on < 2; on++) {
        block_node_set_serialising(d.node, on ? d.node : NULL);
        memory_disk_hold(m, MEMORY_DISK_READ, 1);
        begin_piece(&read, &d, 0, false, false);
        wait_a_moment();
        begin_piece(&write, &d, 2048, true, false);
        begin_piece(&zeroes, &d, 1024, true, true);
        begin_piece(&elsewhere, &d, 65536, true, false);
        begin_piece(&late, &d, 2048, false, false);
        wait_a_moment();
        assert_true(elsewhere.done);
        assert_int_equal(write.done, !on);
        assert_int_equal(zeroes.done, !on);
        memory_disk_release(m);
        wait_a_moment();
        assert_true(read.done && write.done && zeroes.done && late.done);
        assert_int_equal(read.r | write.r | zeroes.r | elsewhere.r | late.r, 0);
    }
    block_node_set_serialising(d.node, NULL);
    detach(&d);
}

/* --- running ---------------------------------------------------------------------------------- */

static int setup(void **state)
{
    block_register_driver(&memory_disk_driver);
    block_register_driver(&pair_driver);
    block_register_driver(&notes_driver);
    return co_test_setup();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        CO_TEST(who_may_only_read_changes_nothing),
        CO_TEST(who_may_keep_contents_can_only_write_what_is_there),
        CO_TEST(a_root_sees_the_end_of_its_node),
        CO_TEST(each_write_gets_its_flush_and_none_is_made_twice),
        CO_TEST(what_the_driver_can_not_make_stable_is_flushed),
        CO_TEST(a_flush_that_failed_is_tried_again),
        CO_TEST(a_write_during_a_flush_is_not_covered_by_it),
        CO_TEST(a_flush_fails_if_that_of_any_child_does),
        CO_TEST(a_reader_s_flush_is_one_too),
        CO_TEST(zeroes_give_space_back_only_where_that_is_allowed),
        CO_TEST(a_discard_goes_through_only_where_that_is_allowed),
        CO_TEST(bitmaps_follow_a_change_of_size),
        CO_TEST(frozen_contents_end_with_the_node),
        CO_TEST(changes_wait_for_reads_where_they_exclude_each_other),
    };

    return cmocka_run_group_tests(tests, setup, co_test_teardown);
}
