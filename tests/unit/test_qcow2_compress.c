/* SPDX-License-Identifier: Apache-2.0 */
/*
 * qcow2: compressed data sound and broken, compressed clusters in batches, and the cache of
 * decompressed ones.
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
#include <zlib.h>
#include <zstd.h>

#include "qcow2_fixture.h"

#include "base/checked.h"
#include "loop/loop.h"
#include "qcow2/data/compression.h"
#include "qcow2/table/alloc.h"
#include "qcow2/table/map.h"

#define C ((size_t)(64 * KiB))

static const enum compression_type types[] = {COMPRESSION_ZLIB, COMPRESSION_ZSTD};
static const char *const type_options[] = {"compression_type=zlib", "compression_type=zstd"};

static uint64_t next_random(uint64_t *seed)
{
    *seed = *seed * 6364136223846793005ULL + 1442695040888963407ULL;
    return *seed >> 33;
}

/*
 * One byte of `dense` is random, the others repeat what came up to 40,000 bytes before: matches of
 * all distances.
 */
static void fill(uint8_t *buf, size_t size, unsigned dense, uint64_t seed)
{
    for (size_t at = 0; at < size;) {
        size_t length = 3 + next_random(&seed) % 60,
               back = 1 + next_random(&seed) % (length % 2 ? 40000 : 1000);

        if (at < back || next_random(&seed) % dense == 0) {
            buf[at++] = (uint8_t)next_random(&seed);
            continue;
        }
        for (; length > 0 && at < size; length--, at++) {
            buf[at] = buf[at - back];
        }
    }
}

/* --- codecs ----------------------------------------------------------------------------------- */

/* As small as zlib makes it. */
static void repetition_becomes_very_small(void *arg)
{
    uint8_t *in = malloc(MiB), *data = malloc(MiB), *out = malloc(MiB);
    size_t made = 0;

    memset(in, 0x11, MiB);
    assert_int_equal(codec_compress(COMPRESSION_ZLIB, in, MiB, data, MiB - 512, &made), 0);
    assert_true(made <= 1100);
    assert_int_equal(codec_decompress(COMPRESSION_ZLIB, data, made, out, MiB), 0);
    assert_memory_equal(in, out, MiB);
    free(in);
    free(data);
    free(out);
}

static void what_was_compressed_is_got_back(void *arg)
{
    static const size_t sizes[] = {1 * KiB, 4 * KiB, 64 * KiB, 2 * MiB};

    for (size_t n = 0; n < ARRAY_SIZE(types) * ARRAY_SIZE(sizes); n++) {
        enum compression_type type = types[n % 2];
        size_t size = sizes[n / 2], made;
        uint8_t *in = malloc(size), *data = malloc(size), *out = malloc(size);

        for (uint64_t seed = 0; seed < 4; seed++) {
            memset(in, (int)seed, size);
            fill(in + size / 4 * 3, size / 4, 8, seed);
            assert_int_equal(codec_compress(type, in, size, data, size - 512, &made), 0);
            assert_in_range(made, 1, size - 512);
            assert_int_equal(codec_decompress(type, data, made, out, size), 0);
            assert_memory_equal(in, out, size);
        }
        free(in);
        free(data);
        free(out);
    }
}

static void what_does_not_shrink_is_told(void *arg)
{
    uint8_t *in = malloc(C), *data = malloc(C);
    uint64_t seed = 1;
    size_t made;

    for (size_t n = 0; n < C; n++) {
        in[n] = (uint8_t)next_random(&seed);
    }
    for (size_t n = 0; n < ARRAY_SIZE(types); n++) {
        assert_int_equal(codec_compress(types[n], in, C, data, C - 512, &made), -E2BIG);
    }
    free(in);
    free(data);
}

/*
 * As zlib makes it, in a window of 2^bits bytes. `flush`: Z_FINISH, or Z_SYNC_FLUSH for a stream
 * that has no end.
 */
