/* SPDX-License-Identifier: Apache-2.0 */
/* qcow2: refcounts, tables that grow, caches at their limits, compressed clusters. */
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

#define C (4 * KiB)

/* --- refcounts and tables --------------------------------------------------------------------- */

static void the_refcount_table_grows(void *arg)
{
    struct image i;

    /* 64 entries of 256 clusters of 512 bytes: 8 MiB. */
    image_create("a", 32 * MiB, "cluster_size=512");
    image_open(&i, "a", "");
    assert_int_equal(i.q->reftable.size, 64);
    for (uint64_t at = 0; at < 24 * MiB; at += MiB) {
        assert_int_equal(image_write(&i, at, MiB, (int)(at / MiB + 1)), 0);
    }
    assert_true(i.q->reftable.size >= 192);
    assert_int_equal(block_co_flush(i.edge), 0);
    image_kill(&i);
    image_check("a", 2000); /* the old tables, freed after the last flush */
    image_open(&i, "a", "");
    for (uint64_t at = 0; at < 24 * MiB; at += MiB) {
        image_expect(&i, at, MiB, (int)(at / MiB + 1));
    }
    image_close(&i);
}

static void growth_that_fails_leaves_the_old_table(void *arg)
{
    for (unsigned after = 0; after < 12; after++) {
        struct image i;
        int r = 0;

        image_create("a", 32 * MiB, "cluster_size=512");
        image_open(&i, "a", "");
        assert_int_equal(image_write(&i, 0, 7 * MiB + 512 * KiB, 1), 0);
        memory_file_fail(i.file, MEMORY_FILE_WRITE | MEMORY_FILE_FLUSH, 20 + after, EIO);
        for (uint64_t at = 8 * MiB; at < 10 * MiB && r == 0; at += 64 * KiB) {
            r = image_write(&i, at, 64 * KiB, 2);
        }
        memory_file_fail(i.file, 0, 0, 0);
        assert_int_equal(r, -EIO);
        (void)image_write(&i, 12 * MiB, 2 * MiB, 3);
        (void)block_co_flush(i.edge);
        image_kill(&i);
        image_check("a", 8192);
    }
}

static void dirty_slices_are_bounded_and_written(void *arg)
{
    struct image i;

    image_create("a", 64 * MiB, "cluster_size=4k");
    image_open(&i, "a", ",l2-cache-size=512,l2-cache-entry-size=512,refcount-cache-size=512");
    for (uint64_t at = 0; at < 64 * MiB; at += 256 * KiB) {
        assert_int_equal(image_write(&i, at, 100, (int)(at / (256 * KiB))), 0);
        assert_true(i.q->caches.l2.dirty_count <= 17);
    }
    for (uint64_t at = 0; at < 64 * MiB; at += 256 * KiB) {
        image_expect(&i, at, 100, (int)(at / (256 * KiB)));
    }
    image_close(&i);
    image_check("a", 0);
}

static unsigned cached_slices(const struct table_cache *c)
{
    unsigned n = 0;

    for (unsigned s = 0; s < CACHE_SHARDS; s++) {
        n += c->shards[s].count;
    }
    return n;
}

static void reading_all_keeps_the_cache_within_its_limit(void *arg)
{
    struct image i;

    image_create("a", 64 * MiB, "cluster_size=4k");
    image_open(&i, "a", "");
    for (uint64_t at = 0; at < 64 * MiB; at += 128 * KiB) {
        assert_int_equal(image_write(&i, at, 512, 1), 0);
    }
    image_close(&i);
    image_open(&i, "a", ",l2-cache-size=64k,l2-cache-entry-size=512");
    for (uint64_t at = 0; at < 64 * MiB; at += 64 * KiB) {
        image_expect(&i, at, 512, at % (128 * KiB) ? 0 : 1);
        assert_true(cached_slices(&i.q->caches.l2) <= 64 * KiB / 512);
    }
    image_close(&i);
}

/* --- what made-up refcounts must not bring about ---------------------------------------------- */

static uint8_t *field(struct memory_file *f, uint64_t offset)
{
    return f->data + offset;
}

