/* SPDX-License-Identifier: Apache-2.0 */
/*
 * qcow2: internal snapshots and changes of size: refcounts, COPIED flags, and what is left when a
 * write fails.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "qcow2_fixture.h"

#include "base/byteorder.h"
#include "base/checked.h"
#include "block/bitmaps.h"
#include "qcow2/table/refcount.h"

#define SIZE (2 * MiB)
#define C 4096u
#define INCOMPATIBLE_BYTE 79u

/* --- operations ------------------------------------------------------------------------------- */

static int co_create(struct image *i)
{
    return i->node->driver->co_snapshot_create(i->node, "new", NULL);
}

static int co_apply(struct image *i)
{
    return i->node->driver->co_snapshot_apply(i->node, "old", NULL);
}

static int co_delete(struct image *i)
{
    return i->node->driver->co_snapshot_delete(i->node, "old", NULL);
}

static int co_resize(struct image *i, uint64_t size)
{
    return i->node->driver->co_truncate(i->node, size, BLOCK_PREALLOC_OFF, NULL);
}

static int co_grow(struct image *i)
{
    return co_resize(i, 512 * MiB); /* the L1 table moves */
}

static int co_shrink(struct image *i)
{
    return co_resize(i, MiB);
}

static int co_do(struct image *i, int (*op)(struct image *i))
{
    int r;

    block_co_drain_begin(i->node);
    r = op(i);
    block_drain_end(i->node);
    return r;
}

/* Snapshot "old" holds 1s; the disk has 2s in its first quarter since. */
static void make(struct image *i)
{
    image_create("a", SIZE, "cluster_size=4k");
    image_open(i, "a", "");
    assert_int_equal(image_write(i, 0, SIZE, 1), 0);
    block_co_drain_begin(i->node);
    assert_int_equal(i->node->driver->co_snapshot_create(i->node, "old", NULL), 0);
    block_drain_end(i->node);
    assert_int_equal(image_write(i, 0, SIZE / 4, 2), 0);
    assert_int_equal(block_co_flush(i->edge), 0);
}

static uint64_t entry_of(struct image *i, uint64_t offset)
{
    uint64_t table = i->q->l1.entries[offset / (512 * C)] & ENTRY_OFFSET_MASK;
    uint64_t entry;

    memcpy(&entry, i->file->data + table + offset / C % 512 * 8, 8);
    return be64toh(entry);
}

static uint64_t refcount_of(struct image *i, uint64_t offset)
{
    uint64_t refcount;

    co_mutex_lock(&i->q->lock);
    assert_int_equal(qcow2_co_refcount_get_locked(
                         i->q, (entry_of(i, offset) & ENTRY_OFFSET_MASK) / C, &refcount),
                     0);
    co_mutex_unlock(&i->q->lock);
    return refcount;
}

static bool is_copied(struct image *i, uint64_t offset)
{
    return entry_of(i, offset) & ENTRY_COPIED;
}

/* --- flags and refcounts ---------------------------------------------------------------------- */

static void what_is_shared_is_counted_and_not_copied(void *arg)
{
    struct image i;

    make(&i);
    assert_int_equal(refcount_of(&i, 0), 1);
    assert_true(is_copied(&i, 0));
    assert_int_equal(refcount_of(&i, SIZE / 2), 2);
    assert_false(is_copied(&i, SIZE / 2));
    assert_true(i.q->l1.entries[0] & ENTRY_COPIED);

    assert_int_equal(co_do(&i, co_create), 0);
    assert_int_equal(refcount_of(&i, 0), 2);
    assert_int_equal(refcount_of(&i, SIZE / 2), 3);
    assert_false(is_copied(&i, 0));
    assert_false(i.q->l1.entries[0] & ENTRY_COPIED);

    assert_int_equal(co_do(&i, co_delete), 0);
    assert_int_equal(refcount_of(&i, 0), 2);
    assert_int_equal(refcount_of(&i, SIZE / 2), 2);
    image_close(&i);
    image_check("a", 0);
}

static void the_last_reference_is_copied_again(void *arg)
{
    struct image i;

    make(&i);
    assert_int_equal(co_do(&i, co_delete), 0);
    assert_int_equal(refcount_of(&i, SIZE / 2), 1);
    assert_true(is_copied(&i, SIZE / 2));
    assert_true(i.q->l1.entries[0] & ENTRY_COPIED);
    assert_int_equal(i.q->header.incompatible & INCOMPAT_DIRTY, 0);
    image_close(&i);
    image_check("a", 0);
}

static void applying_brings_back_and_frees(void *arg)
{
    struct image i;

    make(&i);
    assert_int_equal(co_do(&i, co_apply), 0);
    image_expect(&i, 0, SIZE, 1);
    assert_int_equal(refcount_of(&i, 0), 2);
    assert_false(is_copied(&i, 0));
    /* A write afterwards does not reach the snapshot. */
    assert_int_equal(image_write(&i, 0, SIZE, 3), 0);
    assert_int_equal(co_do(&i, co_apply), 0);
    image_expect(&i, 0, SIZE, 1);
    image_close(&i);
    image_check("a", 0);
}

static void a_copied_table_is_there_before_it_is_found(void *arg)
{
    struct image i;
    uint64_t table;

    make(&i);
    assert_int_equal(co_do(&i, co_create), 0);
    assert_int_equal(image_write(&i, 0, C, 4), 0);
    /*
     * Not flushed: the L1 entry on disk is the old one, but the new table has all that it will
     * need.
     */
    table = i.q->l1.entries[0] & ENTRY_OFFSET_MASK;
    for (uint64_t at = C; at < SIZE; at += C) {
        uint64_t entry;

        memcpy(&entry, i.file->data + table + at / C * 8, 8);
        assert_true(be64toh(entry) & ENTRY_OFFSET_MASK);
    }
    image_close(&i);
    image_check("a", 0);
}