static size_t zlib_deflate(const uint8_t *in, size_t size, uint8_t *out, size_t room, int level,
                           int bits, int flush)
{
    z_stream z = {
        .next_in = (void *)(uintptr_t)in,
        .avail_in = (uInt)size,
        .next_out = out,
        .avail_out = (uInt)room,
    };

    assert_int_equal(deflateInit2(&z, level, Z_DEFLATED, -bits, 9, Z_DEFAULT_STRATEGY), Z_OK);
    assert_in_range(deflate(&z, flush), Z_OK, Z_STREAM_END);
    deflateEnd(&z);
    return room - z.avail_out;
}

static void streams_of_other_writers_are_read(void *arg)
{
    static const struct {
        int level, bits, flush;
    } how[] = {{6, 12, Z_FINISH},     {9, 15, Z_FINISH},     {0, 12, Z_FINISH},
               {6, 12, Z_SYNC_FLUSH}, {0, 15, Z_SYNC_FLUSH}, {1, 9, Z_FINISH}};
    uint8_t *in = malloc(C), *data = calloc(3, C), *out = malloc(C);

    fill(in, C, 8, 5);
    for (size_t n = 0; n < ARRAY_SIZE(how); n++) {
        size_t made = zlib_deflate(in, C, data, 2 * C, how[n].level, how[n].bits, how[n].flush);

        /* What follows an end is the next cluster's: it may look like anything. */
        fill(data + made, C, 1, n);
        made += how[n].flush == Z_FINISH ? C : 0;
        memset(out, 0, C);
        assert_int_equal(codec_decompress(COMPRESSION_ZLIB, data, made, out, C), 0);
        assert_memory_equal(in, out, C);
    }
    free(in);
    free(data);
    free(out);
}

static void zlib_reads_our_streams_in_a_small_window_in_one_call(void *arg)
{
    uint8_t *in = malloc(C), *data = malloc(C), *out = malloc(C);
    z_stream z = {.next_in = data, .next_out = out, .avail_out = C};
    size_t made;

    fill(in, C, 8, 6);
    assert_int_equal(codec_compress(COMPRESSION_ZLIB, in, C, data, C - 512, &made), 0);
    z.avail_in = (uInt)made;
    assert_int_equal(inflateInit2(&z, -12), Z_OK);
    assert_int_equal(inflate(&z, Z_FINISH), Z_STREAM_END);
    inflateEnd(&z);
    assert_memory_equal(in, out, C);
    free(in);
    free(data);
    free(out);
}

static void broken_data_is_an_error_or_other_data(void *arg)
{
    uint8_t *in = malloc(C), *data = malloc(C), *broken, *out = malloc(C);
    uint64_t seed = 9;
    size_t made;

    fill(in, C, 8, 7);
    for (size_t n = 0; n < ARRAY_SIZE(types); n++) {
        assert_int_equal(codec_compress(types[n], in, C, data, C - 512, &made), 0);
        for (unsigned round = 0; round < 500; round++) {
            size_t size = round % 2 ? made : next_random(&seed) % made;
            int r;

            broken = malloc(MAX(size, 1)); /* of exactly this size, so that reading on is found */
            memcpy(broken, data, size);
            for (unsigned k = 0; k < 3 && size > 0 && round % 2; k++) {
                broken[next_random(&seed) % size] ^= (uint8_t)(1u << (next_random(&seed) % 8));
            }
            r = codec_decompress(types[n], broken, size, out, C);
            assert_true(r == -EIO || (r == 0 && round % 2));
            free(broken);
        }
    }
    free(in);
    free(data);
    free(out);
}

/* Of the code of this program: the whole is smaller than a level of zstd makes it. */
static void clusters_become_smaller_than_by_the_level(void *arg)
{
    uint8_t *in = malloc(C), *data = malloc(C), *other = malloc(C);
    FILE *code = fopen("/proc/self/exe", "rb");
    size_t made, all = 0, by_level = 0;

    assert_non_null(code);
    while (fread(in, 1, C, code) == C) {
        size_t n = ZSTD_compress(other, C, in, C, 2);

        if (!ZSTD_isError(n) && codec_compress(COMPRESSION_ZSTD, in, C, data, C, &made) == 0) {
            by_level += n;
            all += made;
        }
    }
    assert_true(by_level > 0);
    assert_true(all < by_level);
    fclose(code);
    free(in);
    free(data);
    free(other);
}

