/* SPDX-License-Identifier: Apache-2.0 */
/* Dirty bitmaps, against known answers and against one byte per granule. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "base/checked.h"
#include "bitmap/bitmap.h"

#define GRANULARITY (64 * KiB)
/* Bits of one leaf page. */
#define LEAF_BITS 32768ull

static struct dirty_bitmap *bitmap_new(uint64_t size, uint32_t granularity)
{
    struct dirty_bitmap *b = dirty_bitmap_new(size, granularity);

    assert_non_null(b);
    return b;
}

static void assert_next(const struct dirty_bitmap *b, uint64_t offset, uint64_t end,
                        uint64_t want_offset, uint64_t want_length)
{
    uint64_t got_offset, got_length;

    assert_true(dirty_bitmap_next_dirty(b, offset, end, &got_offset, &got_length));
    assert_int_equal(got_offset, want_offset);
    assert_int_equal(got_length, want_length);
}

static void assert_no_next(const struct dirty_bitmap *b, uint64_t offset, uint64_t end)
{
    uint64_t got_offset = 77, got_length = 77;

    assert_false(dirty_bitmap_next_dirty(b, offset, end, &got_offset, &got_length));
    assert_int_equal(got_offset, 77);
    assert_int_equal(got_length, 77);
}

/* ---- geometry ---- */

static void test_refuses_what_is_out_of_range(void **state)
{
    assert_null(dirty_bitmap_new(MiB, 0));
    assert_null(dirty_bitmap_new(MiB, 256));
    assert_null(dirty_bitmap_new(MiB, 3 * 512));
    assert_null(dirty_bitmap_new((uint64_t)INT64_MAX + 1, 512));
    assert_null(dirty_bitmap_new(UINT64_MAX, BITMAP_GRANULARITY_MAX));
    dirty_bitmap_free(NULL);
}

static void test_size_zero_holds_nothing(void **state)
{
    struct dirty_bitmap *b = bitmap_new(0, 512);
    uint8_t buf[4] = {0xff, 0xff, 0xff, 0xff};

    assert_int_equal(dirty_bitmap_granules(b), 0);
    dirty_bitmap_set(b, 0, 1);
    dirty_bitmap_set(b, 0, UINT64_MAX);
    dirty_bitmap_clear_all(b);
    assert_int_equal(dirty_bitmap_deserialize(b, 0, buf, sizeof(buf)), 0);
    assert_int_equal(dirty_bitmap_count(b), 0);
    assert_false(dirty_bitmap_get(b, 0));
    assert_no_next(b, 0, UINT64_MAX);
    assert_false(dirty_bitmap_serialize(b, 0, buf, sizeof(buf)));
    assert_int_equal(buf[0] | buf[1] | buf[2] | buf[3], 0);
    dirty_bitmap_free(b);
}

static void test_one_byte_disk(void **state)
{
    struct dirty_bitmap *b = bitmap_new(1, BITMAP_GRANULARITY_MAX);
    uint64_t length;

    assert_int_equal(dirty_bitmap_granules(b), 1);
    assert_false(dirty_bitmap_status(b, 0, 100, &length));
    assert_int_equal(length, 1);
    dirty_bitmap_set(b, 0, 1);
    assert_int_equal(dirty_bitmap_count(b), 1);
    assert_true(dirty_bitmap_status(b, 0, 100, &length));
    assert_int_equal(length, 1);
    assert_next(b, 0, UINT64_MAX, 0, 1);
    assert_no_next(b, 1, UINT64_MAX);
    dirty_bitmap_clear(b, 0, 1);
    assert_int_equal(dirty_bitmap_count(b), 0);
    dirty_bitmap_free(b);
}

static void test_largest_disk_works_sparsely(void **state)
{
    const uint64_t size = INT64_MAX;
    struct dirty_bitmap *b = bitmap_new(size, 512);

    dirty_bitmap_set(b, size - 1, UINT64_MAX);
    assert_next(b, 0, UINT64_MAX, size - 511, 511);
    assert_int_equal(dirty_bitmap_count(b), 511);
    dirty_bitmap_set(b, 1ull << 62, 1);
    assert_next(b, 0, UINT64_MAX, 1ull << 62, 512);
    assert_true(dirty_bitmap_memory(b) < 128 * KiB);

    dirty_bitmap_set(b, 0, size);
    assert_int_equal(dirty_bitmap_count(b), size);
    assert_next(b, 5, UINT64_MAX, 5, size - 5);
    assert_true(dirty_bitmap_memory(b) < 128 * KiB);
    dirty_bitmap_clear(b, 1ull << 61, 512);
    assert_int_equal(dirty_bitmap_count(b), size - 512);
    assert_next(b, 0, UINT64_MAX, 0, 1ull << 61);
    dirty_bitmap_clear_all(b);
    assert_int_equal(dirty_bitmap_count(b), 0);
    assert_no_next(b, 0, UINT64_MAX);
    dirty_bitmap_free(b);
}

