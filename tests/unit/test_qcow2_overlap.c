/* SPDX-License-Identifier: Apache-2.0 */
/* qcow2: writes that would hit metadata, the corrupt bit, and options about discards and caches. */
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

#include "base/byteorder.h"
#include "base/checked.h"
#include "block/corruption.h"
#include "loop/loop.h"

#define C (4 * KiB)
#define SPAN (C / 8 * C) /* guest bytes that one L2 table maps */

/* Where things are in an image of 4 KiB clusters after a write to cluster 0. */
#define REFTABLE (1 * C)
#define REFBLOCK (2 * C)
#define L1 (3 * C)
#define L2 (4 * C)
#define DATA (5 * C)

static uint8_t *field(struct memory_file *f, uint64_t offset)
{
    return f->data + offset;
}

static bool is_marked(struct memory_file *f)
{
    return load_be64(field(f, HDR_INCOMPATIBLE)) & INCOMPAT_CORRUPT;
}

/* Image "a" whose clusters 0 and 1, and the first of the second L2 table, have data. */
static struct memory_file *make_image(void)
{
    struct image i;

    image_create("a", 16 * MiB, "cluster_size=4k");
    image_open(&i, "a", "");
    assert_int_equal(image_write(&i, 0, 2 * C, 1), 0);
    assert_int_equal(image_write(&i, SPAN, C, 2), 0);
    image_close(&i);
    assert_int_equal(load_be64(field(i.file, L1)), L2 | ENTRY_COPIED);
    return i.file;
}

static uint64_t second_table(struct memory_file *f)
{
    return load_be64(field(f, L1 + 8)) & ENTRY_OFFSET_MASK;
}

/* --- data ------------------------------------------------------------------------------------- */

/* Guest cluster 0 lies at `host`; writing it with `options` gives `expected`. */
static void expect_write_at(uint64_t host, const char *options, int expected)
{
    struct memory_file *f = memory_file("a");
    uint8_t before[C];
    struct image i;

    store_be64(field(f, L2), host | ENTRY_COPIED);
    memcpy(before, field(f, host), C);
    image_open(&i, "a", options);
    assert_int_equal(image_write(&i, 100, 16, 9), expected);
    assert_int_equal(is_marked(f), expected < 0);
    assert_int_equal(memcmp(before, field(f, host), C) == 0, expected < 0);
    /* Nothing else is written either, but what can be read is. */
    assert_int_equal(image_write(&i, C, C, 9), expected < 0 ? -ENOMEDIUM : 0);
    image_expect(&i, C, C, expected < 0 ? 1 : 9);
    image_close(&i);
}

static void data_does_not_overwrite_tables(void *arg)
{
    uint64_t places[] = {REFTABLE, REFBLOCK, L1, L2, 0 /* the second L2 table */};

    for (size_t n = 0; n < ARRAY_SIZE(places); n++) {
        struct memory_file *f = make_image();

        expect_write_at(places[n] ? places[n] : second_table(f), "", -EIO);
    }
}

static unsigned fatal_events;

static void count_fatal(const struct block_corruption *c)
{
    assert_true(c->fatal);
    fatal_events++;
}

/* Guest cluster 0 is at an offset that is not aligned: `op` finds that. */
static void expect_marked_by(int (*op)(struct image *i))
{
    struct memory_file *f = make_image();
    struct image i;

    store_be64(field(f, L2), (DATA + SECTOR_SIZE) | ENTRY_COPIED);
    image_open(&i, "a", "");
    fatal_events = 0;
    assert_int_equal(op(&i), -EIO);
    assert_true(is_marked(f));
    assert_int_equal(fatal_events, 1);
    assert_true(op(&i) < 0);
    assert_int_equal(fatal_events, 1);
    image_kill(&i);
}

static int read_first(struct image *i)
{
    uint8_t buf[16];

    return block_co_pread(i->edge, 100, buf, sizeof(buf));
}

static int write_first(struct image *i)
{
    return image_write(i, 100, 16, 9);
}

static int zero_first(struct image *i)
{
    return block_co_write_zeroes(i->edge, 0, C, 0);
}

static int status_of_first(struct image *i)
{
    struct block_status status;

    return block_co_status(i->edge, 0, C, &status);
}

static void the_image_is_marked_when_the_request_that_found_it_corrupt_returns(void *arg)
{
    block_set_corruption_fn(count_fatal);
    expect_marked_by(read_first);
    expect_marked_by(write_first);
    expect_marked_by(zero_first);
    expect_marked_by(status_of_first);
    block_set_corruption_fn(NULL);
}