static void data_that_is_too_little_for_a_cluster_is_an_error(void *arg)
{
    uint8_t *in = calloc(1, C), *data = malloc(C), *out = malloc(C);
    size_t made;

    for (size_t n = 0; n < ARRAY_SIZE(types); n++) {
        assert_int_equal(codec_compress(types[n], in, C / 2, data, C, &made), 0);
        assert_int_equal(codec_decompress(types[n], data, made, out, C), -EIO);
    }
    free(in);
    free(data);
    free(out);
}

/* --- images ----------------------------------------------------------------------------------- */

#define DISK (8 * MiB + 3 * 512)

/* A disk's worth: compressible, with every seventh cluster random. */
static uint8_t *make_contents(size_t cluster)
{
    uint8_t *buf = malloc(DISK);

    fill(buf, DISK, 8, 11);
    for (size_t at = 0; at + cluster <= DISK; at += 7 * cluster) {
        fill(buf + at, cluster, 1, at);
    }
    return buf;
}

/* Elements of about 40,000 bytes, so that clusters begin and end within them. */
static struct iov scatter(struct iovec *vec, uint8_t *buf, size_t size)
{
    struct iov iov = {.vec = vec, .size = size};

    for (size_t at = 0; at < size; at += vec[iov.count++].iov_len) {
        vec[iov.count] = (struct iovec){buf + at, MIN(size - at, (size_t)40000)};
    }
    return iov;
}

static void write_all(struct image *i, uint8_t *contents, bool scattered)
{
    struct iovec vec[256];
    struct iov iov = scattered ? scatter(vec, contents, DISK) : iov_from_buf(vec, contents, DISK);

    assert_int_equal(block_co_pwritev(i->edge, 0, iov, BLOCK_REQ_COMPRESSED), 0);
}

static void read_in_pieces(struct image *i, const uint8_t *contents, size_t piece)
{
    struct iovec vec[256];
    uint8_t *buf = malloc(piece);

    for (size_t at = 0; at < DISK; at += piece) {
        size_t size = MIN(piece, DISK - at);

        assert_int_equal(block_co_preadv(i->edge, at, scatter(vec, buf, size), 0), 0);
        assert_memory_equal(buf, contents + at, size);
    }
    free(buf);
}

static void long_requests_are_written_and_read_in_batches(void *arg)
{
    static const char *const clusters[] = {"4k", "64k", "2M"};

    for (size_t n = 0; n < ARRAY_SIZE(clusters) * 2; n++) {
        struct image i;
        uint8_t *contents;
        char options[64];

        snprintf(options, sizeof(options), "cluster_size=%s,%s", clusters[n / 2],
                 type_options[n % 2]);
        image_create("a", DISK, options);
        image_open(&i, "a", "");
        contents = make_contents(i.q->cluster_size);
        write_all(&i, contents, n % 2);
        assert_true(image_status(&i, i.q->cluster_size) & BLOCK_STATUS_COMPRESSED);
        assert_false(image_status(&i, 0) & BLOCK_STATUS_COMPRESSED);
        image_close(&i);
        image_check("a", 0);
        image_open(&i, "a", "");
        read_in_pieces(&i, contents, DISK);
        read_in_pieces(&i, contents, 300000);
        image_close(&i);
        free(contents);
    }
}

static void a_batch_reaches_the_file_in_few_writes(void *arg)
{
    uint8_t *buf = malloc(2 * MiB);
    unsigned writes = 0;
    struct image i;

    fill(buf, 2 * MiB, 8, 1);
    image_create("a", DISK, "cluster_size=64k");
    image_open(&i, "a", "");
    i.file->log_count = 0;
    assert_int_equal(block_co_pwrite(i.edge, 0, buf, 2 * MiB, BLOCK_REQ_COMPRESSED), 0);
    for (unsigned n = 0; n < i.file->log_count; n++) {
        writes += i.file->log[n].kind == MEMORY_FILE_WRITE;
    }
    assert_in_range(writes, 1, 3); /* an L2 table is one, too */
    image_close(&i);
    free(buf);
}

