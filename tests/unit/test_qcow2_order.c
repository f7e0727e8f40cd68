/* SPDX-License-Identifier: Apache-2.0 */
/* qcow2: what a second try makes good after a failure, and in which order things reach the file. */
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
#include "qcow2/table/refcount.h"

#define C (4 * KiB)
#define DISK (16 * MiB)
#define L2_SPAN (2 * MiB)
#define INCOMPATIBLE_BYTE 79u

/* --- second tries ----------------------------------------------------------------------------- */

/* New tables, and clusters that are given back, all of it still in memory. */
static void change_much(struct image *i)
{
    for (uint64_t at = 0; at < DISK; at += 2 * L2_SPAN) {
        assert_int_equal(image_write(i, at, C, 2), 0);
    }
    assert_int_equal(block_co_discard(i->edge, L2_SPAN, 4 * C), 0);
}

static void expect_much(struct image *i)
{
    for (uint64_t at = 0; at < DISK; at += 2 * L2_SPAN) {
        image_expect(i, at, C, 2);
    }
    image_expect(i, L2_SPAN, 4 * C, 0);
    image_expect(i, L2_SPAN + 4 * C, 4 * C, 1);
}

static void a_flush_that_failed_anywhere_is_made_good_by_the_next(void *arg)
{
    int r = -EIO;

    for (unsigned after = 0; r != 0; after++) {
        struct image i;

        image_create("a", DISK, "cluster_size=4k");
        image_open(&i, "a", "");
        assert_int_equal(image_write(&i, L2_SPAN, 8 * C, 1), 0);
        assert_int_equal(block_co_flush(i.edge), 0);
        change_much(&i);
        memory_file_fail(i.file, MEMORY_FILE_WRITE | MEMORY_FILE_FLUSH, after, EIO);
        r = block_co_flush(i.edge);
        memory_file_fail(i.file, 0, 0, 0);
        /* Nothing new in the L1 table. */
        assert_int_equal(image_write(&i, 5 * C, C, 3), 0);
        assert_int_equal(block_co_flush(i.edge), 0);
        /* What the first one freed is counted so on disk by the one after it. */
        assert_int_equal(image_write(&i, 7 * C, C, 3), 0);
        assert_int_equal(block_co_flush(i.edge), 0);
        image_kill(&i);
        image_check("a", 0);
        image_open_read_only(&i, "a");
        expect_much(&i);
        image_expect(&i, 5 * C, C, 3);
        image_close(&i);
        assert_true(after < 30);
    }
}

static void a_write_that_failed_leaves_no_cluster_behind(void *arg)
{
    struct image i;

    image_create("a", DISK, "cluster_size=4k");
    image_open(&i, "a", "");
    assert_int_equal(image_write(&i, 0, C, 1), 0);
    assert_int_equal(block_co_flush(i.edge), 0);
    memory_file_fail(i.file, MEMORY_FILE_WRITE, 0, EIO);
    assert_int_equal(image_write(&i, 8 * C, 4 * C, 2), -EIO);
    memory_file_fail(i.file, 0, 0, 0);
    assert_int_equal(image_write(&i, 4 * C, C, 1), 0);
    image_close(&i);
    image_check("a", 0);
}

static void a_table_that_could_not_be_read_is_read_again(void *arg)
{
    struct image i;
    char byte;

    image_create("a", DISK, "cluster_size=4k");
    image_open(&i, "a", "");
    assert_int_equal(image_write(&i, 0, C, 7), 0);
    image_close(&i);
    image_open(&i, "a", "");
    memory_file_fail(i.file, MEMORY_FILE_READ, 0, EIO);
    assert_int_equal(block_co_pread(i.edge, 0, &byte, 1), -EIO);
    memory_file_fail(i.file, 0, 0, 0);
    image_expect(&i, 0, C, 7);
    assert_int_equal(image_write(&i, C, C, 8), 0);
    image_expect(&i, 0, C, 7);
    image_close(&i);
    image_check("a", 0);
}