static void each_check_can_be_chosen(void *arg)
{
    static const struct {
        uint64_t place;
        const char *on, *off;
    } kinds[] = {
        {REFTABLE, "refcount-table=on", "refcount-table=off"},
        {REFBLOCK, "refcount-block=on", "refcount-block=off"},
        {L1, "active-l1=on", "active-l1=off"},
        {0, "active-l2=on", "active-l2=off"},
    };

    for (size_t n = 0; n < ARRAY_SIZE(kinds); n++) {
        char options[96];
        uint64_t place;

        make_image();
        place = kinds[n].place ? kinds[n].place : second_table(memory_file("a"));
        snprintf(options, sizeof(options), ",overlap-check=none,overlap-check.%s", kinds[n].on);
        expect_write_at(place, options, -EIO);
        make_image();
        snprintf(options, sizeof(options), ",overlap-check.template=all,overlap-check.%s",
                 kinds[n].off);
        expect_write_at(place, options, 0);
    }
    make_image();
    expect_write_at(second_table(memory_file("a")), ",overlap-check=constant", 0);
    make_image();
    expect_write_at(REFBLOCK, ",overlap-check=none", 0);
}

static void snapshots_tables_are_guarded(void *arg)
{
    struct memory_file *f;
    uint64_t inactive_l1, table;
    struct image i;
    ERROR_AUTO(err);

    for (int n = 0; n < 4; n++) {
        f = make_image();
        image_open(&i, "a", "");
        assert_int_equal(i.node->driver->co_snapshot_create(i.node, "s", &err), 0);
        assert_int_equal(image_write(&i, 0, C, 3), 0); /* L2 tables are copied */
        image_close(&i);
        table = load_be64(field(f, HDR_SNAPSHOTS_OFFSET));
        inactive_l1 = load_be64(field(f, table));
        assert_int_equal(load_be64(field(f, inactive_l1)), L2);
        image_open(&i, "a", n == 3 ? ",overlap-check=all" : "");
        store_be64(field(f, load_be64(field(f, L1)) & ENTRY_OFFSET_MASK),
                   ENTRY_COPIED | (n == 0   ? table
                                   : n == 1 ? inactive_l1
                                            : L2));
        /* What the snapshot has for its L2 table is known only when its L1 table is read. */
        assert_int_equal(image_write(&i, 0, C, 9), n == 2 ? 0 : -EIO);
        assert_int_equal(is_marked(f), n != 2);
        image_kill(&i);
    }
}

/* --- tables and allocation -------------------------------------------------------------------- */

static void a_table_that_lies_upon_another_is_not_changed(void *arg)
{
    struct memory_file *f = make_image();
    uint8_t before[C];
    struct image i;

    store_be64(field(f, L1), L1 | ENTRY_COPIED);
    memcpy(before, field(f, L1), C);
    image_open(&i, "a", "");
    assert_int_equal(image_write(&i, 10 * C, C, 9), -EIO);
    image_close(&i);
    assert_true(is_marked(f));
    assert_memory_equal(before, field(f, L1), C);
}

/* Refcounts of 0 for what is in use: the next allocation finds it. */
static void what_is_in_use_is_not_allocated(void *arg)
{
    static const uint64_t clusters[] = {0, 1, 2, 3, 4};

    for (size_t n = 0; n < ARRAY_SIZE(clusters); n++) {
        struct memory_file *f = make_image();
        uint8_t before[8 * C];
        struct image i;

        store_be16(field(f, REFBLOCK + clusters[n] * 2), 0);
        memcpy(before + C, field(f, C), 7 * C);
        image_open(&i, "a", "");
        assert_int_equal(image_write(&i, 20 * C, C, 9), -EIO);
        image_close(&i);
        assert_true(is_marked(f));
        assert_memory_equal(before + C, field(f, C), 7 * C);
    }
}

static void a_discard_of_metadata_leaves_it_there(void *arg)
{
    struct memory_file *f = make_image();
    uint64_t table = second_table(f);
    struct image i;

    store_be64(field(f, L2), table | ENTRY_COPIED);
    image_open(&i, "a", "");
    assert_int_equal(block_co_discard(i.edge, 0, C), 0);
    assert_int_equal(block_co_flush(i.edge), 0);
    image_expect(&i, SPAN, C, 2);
    image_close(&i);
    assert_int_not_equal(load_be64(field(f, table)), 0);
}