static void a_write_that_fails_leaves_nothing_behind(void *arg)
{
    uint8_t *buf = malloc(2 * MiB);
    struct image i;

    fill(buf, 2 * MiB, 8, 2);
    image_create("a", DISK, "cluster_size=64k");
    image_open(&i, "a", "");
    assert_int_equal(block_co_pwrite(i.edge, 0, buf, C, BLOCK_REQ_COMPRESSED), 0);
    memory_file_fail(i.file, MEMORY_FILE_WRITE, 0, ENOSPC);
    assert_int_equal(block_co_pwrite(i.edge, C, buf, C * 20, BLOCK_REQ_COMPRESSED), -ENOSPC);
    memory_file_fail(i.file, 0, 0, 0);
    assert_int_equal(image_status(&i, C), BLOCK_STATUS_ZERO);
    assert_int_equal(block_co_pwrite(i.edge, 2 * C, buf, C * 20, BLOCK_REQ_COMPRESSED), 0);
    image_close(&i);
    image_check("a", 0);
    free(buf);
}

/* Fails every read of the file from now on. */
static void fail_reads(struct image *i)
{
    memory_file_fail(i->file, MEMORY_FILE_READ, 0, EIO);
}

static void small_reads_in_a_row_decompress_a_cluster_once(void *arg)
{
    uint8_t *contents = make_contents(C), buf[4096];
    struct image i;

    image_create("a", DISK, "cluster_size=64k");
    image_open(&i, "a", "");
    write_all(&i, contents, false);
    assert_int_equal(block_co_pread(i.edge, C, buf, 4096), 0);
    fail_reads(&i);
    for (size_t at = C; at < 2 * C; at += 4096) {
        assert_int_equal(block_co_pread(i.edge, at, buf, 4096), 0);
        assert_memory_equal(buf, contents + at, 4096);
    }
    assert_int_equal(block_co_pread(i.edge, 2 * C, buf, 4096), -EIO);
    memory_file_fail(i.file, 0, 0, 0);
    assert_int_equal(block_co_pread(i.edge, 2 * C, buf, 4096), 0); /* the failure is not kept */
    assert_memory_equal(buf, contents + 2 * C, 4096);
    image_close(&i);
    free(contents);
}

static void the_cache_of_clusters_is_bounded(void *arg)
{
    uint8_t *contents = make_contents(C), byte;
    struct image i;

    image_create("a", DISK, "cluster_size=64k");
    image_open(&i, "a", "");
    write_all(&i, contents, false);
    for (size_t at = 5; at < DISK; at += C) {
        assert_int_equal(block_co_pread(i.edge, at, &byte, 1), 0);
        assert_int_equal(byte, contents[at]);
    }
    assert_int_equal(i.q->caches.decompressed.count, CLUSTER_CACHE_BYTES / C);
    image_close(&i);
    free(contents);
}

static uint64_t entry_at(struct image *i, uint64_t offset)
{
    struct qcow2_run run;

    assert_int_equal(qcow2_co_map(i->q, offset, 1, &run), 0);
    assert_int_equal(run.type, CLUSTER_COMPRESSED);
    return run.host;
}

static void data_in_the_place_of_freed_data_is_not_taken_for_it(void *arg)
{
    uint8_t *buf = malloc(C), byte;
    uint64_t entry;
    struct image i;

    image_create("a", DISK, "cluster_size=64k");
    image_open(&i, "a", "");
    memset(buf, 1, C);
    assert_int_equal(block_co_pwrite(i.edge, 0, buf, C, BLOCK_REQ_COMPRESSED), 0);
    image_expect(&i, 0, 512, 1);
    entry = entry_at(&i, 0);
    assert_int_equal(block_co_discard(i.edge, 0, C), 0);
    assert_int_equal(block_co_flush(i.edge), 0);
    memset(buf, 2, C);
    assert_int_equal(block_co_pwrite(i.edge, 0, buf, C, BLOCK_REQ_COMPRESSED), 0);
    assert_int_equal(entry_at(&i, 0), entry);
    assert_int_equal(block_co_pread(i.edge, 0, &byte, 1), 0);
    assert_int_equal(byte, 2);
    image_close(&i);
    free(buf);
}

