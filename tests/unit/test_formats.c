/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writes to VMDK, VHD, VDI and VHDX images in memory that end after each of their steps: what was
 * flushed before is there, and the image can be written again. And the order of steps and flushes.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/checked.h"
#include "block/block.h"
#include "block/gate.h"
#include "loop/loop.h"
#include "memory_file.h"
#include "parallels/parallels.h"
#include "qcow1/qcow1.h"
#include "qed/qed.h"
#include "vdi/vdi.h"
#include "vhdx/vhdx.h"
#include "vmdk/vmdk.h"
#include "vpc/vpc.h"

#define DISK_SIZE (8 * MiB)
#define STEPS_MAX 30

static const struct format {
    const char *name, *options;
} formats[] = {
    {"vmdk", "subformat=monolithicSparse"},
    {"vmdk", "subformat=streamOptimized"},
    {"vpc", "force_size=on"},
    {"vdi", "static=off"},
    {"vhdx", "block_size=1M"},
    {"qed", "cluster_size=64k"},
    {"parallels", "cluster_size=64k"},
    {"qcow", "backing_fmt=raw"},
};

struct disk {
    struct block_node *node;
    struct block_root *root;
    struct block_edge *edge;
};

/* --- images ----------------------------------------------------------------------------------- */

static void co_create(const struct format *f, const char *name, const char *more)
{
    struct options *opts = NULL;
    ERROR_AUTO(err);
    char text[200], filename[64];

    snprintf(text, sizeof(text), "%s%s", f->options, more);
    snprintf(filename, sizeof(filename), "memory:%s", name);
    if (options_parse(text, NULL, &opts, &err) < 0 ||
        block_co_create_image(f->name, filename, DISK_SIZE, opts, &err) < 0) {
        fail_msg("%s: %s", f->name, error_message(&err));
    }
}

static void co_open(const struct format *f, const char *name, const char *more, struct disk *d)
{
    struct options *opts = NULL;
    ERROR_AUTO(err);
    char text[400];

    snprintf(text, sizeof(text), "driver=%s,read-only=off,file.driver=memory-file,file.name=%s%s",
             f->name, name, more);
    if (options_parse(text, NULL, &opts, &err) < 0 ||
        block_co_open(opts, BLOCK_OPEN_RDWR, &d->node, &err) < 0 ||
        block_co_root_new(d->node, "guest", BLOCK_PERM_CONSISTENT_READ | BLOCK_PERM_WRITE,
                          BLOCK_PERM_ALL, &d->root, &err) < 0) {
        fail_msg("%s, %s: %s", f->name, name, error_message(&err));
    }
    d->edge = block_root_edge(d->root);
}

static void co_close(struct disk *d)
{
    block_co_root_release(d->root);
    (void)block_co_close(d->node, NULL);
}

static int co_write(struct disk *d, uint64_t offset, size_t size, int fill)
{
    uint8_t *buf = malloc(size);
    int r;

    memset(buf, fill, size);
    r = block_co_pwrite(d->edge, offset, buf, size, 0);
    free(buf);
    return r;
}

/* All bytes are `fill`, or also `other`. */
static void co_expect(struct disk *d, uint64_t offset, size_t size, int fill, int other)
{
    uint8_t *buf = malloc(size);

    assert_int_equal(block_co_pread(d->edge, offset, buf, size), 0);
    for (size_t i = 0; i < size; i++) {
        if (buf[i] != fill && buf[i] != other) {
            fail_msg("%s: byte %llu is 0x%02x", block_node_format(d->node),
                     (unsigned long long)offset + i, buf[i]);
        }
    }
    free(buf);
}

/* --- a write that ends early ------------------------------------------------------------------ */

