/* SPDX-License-Identifier: Apache-2.0 */
/* The order in which the driver of Parallels images writes, in a log of its file in memory. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "block/block.h"
#include "block/gate.h"
#include "loop/loop.h"
#include "memory_file.h"
#include "parallels/image.h"
#include "parallels/parallels.h"

#define CLUSTER (64 * KiB)
#define DISK_SIZE (4 * MiB)

struct disk {
    struct block_node *node;
    struct block_root *root;
    struct block_edge *edge;
};

static struct memory_file *file_of_disk(void)
{
    return memory_file("disk");
}

static void co_make(void)
{
    struct options *opts = NULL;

    assert_int_equal(options_parse("cluster_size=64k", NULL, &opts, NULL), 0);
    assert_int_equal(block_co_create_image("parallels", "memory:disk", DISK_SIZE, opts, NULL), 0);
}

static void co_open_disk(struct disk *d)
{
    struct options *opts = NULL;

    assert_int_equal(options_parse("driver=parallels,read-only=off,discard=unmap,"
                                   "file.driver=memory-file,file.name=disk",
                                   NULL, &opts, NULL),
                     0);
    assert_int_equal(block_co_open(opts, BLOCK_OPEN_RDWR, &d->node, NULL), 0);
    assert_int_equal(block_co_root_new(d->node, "guest",
                                       BLOCK_PERM_CONSISTENT_READ | BLOCK_PERM_WRITE,
                                       BLOCK_PERM_ALL, &d->root, NULL),
                     0);
    d->edge = block_root_edge(d->root);
}

static void co_close_disk(struct disk *d)
{
    block_co_root_release(d->root);
    assert_int_equal(block_co_close(d->node, NULL), 0);
}

static int co_fill(struct disk *d, uint64_t offset, int fill)
{
    uint8_t buf[4096];

    memset(buf, fill, sizeof(buf));
    return block_co_pwrite(d->edge, offset, buf, sizeof(buf), 0);
}

enum part { MARK, BAT, DATA, FLUSH, NOTHING };

static enum part part_of(const struct memory_file_op *op)
{
    if (op->kind == MEMORY_FILE_FLUSH) {
        return FLUSH;
    }
    if (op->kind != MEMORY_FILE_WRITE) {
        return NOTHING;
    }
    return op->offset == PARALLELS_AT_IN_USE ? MARK : op->offset < CLUSTER ? BAT : DATA;
}

/* The first operation of a kind in the log, from `from` on; the end of the log if there is none. */
static unsigned first_of(enum part part, unsigned from)
{
    const struct memory_file *f = file_of_disk();

    while (from < f->log_count && part_of(&f->log[from]) != part) {
        from++;
    }
    return from;
}

static uint32_t field(unsigned offset)
{
    return load_le32(file_of_disk()->data + offset);
}

/* --- the mark --------------------------------------------------------------------------------- */

static void co_test_mark(void *arg)
{
    struct disk d;

    co_make();
    co_open_disk(&d);
    file_of_disk()->log_count = 0;
    assert_int_equal(co_fill(&d, 0, 1), 0);
    assert_int_equal(first_of(MARK, 0), 0);
    assert_true(first_of(FLUSH, 0) < first_of(DATA, 0));
    assert_true(first_of(FLUSH, 0) < first_of(BAT, 0));
    assert_int_equal(field(PARALLELS_AT_IN_USE), PARALLELS_IN_USE);
    file_of_disk()->log_count = 0;
    co_close_disk(&d);
    assert_true(first_of(FLUSH, 0) < first_of(MARK, 0));
    assert_int_equal(field(PARALLELS_AT_IN_USE), 0);
}

static void test_the_mark_is_stable_before_and_after_all_else(void **state)
{
    reactor_run_until_done(co_test_mark, NULL);
}

/* A mark that can't be written: nothing else is. */
static void co_test_mark_fails(void *arg)
{
    struct disk d;

    co_make();
    for (unsigned flush = 0; flush < 2; flush++) {
        co_open_disk(&d);
        memory_file_fail(file_of_disk(), flush ? MEMORY_FILE_FLUSH : MEMORY_FILE_WRITE, 0, EIO);
        file_of_disk()->log_count = 0;
        assert_int_equal(co_fill(&d, 0, 1), -EIO);
        memory_file_fail(file_of_disk(), 0, 0, 0);
        assert_int_equal(first_of(DATA, 0), file_of_disk()->log_count);
        assert_int_equal(first_of(BAT, 0), file_of_disk()->log_count);
        assert_int_equal(co_fill(&d, 0, 1), 0);
        co_close_disk(&d);
    }
}

