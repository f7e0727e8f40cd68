/* SPDX-License-Identifier: Apache-2.0 */
/* qcow2: an image that forgets its contents. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "qcow2_fixture.h"

#include "base/checked.h"
#include "base/log.h"

#define C (4 * KiB)
#define DISK (8 * MiB)
#define BASE ",backing.driver=qcow2,backing.file.driver=memory-file,backing.file.name=base"

/* An overlay of sevens over a disk of ones. */
static void open_overlay(struct image *i, const char *options)
{
    struct image base;
    char text[128];

    image_create("base", DISK, "cluster_size=4k");
    image_open(&base, "base", "");
    assert_int_equal(image_write(&base, 0, DISK, 1), 0);
    image_close(&base);
    snprintf(text, sizeof(text), "cluster_size=4k,backing_file=memory:base,backing_fmt=qcow2%s",
             options);
    image_create("a", DISK, text);
    image_open(i, "a", BASE);
    assert_int_equal(image_write(i, 0, 3 * MiB, 7), 0);
    assert_int_equal(image_write(i, 6 * MiB, 100, 7), 0);
}

static int make_empty(struct image *i)
{
    int r;

    block_co_drain_begin(i->node);
    r = i->node->driver->co_make_empty(i->node, NULL);
    block_drain_end(i->node);
    return r;
}

static void an_emptied_image_is_as_a_new_one(void *arg)
{
    uint64_t size_of_new;
    struct image i;

    open_overlay(&i, "");
    assert_int_equal(make_empty(&i), 0);
    image_expect(&i, 0, DISK, 1);
    size_of_new = i.file->size;
    image_close(&i);
    image_check("a", 0);
    /* Header, refcount table and block, L1 table of four entries. */
    assert_int_equal(size_of_new, 4 * C);
}

static void it_can_be_written_at_once(void *arg)
{
    struct image i;

    open_overlay(&i, "");
    for (int n = 0; n < 3; n++) {
        assert_int_equal(make_empty(&i), 0);
        assert_int_equal(image_write(&i, 100, 10, 9), 0);
        assert_int_equal(image_write(&i, 5 * MiB, MiB, 9), 0);
        image_expect(&i, 0, 100, 1);
        image_expect(&i, 100, 10, 9);
        image_expect(&i, 110, 5 * MiB - 110, 1);
        image_expect(&i, 5 * MiB, MiB, 9);
    }
    image_close(&i);
    image_check("a", 0);
    image_open(&i, "a", BASE);
    image_expect(&i, 5 * MiB, MiB, 9);
    image_close(&i);
}

static void what_is_kept_for_a_new_bitmap_stays(void *arg)
{
    struct block_bitmap *b;
    struct image i;

    open_overlay(&i, "");
    assert_int_equal(block_co_bitmap_add(i.node, "b", 64 * KiB, true, false, &b, NULL), 0);
    assert_int_equal(make_empty(&i), 0);
    assert_int_equal(image_write(&i, 0, 64 * KiB, 9), 0);
    image_close(&i);
    image_check("a", 0);
    image_open(&i, "a", BASE);
    image_expect(&i, 0, 64 * KiB, 9);
    assert_non_null(block_bitmap_find(i.node, "b"));
    image_close(&i);
}

/* The last bitmap was removed, and the log is there until the image is closed. */
static void an_activity_log_stays(void *arg)
{
    struct block_bitmap *b;
    struct image i;

    open_overlay(&i, "");
    image_close(&i);
    image_open(&i, "a", BASE ",durable-bitmaps=power");
    assert_int_equal(block_co_bitmap_add(i.node, "b", 0, true, false, &b, NULL), 0);
    assert_int_equal(image_write(&i, 0, 64 * KiB, 7), 0);
    assert_int_equal(block_co_bitmap_remove(b, NULL), 0);
    assert_int_equal(make_empty(&i), 0);
    assert_int_equal(image_write(&i, 0, 4 * MiB, 9), 0);
    assert_int_equal(block_co_bitmap_add(i.node, "c", 0, true, false, &b, NULL), 0);
    assert_int_equal(image_write(&i, 4 * MiB, MiB, 8), 0);
    image_expect(&i, 0, 4 * MiB, 9);
    image_expect(&i, 4 * MiB, MiB, 8);
    image_close(&i);
    image_check("a", 0);
}

/* Snapshots, bitmaps and what version 2 lacks take the way through all tables. */
static void what_else_has_clusters_stays(void *arg)
{
    struct block_bitmap *b;
    struct image i;

    open_overlay(&i, "");
    assert_int_equal(block_co_bitmap_add(i.node, "b", 64 * KiB, true, false, &b, NULL), 0);
    image_close(&i);
    image_open(&i, "a", BASE);
    assert_int_equal(image_write(&i, 0, 10, 7), 0);
    image_close(&i);
    image_open(&i, "a", BASE);
    assert_int_equal(make_empty(&i), 0);
    image_expect(&i, 0, DISK, 1);
    assert_non_null(block_bitmap_find(i.node, "b"));
    image_close(&i);
    image_check("a", 0);

    open_overlay(&i, "");
    assert_int_equal(i.node->driver->co_snapshot_create(i.node, "s", NULL), 0);
    assert_int_equal(make_empty(&i), 0);
    image_expect(&i, 0, DISK, 1);
    assert_int_equal(i.node->driver->co_snapshot_apply(i.node, "s", NULL), 0);
    image_expect(&i, 0, 3 * MiB, 7);
    image_close(&i);
    image_check("a", 0);

    open_overlay(&i, ",compat=0.10");
    assert_int_equal(make_empty(&i), 0);
    image_expect(&i, 0, DISK, 1);
    image_close(&i);
    image_check("a", 0);
}

/* Each cluster of the disk has its old contents or the backing file's. */
static void expect_old_or_base(struct image *i)
{
    uint8_t buf[C];

    for (uint64_t at = 0; at < DISK; at += C) {
        assert_int_equal(block_co_pread(i->edge, at, buf, C), 0);
        assert_true(buf[0] == 1 || (buf[0] == 7 && (at < 3 * MiB || at == 6 * MiB)));
        assert_true(at == 6 * MiB || memcmp(buf, buf + 1, C - 1) == 0);
    }
}

static void stopped_anywhere_it_is_sound(void *arg)
{
    int r = -EIO;

    log_set_level(LOG_LEVEL_ERROR);
    for (unsigned after = 0; r < 0; after++) {
        struct image i;

        open_overlay(&i, "");
        image_close(&i);
        image_open(&i, "a", BASE);
        memory_file_fail(i.file, MEMORY_FILE_WRITE | MEMORY_FILE_FLUSH, after, EIO);
        r = make_empty(&i);
        memory_file_fail(i.file, 0, 0, 0);
        expect_old_or_base(&i);
        image_kill(&i);
        image_open(&i, "a", BASE);
        expect_old_or_base(&i);
        assert_int_equal(image_write(&i, 4 * MiB, MiB, 5), 0);
        image_expect(&i, 4 * MiB, MiB, 5);
        image_close(&i);
        image_check("a", 0);
        assert_true(r < 0 || after > 10);
    }
    log_set_level(LOG_LEVEL_WARNING);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        CO_TEST(an_emptied_image_is_as_a_new_one),    CO_TEST(it_can_be_written_at_once),
        CO_TEST(what_is_kept_for_a_new_bitmap_stays), CO_TEST(an_activity_log_stays),
        CO_TEST(what_else_has_clusters_stays),        CO_TEST(stopped_anywhere_it_is_sound),
    };

    return cmocka_run_group_tests(tests, qcow2_group_setup, qcow2_group_teardown);
}
