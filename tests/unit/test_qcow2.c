/* SPDX-License-Identifier: Apache-2.0 */
/* qcow2: what is read, written, zeroed and discarded, and what becomes of clusters. */
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
#include "loop/loop.h"

#define C (4 * KiB)

#define ZERO BLOCK_STATUS_ZERO
#define ALLOCATED BLOCK_STATUS_ALLOCATED
#define OFFSET BLOCK_STATUS_OFFSET

/* --- create and open -------------------------------------------------------------------------- */

static void an_image_has_the_geometry_asked_for(void *arg)
{
    static const char *const options[] = {"cluster_size=512", "cluster_size=4k",
                                          "cluster_size=64k,compression_type=zstd",
                                          "cluster_size=2M"};
    static const uint32_t clusters[] = {512, 4096, 65536, 2097152};

    for (size_t n = 0; n < ARRAY_SIZE(options); n++) {
        struct block_info info;
        struct image i;

        image_create("a", 3 * MiB + 512, options[n]);
        image_open(&i, "a", "");
        assert_int_equal(block_node_size(i.node), 3 * MiB + 512);
        assert_int_equal(i.node->driver->co_get_info(i.node, &info), 0);
        assert_int_equal(info.cluster_size, clusters[n]);
        assert_string_equal(info.compression_type, n == 2 ? "zstd" : "zlib");
        image_expect(&i, 0, 3 * MiB + 512, 0);
        image_close(&i);
        image_check("a", 0);
    }
}

static void bad_options_are_refused_by_name(void *arg)
{
    assert_non_null(strstr(image_create_fails("a", MiB, "cluster_size=3k"), "Cluster size"));
    assert_non_null(strstr(image_create_fails("a", MiB, "cluster_size=4M"), "Cluster size"));
    assert_non_null(strstr(image_create_fails("a", MiB, "compression_type=lzo"), "lzo"));
    assert_non_null(strstr(image_create_fails("a", MiB, "no_such=1"), "no_such"));
    assert_non_null(strstr(image_create_fails("a", 1ULL << 60, "cluster_size=512"), "too large"));
}

/*
 * The big-endian number of `size` bytes at `offset` of the header becomes `value`; the error is
 * about `word`.
 */
static void expect_refused(uint64_t offset, unsigned size, uint64_t value, const char *word)
{
    struct memory_file *f = memory_file("a");
    uint8_t old[8];
    const char *error;

    memcpy(old, f->data + offset, size);
    for (unsigned n = 0; n < size; n++) {
        f->data[offset + n] = (uint8_t)(value >> (8 * (size - 1 - n)));
    }
    error = image_open_fails("a", BLOCK_OPEN_RDWR);
    if (!error || !strstr(error, word)) {
        fail_msg("field at %llu: '%s' does not speak of '%s'", (unsigned long long)offset,
                 error ? error : "no error", word);
    }
    memcpy(f->data + offset, old, size);
}

static void headers_that_cannot_be_are_refused_by_what_is_wrong(void *arg)
{
    image_create("a", MiB, "cluster_size=4k");
    expect_refused(HDR_MAGIC, 4, 0x514649fa, "not in qcow2 format");
    expect_refused(HDR_VERSION, 4, 4, "version 4");
    expect_refused(HDR_CLUSTER_BITS, 4, 8, "2^8");
    expect_refused(HDR_CLUSTER_BITS, 4, 22, "2^22");
    expect_refused(HDR_SIZE, 8, 1ULL << 63, "disk size");
    expect_refused(HDR_SIZE, 8, 1ULL << 40, "L1 table");
    expect_refused(HDR_CRYPT_METHOD, 4, 1, "encrypt.key-secret");
    expect_refused(HDR_CRYPT_METHOD, 4, 2, "Missing CRYPTO header");
    expect_refused(HDR_CRYPT_METHOD, 4, 3, "method unknown");
    expect_refused(HDR_L1_SIZE, 4, 0x7fffffff, "L1 table");
    expect_refused(HDR_L1_OFFSET, 8, 0x1001, "L1 table");
    expect_refused(HDR_L1_OFFSET, 8, UINT64_MAX & ~4095ULL, "L1 table");
    expect_refused(HDR_REFTABLE_CLUSTERS, 4, 0, "reference count table");
    expect_refused(HDR_REFTABLE_CLUSTERS, 4, UINT32_MAX, "Reference count table");
    expect_refused(HDR_REFTABLE_OFFSET, 8, 77, "Reference count table offset");
    expect_refused(HDR_INCOMPATIBLE, 8, INCOMPAT_CORRUPT, "corrupt");
    expect_refused(HDR_INCOMPATIBLE, 8, 1ULL << 40, "Unknown incompatible feature: 10000000000");
    expect_refused(HDR_REFCOUNT_ORDER, 4, 7, "Reference count entry width");
    expect_refused(HDR_LENGTH, 4, 96, "header too short");
    expect_refused(HDR_LENGTH, 4, 8192, "header exceeds");
    expect_refused(HDR_COMPRESSION_TYPE, 1, 2, "compression type");
    expect_refused(HDR_COMPRESSION_TYPE, 1, 1, "compression type");
    expect_refused(HDR_BACKING_OFFSET, 8, 5000, "backing file offset");
}