static void test_nothing_is_written_without_the_mark(void **state)
{
    reactor_run_until_done(co_test_mark_fails, NULL);
}

/* --- places ----------------------------------------------------------------------------------- */

static void co_test_reuse(void *arg)
{
    struct disk d;
    unsigned data, bat;

    co_make();
    co_open_disk(&d);
    assert_int_equal(co_fill(&d, 0, 1), 0);
    assert_int_equal(co_fill(&d, CLUSTER, 2), 0);
    assert_int_equal(block_co_discard(d.edge, 0, CLUSTER), 0);
    assert_int_equal(field(PARALLELS_HEADER_SIZE), 0);
    file_of_disk()->log_count = 0;
    assert_int_equal(co_fill(&d, 2 * CLUSTER, 3), 0);
    assert_int_equal(field(PARALLELS_HEADER_SIZE + 8), 1); /* the place of the first one */
    data = first_of(DATA, 0);
    bat = first_of(BAT, 0);
    assert_true(first_of(FLUSH, 0) < data);                 /* the old entry is gone */
    assert_true(data < bat && first_of(FLUSH, data) < bat); /* the old data are */
    co_close_disk(&d);
}

static void test_a_place_is_used_again_when_its_entry_is_stably_gone(void **state)
{
    reactor_run_until_done(co_test_reuse, NULL);
}

/* An entry that can't be taken out keeps its place; and one that can't be written leaves a leak. */
static void co_test_failures(void *arg)
{
    uint8_t buf[4096];
    struct disk d;

    co_make();
    co_open_disk(&d);
    assert_int_equal(co_fill(&d, 0, 1), 0);
    memory_file_fail(file_of_disk(), MEMORY_FILE_WRITE, 0, EIO);
    assert_int_equal(block_co_discard(d.edge, 0, CLUSTER), -EIO);
    memory_file_fail(file_of_disk(), 0, 0, 0);
    assert_int_equal(co_fill(&d, CLUSTER, 2), 0);
    assert_int_equal(block_co_pread(d.edge, 0, buf, sizeof(buf)), 0);
    assert_int_equal(buf[0], 1);
    assert_int_equal(field(PARALLELS_HEADER_SIZE), 1);
    assert_int_equal(field(PARALLELS_HEADER_SIZE + 4), 2);
    co_close_disk(&d);
}

static void test_a_discard_that_fails_keeps_the_place(void **state)
{
    reactor_run_until_done(co_test_failures, NULL);
}

/* --- repair ----------------------------------------------------------------------------------- */

static void co_test_copy(void *arg)
{
    struct disk d;
    unsigned data, bat;

    co_make();
    co_open_disk(&d);
    assert_int_equal(co_fill(&d, 0, 1), 0);
    co_close_disk(&d);
    store_le32(file_of_disk()->data + PARALLELS_HEADER_SIZE + 4, 1);
    file_of_disk()->log_count = 0;
    co_open_disk(&d);
    data = first_of(DATA, first_of(FLUSH, 0)); /* the file was made longer before */
    bat = first_of(BAT, 0);
    assert_true(data < bat && first_of(FLUSH, data) < bat);
    assert_int_equal(field(PARALLELS_HEADER_SIZE + 4), 2);
    co_close_disk(&d);
}

static void test_a_copy_is_stable_before_its_entry(void **state)
{
    reactor_run_until_done(co_test_copy, NULL);
}

static int set_up(void **state)
{
    if (reactor_init_main(NULL) < 0) {
        return -1;
    }
    block_register_driver(&memory_file_driver);
    parallels_register_driver();
    return 0;
}

static int tear_down(void **state)
{
    memory_file_free_all();
    reactor_exit_main();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_mark_is_stable_before_and_after_all_else),
        cmocka_unit_test(test_nothing_is_written_without_the_mark),
        cmocka_unit_test(test_a_place_is_used_again_when_its_entry_is_stably_gone),
        cmocka_unit_test(test_a_discard_that_fails_keeps_the_place),
        cmocka_unit_test(test_a_copy_is_stable_before_its_entry),
    };

    return cmocka_run_group_tests(tests, set_up, tear_down);
}