/* --- refcounts -------------------------------------------------------------------------------- */

static void counts_of_all_widths_go_up_and_down(void *arg)
{
    static const char *const options[] = {
        "cluster_size=4k,refcount_bits=1",  "cluster_size=4k,refcount_bits=2",
        "cluster_size=4k,refcount_bits=4",  "cluster_size=4k,refcount_bits=8",
        "cluster_size=4k,refcount_bits=16", "cluster_size=4k,refcount_bits=32",
        "cluster_size=4k,refcount_bits=64",
    };

    for (size_t n = 0; n < ARRAY_SIZE(options); n++) {
        struct image i;

        image_create("a", DISK, options[n]);
        image_open(&i, "a", "");
        assert_int_equal(image_write(&i, 0, MiB, 1), 0);
        assert_int_equal(block_co_flush(i.edge), 0);
        assert_int_equal(block_co_discard(i.edge, 17 * C, 100 * C), 0);
        image_close(&i);
        image_check("a", 0);
    }
}

/* The count of a cluster that is in use becomes 0 on disk. */
static void a_count_does_not_go_below_zero(void *arg)
{
    uint64_t block, entry, table;
    struct image i;

    image_create("a", DISK, "cluster_size=4k,refcount_bits=8");
    image_open(&i, "a", "");
    assert_int_equal(image_write(&i, 0, C, 1), 0);
    block = i.q->reftable.entries[0] & REFTABLE_OFFSET_MASK;
    table = i.q->l1.entries[0] & ENTRY_OFFSET_MASK;
    image_close(&i);
    entry = load_be64(memory_file("a")->data + table) & ENTRY_OFFSET_MASK;
    memory_file("a")->data[block + entry / C] = 0;
    image_open(&i, "a", "");
    assert_int_equal(block_co_discard(i.edge, 0, C), 0);
    (void)block_co_flush(i.edge);
    assert_true(memory_file("a")->data[INCOMPATIBLE_BYTE] & INCOMPAT_CORRUPT);
    (void)block_co_flush(i.edge);
    image_kill(&i);
    assert_int_equal(memory_file("a")->data[block + entry / C], 0);
}

/* Counts of the last cluster of one refcount block and the first of the next. */
static void a_count_that_does_not_fit_leaves_its_neighbours_as_they_were(void *arg)
{
    const uint64_t border = 4096; /* 8 bits each, in clusters of 4 KiB */
    uint64_t refcount = 0;
    struct image i;

    image_create("a", 32 * MiB, "cluster_size=4k,refcount_bits=8");
    image_open(&i, "a", "");
    assert_int_equal(image_write(&i, 0, 20 * MiB, 1), 0);
    co_mutex_lock(&i.q->lock);
    assert_int_equal(qcow2_co_refcount_add_locked(i.q, border, 1, 1), 0);
    assert_int_equal(qcow2_co_refcount_add_locked(i.q, border - 1, 2, 254), -ERANGE);
    assert_int_equal(qcow2_co_refcount_get_locked(i.q, border - 1, &refcount), 0);
    assert_int_equal(refcount, 1);
    assert_int_equal(qcow2_co_refcount_add_locked(i.q, border, 1, -1), 0);
    co_mutex_unlock(&i.q->lock);
    image_close(&i);
    image_check("a", 0);
}

/* Whatever the user wants checked. */
static void the_header_is_never_allocated(void *arg)
{
    uint64_t block;
    struct image i;

    image_create("a", MiB, "cluster_size=4k");
    image_open(&i, "a", "");
    assert_int_equal(image_write(&i, 0, C, 1), 0); /* the next one needs no table */
    block = i.q->reftable.entries[0] & REFTABLE_OFFSET_MASK;
    image_close(&i);
    memset(memory_file("a")->data + block, 0, C); /* nothing is in use */
    image_open(&i, "a", ",overlap-check=none");
    assert_int_equal(image_write(&i, C, C, 1), -EIO);
    image_kill(&i);
    assert_int_equal(load_be32(memory_file("a")->data), QCOW2_MAGIC);
}