/* The state after `steps` writes of the file; whether the write of the disk succeeded. */
static bool co_write_and_stop(const struct format *f, unsigned steps)
{
    struct disk d;
    int r;

    co_create(f, "image", "");
    co_open(f, "image", "", &d);
    assert_int_equal(co_write(&d, 1 * MiB, 64 * KiB, 0x11), 0);
    assert_int_equal(block_co_flush(d.edge), 0);
    memory_file_fail(memory_file("image"), MEMORY_FILE_WRITE, steps, EIO);
    r = co_write(&d, 3 * MiB + 512, 4096, 0x22);
    UNLESS_FAILED(r, co_write(&d, 5 * MiB, 4096, 0x33));
    memory_file_copy(memory_file("crashed"), memory_file("image"));
    memory_file_fail(memory_file("image"), 0, 0, 0);
    co_close(&d);
    return r == 0;
}

static void co_test_stops(void *arg)
{
    for (size_t i = 0; i < ARRAY_SIZE(formats); i++) {
        const struct format *f = &formats[i];
        bool ended = false;

        for (unsigned steps = 0; !ended; steps++) {
            struct disk d;

            assert_true(steps < STEPS_MAX);
            ended = co_write_and_stop(f, steps);
            co_open(f, "crashed", "", &d);
            co_expect(&d, 1 * MiB, 64 * KiB, 0x11, 0x11);
            co_expect(&d, 3 * MiB + 512, 4096, ended ? 0x22 : 0, 0x22);
            co_expect(&d, 3 * MiB + 512 + 4096, 8192, 0, 0);
            assert_int_equal(co_write(&d, 7 * MiB, 64 * KiB, 0x44), 0);
            assert_int_equal(co_write(&d, 6 * MiB, 64 * KiB, 0x55), 0);
            co_close(&d);
            co_open(f, "crashed", "", &d);
            co_expect(&d, 1 * MiB, 64 * KiB, 0x11, 0x11);
            co_expect(&d, 7 * MiB, 64 * KiB, 0x44, 0x44);
            co_expect(&d, 6 * MiB, 64 * KiB, 0x55, 0x55);
            co_close(&d);
        }
    }
}

static void test_a_write_that_ends_early(void **state)
{
    reactor_run_until_done(co_test_stops, NULL);
}

/* --- a write that is tried again -------------------------------------------------------------- */

/* The size of the file after three blocks, the second of which fails `tries` times. */
static uint64_t co_try_again(const struct format *f, unsigned steps, unsigned tries)
{
    struct memory_file *file = memory_file("full");
    struct block_check_result result = {0};
    struct disk d;

    co_create(f, "full", "");
    co_open(f, "full", "", &d);
    assert_int_equal(co_write(&d, 1 * MiB, 4096, 0x11), 0);
    for (unsigned i = 0; i < tries; i++) {
        memory_file_fail(file, MEMORY_FILE_WRITE, steps, ENOSPC);
        assert_int_equal(co_write(&d, 3 * MiB + 512, 4096, 0x22), -ENOSPC);
        memory_file_fail(file, 0, 0, 0);
    }
    assert_int_equal(co_write(&d, 3 * MiB + 8192, 4096, 0x33), 0);
    assert_int_equal(co_write(&d, 5 * MiB, 4096, 0x44), 0);
    co_expect(&d, 3 * MiB, 8192, 0, 0);
    co_expect(&d, 3 * MiB + 8192, 4096, 0x33, 0x33);
    co_expect(&d, 5 * MiB, 4096, 0x44, 0x44);
    (void)block_co_check(d.node, 0, &result, NULL);
    assert_int_equal(result.corruptions, 0);
    co_close(&d);
    return file->size;
}

/* Data that do not fit leave nothing behind, how often ever a guest tries. */
static void co_test_tries(void *arg)
{
    for (size_t i = 0; i < ARRAY_SIZE(formats); i++) {
        /* Writes before those of the data: the number of blocks (VDI), a bitmap (VHD). */
        bool is_third = strcmp(formats[i].name, "vdi") == 0 || strcmp(formats[i].name, "vpc") == 0;

        if (strstr(formats[i].options, "streamOptimized")) {
            continue; /* its grains are written without a place that was reserved */
        }
        assert_int_equal(co_try_again(&formats[i], is_third, 20),
                         co_try_again(&formats[i], is_third, 0));
    }
}