static void test_clean_16_tib_takes_next_to_no_memory(void **state)
{
    struct dirty_bitmap *b = bitmap_new(16 * TiB, GRANULARITY);

    assert_int_equal(dirty_bitmap_granules(b), 256 * MiB);
    assert_true(dirty_bitmap_memory(b) < 16 * KiB);
    assert_no_next(b, 0, UINT64_MAX);
    dirty_bitmap_set(b, 7 * TiB, 4 * KiB);
    assert_true(dirty_bitmap_memory(b) < 32 * KiB);
    assert_next(b, 0, UINT64_MAX, 7 * TiB, GRANULARITY);
    dirty_bitmap_free(b);
}

/* ---- rounding ---- */

static void test_partial_granule_counts_whole_when_set(void **state)
{
    struct dirty_bitmap *b = bitmap_new(10 * GRANULARITY, GRANULARITY);

    dirty_bitmap_set(b, 2 * GRANULARITY - 1, 2);
    assert_false(dirty_bitmap_get(b, GRANULARITY - 1));
    assert_true(dirty_bitmap_get(b, GRANULARITY));
    assert_true(dirty_bitmap_get(b, 3 * GRANULARITY - 1));
    assert_false(dirty_bitmap_get(b, 3 * GRANULARITY));
    assert_int_equal(dirty_bitmap_count(b), 2 * GRANULARITY);
    dirty_bitmap_set(b, 5 * GRANULARITY, 0);
    assert_int_equal(dirty_bitmap_count(b), 2 * GRANULARITY);
    dirty_bitmap_free(b);
}

static void test_partial_granule_is_left_alone_when_cleared(void **state)
{
    struct dirty_bitmap *b = bitmap_new(10 * GRANULARITY + 1, GRANULARITY);

    dirty_bitmap_set(b, 0, UINT64_MAX);
    dirty_bitmap_clear(b, GRANULARITY + 1, 2 * GRANULARITY - 1);
    assert_true(dirty_bitmap_get(b, GRANULARITY));
    assert_false(dirty_bitmap_get(b, 2 * GRANULARITY));
    assert_true(dirty_bitmap_get(b, 3 * GRANULARITY));
    dirty_bitmap_clear(b, 5 * GRANULARITY + 1, 10);
    assert_true(dirty_bitmap_get(b, 5 * GRANULARITY));
    /* The last granule has one byte: covered up to the end of the disk. */
    dirty_bitmap_clear(b, 10 * GRANULARITY, 1);
    assert_false(dirty_bitmap_get(b, 10 * GRANULARITY));
    assert_int_equal(dirty_bitmap_count(b), 9 * GRANULARITY);
    dirty_bitmap_free(b);
}

static void test_last_granule_is_cut_at_the_size(void **state)
{
    const uint64_t size = 3 * GRANULARITY + 100;
    struct dirty_bitmap *b = bitmap_new(size, GRANULARITY);
    uint64_t length;

    dirty_bitmap_set(b, size - 1, 1);
    assert_int_equal(dirty_bitmap_count(b), 100);
    assert_next(b, 0, UINT64_MAX, 3 * GRANULARITY, 100);
    assert_next(b, 3 * GRANULARITY + 7, 3 * GRANULARITY + 20, 3 * GRANULARITY + 7, 13);
    assert_false(dirty_bitmap_status(b, 50, UINT64_MAX, &length));
    assert_int_equal(length, 3 * GRANULARITY - 50);
    assert_true(dirty_bitmap_status(b, size - 10, UINT64_MAX, &length));
    assert_int_equal(length, 10);
    assert_false(dirty_bitmap_get(b, size));
    dirty_bitmap_free(b);
}

/* ---- memory ---- */

/* Every second granule of 16 TiB, as it is read from an image: 32 MiB, and as good as no more. */
static void test_16_tib_take_their_bits_and_directories(void **state)
{
    const uint64_t granules = 256 * MiB, step = 1 * MiB;
    struct dirty_bitmap *b = bitmap_new(16 * TiB, GRANULARITY), *all;
    uint8_t *bits = malloc(step);

    memset(bits, 0x55, step);
    for (uint64_t first = 0; first < granules; first += step * 8) {
        assert_int_equal(dirty_bitmap_deserialize(b, first, bits, step), 0);
    }
    assert_int_equal(dirty_bitmap_count(b), 8 * TiB);
    assert_in_range(dirty_bitmap_memory(b), 32 * MiB, 32 * MiB + 80 * KiB);
    all = dirty_bitmap_clone_merged(b, b);
    assert_int_equal(dirty_bitmap_count(all), 8 * TiB);
    assert_in_range(dirty_bitmap_memory(all), 32 * MiB, 32 * MiB + 80 * KiB);
    dirty_bitmap_free(all);

    memset(bits, 0xff, step);
    all = bitmap_new(16 * TiB, GRANULARITY);
    for (uint64_t first = 0; first < granules; first += step * 8) {
        assert_int_equal(dirty_bitmap_deserialize(all, first, bits, step), 0);
    }
    assert_int_equal(dirty_bitmap_count(all), 16 * TiB);
    assert_true(dirty_bitmap_memory(all) < 128 * KiB);
    assert_next(all, 0, UINT64_MAX, 0, 16 * TiB);
    dirty_bitmap_free(all);
    dirty_bitmap_free(b);
    free(bits);
}