struct reader {
    struct image *i;
    const uint8_t *contents;
    size_t begin, end, step;
    struct co_group *group;
};

static void read_stretch(void *arg)
{
    struct reader *r = arg;
    uint8_t buf[4096];

    for (size_t at = r->begin; at < r->end; at += r->step) {
        assert_int_equal(block_co_pread(r->i->edge, at, buf, sizeof(buf)), 0);
        assert_memory_equal(buf, r->contents + at, sizeof(buf));
    }
    co_group_done(r->group);
}

static void readers_of_one_cluster_wait_for_the_one_that_loads_it(void *arg)
{
    uint8_t *contents = malloc(DISK);
    struct reader readers[16];
    struct co_group group;
    struct image i;

    fill(contents, DISK, 8, 12);
    image_create("a", DISK, "cluster_size=64k");
    image_open(&i, "a", "");
    write_all(&i, contents, false);
    memory_file_fail(i.file, MEMORY_FILE_READ, 4 * MiB / C, EIO); /* once each is enough */
    co_group_init(&group);
    for (size_t n = 0; n < ARRAY_SIZE(readers); n++) {
        readers[n] = (struct reader){&i, contents, n * 4096, 4 * MiB, 16 * 4096, &group};
        co_group_add(&group);
        assert_int_equal(reactor_spawn(reactor_main(), read_stretch, &readers[n]), 0);
    }
    co_group_wait(&group);
    co_group_destroy(&group);
    memory_file_fail(i.file, 0, 0, 0);
    image_close(&i);
    free(contents);
}

static void broken_clusters_are_errors_and_their_neighbours_are_not(void *arg)
{
    uint8_t *buf = malloc(4 * C);
    uint64_t host, size;
    struct image i;

    fill(buf, 4 * C, 8, 3);
    for (size_t n = 0; n < ARRAY_SIZE(type_options); n++) {
        char options[64];

        snprintf(options, sizeof(options), "cluster_size=64k,%s", type_options[n]);
        image_create("a", DISK, options);
        image_open(&i, "a", "");
        assert_int_equal(block_co_pwrite(i.edge, 0, buf, 4 * C, BLOCK_REQ_COMPRESSED), 0);
        qcow2_compressed_range(i.q, entry_at(&i, C), &host, &size);
        memset(i.file->data + host, 0xff, 64);
        assert_int_equal(block_co_pread(i.edge, 0, buf, 4 * C), -EIO);
        assert_int_equal(block_co_pread(i.edge, C, buf, 512), -EIO);
        assert_int_equal(block_co_pread(i.edge, 0, buf, C), 0);
        assert_int_equal(block_co_pread(i.edge, 2 * C, buf, 2 * C), 0);
        image_close(&i);
        fill(buf, 4 * C, 8, 3);
    }
    free(buf);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        CO_TEST(what_was_compressed_is_got_back),
        CO_TEST(repetition_becomes_very_small),
        CO_TEST(what_does_not_shrink_is_told),
        CO_TEST(streams_of_other_writers_are_read),
        CO_TEST(zlib_reads_our_streams_in_a_small_window_in_one_call),
        CO_TEST(broken_data_is_an_error_or_other_data),
        CO_TEST(clusters_become_smaller_than_by_the_level),
        CO_TEST(data_that_is_too_little_for_a_cluster_is_an_error),
        CO_TEST(long_requests_are_written_and_read_in_batches),
        CO_TEST(a_batch_reaches_the_file_in_few_writes),
        CO_TEST(a_write_that_fails_leaves_nothing_behind),
        CO_TEST(small_reads_in_a_row_decompress_a_cluster_once),
        CO_TEST(the_cache_of_clusters_is_bounded),
        CO_TEST(data_in_the_place_of_freed_data_is_not_taken_for_it),
        CO_TEST(readers_of_one_cluster_wait_for_the_one_that_loads_it),
        CO_TEST(broken_clusters_are_errors_and_their_neighbours_are_not),
    };

    return cmocka_run_group_tests(tests, qcow2_group_setup, qcow2_group_teardown);
}
