/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Copies: on read, during writes; the engine, where the source fails or is zero in part; before
 * writes, by a bitmap.
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
#include "block/driver.h"
#include "co_test.h"
#include "copy/block_copy.h"
#include "filter/filter.h"
#include "loop/loop.h"
#include "memory_disk.h"
#include "memory_file.h"
#include "qcow2/qcow2.h"

#define RW (BLOCK_PERM_CONSISTENT_READ | BLOCK_PERM_WRITE)
#define C (64 * KiB)
#define TURNS 200

/* --- helpers ---------------------------------------------------------------------------------- */

struct disk {
    struct block_node *node;
    struct block_root *root;
    struct block_edge *edge;
};

static struct disk attach(const char *options)
{
    struct options *opts = NULL;
    struct disk d = {0};
    ERROR_AUTO(err);

    if (options_parse(options, NULL, &opts, &err) < 0 ||
        block_co_open(opts, BLOCK_OPEN_RDWR, &d.node, &err) < 0 ||
        block_co_root_new(d.node, "test", RW, BLOCK_PERM_ALL, &d.root, &err) < 0) {
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

/* An empty image over a disk whose bytes are those of byte_at(), behind copy-on-read. */
struct chain {
    struct disk disk;
    struct block_node *image;
    struct memory_disk *base;
    struct memory_file *file;
};

static uint8_t byte_at(uint64_t offset)
{
    return (uint8_t)(1 + offset % 251);
}

static struct chain open_chain_of(uint64_t size)
{
    struct chain c = {.file = memory_file("top")};
    char options[200];

    assert_int_equal(block_co_create_image("qcow2", "memory:top", size, options_new(), NULL), 0);
    snprintf(options, sizeof(options),
             "driver=copy-on-read,file.driver=qcow2,file.file.driver=memory-file,"
             "file.file.name=top,file.backing.driver=memory-disk,file.backing.size=%llu",
             (unsigned long long)size);
    c.disk = attach(options);
    c.image = c.disk.node->file->node;
    c.base = memory_disk_of(block_node_backing(c.image));
    for (uint64_t i = 0; i < size; i++) {
        c.base->data[i] = byte_at(i);
    }
    memset(c.base->written, 1, size / 4096);
    return c;
}

static struct chain open_chain(void)
{
    return open_chain_of(MiB);
}

static void close_chain(struct chain *c)
{
    detach(&c->disk);
    memory_file_free_all();
}

static void expect_base(struct chain *c, uint64_t offset, size_t size)
{
    uint8_t *buf = calloc(1, size);

    assert_int_equal(block_co_pread(c->disk.edge, offset, buf, size), 0);
    for (size_t i = 0; i < size; i++) {
        assert_int_equal(buf[i], byte_at(offset + i));
    }
    free(buf);
}

struct request {
    struct block_edge *edge;
    struct co_group *group;
    bool done;
    uint64_t offset; /* of a write */
};

static void read_cluster(void *arg)
{
    struct request *r = arg;
    char byte;

    assert_int_equal(block_co_pread(r->edge, 0, &byte, 1), 0);
    r->done = true;
    co_group_done(r->group);
}

static void write_byte(void *arg)
{
    struct request *r = arg;

    assert_int_equal(block_co_pwrite(r->edge, r->offset, "w", 1, 0), 0);
    r->done = true;
    co_group_done(r->group);
}

/* --- copy-on-read ----------------------------------------------------------------------------- */

static void a_write_waits_for_a_copy_that_has_read_but_not_written(void *arg)
{
    struct chain c = open_chain();
    struct co_group group;
    struct request r = {c.disk.edge, &group, false, 100}, w = r;
    char byte;

    co_group_init(&group);
    memory_disk_hold(c.base, MEMORY_DISK_READ, 1);
    co_group_add(&group);
    assert_int_equal(reactor_spawn(reactor_main(), read_cluster, &r), 0);
    while (memory_disk_held(c.base) == 0) {
        co_reschedule();
    }
    co_group_add(&group);
    assert_int_equal(reactor_spawn(reactor_main(), write_byte, &w), 0);
    for (int i = 0; i < TURNS; i++) {
        co_reschedule();
    }
    assert_false(w.done);
    memory_disk_release(c.base);
    co_group_wait(&group);
    co_group_destroy(&group);
    assert_int_equal(block_co_pread(c.disk.edge, 100, &byte, 1), 0);
    assert_int_equal(byte, 'w');
    expect_base(&c, 101, C - 101);
    close_chain(&c);
}

static void read_all(void *arg)
{
    struct request *r = arg;
    char *buf = malloc(3 * MiB);

    assert_int_equal(block_co_pread(r->edge, 0, buf, 3 * MiB), 0);
    assert_int_equal((uint8_t)buf[2 * MiB + 101], byte_at(2 * MiB + 101));
    free(buf);
    r->done = true;
    co_group_done(r->group);
}

/* Only the part of a long read that is on its way is locked. */
static void a_write_does_not_wait_for_the_copy_of_another_part(void *arg)
{
    struct chain c = open_chain_of(3 * MiB);
    struct co_group group;
    struct request r = {c.disk.edge, &group, false, 2 * MiB + 100}, w = r;
    char byte;

    co_group_init(&group);
    memory_disk_hold(c.base, MEMORY_DISK_READ, 1);
    co_group_add(&group);
    assert_int_equal(reactor_spawn(reactor_main(), read_all, &r), 0);
    while (memory_disk_held(c.base) == 0) {
        co_reschedule();
    }
    co_group_add(&group);
    assert_int_equal(reactor_spawn(reactor_main(), write_byte, &w), 0);
    for (int i = 0; i < 100 * TURNS && !w.done; i++) {
        co_reschedule();
    }
    assert_true(w.done);
    assert_false(r.done);
    memory_disk_release(c.base);
    co_group_wait(&group);
    co_group_destroy(&group);
    assert_int_equal(block_co_pread(c.disk.edge, 2 * MiB + 100, &byte, 1), 0);
    assert_int_equal(byte, 'w');
    expect_base(&c, 0, 2 * MiB + 100);
    expect_base(&c, 2 * MiB + 101, MiB - 101);
    close_chain(&c);
}

static void a_read_within_a_cluster_gets_its_own_bytes(void *arg)
{
    struct chain c = open_chain();

    expect_base(&c, C + 1000, 50);
    expect_base(&c, 3 * C - 10, C + 20); /* over three clusters */
    expect_base(&c, C, C);
    close_chain(&c);
}

static void what_is_there_is_not_written_again(void *arg)
{
    struct chain c = open_chain();
    uint64_t data = 0;

    assert_int_equal(block_co_pwrite(c.disk.edge, 0, "w", 1, 0), 0);
    c.file->log_count = 0;
    expect_base(&c, 1, 2 * C - 1);
    for (unsigned i = 0; i < c.file->log_count; i++) {
        if (c.file->log[i].kind == MEMORY_FILE_WRITE) {
            data += c.file->log[i].length;
        }
    }
    assert_in_range(data, C, C + C / 2);
    close_chain(&c);
}

static void a_copy_changes_nothing_that_a_bitmap_records(void *arg)
{
    struct chain c = open_chain();
    struct block_bitmap *b = NULL;

    assert_int_equal(block_co_bitmap_add(c.image, "b", C, false, false, &b, NULL), 0);
    expect_base(&c, 0, MiB);
    assert_int_equal(dirty_bitmap_count(block_bitmap_bits(b)), 0);
    assert_int_equal(block_co_pwrite(c.disk.edge, 0, "w", 1, 0), 0);
    assert_int_equal(dirty_bitmap_count(block_bitmap_bits(b)), C);
    assert_int_equal(block_co_bitmap_remove(b, NULL), 0);
    close_chain(&c);
}

/* --- copy-before-write ------------------------------------------------------------------------ */

static void a_bitmap_of_another_size_decides_nothing(void *arg)
{
    struct disk disk = attach("driver=memory-disk,size=1M,node-name=disk");
    struct disk other = attach("driver=memory-disk,size=2M,node-name=other");
    struct options *opts = NULL;
    struct block_bitmap *b = NULL;
    struct block_node *node;
    ERROR_AUTO(err);

    assert_int_equal(block_co_bitmap_add(other.node, "b", C, false, false, &b, NULL), 0);
    assert_int_equal(options_parse("driver=copy-before-write,file=disk,target.driver=memory-disk,"
                                   "target.size=1M,bitmap.node=other,bitmap.name=b",
                                   NULL, &opts, &err),
                     0);
    assert_int_equal(block_co_open(opts, BLOCK_OPEN_RDWR, &node, &err), -EINVAL);
    assert_non_null(strstr(error_message(&err), "they must agree"));
    assert_int_equal(block_co_bitmap_remove(b, NULL), 0);
    detach(&disk);
    detach(&other);
}

/* --- the copy engine -------------------------------------------------------------------------- */

static struct block_copy *engine_between(struct disk *from, struct disk *to)
{
    struct block_copy_params params = {.cluster_size = C};
    struct block_copy *copy = NULL;

    assert_int_equal(block_copy_new(from->edge, to->edge, &params, &copy, NULL), 0);
    return copy;
}

static void a_source_that_fails_fails_the_copy(void *arg)
{
    struct disk from = attach("driver=memory-disk,size=1M");
    struct disk to = attach("driver=memory-disk,size=1M");
    struct block_copy *copy = engine_between(&from, &to);
    struct block_copy_failure failure = {0};

    assert_int_equal(block_co_pwrite(from.edge, 3 * C, "a", 1, 0), 0);
    memory_disk_fail(memory_disk_of(from.node), MEMORY_DISK_READ, EIO);
    assert_int_equal(block_co_copy(copy, 2 * C, 4 * C, &failure), -EIO);
    assert_true(failure.reading);
    block_copy_free(copy);
    detach(&from);
    detach(&to);
}

static void data_next_to_zeroes_in_one_cluster_is_copied(void *arg)
{
    struct disk from = attach("driver=memory-disk,size=1M");
    struct disk to = attach("driver=memory-disk,size=1M");
    struct block_copy *copy = engine_between(&from, &to);
    const uint8_t *found = memory_disk_of(to.node)->data;

    assert_int_equal(block_co_pwrite(from.edge, 3 * C + 8 * KiB, "a", 1, 0), 0);
    assert_int_equal(block_co_pwrite(from.edge, 9 * C - 1, "b", 1, 0), 0);
    assert_int_equal(block_co_copy(copy, 0, MiB, NULL), 0);
    assert_int_equal(found[3 * C + 8 * KiB], 'a');
    assert_int_equal(found[9 * C - 1], 'b');
    block_copy_free(copy);
    detach(&from);
    detach(&to);
}

/* --- running ---------------------------------------------------------------------------------- */

static int setup(void **state)
{
    block_register_driver(&memory_disk_driver);
    block_register_driver(&memory_file_driver);
    filter_register_drivers();
    qcow2_register_driver();
    return co_test_setup();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        CO_TEST(a_write_waits_for_a_copy_that_has_read_but_not_written),
        CO_TEST(a_write_does_not_wait_for_the_copy_of_another_part),
        CO_TEST(a_read_within_a_cluster_gets_its_own_bytes),
        CO_TEST(what_is_there_is_not_written_again),
        CO_TEST(a_copy_changes_nothing_that_a_bitmap_records),
        CO_TEST(a_bitmap_of_another_size_decides_nothing),
        CO_TEST(a_source_that_fails_fails_the_copy),
        CO_TEST(data_next_to_zeroes_in_one_cluster_is_copied),
    };

    return cmocka_run_group_tests(tests, setup, co_test_teardown);
}
