/* SPDX-License-Identifier: Apache-2.0 */
/* qcow2: extended L2 entries, with their subclusters. */
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

#define C (64 * KiB)
#define SUB (2 * KiB)

static uint64_t word(struct image *i, uint64_t offset)
{
    return load_be64(i->file->data + offset);
}

/* The entry of guest cluster `n` as it is on disk. */
static void read_entry(struct image *i, unsigned n, uint64_t *ret_host, uint64_t *ret_bitmap)
{
    uint64_t table;

    assert_int_equal(block_co_flush(i->edge), 0);
    table = word(i, word(i, HDR_L1_OFFSET)) & ENTRY_OFFSET_MASK;
    *ret_host = word(i, table + n * 16);
    *ret_bitmap = word(i, table + n * 16 + 8);
}

/* Cluster 0 has data in subclusters 13 and 18, and zeroes in 7; a snapshot shares it. */
static void make_shared(struct image *i)
{
    ERROR_AUTO(err);

    image_create("a", MiB, "extended_l2=on");
    image_open(i, "a", "");
    assert_int_equal(block_co_write_zeroes(i->edge, 7 * SUB, SUB, 0), 0);
    assert_int_equal(image_write(i, 13 * SUB, SUB, 13), 0);
    assert_int_equal(image_write(i, 18 * SUB, SUB, 18), 0);
    assert_int_equal(i->node->driver->co_snapshot_create(i->node, "s", &err), 0);
}

static uint64_t subclusters(unsigned first, unsigned last)
{
    return ((2ULL << last) - 1) & ~((1ULL << first) - 1);
}

static void a_shared_cluster_moves_with_what_it_has(void *arg)
{
    static const struct {
        unsigned written, first, last; /* subclusters; first and last with contents afterwards */
    } cases[] = {{15, 13, 18}, {10, 10, 18}, {20, 13, 20}, {13, 13, 18}, {0, 0, 18}};

    for (size_t n = 0; n < ARRAY_SIZE(cases); n++) {
        uint64_t host, bitmap, before;
        struct image i;

        make_shared(&i);
        read_entry(&i, 0, &before, &bitmap);
        assert_int_equal(image_write(&i, cases[n].written * SUB + 512, 512, 5), 0);
        read_entry(&i, 0, &host, &bitmap);
        assert_true(host & ENTRY_COPIED);
        assert_int_not_equal(host & ENTRY_OFFSET_MASK, before & ENTRY_OFFSET_MASK);
        assert_int_equal(bitmap & SUB_ALL_ALLOCATED, subclusters(cases[n].first, cases[n].last));
        assert_int_equal(bitmap >> SUBCLUSTERS, cases[n].first <= 7 ? 0 : 1u << 7);
        image_expect(&i, 13 * SUB, 512, 13);
        image_expect(&i, 18 * SUB, SUB, 18);
        image_expect(&i, cases[n].written * SUB + 512, 512, 5);
        image_expect(&i, 7 * SUB, SUB / 4, 0);
        image_close(&i);
        image_check("a", 0);
    }
}

static void zeroing_a_part_of_a_shared_cluster_leaves_it_there(void *arg)
{
    uint64_t host, bitmap, before;
    struct image i;
    ERROR_AUTO(err);

    make_shared(&i);
    read_entry(&i, 0, &before, &bitmap);
    assert_int_equal(block_co_write_zeroes(i.edge, 13 * SUB, SUB, 0), 0);
    assert_int_equal(block_co_write_zeroes(i.edge, 20 * SUB, 2 * SUB, 0), 0);
    read_entry(&i, 0, &host, &bitmap);
    assert_int_equal(host, before);
    assert_int_equal(bitmap & SUB_ALL_ALLOCATED, 1u << 18);
    assert_int_equal(bitmap >> SUBCLUSTERS, 1u << 7 | 1u << 13 | 3u << 20);
    image_expect(&i, 13 * SUB, SUB, 0);
    image_expect(&i, 18 * SUB, SUB, 18);
    assert_int_equal(i.node->driver->co_snapshot_apply(i.node, "s", &err), 0);
    image_expect(&i, 13 * SUB, SUB, 13);
    image_close(&i);
    image_check("a", 0);
}

static void a_discard_leaves_what_reads_as_zeroes(void *arg)
{
    uint64_t host, bitmap;
    struct image i;

    image_create("a", MiB, "extended_l2=on");
    image_open(&i, "a", "");
    assert_int_equal(block_co_write_zeroes(i.edge, 0, C / 2, 0), 0);
    assert_int_equal(block_co_discard(i.edge, 0, C), 0);
    read_entry(&i, 0, &host, &bitmap);
    assert_int_equal(host, 0);
    assert_int_equal(bitmap, SUB_ALL_ZERO & ~(subclusters(16, 31) << SUBCLUSTERS));
    assert_int_equal(image_write(&i, 0, C, 1), 0);
    assert_int_equal(block_co_discard(i.edge, 0, C), 0);
    read_entry(&i, 0, &host, &bitmap);
    assert_int_equal(host, 0);
    assert_int_equal(bitmap, SUB_ALL_ZERO);
    image_close(&i);
    image_check("a", 0);
}

static void the_zero_flag_of_standard_entries_means_nothing(void *arg)
{
    uint64_t table;
    struct image i;

    image_create("a", MiB, "extended_l2=on");
    image_open(&i, "a", "");
    assert_int_equal(image_write(&i, 0, SUB, 1), 0);
    image_close(&i);
    table = word(&i, word(&i, HDR_L1_OFFSET)) & ENTRY_OFFSET_MASK;
    i.file->data[table + 7] |= L2_ZERO;
    image_open(&i, "a", "");
    image_expect(&i, 0, SUB, 1);
    assert_int_equal(image_write(&i, 0, SUB, 2), 0);
    image_expect(&i, 0, SUB, 2);
    image_close(&i);
}

static void subclusters_that_contradict_themselves_are_corrupt(void *arg)
{
    for (int writing = 0; writing < 2; writing++) {
        uint8_t buf[16];
        uint64_t table;
        struct image i;

        image_create("a", MiB, "extended_l2=on");
        image_open(&i, "a", "");
        assert_int_equal(image_write(&i, 0, C, 1), 0);
        image_close(&i);
        table = word(&i, word(&i, HDR_L1_OFFSET)) & ENTRY_OFFSET_MASK;
        i.file->data[table + 11] |= 1; /* subcluster 0 is zero, too */
        image_open(&i, "a", "");
        assert_int_equal(writing ? image_write(&i, 0, 512, 2)
                                 : block_co_pread(i.edge, 0, buf, sizeof(buf)),
                         -EIO);
        assert_true(load_be64(i.file->data + HDR_INCOMPATIBLE) & INCOMPAT_CORRUPT);
        image_close(&i);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        CO_TEST(a_shared_cluster_moves_with_what_it_has),
        CO_TEST(zeroing_a_part_of_a_shared_cluster_leaves_it_there),
        CO_TEST(a_discard_leaves_what_reads_as_zeroes),
        CO_TEST(the_zero_flag_of_standard_entries_means_nothing),
        CO_TEST(subclusters_that_contradict_themselves_are_corrupt),
    };

    return cmocka_run_group_tests(tests, qcow2_group_setup, qcow2_group_teardown);
}