static void test_partly_cleared_whole_region_gets_leaves(void **state)
{
    const uint64_t size = (3 * LEAF_BITS + 5) * 512;
    struct dirty_bitmap *b = bitmap_new(size, 512);
    size_t empty = dirty_bitmap_memory(b);

    dirty_bitmap_set(b, 0, size);
    assert_int_equal(dirty_bitmap_memory(b), empty);
    dirty_bitmap_clear(b, size - 512, 512);
    assert_int_equal(dirty_bitmap_count(b), size - 512);
    assert_next(b, 0, UINT64_MAX, 0, size - 512);
    dirty_bitmap_clear(b, 0, size - 512);
    assert_int_equal(dirty_bitmap_count(b), 0);
    assert_no_next(b, 0, UINT64_MAX);
    dirty_bitmap_free(b);
}

static void test_without_memory_a_region_reads_dirty(void **state)
{
    const uint64_t leaf = LEAF_BITS * 512;
    struct dirty_bitmap *b = bitmap_new(4 * leaf + 10, 512);
    struct dirty_bitmap *src = bitmap_new(4 * leaf + 10, 512);
    uint8_t bits = 0x10;

    dirty_bitmap_set(b, leaf + 512, 1);
    dirty_bitmap_set(b, 0, 1);
    dirty_bitmap_set_memory_limit(b, 0);
    assert_int_equal(dirty_bitmap_count(b), 2 * 512);

    dirty_bitmap_set(b, 3 * leaf + 5, 1);
    assert_int_equal(dirty_bitmap_count(b), 2 * 512 + leaf);
    assert_next(b, 2 * leaf, UINT64_MAX, 3 * leaf, leaf);
    dirty_bitmap_clear(b, 3 * leaf, leaf / 2);
    assert_int_equal(dirty_bitmap_count(b), 2 * 512 + leaf); /* still a superset */
    dirty_bitmap_clear(b, 3 * leaf, leaf);
    assert_int_equal(dirty_bitmap_count(b), 2 * 512);

    assert_int_equal(dirty_bitmap_deserialize(b, 2 * LEAF_BITS, &bits, 1), -ENOMEM);
    assert_int_equal(dirty_bitmap_count(b), 2 * 512 + leaf);
    dirty_bitmap_set(src, 3 * leaf, 512);
    assert_int_equal(dirty_bitmap_merge(b, src), -ENOMEM);
    assert_true(dirty_bitmap_get(b, 3 * leaf));
    assert_null(dirty_bitmap_clone(b));
    assert_null(dirty_bitmap_clone_merged(b, src));
    assert_int_equal(dirty_bitmap_resize(b, 5 * leaf), -ENOMEM);
    assert_int_equal(dirty_bitmap_size(b), 4 * leaf + 10);
    assert_int_equal(dirty_bitmap_count(b), 2 * 512 + 2 * leaf);
    dirty_bitmap_free(b);
    dirty_bitmap_free(src);
}

/* ---- serialised form ---- */

static void test_serialised_bit_0_is_granule_0(void **state)
{
    struct dirty_bitmap *b = bitmap_new(21 * 512, 512);
    uint8_t buf[5];

    dirty_bitmap_set(b, 0, 1);
    dirty_bitmap_set(b, 9 * 512, 1);
    dirty_bitmap_set(b, 20 * 512, 1);
    memset(buf, 0xee, sizeof(buf));
    assert_true(dirty_bitmap_serialize(b, 0, buf, sizeof(buf)));
    assert_memory_equal(buf, ((uint8_t[]){0x01, 0x02, 0x10, 0, 0}), 5);
    assert_true(dirty_bitmap_serialize(b, 16, buf, 1));
    assert_int_equal(buf[0], 0x10);
    assert_false(dirty_bitmap_serialize(b, 24, buf, 1));
    assert_int_equal(buf[0], 0);

    /* Deserialising adds, and ignores what lies past the end. */
    assert_int_equal(dirty_bitmap_deserialize(b, 16, (uint8_t[]){0xe1, 0xff}, 2), 0);
    assert_int_equal(dirty_bitmap_count(b), 4 * 512);
    assert_true(dirty_bitmap_get(b, 16 * 512));
    assert_true(dirty_bitmap_get(b, 20 * 512));
    dirty_bitmap_free(b);
}