static void a_header_with_refcount_0_is_not_allocated(void *arg)
{
    struct image i;
    struct memory_file *f;

    image_create("a", MiB, "cluster_size=4k");
    f = memory_file("a");
    memset(field(f, 2 * C), 0, C); /* the refcount block: nothing is in use */
    image_open(&i, "a", "");
    assert_int_equal(image_write(&i, 0, C, 1), -EIO);
    image_expect(&i, 0, C, 0);
    image_close(&i);
    assert_int_equal(load_be32(field(f, 0)), QCOW2_MAGIC);
    image_open_read_only(&i, "a");
    image_close(&i);
}

static void no_refcount_block_is_made_over_the_header(void *arg)
{
    struct image i;
    struct memory_file *f;

    image_create("a", MiB, "cluster_size=4k");
    f = memory_file("a");
    store_be64(field(f, C), 0); /* the refcount table's first entry */
    image_open(&i, "a", "");
    assert_int_equal(image_write(&i, 0, C, 1), -EIO);
    image_close(&i);
    assert_int_equal(load_be32(field(f, 0)), QCOW2_MAGIC);
}

static void made_up_refcounts_do_not_hold_a_write_up(void *arg)
{
    const uint64_t cluster = 64 * KiB;
    struct image i;

    image_create("a", MiB, "cluster_size=64k");
    for (uint64_t n = 0; n < cluster / 8; n++) {
        /* Every area is counted by the same block: that makes 2^28 clusters. */
        store_be64(field(memory_file("a"), cluster + n * 8), 2 * cluster);
    }
    memset(field(memory_file("a"), 2 * cluster), 0x11, cluster);
    image_open(&i, "a", "");
    assert_int_equal(image_write(&i, 0, C, 1), -EIO);
    image_close(&i);
}

static void a_misplaced_entry_fails_reads_and_stops_writes(void *arg)
{
    struct image i;
    uint64_t table;

    image_create("a", MiB, "cluster_size=4k");
    image_open(&i, "a", "");
    assert_int_equal(image_write(&i, 0, 4 * C, 1), 0);
    image_close(&i);
    table = load_be64(field(i.file, 3 * C)) & ENTRY_OFFSET_MASK;
    store_be64(field(i.file, table), 0x1200 | ENTRY_COPIED);
    image_open(&i, "a", "");
    image_expect(&i, C, C, 1);
    assert_int_equal(block_co_pread(i.edge, 0, (uint8_t[16]){0}, 16), -EIO);
    assert_int_equal(image_write(&i, C, C, 2), -ENOMEDIUM);
    image_expect(&i, C, C, 1);
    image_close(&i);
}

/* --- compressed clusters ---------------------------------------------------------------------- */

/* About 3/4 of it can't be compressed, so that clusters don't fit into one another's rest. */
static void fill_dense(uint8_t *buf, uint64_t seed)
{
    memset(buf, (int)seed, C);
    for (unsigned n = 0; n < C * 3 / 4; n++) {
        seed = seed * 6364136223846793005ULL + 1442695040888963407ULL;
        buf[n] = (uint8_t)(seed >> 56);
    }
}

static int write_compressed(struct image *i, uint64_t offset, uint64_t seed)
{
    uint8_t buf[C];

    fill_dense(buf, seed);
    return block_co_pwrite(i->edge, offset, buf, C, BLOCK_REQ_COMPRESSED);
}

static void expect_dense(struct image *i, uint64_t offset, uint64_t seed)
{
    uint8_t buf[C], expected[C];

    fill_dense(expected, seed);
    assert_int_equal(block_co_pread(i->edge, offset, buf, C), 0);
    assert_memory_equal(buf, expected, C);
}