static void a_compressed_cluster_that_is_written_over_is_given_back(void *arg)
{
    struct image i;
    char data[C];

    image_create("a", DISK, "cluster_size=4k");
    image_open(&i, "a", "");
    memset(data, 1, sizeof(data));
    for (uint64_t n = 0; n < 8; n++) {
        assert_int_equal(block_co_pwrite(i.edge, n * C, data, C, BLOCK_REQ_COMPRESSED), 0);
    }
    assert_int_equal(block_co_flush(i.edge), 0);
    assert_int_equal(image_write(&i, 0, 8 * C, 2), 0);
    image_close(&i);
    image_check("a", 0);
}

/* --- order ------------------------------------------------------------------------------------ */

/*
 * The first entry of the log from `from` on of a kind, and if `length` is not 0 of that length, at
 * `offset`.
 */
static unsigned find(const struct memory_file *f, unsigned from, unsigned kind, uint64_t offset,
                     uint64_t length)
{
    for (unsigned n = from; n < f->log_count; n++) {
        const struct memory_file_op *op = &f->log[n];

        if (op->kind == kind && (length == 0 || (op->offset == offset && op->length == length))) {
            return n;
        }
    }
    return UINT32_MAX;
}

static void lazy_refcounts_are_marked_stably_before_they_stay_behind(void *arg)
{
    unsigned mark, sync, table;
    struct image i;

    image_create("a", DISK, "cluster_size=4k,lazy_refcounts=on");
    image_open(&i, "a", "");
    assert_int_equal(image_write(&i, 0, C, 1), 0);
    assert_int_equal(block_co_flush(i.edge), 0);
    image_close(&i);
    assert_int_equal(memory_file("a")->data[INCOMPATIBLE_BYTE] & INCOMPAT_DIRTY, 0);

    image_open(&i, "a", "");
    i.file->log_count = 0;
    assert_int_equal(image_write(&i, C, C, 2), 0);
    assert_int_equal(block_co_flush(i.edge), 0);
    assert_true(i.file->data[INCOMPATIBLE_BYTE] & INCOMPAT_DIRTY);
    mark = find(i.file, 0, MEMORY_FILE_WRITE, HDR_INCOMPATIBLE, 8);
    sync = find(i.file, mark, MEMORY_FILE_FLUSH, 0, 0);
    assert_true(mark < sync && sync != UINT32_MAX);
    table = i.q->l1.entries[0] & ENTRY_OFFSET_MASK;
    for (unsigned n = 0; n < sync; n++) {
        assert_true(i.file->log[n].offset < table || i.file->log[n].offset >= table + C);
    }
    image_close(&i);
    assert_int_equal(memory_file("a")->data[INCOMPATIBLE_BYTE] & INCOMPAT_DIRTY, 0);
    image_check("a", 0);
}

static void a_longer_refcount_table_is_stable_before_it_is_named(void *arg)
{
    unsigned named, sync;
    struct image i;

    /* 64 entries of 256 clusters of 512 bytes: 8 MiB. */
    image_create("a", 32 * MiB, "cluster_size=512");
    image_open(&i, "a", "");
    assert_int_equal(image_write(&i, 0, 7 * MiB, 1), 0);
    assert_int_equal(block_co_flush(i.edge), 0);
    for (uint64_t at = 7 * MiB; i.q->reftable.size == 64; at += 64 * KiB) {
        i.file->log_count = 0;
        assert_int_equal(image_write(&i, at, 64 * KiB, 2), 0);
        assert_true(at < 16 * MiB);
    }
    named = find(i.file, 0, MEMORY_FILE_WRITE, HDR_REFTABLE_OFFSET, 12);
    assert_true(named > 0 && named != UINT32_MAX);
    sync = named - 1;
    assert_int_equal(i.file->log[sync].kind, MEMORY_FILE_FLUSH);
    assert_int_equal(i.file->log[named + 1].kind, MEMORY_FILE_FLUSH);
    image_close(&i);
    image_check("a", 0);
}