static void test_serialised_in_pieces_comes_back_equal(void **state)
{
    const uint64_t granules = 2 * LEAF_BITS + 13;
    struct dirty_bitmap *b = bitmap_new(granules * 512, 512);
    struct dirty_bitmap *back = bitmap_new(granules * 512, 512);
    const size_t bytes = (granules + 7) / 8;
    uint8_t *whole = malloc(bytes);
    uint8_t piece[77];

    dirty_bitmap_set(b, 0, granules * 512);
    for (uint64_t i = 0; i < granules; i += 3) {
        dirty_bitmap_clear(b, i * 512, 512);
    }
    assert_true(dirty_bitmap_serialize(b, 0, whole, bytes));
    for (size_t pos = 0; pos < bytes; pos += sizeof(piece)) {
        size_t n = MIN(sizeof(piece), bytes - pos);

        assert_true(dirty_bitmap_serialize(b, pos * 8, piece, n));
        assert_memory_equal(piece, whole + pos, n);
        assert_int_equal(dirty_bitmap_deserialize(back, pos * 8, piece, n), 0);
    }
    for (uint64_t i = 0; i < granules; i++) {
        assert_int_equal(whole[i / 8] >> (i % 8) & 1, i % 3 != 0);
        assert_int_equal(dirty_bitmap_get(back, i * 512), i % 3 != 0);
    }
    assert_int_equal(dirty_bitmap_count(back), dirty_bitmap_count(b));
    free(whole);
    dirty_bitmap_free(b);
    dirty_bitmap_free(back);
}

/* ---- whole bitmaps ---- */

static void test_merge_of_another_granularity_and_size(void **state)
{
    struct dirty_bitmap *fine = bitmap_new(10 * MiB + 1000, 512);
    struct dirty_bitmap *coarse = bitmap_new(8 * MiB, MiB);

    dirty_bitmap_set(fine, 2 * MiB - 1, 2);
    dirty_bitmap_set(fine, 9 * MiB, 1);
    assert_int_equal(dirty_bitmap_merge(coarse, fine), 0);
    assert_int_equal(dirty_bitmap_count(coarse), 2 * MiB);
    assert_next(coarse, 0, UINT64_MAX, MiB, 2 * MiB);

    dirty_bitmap_set(coarse, 8 * MiB - 1, 1);
    assert_int_equal(dirty_bitmap_merge(fine, coarse), 0);
    assert_int_equal(dirty_bitmap_count(fine), 3 * MiB + 512);
    assert_next(fine, 4 * MiB, UINT64_MAX, 7 * MiB, MiB);
    assert_int_equal(dirty_bitmap_merge(fine, fine), 0);
    assert_int_equal(dirty_bitmap_count(fine), 3 * MiB + 512);
    dirty_bitmap_free(fine);
    dirty_bitmap_free(coarse);
}

/* Random granules, a range, and a leaf that is set as a whole. */
static void fill_randomly(struct dirty_bitmap *b, unsigned *seed)
{
    const uint64_t granularity = dirty_bitmap_granularity(b), granules = dirty_bitmap_granules(b);
    uint64_t at = (uint64_t)rand_r(seed) % granules;

    for (uint64_t i = 0; i < granules / 3; i++) {
        dirty_bitmap_set(b, (uint64_t)rand_r(seed) % granules * granularity, 1);
    }
    dirty_bitmap_set(b, at * granularity, granules / 10 * granularity);
    if (rand_r(seed) % 2) {
        dirty_bitmap_set(b, LEAF_BITS * granularity, LEAF_BITS * granularity);
    }
    if (rand_r(seed) % 2) {
        dirty_bitmap_clear(b, 0, granules / 4 * granularity);
    }
}

static bool any_dirty(const struct dirty_bitmap *b, uint64_t offset, uint64_t end)
{
    uint64_t got_offset, got_length;

    return dirty_bitmap_next_dirty(b, offset, end, &got_offset, &got_length);
}

static void check_walk(const struct dirty_bitmap *b, uint64_t first, uint64_t end)
{
    struct dirty_bitmap_walk walk = {.bitmap = b};

    for (uint64_t at = first, length, wanted; at < end; at += length) {
        bool dirty = dirty_bitmap_status(b, at, end, &wanted);

        assert_int_equal(dirty_bitmap_walk_status(&walk, at, end, &length), dirty);
        assert_int_equal(length, wanted);
    }
}

static void test_a_walk_finds_what_status_finds(void **state)
{
    const uint64_t size = (4 * LEAF_BITS + 777) * 512 - 100;
    unsigned seed = 1;

    for (int round = 0; round < 20; round++) {
        struct dirty_bitmap *b = bitmap_new(size, 512);
        uint64_t first = (uint64_t)rand_r(&seed) % (size / 2);

        if (round > 0) {
            fill_randomly(b, &seed);
        }
        if (round > 10) {
            dirty_bitmap_set(b, LEAF_BITS * 512 - 512, 2 * LEAF_BITS * 512);
        }
        check_walk(b, 0, size);
        check_walk(b, first, first + size / 3);
        dirty_bitmap_free(b);
    }
}