/* --- failures --------------------------------------------------------------------------------- */

static bool is_marked_dirty(const struct memory_file *f)
{
    return f->data[INCOMPATIBLE_BYTE] & INCOMPAT_DIRTY;
}

static void expect_disk(struct image *i)
{
    uint8_t first;

    assert_true(block_node_size(i->node) >= MiB);
    assert_int_equal(block_co_pread(i->edge, 0, &first, 1), 0);
    assert_true(first == 1 || first == 2); /* 1: applied */
    image_expect(i, 0, SIZE / 4, first);
    image_expect(i, SIZE / 4, MiB - SIZE / 4, 1);
}

/* The image as the failure left it: sound, or marked and repaired when it is opened. */
static void verify(struct image *i)
{
    if (!is_marked_dirty(memory_file("a"))) {
        image_check("a", UINT64_MAX);
    }
    image_open(i, "a", "");
    expect_disk(i);
    /* A wrong COPIED flag would let this reach the snapshot. */
    assert_int_equal(image_write(i, 0, MiB, 7), 0);
    image_close(i);
    image_check("a", UINT64_MAX);
    image_open(i, "a", "");
    if (co_do(i, co_apply) == 0) {
        image_expect(i, 0, SIZE, 1);
    }
    image_close(i);
    image_check("a", UINT64_MAX);
}

/*
 * Each write or sync in turn is the one that fails, and all that follow, or only those up to the
 * error's return.
 */
static void fail_everywhere(int (*op)(struct image *i))
{
    for (int killed = 0; killed < 2; killed++) {
        int r = -EIO;

        for (unsigned after = 0; r < 0; after++) {
            struct image i;

            memory_file_free_all();
            make(&i);
            assert_true(after < 500);
            memory_file_fail(i.file, MEMORY_FILE_WRITE | MEMORY_FILE_FLUSH, after, EIO);
            r = co_do(&i, op);
            if (killed) {
                image_kill(&i);
                memory_file_fail(memory_file("a"), 0, 0, 0);
            } else {
                memory_file_fail(i.file, 0, 0, 0);
                if (!atomic_load(&i.q->broken)) {
                    expect_disk(&i);
                }
                block_co_root_release(i.root);
                (void)block_co_inactivate(i.node, NULL);
                block_co_unref(i.node);
            }
            verify(&i);
        }
    }
}

static void creating_fails_anywhere(void *arg)
{
    fail_everywhere(co_create);
}

static void applying_fails_anywhere(void *arg)
{
    fail_everywhere(co_apply);
}

static void deleting_fails_anywhere(void *arg)
{
    fail_everywhere(co_delete);
}

static void growing_fails_anywhere(void *arg)
{
    fail_everywhere(co_grow);
}

static void shrinking_fails_anywhere(void *arg)
{
    fail_everywhere(co_shrink);
}

/* --- limits ----------------------------------------------------------------------------------- */

static void what_can_not_be_counted_is_undone(void *arg)
{
    struct image i;

    image_create("a", SIZE, "cluster_size=4k,refcount_bits=2");
    image_open(&i, "a", "");
    assert_int_equal(image_write(&i, 0, SIZE, 1), 0);
    assert_int_equal(co_do(&i, co_create), 0);
    assert_int_equal(co_do(&i, co_create), 0);
    assert_int_equal(co_do(&i, co_create), -ERANGE);
    assert_int_equal(i.q->snapshots.count, 2);
    assert_int_equal(refcount_of(&i, 0), 3);
    assert_int_equal(i.q->header.incompatible & INCOMPAT_DIRTY, 0);
    image_close(&i);
    image_check("a", 0);
}

static void a_busy_bitmap_refuses_before_anything_is_written(void *arg)
{
    struct block_bitmap *b;
    struct image i;

    image_create("a", SIZE, "cluster_size=4k");
    image_open(&i, "a", "");
    assert_int_equal(block_co_bitmap_add(i.node, "b", 65536, true, false, &b, NULL), 0);
    assert_int_equal(block_co_flush(i.edge), 0);
    block_bitmap_take(b, "a test");
    i.file->log_count = 0;
    for (uint64_t size = MiB; size <= 4 * MiB; size += 3 * MiB) {
        ERROR_AUTO(err);

        block_co_drain_begin(i.node);
        assert_true(i.node->driver->co_truncate(i.node, size, BLOCK_PREALLOC_OFF, &err) < 0);
        block_drain_end(i.node);
        assert_non_null(strstr(error_message(&err), "'b'"));
        assert_int_equal(block_node_size(i.node), SIZE);
    }
    assert_int_equal(i.file->log_count, 0);
    block_bitmap_give(b);
    assert_int_equal(co_do(&i, co_shrink), 0);
    image_close(&i);
    image_check("a", 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        CO_TEST(what_is_shared_is_counted_and_not_copied),
        CO_TEST(the_last_reference_is_copied_again),
        CO_TEST(applying_brings_back_and_frees),
        CO_TEST(a_copied_table_is_there_before_it_is_found),
        CO_TEST(creating_fails_anywhere),
        CO_TEST(applying_fails_anywhere),
        CO_TEST(deleting_fails_anywhere),
        CO_TEST(growing_fails_anywhere),
        CO_TEST(shrinking_fails_anywhere),
        CO_TEST(what_can_not_be_counted_is_undone),
        CO_TEST(a_busy_bitmap_refuses_before_anything_is_written),
    };

    return cmocka_run_group_tests(tests, qcow2_group_setup, qcow2_group_teardown);
}