static void test_a_write_that_is_tried_again(void **state)
{
    reactor_run_until_done(co_test_tries, NULL);
}

/* --- order ------------------------------------------------------------------------------------ */

/* Whether a flush came after the last write at or behind `data` and before the next one below. */
static bool is_flushed_before_table(const struct memory_file *f, uint64_t data)
{
    unsigned last_data = 0, flush = 0, table = 0;

    for (unsigned i = 0; i < f->log_count; i++) {
        const struct memory_file_op *op = &f->log[i];

        if (op->kind == MEMORY_FILE_FLUSH) {
            flush = last_data && !table ? i + 1 : flush;
        } else if (op->offset >= data) {
            last_data = i + 1;
        } else if (last_data && !table && op->length < 512) {
            table = i + 1;
        }
    }
    return last_data && flush > last_data && table > flush;
}

static void co_test_overlay(void *arg)
{
    const struct format *f = &formats[0];
    struct memory_file *top = memory_file("top");
    struct disk d;

    co_create(f, "base", "");
    co_open(f, "base", "", &d);
    assert_int_equal(co_write(&d, 0, 1 * MiB, 0x77), 0);
    co_close(&d);
    co_create(f, "top", ",backing_file=memory:base,backing_fmt=vmdk");
    co_open(f, "top", ",backing.driver=vmdk,backing.file.driver=memory-file,backing.file.name=base",
            &d);
    top->log_count = 0;
    assert_int_equal(co_write(&d, 70 * KiB, 512, 0x66), 0);
    assert_true(is_flushed_before_table(top, 64 * KiB));
    co_expect(&d, 64 * KiB, 6 * KiB, 0x77, 0x77);
    co_expect(&d, 70 * KiB, 512, 0x66, 0x66);
    co_expect(&d, 70 * KiB + 512, 57 * KiB, 0x77, 0x77);
    co_close(&d);
}

static void test_a_grain_over_a_parent_is_flushed_before_its_entry(void **state)
{
    reactor_run_until_done(co_test_overlay, NULL);
}

/* The log (at 1 MiB), a flush, the BAT (at 2 MiB). */
static void co_test_log(void *arg)
{
    struct memory_file *file = memory_file("logged");
    bool logged = false, flushed = false, changed = false;
    struct disk d;

    co_create(&formats[4], "logged", "");
    co_open(&formats[4], "logged", "", &d);
    assert_int_equal(co_write(&d, 0, 4096, 1), 0);
    file->log_count = 0;
    assert_int_equal(co_write(&d, 4 * MiB, 4096, 1), 0);
    for (unsigned i = 0; i < file->log_count; i++) {
        const struct memory_file_op *op = &file->log[i];
        uint64_t unit = op->offset / MiB;

        if (op->kind == MEMORY_FILE_FLUSH) {
            flushed = logged;
        } else if (unit == 1) {
            logged = true;
        } else if (unit == 2) {
            assert_true(logged && flushed);
            changed = true;
        } else {
            assert_false(logged); /* data come first */
        }
    }
    assert_true(changed);
    co_close(&d);
}

static void test_the_log_is_flushed_before_the_bat_changes(void **state)
{
    reactor_run_until_done(co_test_log, NULL);
}

static int set_up(void **state)
{
    ERROR_AUTO(err);

    if (reactor_init_main(&err) < 0) {
        return -1;
    }
    block_register_driver(&memory_file_driver);
    vmdk_register_driver();
    vpc_register_driver();
    vdi_register_driver();
    vhdx_register_driver();
    qed_register_driver();
    parallels_register_driver();
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
        cmocka_unit_test(test_a_write_that_ends_early),
        cmocka_unit_test(test_a_write_that_is_tried_again),
        cmocka_unit_test(test_a_grain_over_a_parent_is_flushed_before_its_entry),
        cmocka_unit_test(test_the_log_is_flushed_before_the_bat_changes),
    };

    return cmocka_run_group_tests(tests, set_up, tear_down);
}