static void check_merge(uint64_t size, uint64_t src_size, uint32_t granularity, uint32_t src_of,
                        unsigned *seed)
{
    struct dirty_bitmap *dest = bitmap_new(size, granularity);
    struct dirty_bitmap *src = bitmap_new(src_size, src_of), *before, *merged;

    fill_randomly(src, seed);
    if (rand_r(seed) % 2) {
        fill_randomly(dest, seed);
    }
    before = dirty_bitmap_clone(dest);
    merged = dirty_bitmap_clone_merged(dest, src);
    assert_int_equal(
        rand_r(seed) % 2 ? dirty_bitmap_merge(dest, src) : dirty_bitmap_merge_alone(dest, src), 0);
    for (uint64_t at = 0, count = 0; at < size; at += granularity) {
        bool wanted = dirty_bitmap_get(before, at) || any_dirty(src, at, at + granularity);

        assert_int_equal(dirty_bitmap_get(dest, at), wanted);
        assert_int_equal(dirty_bitmap_get(merged, at), wanted);
        count += wanted ? MIN(granularity, size - at) : 0;
        if (at + granularity >= size) {
            assert_int_equal(dirty_bitmap_count(dest), count);
            assert_int_equal(dirty_bitmap_count(merged), count);
        }
    }
    dirty_bitmap_free(merged);
    dirty_bitmap_free(before);
    dirty_bitmap_free(dest);
    dirty_bitmap_free(src);
}

static void test_merge_of_all_pairs_of_granularities(void **state)
{
    const uint64_t granules = 2 * LEAF_BITS + 5001;
    unsigned seed = 1;

    for (unsigned shift = 0; shift <= 22; shift++) {
        uint32_t fine = 512;
        uint64_t size = MAX(granules * fine, 100ull << (9 + shift)) - 100;

        if (size > (LEAF_BITS << 14)) {
            fine = BITMAP_GRANULARITY_MAX >> (shift > 8 ? 8 : shift);
            size = granules * fine - 100;
        }
        check_merge(size, size, fine, MIN((uint64_t)fine << shift, BITMAP_GRANULARITY_MAX), &seed);
        check_merge(size, size, MIN((uint64_t)fine << shift, BITMAP_GRANULARITY_MAX), fine, &seed);
        check_merge(size / 3, size, fine, fine << (shift % 8), &seed);
        check_merge(size, size / 3, fine << (shift % 8), fine, &seed);
    }
}

static void test_merge_of_another_granularity_without_memory(void **state)
{
    struct dirty_bitmap *fine = bitmap_new(64 * MiB, 512);
    struct dirty_bitmap *coarse = bitmap_new(64 * MiB, 4096);

    dirty_bitmap_set(fine, 5 * MiB, 1);
    dirty_bitmap_set_memory_limit(coarse, 0);
    assert_int_equal(dirty_bitmap_merge(coarse, fine), -ENOMEM);
    assert_true(dirty_bitmap_get(coarse, 5 * MiB));
    dirty_bitmap_free(fine);
    dirty_bitmap_free(coarse);
}

static void test_merge_of_whole_regions_takes_no_time_or_memory(void **state)
{
    struct dirty_bitmap *all = bitmap_new(INT64_MAX, 512);
    struct dirty_bitmap *copy;

    dirty_bitmap_set(all, 0, INT64_MAX);
    dirty_bitmap_clear(all, TiB, 512);
    copy = dirty_bitmap_clone(all);
    assert_non_null(copy);
    assert_int_equal(dirty_bitmap_count(copy), dirty_bitmap_count(all));
    assert_next(copy, 0, UINT64_MAX, 0, TiB);
    assert_true(dirty_bitmap_memory(copy) < 128 * KiB);
    dirty_bitmap_free(all);
    dirty_bitmap_free(copy);
}

static void test_swap_exchanges_contents(void **state)
{
    struct dirty_bitmap *a = bitmap_new(MiB, 512);
    struct dirty_bitmap *b = bitmap_new(MiB, 512);

    dirty_bitmap_set(a, 512, 512);
    dirty_bitmap_swap(a, b);
    assert_int_equal(dirty_bitmap_count(a), 0);
    assert_no_next(a, 0, UINT64_MAX);
    assert_next(b, 0, UINT64_MAX, 512, 512);
    dirty_bitmap_free(a);
    dirty_bitmap_free(b);
}

static void test_growth_is_clean(void **state)
{
    const uint64_t old_size = 100 * 512 + 1;
    const uint64_t new_size = 40 * LEAF_BITS * 512;
    struct dirty_bitmap *b = bitmap_new(old_size, 512);

    dirty_bitmap_set(b, 0, old_size);
    assert_int_equal(dirty_bitmap_resize(b, new_size), 0);
    assert_int_equal(dirty_bitmap_size(b), new_size);
    assert_next(b, 0, UINT64_MAX, 0, 101 * 512);
    assert_no_next(b, 101 * 512, UINT64_MAX);
    assert_int_equal(dirty_bitmap_count(b), 101 * 512);
    assert_int_equal(dirty_bitmap_resize(b, UINT64_MAX), -EFBIG);
    dirty_bitmap_free(b);
}

static void test_shrinking_loses_what_is_beyond(void **state)
{
    const uint64_t old_size = 40 * LEAF_BITS * 512;
    struct dirty_bitmap *b = bitmap_new(old_size, 512);

    dirty_bitmap_set(b, 0, old_size);
    assert_int_equal(dirty_bitmap_resize(b, 700), 0);
    assert_int_equal(dirty_bitmap_count(b), 700);
    assert_int_equal(dirty_bitmap_resize(b, old_size), 0);
    assert_next(b, 0, UINT64_MAX, 0, 1024);
    assert_int_equal(dirty_bitmap_count(b), 1024);
    assert_int_equal(dirty_bitmap_resize(b, 0), 0);
    assert_int_equal(dirty_bitmap_count(b), 0);
    assert_no_next(b, 0, UINT64_MAX);
    dirty_bitmap_free(b);
}