/* What tables have left may be used for anything, without an alarm. */
static void places_that_tables_have_left_are_free(void *arg)
{
    struct image i;
    ERROR_AUTO(err);

    image_create("a", 4 * MiB, "cluster_size=512");
    image_open(&i, "a", ",overlap-check=all");
    for (unsigned n = 0; n < 12; n++) {
        uint64_t size = (4 + 2 * n) * MiB;

        assert_int_equal(image_write(&i, 0, 2 * MiB, (int)n), 0);
        assert_int_equal(block_co_discard(i.edge, MiB / 2, MiB), 0);
        block_co_drain_begin(i.node);
        assert_int_equal(i.node->driver->co_snapshot_create(i.node, "s", &err), 0);
        block_drain_end(i.node);
        assert_int_equal(image_write(&i, MiB, MiB, (int)n + 1), 0);
        block_co_drain_begin(i.node);
        assert_int_equal(i.node->driver->co_snapshot_delete(i.node, "s", &err), 0);
        assert_int_equal(i.node->driver->co_truncate(i.node, size, BLOCK_PREALLOC_OFF, &err), 0);
        block_drain_end(i.node);
        assert_int_equal(image_write(&i, size - MiB, MiB, 7), 0);
        image_expect(&i, MiB, MiB, (int)n + 1);
    }
    image_close(&i);
    assert_false(is_marked(memory_file("a")));
    image_check("a", 0);
}

/* --- the corrupt bit -------------------------------------------------------------------------- */

static void a_corrupt_image_is_read_only_until_it_is_repaired(void *arg)
{
    struct memory_file *f = make_image();
    struct block_check_result result;
    const char *error;
    struct image i;
    ERROR_AUTO(err);

    expect_write_at(REFBLOCK, "", -EIO);
    error = image_open_fails("a", BLOCK_OPEN_RDWR);
    assert_non_null(error);
    assert_string_equal(error, "qcow2: Image is corrupt; cannot be opened read/write");
    image_open_read_only(&i, "a");
    image_expect(&i, C, C, 1);
    image_close(&i);
    store_be64(field(f, L2), 0);
    assert_null(image_open_fails("a", BLOCK_OPEN_RDWR | BLOCK_OPEN_CHECK));
    image_open_to_check(&i, "a");
    assert_int_equal(i.node->driver->co_check(
                         i.node, BLOCK_CHECK_FIX_LEAKS | BLOCK_CHECK_FIX_ERRORS, &result, &err),
                     0);
    image_close(&i);
    assert_false(is_marked(f));
    image_open(&i, "a", "");
    assert_int_equal(image_write(&i, 0, C, 4), 0);
    image_close(&i);
}

static void reading_a_corrupt_entry_marks_a_writable_image_only(void *arg)
{
    struct memory_file *f = make_image();
    struct image i;

    store_be64(field(f, L2), (DATA + 512) | ENTRY_COPIED);
    image_open_read_only(&i, "a");
    assert_int_equal(block_co_pread(i.edge, 0, (uint8_t[16]){0}, 16), -EIO);
    image_close(&i);
    assert_false(is_marked(f));
    image_open(&i, "a", "");
    assert_int_equal(block_co_pread(i.edge, 0, (uint8_t[16]){0}, 16), -EIO);
    assert_true(is_marked(f)); /* at once, not when it is closed */
    image_kill(&i);
}

static void a_misplaced_cluster_can_be_discarded(void *arg)
{
    struct memory_file *f = make_image();
    struct image i;

    store_be64(field(f, L2), (DATA + 512) | ENTRY_COPIED);
    image_open(&i, "a", "");
    assert_int_equal(block_co_discard(i.edge, 0, C), 0);
    image_expect(&i, 0, C, 0);
    assert_int_equal(image_write(&i, 0, C, 5), 0);
    image_close(&i);
    assert_false(is_marked(f));
    image_check("a", 1);
}

static void version_2_has_no_bit_but_takes_no_writes(void *arg)
{
    struct memory_file *f;
    struct image i;

    image_create("a", 16 * MiB, "cluster_size=4k,compat=0.10");
    image_open(&i, "a", "");
    assert_int_equal(image_write(&i, 0, C, 1), 0);
    image_close(&i);
    f = memory_file("a");
    store_be64(field(f, L2), REFBLOCK | ENTRY_COPIED);
    image_open(&i, "a", "");
    assert_int_equal(image_write(&i, 0, C, 1), -EIO);
    assert_int_equal(image_write(&i, 5 * C, C, 1), -ENOMEDIUM);
    image_close(&i);
    assert_int_equal(load_be32(field(f, HDR_VERSION)), 2);
    image_open(&i, "a", "");
    image_close(&i);
}

/* --- discards --------------------------------------------------------------------------------- */

