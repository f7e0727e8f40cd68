/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writes to images of the first version of qcow in memory: the order of data, flushes and tables,
 * and what an earlier crash has left in the file.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "block/block.h"
#include "block/gate.h"
#include "loop/loop.h"
#include "memory_file.h"
#include "qcow1/image.h"
#include "qcow1/qcow1.h"

#define DISK_SIZE (4 * MiB)
#define WRITE_SIZE (64 * KiB)

struct disk {
    struct block_node *node;
    struct block_root *root;
    struct block_edge *edge;
};

static void co_make(const char *name, const char *options)
{
    struct options *opts = NULL;
    char filename[64];

    snprintf(filename, sizeof(filename), "memory:%s", name);
    assert_int_equal(options_parse(options, NULL, &opts, NULL), 0);
    assert_int_equal(block_co_create_image("qcow", filename, DISK_SIZE, opts, NULL), 0);
}

static void co_open_disk(const char *name, const char *more, struct disk *d)
{
    struct options *opts = NULL;
    char text[200];

    snprintf(text, sizeof(text), "driver=qcow,read-only=off,file.driver=memory-file,file.name=%s%s",
             name, more);
    assert_int_equal(options_parse(text, NULL, &opts, NULL), 0);
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

static int co_fill(struct disk *d, uint64_t offset, size_t size, int fill)
{
    uint8_t *buf = malloc(size);
    int r;

    memset(buf, fill, size);
    r = block_co_pwrite(d->edge, offset, buf, size, 0);
    free(buf);
    return r;
}

static void co_expect(struct disk *d, uint64_t offset, size_t size, int fill)
{
    uint8_t *buf = malloc(size);

    assert_int_equal(block_co_pread(d->edge, offset, buf, size), 0);
    for (size_t i = 0; i < size; i++) {
        assert_int_equal(buf[i], fill);
    }
    free(buf);
}

/* Clusters of 512 bytes over a backing file: all of a request are flushed, and linked, at once. */
static void co_test_order(void *arg)
{
    struct memory_file *top = memory_file("top");
    unsigned data = 0, flush = 0, table = 0, flushes = 0;
    struct disk d;

    co_make("base", "backing_fmt=raw");
    co_make("top", "backing_file=memory:base,backing_fmt=qcow");
    co_open_disk("top",
                 ",backing.driver=qcow,backing.file.driver=memory-file,backing.file.name=base", &d);
    assert_int_equal(co_fill(&d, 0, 512, 1), 0);
    top->log_count = 0;
    assert_int_equal(co_fill(&d, MiB, WRITE_SIZE, 2), 0);
    for (unsigned i = 0; i < top->log_count; i++) {
        const struct memory_file_op *op = &top->log[i];

        if (op->kind == MEMORY_FILE_FLUSH) {
            flush = data > 0 && flush == 0 ? i + 1 : flush;
            flushes++;
        } else if (op->length == WRITE_SIZE) {
            data = i + 1;
        } else if (op->length == WRITE_SIZE / 512 * 8) {
            table = i + 1;
        }
    }
    assert_true(data > 0 && data < flush && flush < table);
    assert_true(flushes <= 2);
    co_expect(&d, MiB, WRITE_SIZE, 2);
    co_close_disk(&d);
}

static void test_new_clusters_are_stable_before_their_entries(void **state)
{
    reactor_run_until_done(co_test_order, NULL);
}

/* As if all that follows had been reserved by a request that has failed. */
static void give_space_back(struct block_node *node, uint64_t offset)
{
    struct blockmap_place place = {.host = offset};

    qcow1_co_give_back_locked(node, &place);
}

/* The file is longer than what the image has in it. */
static void co_test_rest(void *arg)
{
    struct memory_file *f = memory_file("disk");
    struct disk d;

    co_make("disk", "backing_fmt=raw");
    co_open_disk("disk", "", &d);
    assert_int_equal(co_fill(&d, 0, 512, 0x99), 0);
    store_be64(f->data + QCOW1_HEADER_SIZE, 0); /* a crash: the entry of the table was lost */
    memset(f->data + 4096, 0x99, 8192);
    co_close_disk(&d);
    co_open_disk("disk", "", &d);
    give_space_back(d.node, 4096);
    assert_int_equal(co_fill(&d, 0, 512, 1), 0);
    co_expect(&d, 0, 512, 1);
    co_expect(&d, 512, WRITE_SIZE, 0);
    co_close_disk(&d);
}

static void test_a_table_in_a_place_that_was_used_is_cleared(void **state)
{
    reactor_run_until_done(co_test_rest, NULL);
}

/* An entry of the L1 table that can't be written: the file does not grow with each attempt. */
static void co_test_l1_fails(void *arg)
{
    struct memory_file *f = memory_file("full");
    uint64_t table;
    struct disk d;

    co_make("full", "backing_fmt=raw");
    co_open_disk("full", "", &d);
    for (unsigned i = 0; i < 20; i++) {
        memory_file_fail(f, MEMORY_FILE_WRITE, 0, ENOSPC);
        assert_int_equal(co_fill(&d, 0, 4096, 1), -ENOSPC);
        memory_file_fail(f, 0, 0, 0);
    }
    assert_int_equal(co_fill(&d, 0, 4096, 1), 0);
    table = load_be64(f->data + QCOW1_HEADER_SIZE);
    assert_int_equal(load_be64(f->data + table), table + 4096);
    co_close_disk(&d);
}

static void test_a_table_that_is_not_linked_is_used_again(void **state)
{
    reactor_run_until_done(co_test_l1_fails, NULL);
}

static int set_up(void **state)
{
    if (reactor_init_main(NULL) < 0) {
        return -1;
    }
    block_register_driver(&memory_file_driver);
    qcow1_register_driver();
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
        cmocka_unit_test(test_new_clusters_are_stable_before_their_entries),
        cmocka_unit_test(test_a_table_in_a_place_that_was_used_is_cleared),
        cmocka_unit_test(test_a_table_that_is_not_linked_is_used_again),
    };

    return cmocka_run_group_tests(tests, set_up, tear_down);
}