/* ---- against a model ---- */

struct model {
    uint64_t size;
    uint32_t granularity;
    uint64_t granules;
    uint8_t *dirty; /* one byte per granule */
};

static uint64_t random_below(uint64_t limit)
{
    return limit ? ((uint64_t)random() << 31 | (uint64_t)random()) % limit : 0;
}

static void model_init(struct model *m, uint64_t size, uint32_t granularity)
{
    m->size = size;
    m->granularity = granularity;
    m->granules = div_round_up(size, granularity);
    m->dirty = calloc(m->granules + 1, 1);
    assert_non_null(m->dirty);
}

static void model_change(struct model *m, uint64_t offset, uint64_t length, bool set)
{
    uint64_t end = MIN(m->size, offset + length);

    for (uint64_t i = 0; i < m->granules && length > 0; i++) {
        uint64_t start = i * m->granularity;
        uint64_t stop = MIN(start + m->granularity, m->size);

        if (set && start < end && stop > offset) {
            m->dirty[i] = 1;
        } else if (!set && start >= offset && stop <= end) {
            m->dirty[i] = 0;
        }
    }
}

static void model_check_extents(const struct model *m, const struct dirty_bitmap *b, uint64_t start,
                                uint64_t end)
{
    uint64_t pos = start;
    uint64_t offset, length;

    while (dirty_bitmap_next_dirty(b, pos, end, &offset, &length)) {
        assert_true(offset >= pos && length > 0 && length <= end - offset);
        for (uint64_t i = pos / m->granularity; i * m->granularity < offset; i++) {
            assert_false(m->dirty[i] && (i + 1) * m->granularity > pos &&
                         i != offset / m->granularity);
        }
        for (uint64_t i = offset / m->granularity; i * m->granularity < offset + length; i++) {
            assert_true(m->dirty[i]);
        }
        pos = offset + length;
        if (pos < end) {
            assert_int_equal(pos % m->granularity, 0);
            assert_false(m->dirty[pos / m->granularity]);
        }
    }
    for (uint64_t i = pos / m->granularity; pos < end && i * m->granularity < end; i++) {
        assert_false(m->dirty[i]);
    }
}

static void model_check_status(const struct model *m, const struct dirty_bitmap *b, uint64_t start,
                               uint64_t end)
{
    uint64_t length;

    for (uint64_t pos = start; pos < end; pos += length) {
        bool dirty = dirty_bitmap_status(b, pos, end, &length);

        assert_true(length > 0 && length <= end - pos);
        for (uint64_t i = pos / m->granularity; i * m->granularity < pos + length; i++) {
            assert_int_equal(m->dirty[i], dirty);
        }
    }
}

static void model_check(const struct model *m, const struct dirty_bitmap *b)
{
    uint64_t start = random_below(m->size);
    uint64_t end = start + random_below(m->size - start + 1);
    uint64_t count = 0;

    assert_int_equal(dirty_bitmap_size(b), m->size);
    for (uint64_t i = 0; i < m->granules; i++) {
        if (m->dirty[i]) {
            count += MIN(m->granularity, m->size - i * m->granularity);
        }
    }
    assert_int_equal(dirty_bitmap_count(b), count);
    model_check_extents(m, b, 0, m->size);
    model_check_extents(m, b, start, end);
    model_check_status(m, b, start, end);
}

static void model_check_serialised(const struct model *m, const struct dirty_bitmap *b)
{
    uint64_t first = round_down(random_below(m->granules), 8);
    size_t bytes = random_below(m->granules / 8 + 20);
    uint8_t *buf = malloc(bytes + 1);
    bool any = false;

    assert_non_null(buf);
    bool got_any = dirty_bitmap_serialize(b, first, buf, bytes);
    for (uint64_t k = 0; k < bytes * 8; k++) {
        bool dirty = first + k < m->granules && m->dirty[first + k];

        any |= dirty;
        assert_int_equal(buf[k / 8] >> (k % 8) & 1, dirty);
    }
    assert_int_equal(got_any, any);
    free(buf);
}

static void model_resize(struct model *m, struct dirty_bitmap *b)
{
    struct model resized;

    model_init(&resized, random_below(2 * m->size) + 1, m->granularity);
    if (resized.granules > 5 * LEAF_BITS) {
        free(resized.dirty);
        return;
    }
    memcpy(resized.dirty, m->dirty, MIN(m->granules, resized.granules));
    assert_int_equal(dirty_bitmap_resize(b, resized.size), 0);
    free(m->dirty);
    *m = resized;
}