/* Bytes punched out of the file since the log was cleared. */
static uint64_t punched(const struct memory_file *f)
{
    uint64_t sum = 0;

    for (unsigned n = 0; n < f->log_count; n++) {
        sum += f->log[n].kind == MEMORY_FILE_DISCARD ? f->log[n].length : 0;
    }
    return sum;
}

static uint64_t punched_by_discard(const char *options)
{
    struct image i;

    make_image();
    image_open(&i, "a", options);
    i.file->log_count = 0;
    assert_int_equal(block_co_discard(i.edge, 0, 2 * C), 0);
    assert_int_equal(block_co_flush(i.edge), 0);
    image_close(&i);
    image_check("a", 0);
    return punched(i.file);
}

static uint64_t punched_by_snapshot(const char *options)
{
    struct image i;
    ERROR_AUTO(err);

    make_image();
    image_open(&i, "a", options);
    assert_int_equal(i.node->driver->co_snapshot_create(i.node, "s", &err), 0);
    assert_int_equal(image_write(&i, 0, 2 * C, 3), 0);
    assert_int_equal(block_co_flush(i.edge), 0);
    i.file->log_count = 0;
    assert_int_equal(i.node->driver->co_snapshot_delete(i.node, "s", &err), 0);
    image_close(&i);
    image_check("a", 0);
    return punched(i.file);
}

/* Growing moves the L1 table. */
static uint64_t punched_by_growth(const char *options)
{
    struct image i;
    ERROR_AUTO(err);

    make_image();
    image_open(&i, "a", options);
    i.file->log_count = 0;
    block_co_drain_begin(i.node);
    assert_int_equal(i.node->driver->co_truncate(i.node, 2048 * MiB, BLOCK_PREALLOC_OFF, &err), 0);
    block_drain_end(i.node);
    image_close(&i);
    image_check("a", 0);
    return punched(i.file);
}

static void what_gives_space_back_can_be_chosen(void *arg)
{
    assert_int_equal(punched_by_discard(""), 2 * C);
    assert_int_equal(punched_by_discard(",pass-discard-request=off"), 0);
    assert_true(punched_by_snapshot("") >= 2 * C);
    assert_int_equal(punched_by_snapshot(",pass-discard-snapshot=off"), 0);
    assert_int_equal(punched_by_growth(""), 0);
    assert_int_equal(punched_by_growth(",pass-discard-other=on"), C);
}

static void discarded_clusters_keep_their_place_if_wanted(void *arg)
{
    struct memory_file *f = make_image();
    struct image i;

    image_open(&i, "a", ",discard-no-unref=on");
    f->log_count = 0;
    assert_int_equal(block_co_discard(i.edge, 0, C), 0);
    assert_int_equal(block_co_write_zeroes(i.edge, C, C, BLOCK_REQ_MAY_UNMAP), 0);
    image_expect(&i, 0, 2 * C, 0);
    assert_int_equal(image_write(&i, 0, 100, 6), 0);
    image_close(&i);
    assert_int_equal(punched(f), 2 * C);
    assert_int_equal(load_be64(field(f, L2)), DATA | ENTRY_COPIED);
    assert_int_equal(load_be64(field(f, L2 + 8)), (DATA + C) | ENTRY_COPIED | L2_ZERO);
    image_check("a", 0);
    image_open(&i, "a", "");
    image_expect(&i, 0, 100, 6);
    image_expect(&i, 100, 2 * C - 100, 0);
    image_close(&i);

    make_image();
    image_open(&i, "a", ",discard-no-unref=on,pass-discard-request=off");
    f->log_count = 0;
    assert_int_equal(block_co_discard(i.edge, 0, 2 * C), 0);
    image_expect(&i, 0, 2 * C, 0);
    image_close(&i);
    assert_int_equal(punched(f), 0);
    assert_int_equal(load_be64(field(f, L2)), DATA | ENTRY_COPIED | L2_ZERO);
}

/* --- caches ----------------------------------------------------------------------------------- */

static unsigned slices(const struct table_cache *c)
{
    unsigned n = 0;

    for (int s = 0; s < CACHE_SHARDS; s++) {
        n += c->shards[s].count;
    }
    return n;
}