/* --- reads and writes ------------------------------------------------------------------------- */

static void a_small_write_leaves_zeroes_around(void *arg)
{
    struct image i;

    image_create("a", MiB, "cluster_size=4k");
    image_open(&i, "a", "");
    assert_int_equal(image_write(&i, 5 * C + 100, 50, 7), 0);
    image_expect(&i, 0, 5 * C + 100, 0);
    image_expect(&i, 5 * C + 100, 50, 7);
    image_expect(&i, 5 * C + 150, MiB - 5 * C - 150, 0);
    image_close(&i);
    image_check("a", 0);
}

/* A reused cluster holds what was there before. */
static void a_cluster_that_is_used_anew_shows_nothing_old(void *arg)
{
    struct image i;

    image_create("a", MiB, "cluster_size=4k");
    image_open(&i, "a", ",pass-discard-request=off");
    assert_int_equal(image_write(&i, 0, 8 * C, 7), 0);
    assert_int_equal(block_co_discard(i.edge, 0, 8 * C), 0);
    assert_int_equal(block_co_flush(i.edge), 0);
    for (uint64_t n = 0; n < 8; n++) {
        assert_int_equal(image_write(&i, 100 * C + n * C + 10, 10, 9), 0);
    }
    for (uint64_t n = 0; n < 8; n++) {
        image_expect(&i, 100 * C + n * C, 10, 0);
        image_expect(&i, 100 * C + n * C + 10, 10, 9);
        image_expect(&i, 100 * C + n * C + 20, C - 20, 0);
    }
    image_expect(&i, 0, 8 * C, 0);
    image_close(&i);
    image_check("a", 0);
}

static void open_overlay(struct image *i, uint64_t backing_size, uint64_t size)
{
    struct image base;

    image_create("base", backing_size, "cluster_size=4k");
    image_open(&base, "base", "");
    assert_int_equal(image_write(&base, 0, backing_size, 1), 0);
    image_close(&base);
    image_create("a", size, "cluster_size=4k");
    image_open(i, "a",
               ",backing.driver=qcow2,backing.file.driver=memory-file,backing.file.name=base");
}

static void head_and_tail_come_from_the_backing_file(void *arg)
{
    struct image i;

    open_overlay(&i, 64 * C, 64 * C);
    assert_int_equal(image_write(&i, 3 * C + 10, 2 * C, 5), 0);
    image_expect(&i, 0, 3 * C + 10, 1);
    image_expect(&i, 3 * C + 10, 2 * C, 5);
    image_expect(&i, 5 * C + 10, 59 * C - 10, 1);
    image_close(&i);
    image_check("a", 0);
}

static void a_shorter_backing_file_reads_as_zeroes_behind_its_end(void *arg)
{
    struct image i;

    open_overlay(&i, 4 * C + 512, 16 * C);
    image_expect(&i, 0, 4 * C + 512, 1);
    image_expect(&i, 4 * C + 512, 12 * C - 512, 0);
    assert_int_equal(image_write(&i, 4 * C + 1000, 10, 5), 0);
    image_expect(&i, 4 * C, 512, 1);
    image_expect(&i, 4 * C + 512, 488, 0);
    image_expect(&i, 4 * C + 1000, 10, 5);
    image_expect(&i, 4 * C + 1010, C - 1010, 0);
    image_close(&i);
    image_check("a", 0);
}

static void a_longer_backing_file_shows_as_far_as_the_disk_goes(void *arg)
{
    struct image i;

    open_overlay(&i, 64 * C, 4 * C + 512);
    assert_int_equal(image_write(&i, 4 * C, 10, 5), 0);
    image_expect(&i, 4 * C + 10, 502, 1);
    assert_int_equal(image_write(&i, 4 * C + 500, 13, 5), -EIO);
    image_close(&i);
    image_check("a", 0);
}

/* --- zeroes and discards: the table in zero.c ------------------------------------------------- */

enum { KEEP, UNMAP, DISCARD };

static int change(struct image *i, int how, uint64_t offset, uint64_t length)
{
    return how == DISCARD ? block_co_discard(i->edge, offset, length)
                          : block_co_write_zeroes(i->edge, offset, length,
                                                  how == UNMAP ? BLOCK_REQ_MAY_UNMAP : 0);
}