static void model_merge_random(struct model *m, struct dirty_bitmap *b)
{
    uint32_t granularity = 512u << random_below(6);
    uint64_t size = random_below(2 * m->size) + 1;
    struct dirty_bitmap *src = bitmap_new(size, granularity);
    uint64_t offset = 0, length;

    for (unsigned i = 0; i < 6; i++) {
        dirty_bitmap_set(src, random_below(size), random_below(size / 8) + 1);
    }
    assert_int_equal(dirty_bitmap_merge(b, src), 0);
    while (dirty_bitmap_next_dirty(src, offset, m->size, &offset, &length)) {
        model_change(m, offset, length, true);
        offset += length;
    }
    dirty_bitmap_free(src);
}

static void test_a_merge_is_cut_at_the_end_of_its_target(void **state)
{
    struct dirty_bitmap *dest = bitmap_new(21257, 2048), *src = bitmap_new(32017, 512);

    dirty_bitmap_set(src, 21504, 1024); /* in the last granule of `dest`, but past its end */
    assert_int_equal(dirty_bitmap_merge(dest, src), 0);
    assert_int_equal(dirty_bitmap_count(dest), 0);
    dirty_bitmap_set(src, 21256, 1);
    assert_int_equal(dirty_bitmap_merge_alone(dest, src), 0);
    assert_int_equal(dirty_bitmap_count(dest), 21257 - 20480);
    dirty_bitmap_free(src);
    dirty_bitmap_free(dest);
}

static void model_step(struct model *m, struct dirty_bitmap *b)
{
    uint64_t offset = random_below(m->size);
    uint64_t length = random_below(random_below(4) ? 8 * m->granularity : m->size + 10);
    unsigned what = (unsigned)random_below(100);

    if (what < 55) {
        dirty_bitmap_set(b, offset, length);
        model_change(m, offset, length, true);
    } else if (what < 90) {
        dirty_bitmap_clear(b, offset, length);
        model_change(m, offset, length, false);
    } else if (what < 92) {
        dirty_bitmap_set(b, 0, UINT64_MAX);
        memset(m->dirty, 1, m->granules);
    } else if (what < 95) {
        dirty_bitmap_clear_all(b);
        memset(m->dirty, 0, m->granules);
    } else if (what < 98) {
        model_merge_random(m, b);
    } else {
        model_resize(m, b);
    }
}

static void run_model(unsigned seed)
{
    struct model m;
    struct dirty_bitmap *b, *copy;
    uint32_t granularity;

    print_message("# seed %u\n", seed);
    srandom(seed);
    granularity = 512u << random_below(5);
    model_init(&m, random_below(granularity * (random_below(2) ? 700 : 3 * LEAF_BITS)) + 1,
               granularity);
    b = bitmap_new(m.size, granularity);
    for (unsigned i = 0; i < 200; i++) {
        model_step(&m, b);
        if (i % 10 == 0) {
            model_check(&m, b);
            model_check_serialised(&m, b);
        }
    }
    copy = dirty_bitmap_clone(b);
    assert_non_null(copy);
    model_check(&m, copy);
    dirty_bitmap_free(copy);
    dirty_bitmap_free(b);
    free(m.dirty);
}

static void test_random_changes_agree_with_the_model(void **state)
{
    unsigned fresh = (unsigned)time(NULL);

    for (unsigned i = 0; i < 20; i++) {
        run_model(i);
        run_model(fresh + i);
    }
}

/* ---- what is set again and again ---- */

/* Sets until the bitmap knows it: dirty_bitmap_is_known_set() must become true. */
static void set_until_known(struct dirty_bitmap *b, uint64_t offset)
{
    for (unsigned i = 0; i < 1000 && !dirty_bitmap_is_known_set(b, offset, 512); i++) {
        dirty_bitmap_set(b, offset, 512);
    }
    assert_true(dirty_bitmap_is_known_set(b, offset, 512));
}

static void test_known_bits_are_those_that_are_set(void **state)
{
    struct dirty_bitmap *b = bitmap_new(GiB, GRANULARITY);

    set_until_known(b, 5 * GRANULARITY);
    assert_false(dirty_bitmap_is_known_set(b, 4 * GRANULARITY, 512));
    assert_false(dirty_bitmap_is_known_set(b, 6 * GRANULARITY, 512));
    assert_false(dirty_bitmap_is_known_set(b, 5 * GRANULARITY, GRANULARITY + 1));
    assert_true(dirty_bitmap_is_known_set(b, 5 * GRANULARITY, GRANULARITY));
    assert_false(dirty_bitmap_is_known_set(b, 37 * GRANULARITY, 512));
    dirty_bitmap_set(b, 37 * GRANULARITY, 512);
    assert_true(dirty_bitmap_get(b, 37 * GRANULARITY));
    dirty_bitmap_free(b);
}