static void the_l2_cache_follows_the_size_of_the_disk(void *arg)
{
    struct image i;
    ERROR_AUTO(err);

    image_create("a", MiB, "cluster_size=4k");
    image_open(&i, "a", ",l2-cache-size=128k,l2-cache-entry-size=512");
    assert_true(i.q->caches.l2.shards[0].limit * CACHE_SHARDS * 512 < 128 * KiB);
    block_co_drain_begin(i.node);
    assert_int_equal(i.node->driver->co_truncate(i.node, 512 * MiB, BLOCK_PREALLOC_OFF, &err), 0);
    block_drain_end(i.node);
    assert_int_equal(i.q->caches.l2.shards[0].limit * CACHE_SHARDS * 512, 128 * KiB);
    for (uint64_t at = 0; at < 512 * MiB; at += 512 * KiB) {
        assert_int_equal(image_write(&i, at, 512, 1), 0);
    }
    assert_int_equal(block_co_flush(i.edge), 0);
    for (uint64_t at = 0; at < 512 * MiB; at += 256 * KiB) {
        image_expect(&i, at, 512, at % (512 * KiB) ? 0 : 1);
    }
    assert_int_equal(slices(&i.q->caches.l2), 256);
    block_co_drain_begin(i.node);
    assert_int_equal(i.node->driver->co_truncate(i.node, MiB, BLOCK_PREALLOC_OFF, &err), 0);
    block_drain_end(i.node);
    assert_true(i.q->caches.l2.shards[0].limit < 16);
    image_close(&i);
    image_check("a", 0);
}

static void slices_that_nobody_uses_are_dropped(void *arg)
{
    struct image i;
    unsigned all;

    image_create("a", 64 * MiB, "cluster_size=4k");
    image_open(&i, "a", ",l2-cache-entry-size=512");
    for (uint64_t at = 0; at < 64 * MiB; at += 256 * KiB) {
        assert_int_equal(image_write(&i, at, 512, 1), 0);
    }
    assert_int_equal(block_co_flush(i.edge), 0);
    all = slices(&i.q->caches.l2);
    assert_true(all >= 256);
    cache_clean(&i.q->caches.l2); /* all were used before */
    assert_int_equal(slices(&i.q->caches.l2), all);
    image_expect(&i, 0, 512, 1);
    assert_int_equal(image_write(&i, 256 * KiB + C, 512, 2), 0); /* dirty */
    cache_clean(&i.q->caches.l2);
    assert_int_equal(slices(&i.q->caches.l2), 2);
    cache_clean(&i.q->caches.l2);
    assert_int_equal(slices(&i.q->caches.l2), 1);
    for (uint64_t at = 0; at < 64 * MiB; at += 256 * KiB) {
        image_expect(&i, at, 512, 1);
    }
    image_expect(&i, 256 * KiB + C, 512, 2);
    image_close(&i);
    image_check("a", 0);
}

/* The timer does it, on the reactor that opened the image. */
static void cleaning_comes_by_itself(void *arg)
{
    struct image i;

    image_create("a", 64 * MiB, "cluster_size=4k");
    image_open(&i, "a", ",cache-clean-interval=1");
    assert_int_equal(image_write(&i, 0, C, 1), 0);
    assert_int_equal(block_co_flush(i.edge), 0);
    assert_true(slices(&i.q->caches.l2) > 0);
    for (int tries = 0; tries < 100 && slices(&i.q->caches.l2) > 0; tries++) {
        loop_co_sleep(100 * 1000 * 1000);
    }
    assert_int_equal(slices(&i.q->caches.l2), 0);
    image_expect(&i, 0, C, 1);
    image_close(&i);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        CO_TEST(data_does_not_overwrite_tables),
        CO_TEST(the_image_is_marked_when_the_request_that_found_it_corrupt_returns),
        CO_TEST(each_check_can_be_chosen),
        CO_TEST(snapshots_tables_are_guarded),
        CO_TEST(a_table_that_lies_upon_another_is_not_changed),
        CO_TEST(what_is_in_use_is_not_allocated),
        CO_TEST(a_discard_of_metadata_leaves_it_there),
        CO_TEST(places_that_tables_have_left_are_free),
        CO_TEST(a_corrupt_image_is_read_only_until_it_is_repaired),
        CO_TEST(reading_a_corrupt_entry_marks_a_writable_image_only),
        CO_TEST(a_misplaced_cluster_can_be_discarded),
        CO_TEST(version_2_has_no_bit_but_takes_no_writes),
        CO_TEST(what_gives_space_back_can_be_chosen),
        CO_TEST(discarded_clusters_keep_their_place_if_wanted),
        CO_TEST(the_l2_cache_follows_the_size_of_the_disk),
        CO_TEST(slices_that_nobody_uses_are_dropped),
        CO_TEST(cleaning_comes_by_itself),
    };

    return cmocka_run_group_tests(tests, qcow2_group_setup, qcow2_group_teardown);
}