static void a_new_refcount_block_is_stable_before_it_is_named(void *arg)
{
    unsigned named;
    struct image i;

    /* A block counts 8 MiB. */
    image_create("a", 32 * MiB, "cluster_size=4k");
    image_open(&i, "a", "");
    assert_int_equal(image_write(&i, 0, 6 * MiB, 1), 0);
    assert_int_equal(block_co_flush(i.edge), 0);
    assert_int_equal(image_write(&i, 6 * MiB, 6 * MiB, 2), 0);
    i.file->log_count = 0;
    assert_int_equal(block_co_flush(i.edge), 0);
    named = find(i.file, 0, MEMORY_FILE_WRITE, i.q->reftable.offset, 512);
    assert_true(named > 0 && named != UINT32_MAX);
    assert_int_equal(i.file->log[named - 1].kind, MEMORY_FILE_FLUSH);
    image_close(&i);
    image_check("a", 0);
}

/* --- snapshots -------------------------------------------------------------------------------- */

static void take(struct image *i, const char *name)
{
    ERROR_AUTO(err);

    block_co_drain_begin(i->node);
    assert_int_equal(i->node->driver->co_snapshot_create(i->node, name, &err), 0);
    block_drain_end(i->node);
}

static void a_number_is_not_given_to_two_snapshots(void *arg)
{
    struct block_snapshot_info *infos = NULL;
    size_t count = 0;
    struct image i;

    image_create("a", DISK, "cluster_size=4k");
    image_open(&i, "a", "");
    take(&i, "a");
    take(&i, "b");
    take(&i, "c");
    block_co_drain_begin(i.node);
    assert_int_equal(i.node->driver->co_snapshot_delete(i.node, "b", NULL), 0);
    block_drain_end(i.node);
    take(&i, "d");
    assert_int_equal(i.node->driver->co_snapshot_list(i.node, &infos, &count, NULL), 0);
    assert_int_equal(count, 3);
    assert_string_equal(infos[1].id, "3");
    assert_string_equal(infos[2].id, "4");
    free(infos);
    image_close(&i);
}

static void bitmaps_record_going_back(void *arg)
{
    struct block_bitmap *b;
    struct image i;
    ERROR_AUTO(err);

    image_create("a", DISK, "cluster_size=4k");
    image_open(&i, "a", "");
    assert_int_equal(image_write(&i, 0, 64 * KiB, 1), 0);
    take(&i, "a");
    assert_int_equal(image_write(&i, 8 * KiB, 4 * KiB, 2), 0);
    assert_int_equal(block_co_bitmap_add(i.node, "b", 4 * KiB, false, false, &b, &err), 0);
    block_co_drain_begin(i.node);
    assert_int_equal(i.node->driver->co_snapshot_apply(i.node, "a", NULL), 0);
    block_drain_end(i.node);
    assert_true(dirty_bitmap_get(block_bitmap_bits(b), 8 * KiB));
    assert_int_equal(dirty_bitmap_count(block_bitmap_bits(b)), 4 * KiB);
    image_close(&i);
}

/* --- changes of size -------------------------------------------------------------------------- */

static void resize(struct image *i, uint64_t size)
{
    ERROR_AUTO(err);

    block_co_drain_begin(i->node);
    assert_int_equal(i->node->driver->co_truncate(i->node, size, BLOCK_PREALLOC_OFF, &err), 0);
    block_drain_end(i->node);
}

static void what_was_cut_off_within_a_cluster_does_not_come_back(void *arg)
{
    struct image i;

    image_create("a", DISK, "cluster_size=4k");
    image_open(&i, "a", "");
    assert_int_equal(image_write(&i, 0, MiB, 1), 0);
    resize(&i, 10 * C + 512);
    resize(&i, MiB);
    image_expect(&i, 0, 10 * C + 512, 1);
    image_expect(&i, 10 * C + 512, MiB - 10 * C - 512, 0);
    image_close(&i);
    image_check("a", 0);
}