static void test_what_was_known_is_set_again_after_a_clear(void **state)
{
    struct dirty_bitmap *b = bitmap_new(64 * GiB, GRANULARITY);

    for (uint64_t at = 0; at < 64 * GiB; at += 8 * GiB) {
        set_until_known(b, at);
        dirty_bitmap_clear(b, at, GRANULARITY);
        assert_false(dirty_bitmap_is_known_set(b, at, 512));
        dirty_bitmap_set(b, at, 512);
        assert_true(dirty_bitmap_get(b, at));
        set_until_known(b, at);
    }
    dirty_bitmap_clear_all(b);
    for (uint64_t at = 0; at < 64 * GiB; at += 8 * GiB) {
        assert_false(dirty_bitmap_is_known_set(b, at, 512));
        dirty_bitmap_set(b, at, 512);
    }
    assert_int_equal(dirty_bitmap_count(b), 8 * GRANULARITY);
    dirty_bitmap_free(b);
}

static void test_what_was_known_is_set_again_after_a_swap_or_resize(void **state)
{
    struct dirty_bitmap *b = bitmap_new(GiB, GRANULARITY), *clean = bitmap_new(GiB, GRANULARITY);

    set_until_known(b, 3 * GRANULARITY);
    set_until_known(b, GiB - GRANULARITY);
    dirty_bitmap_swap(b, clean);
    dirty_bitmap_set(b, 3 * GRANULARITY, 512);
    assert_int_equal(dirty_bitmap_count(b), GRANULARITY);
    set_until_known(b, GiB - GRANULARITY);
    assert_int_equal(dirty_bitmap_resize(b, GiB / 2), 0);
    assert_int_equal(dirty_bitmap_resize(b, GiB), 0);
    dirty_bitmap_set(b, GiB - GRANULARITY, 512);
    assert_int_equal(dirty_bitmap_count(b), 2 * GRANULARITY);
    dirty_bitmap_free(b);
    dirty_bitmap_free(clean);
}

/* The table has fewer places than such a disk has groups. */
static void test_groups_that_contend_for_a_place(void **state)
{
    struct dirty_bitmap *b = bitmap_new(64 * TiB, GRANULARITY);

    for (uint64_t at = 0; at < 64 * TiB; at += TiB) {
        set_until_known(b, at);
        assert_false(dirty_bitmap_is_known_set(b, at + TiB, 512));
    }
    assert_int_equal(dirty_bitmap_count(b), 64 * GRANULARITY);
    dirty_bitmap_free(b);
}

/* Of a disk that grew, more groups than a table has numbers for. */
static void test_nothing_is_known_of_too_many_groups(void **state)
{
    struct dirty_bitmap *b = bitmap_new(GiB, 512);

    set_until_known(b, 0);
    assert_int_equal(dirty_bitmap_resize(b, 128 * TiB), 0);
    for (unsigned i = 0; i < 1000; i++) {
        dirty_bitmap_set(b, 0, 512);
    }
    /* Its group has the number 2^32. */
    assert_false(dirty_bitmap_is_known_set(b, 64 * TiB, 512));
    for (unsigned i = 0; i < 1000; i++) {
        dirty_bitmap_set(b, 64 * TiB, 512);
        dirty_bitmap_set(b, 64 * TiB + 512, 512);
    }
    assert_int_equal(dirty_bitmap_count(b), 3 * 512);
    dirty_bitmap_free(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refuses_what_is_out_of_range),
        cmocka_unit_test(test_size_zero_holds_nothing),
        cmocka_unit_test(test_one_byte_disk),
        cmocka_unit_test(test_largest_disk_works_sparsely),
        cmocka_unit_test(test_clean_16_tib_takes_next_to_no_memory),
        cmocka_unit_test(test_partial_granule_counts_whole_when_set),
        cmocka_unit_test(test_partial_granule_is_left_alone_when_cleared),
        cmocka_unit_test(test_last_granule_is_cut_at_the_size),
        cmocka_unit_test(test_partly_cleared_whole_region_gets_leaves),
        cmocka_unit_test(test_16_tib_take_their_bits_and_directories),
        cmocka_unit_test(test_without_memory_a_region_reads_dirty),
        cmocka_unit_test(test_serialised_bit_0_is_granule_0),
        cmocka_unit_test(test_serialised_in_pieces_comes_back_equal),
        cmocka_unit_test(test_merge_of_another_granularity_and_size),
        cmocka_unit_test(test_merge_of_all_pairs_of_granularities),
        cmocka_unit_test(test_merge_of_another_granularity_without_memory),
        cmocka_unit_test(test_merge_of_whole_regions_takes_no_time_or_memory),
        cmocka_unit_test(test_known_bits_are_those_that_are_set),
        cmocka_unit_test(test_what_was_known_is_set_again_after_a_clear),
        cmocka_unit_test(test_what_was_known_is_set_again_after_a_swap_or_resize),
        cmocka_unit_test(test_groups_that_contend_for_a_place),
        cmocka_unit_test(test_nothing_is_known_of_too_many_groups),
        cmocka_unit_test(test_a_walk_finds_what_status_finds),
        cmocka_unit_test(test_swap_exchanges_contents),
        cmocka_unit_test(test_growth_is_clean),
        cmocka_unit_test(test_shrinking_loses_what_is_beyond),
        cmocka_unit_test(test_a_merge_is_cut_at_the_end_of_its_target),
        cmocka_unit_test(test_random_changes_agree_with_the_model),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