/* Clusters 0..4: unallocated, zero, zero with a place, normal, compressed. */
static void prepare_kinds(struct image *i)
{
    static uint8_t buf[C];

    assert_int_equal(image_write(i, 1 * C, 3 * C, 2), 0);
    assert_int_equal(change(i, UNMAP, 1 * C, C), 0);
    assert_int_equal(change(i, KEEP, 2 * C, C), 0);
    assert_int_equal(block_co_pwrite(i->edge, 4 * C, buf, C, BLOCK_REQ_COMPRESSED), 0);
    assert_int_equal(image_status(i, 1 * C), ZERO | ALLOCATED);
    assert_int_equal(image_status(i, 2 * C), ZERO | ALLOCATED | OFFSET);
    assert_true(image_status(i, 3 * C) & OFFSET);
    assert_true(image_status(i, 4 * C) & BLOCK_STATUS_COMPRESSED);
}

static void expect_kinds(int how, bool with_backing, const unsigned *expected)
{
    struct image i;

    if (with_backing) {
        open_overlay(&i, 16 * C, 16 * C);
    } else {
        image_create("a", 16 * C, "cluster_size=4k");
        image_open(&i, "a", "");
    }
    prepare_kinds(&i);
    assert_int_equal(change(&i, how, 0, 5 * C), 0);
    for (unsigned n = 0; n < 5; n++) {
        if (image_status(&i, n * C) != expected[n]) {
            fail_msg("change %d of kind %u: flags %#x, expected %#x", how, n,
                     image_status(&i, n * C), expected[n]);
        }
        image_expect(&i, n * C, C, expected[n] & ZERO ? 0 : 1);
    }
    image_close(&i);
    image_check("a", 0);
}

static void zeroes_keep_the_place_of_normal_clusters(void *arg)
{
    const unsigned plain = ZERO | ALLOCATED, placed = ZERO | ALLOCATED | OFFSET;

    expect_kinds(KEEP, false, (unsigned[]){plain, plain, placed, placed, plain});
    expect_kinds(KEEP, true, (unsigned[]){plain, plain, placed, placed, plain});
}

static void zeroes_that_may_unmap_and_discards_free_clusters(void *arg)
{
    const unsigned plain = ZERO | ALLOCATED;

    expect_kinds(UNMAP, false, (unsigned[]){plain, plain, plain, plain, plain});
    expect_kinds(UNMAP, true, (unsigned[]){plain, plain, plain, plain, plain});
    expect_kinds(DISCARD, false, (unsigned[]){ZERO, plain, plain, plain, plain});
    expect_kinds(DISCARD, true, (unsigned[]){plain, plain, plain, plain, plain});
}

static void a_discard_hides_the_backing_file_where_the_overlay_has_nothing(void *arg)
{
    struct image i;

    open_overlay(&i, 16 * C, 16 * C);
    assert_int_equal(block_co_discard(i.edge, C, 3 * C), 0);
    assert_int_equal(block_co_discard(i.edge, 6 * C + 1, 2 * C - 2), 0); /* no whole cluster */
    image_expect(&i, 0, C, 1);
    image_expect(&i, C, 3 * C, 0);
    image_expect(&i, 4 * C, 12 * C, 1);
    image_close(&i);
    image_check("a", 0);
}

static void a_discard_leaves_parts_of_clusters_alone(void *arg)
{
    struct image i;

    image_create("a", 4 * C + 512, "cluster_size=4k");
    image_open(&i, "a", "");
    assert_int_equal(image_write(&i, 0, 4 * C + 512, 3), 0);
    assert_int_equal(block_co_discard(i.edge, 100, 2 * C), 0);
    image_expect(&i, 0, C, 3);
    image_expect(&i, C, C, 0);
    image_expect(&i, 2 * C, 2 * C + 512, 3);
    assert_int_equal(block_co_discard(i.edge, 3 * C + 1, C + 511), 0);
    image_expect(&i, 2 * C, 2 * C, 3);
    image_expect(&i, 4 * C, 512, 0); /* up to the end of the disk */
    image_close(&i);
    image_check("a", 0);
}

static void space_of_discarded_clusters_is_used_again(void *arg)
{
    struct image i;
    uint64_t size;

    image_create("a", MiB, "cluster_size=4k");
    image_open(&i, "a", "");
    assert_int_equal(image_write(&i, 0, 512 * KiB, 3), 0);
    assert_int_equal(block_co_flush(i.edge), 0);
    size = i.file->size;
    for (int round = 0; round < 10; round++) {
        assert_int_equal(block_co_discard(i.edge, 0, 512 * KiB), 0);
        assert_int_equal(block_co_flush(i.edge), 0);
        assert_int_equal(image_write(&i, 0, 512 * KiB, round), 0);
    }
    image_close(&i);
    assert_int_equal(i.file->size, size);
    image_check("a", 0);
}