static void use_compressed(const char *options)
{
    struct image i;

    image_create("a", MiB, options);
    image_open(&i, "a", "");
    for (uint64_t n = 0; n < 40; n++) {
        assert_int_equal(write_compressed(&i, n * C, n), 0);
        assert_true(image_status(&i, n * C) & BLOCK_STATUS_COMPRESSED);
    }
    image_close(&i);
    assert_true(i.file->size < 40 * C); /* they share clusters */
    image_check("a", 0);
    image_open(&i, "a", "");
    assert_int_equal(image_write(&i, 7 * C + 100, 100, 9), 0);
    assert_int_equal(block_co_discard(i.edge, 20 * C, 3 * C), 0);
    assert_int_equal(block_co_flush(i.edge), 0);
    assert_int_equal(write_compressed(&i, 20 * C, 77), 0);
    for (uint64_t n = 0; n < 40; n++) {
        if (n != 7 && n != 20 && n != 21 && n != 22) {
            expect_dense(&i, n * C, n);
        }
    }
    image_expect(&i, 7 * C + 100, 100, 9);
    expect_dense(&i, 20 * C, 77);
    image_expect(&i, 21 * C, 2 * C, 0);
    image_close(&i);
    image_check("a", 0);
}

static void compressed_clusters_share_clusters_of_the_file(void *arg)
{
    use_compressed("cluster_size=4k");
    use_compressed("cluster_size=4k,compression_type=zstd");
}

static void a_compressed_write_over_contents_is_a_plain_one(void *arg)
{
    struct image i;

    image_create("a", MiB, "cluster_size=4k");
    image_open(&i, "a", "");
    assert_int_equal(image_write(&i, 0, C, 1), 0);
    assert_int_equal(write_compressed(&i, 0, 5), 0);
    assert_false(image_status(&i, 0) & BLOCK_STATUS_COMPRESSED);
    expect_dense(&i, 0, 5);
    assert_int_equal(write_compressed(&i, 2 * C, 6), 0);
    assert_int_equal(write_compressed(&i, 2 * C, 7), 0);
    expect_dense(&i, 2 * C, 7);
    image_close(&i);
    image_check("a", 0);
}

/* The commit for lack of cache fails after the cluster was linked: it must keep its refcount. */
static void a_compressed_cluster_survives_a_failed_commit(void *arg)
{
    struct image i;
    unsigned failed = 0;

    image_create("a", 16 * MiB, "cluster_size=4k");
    image_open(&i, "a", ",l2-cache-size=512,l2-cache-entry-size=512");
    memory_file_fail(i.file, MEMORY_FILE_FLUSH, 0, EIO);
    for (uint64_t n = 0; n < 40; n++) {
        failed += write_compressed(&i, n * 256 * KiB, n) < 0;
    }
    assert_true(failed > 0);
    memory_file_fail(i.file, 0, 0, 0);
    for (uint64_t n = 0; n < 40; n++) {
        expect_dense(&i, n * 256 * KiB, n);
    }
    image_close(&i);
    image_check("a", 0);
}

static void compressed_data_that_is_garbage_is_an_error(void *arg)
{
    struct image i;

    image_create("a", MiB, "cluster_size=4k");
    image_open(&i, "a", "");
    assert_int_equal(write_compressed(&i, 0, 1), 0);
    image_close(&i);
    memset(field(i.file, 4 * C), 0xff, 64); /* behind header, tables and L1 table */
    image_open(&i, "a", "");
    assert_int_equal(block_co_pread(i.edge, 0, (uint8_t[16]){0}, 16), -EIO);
    assert_int_equal(image_write(&i, C, C, 1), 0);
    image_close(&i);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        CO_TEST(the_refcount_table_grows),
        CO_TEST(growth_that_fails_leaves_the_old_table),
        CO_TEST(dirty_slices_are_bounded_and_written),
        CO_TEST(reading_all_keeps_the_cache_within_its_limit),
        CO_TEST(a_header_with_refcount_0_is_not_allocated),
        CO_TEST(no_refcount_block_is_made_over_the_header),
        CO_TEST(made_up_refcounts_do_not_hold_a_write_up),
        CO_TEST(a_misplaced_entry_fails_reads_and_stops_writes),
        CO_TEST(compressed_clusters_share_clusters_of_the_file),
        CO_TEST(a_compressed_write_over_contents_is_a_plain_one),
        CO_TEST(a_compressed_cluster_survives_a_failed_commit),
        CO_TEST(compressed_data_that_is_garbage_is_an_error),
    };

    return cmocka_run_group_tests(tests, qcow2_group_setup, qcow2_group_teardown);
}