static void growth_over_a_longer_backing_file_reads_as_zeroes(void *arg)
{
    struct image i;

    image_create("base", DISK, "cluster_size=4k");
    image_open(&i, "base", "");
    assert_int_equal(image_write(&i, 0, DISK, 7), 0);
    image_close(&i);
    image_create("a", 4 * MiB, "cluster_size=4k");
    image_open(&i, "a",
               ",backing.driver=qcow2,backing.file.driver=memory-file,backing.file.name=base");
    resize(&i, 8 * MiB);
    image_expect(&i, 0, 4 * MiB, 7);
    image_expect(&i, 4 * MiB, 4 * MiB, 0);
    image_close(&i);
    image_check("a", 0);
}

/* --- what a file says of itself --------------------------------------------------------------- */

static void assert_open_fails(const char *sentence)
{
    const char *message = image_open_fails("a", 0);

    assert_non_null(message);
    if (!strstr(message, sentence)) {
        fail_msg("'%s' is not in '%s'", sentence, message);
    }
}

static void a_header_reaches_no_farther_than_its_cluster(void *arg)
{
    uint8_t *head;

    image_create("a", DISK, "cluster_size=4k");
    head = memory_file("a")->data;
    store_be64(head + HDR_BACKING_OFFSET, C - 10);
    store_be32(head + HDR_BACKING_SIZE, 100);
    assert_open_fails("Backing file name too long");

    image_create("a", DISK, "cluster_size=4k");
    head = memory_file("a")->data;
    store_be32(head + HDR_OUR_SIZE, 0x12345678);
    store_be32(head + HDR_OUR_SIZE + 4, C);
    assert_open_fails("Header extension too large");
}

/* A cluster of bits that are all set is stored as a flag: 4096 * 8 granules of 512 bytes. */
static void what_is_wholly_dirty_is_so_after_the_next_start(void *arg)
{
    struct block_bitmap *b = NULL;
    struct image i;

    image_create("a", DISK, "cluster_size=4k");
    image_open(&i, "a", "");
    assert_int_equal(block_co_bitmap_add(i.node, "b", 512, true, false, &b, NULL), 0);
    assert_int_equal(image_write(&i, 0, DISK, 1), 0);
    image_close(&i);
    image_open(&i, "a", "");
    b = block_bitmap_find(i.node, "b");
    assert_int_equal(block_co_bitmap_fetch(b, NULL), 0);
    assert_int_equal(dirty_bitmap_count(block_bitmap_bits(b)), DISK);
    image_close(&i);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        CO_TEST(a_flush_that_failed_anywhere_is_made_good_by_the_next),
        CO_TEST(a_write_that_failed_leaves_no_cluster_behind),
        CO_TEST(a_table_that_could_not_be_read_is_read_again),
        CO_TEST(counts_of_all_widths_go_up_and_down),
        CO_TEST(a_count_does_not_go_below_zero),
        CO_TEST(a_count_that_does_not_fit_leaves_its_neighbours_as_they_were),
        CO_TEST(the_header_is_never_allocated),
        CO_TEST(a_compressed_cluster_that_is_written_over_is_given_back),
        CO_TEST(a_new_refcount_block_is_stable_before_it_is_named),
        CO_TEST(growth_over_a_longer_backing_file_reads_as_zeroes),
        CO_TEST(a_header_reaches_no_farther_than_its_cluster),
        CO_TEST(what_is_wholly_dirty_is_so_after_the_next_start),
        CO_TEST(lazy_refcounts_are_marked_stably_before_they_stay_behind),
        CO_TEST(a_longer_refcount_table_is_stable_before_it_is_named),
        CO_TEST(a_number_is_not_given_to_two_snapshots),
        CO_TEST(bitmaps_record_going_back),
        CO_TEST(what_was_cut_off_within_a_cluster_does_not_come_back),
    };

    return cmocka_run_group_tests(tests, qcow2_group_setup, qcow2_group_teardown);
}