/*
 * The writer has locked the cluster and waits for the file when the zeroes come for other bytes of
 * it.
 */
static struct image raced;

static void write_beside(void *arg)
{
    assert_int_equal(image_write(&raced, 1024, 512, 6), 0);
    *(bool *)arg = true;
}

static void zeroes_beside_a_write_to_the_same_cluster_spare_it(void *arg)
{
    bool written = false;

    image_create("a", MiB, "cluster_size=4k");
    image_open(&raced, "a", "");
    assert_int_equal(co_run(reactor_home(reactor_main()), write_beside, &written), 0);
    assert_false(written);
    assert_int_equal(block_co_write_zeroes(raced.edge, 0, 512, 0), 0);
    while (!written) {
        co_reschedule();
    }
    image_expect(&raced, 0, 1024, 0);
    image_expect(&raced, 1024, 512, 6);
    image_close(&raced);
    image_check("a", 0);
}

/* --- errors ----------------------------------------------------------------------------------- */

static void without_space_the_image_stays_sound(void *arg)
{
    struct image i;
    uint64_t at = 0;
    int r = 0;

    image_create("a", 64 * MiB, "cluster_size=4k");
    image_open(&i, "a", "");
    i.file->limit = MiB;
    for (; r == 0 && at < 64 * MiB; at += 3 * C) {
        r = image_write(&i, at, 2 * C, (int)(at / C));
    }
    assert_int_equal(r, -ENOSPC);
    assert_int_equal(block_co_flush(i.edge), 0);
    image_kill(&i);
    image_check("a", 10);
    image_open(&i, "a", "");
    for (uint64_t back = 0; back + 3 * C < at; back += 3 * C) {
        image_expect(&i, back, 2 * C, (int)(back / C));
    }
    i.file->limit = 256 * MiB;
    assert_int_equal(image_write(&i, at, 2 * C, 1), 0);
    image_close(&i);
    image_check("a", 10);
}

/*
 * Whichever request to the file fails: the guest gets an error, and what it was acknowledged is
 * true.
 */
static void any_write_to_the_file_may_fail(void *arg)
{
    for (unsigned after = 0; after < 30; after++) {
        struct image i;
        int r[4], flushed;

        image_create("a", 16 * MiB, "cluster_size=4k");
        image_open(&i, "a", "");
        assert_int_equal(image_write(&i, 0, 10 * C, 1), 0);
        assert_int_equal(block_co_flush(i.edge), 0);
        memory_file_fail(i.file, MEMORY_FILE_WRITE | MEMORY_FILE_FLUSH, after, EIO);
        r[0] = image_write(&i, 5 * C, 10 * C, 2);
        r[1] = block_co_discard(i.edge, 0, 2 * C);
        r[2] = image_write(&i, 8 * MiB + 7, C, 3);
        r[3] = block_co_write_zeroes(i.edge, 4 * MiB, C, 0);
        flushed = block_co_flush(i.edge);
        memory_file_fail(i.file, 0, 0, 0);
        assert_true(after > 0 || r[0] == -EIO);
        assert_int_equal(block_co_flush(i.edge), 0);
        image_kill(&i);
        image_check("a", 16);
        image_open_read_only(&i, "a");
        if (flushed == 0 && r[0] == 0) {
            image_expect(&i, 5 * C, 10 * C, 2);
        }
        if (r[2] == 0) {
            image_expect(&i, 8 * MiB + 7, C, 3);
        }
        image_expect(&i, 2 * C, 3 * C, 1);
        image_close(&i);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        CO_TEST(an_image_has_the_geometry_asked_for),
        CO_TEST(bad_options_are_refused_by_name),
        CO_TEST(headers_that_cannot_be_are_refused_by_what_is_wrong),
        CO_TEST(a_small_write_leaves_zeroes_around),
        CO_TEST(a_cluster_that_is_used_anew_shows_nothing_old),
        CO_TEST(head_and_tail_come_from_the_backing_file),
        CO_TEST(a_shorter_backing_file_reads_as_zeroes_behind_its_end),
        CO_TEST(a_longer_backing_file_shows_as_far_as_the_disk_goes),
        CO_TEST(zeroes_keep_the_place_of_normal_clusters),
        CO_TEST(zeroes_that_may_unmap_and_discards_free_clusters),
        CO_TEST(a_discard_hides_the_backing_file_where_the_overlay_has_nothing),
        CO_TEST(a_discard_leaves_parts_of_clusters_alone),
        CO_TEST(space_of_discarded_clusters_is_used_again),
        CO_TEST(zeroes_beside_a_write_to_the_same_cluster_spare_it),
        CO_TEST(without_space_the_image_stays_sound),
        CO_TEST(any_write_to_the_file_may_fail),
    };

    return cmocka_run_group_tests(tests, qcow2_group_setup, qcow2_group_teardown);
}
