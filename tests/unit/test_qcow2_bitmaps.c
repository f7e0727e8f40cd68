/* SPDX-License-Identifier: Apache-2.0 */
/* qcow2: persistent bitmaps on disk, and what of the header is kept. */
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
#include "base/log.h"
#include "qcow2/bitmap/bitmap.h"
#include "loop/loop.h"

#define C (4 * KiB)
#define DISK (16 * MiB)

static struct block_bitmap *add(struct image *i, const char *name, bool disabled)
{
    struct block_bitmap *b = NULL;
    ERROR_AUTO(err);

    if (block_co_bitmap_add(i->node, name, 64 * KiB, true, disabled, &b, &err) < 0) {
        fail_msg("%s", error_message(&err));
    }
    return b;
}

static const struct dirty_bitmap *bits_of(struct block_bitmap *b)
{
    assert_int_equal(block_co_bitmap_fetch(b, NULL), 0);
    return block_bitmap_bits(b);
}

/* An image with a stored bitmap NAME in which the granule at 1 MiB is dirty. */
static void create_with_bitmap(const char *name, bool disabled)
{
    struct image i;

    image_create("a", DISK, "cluster_size=4k");
    image_open(&i, "a", "");
    add(&i, name, false);
    assert_int_equal(image_write(&i, MiB, 10, 1), 0);
    if (disabled) {
        assert_int_equal(block_co_bitmap_set_enabled(block_bitmap_find(i.node, name), false, NULL),
                         0);
    }
    image_close(&i);
    image_check("a", 0);
}

static struct stored_bitmap *stored(struct image *i, const char *name)
{
    struct stored_bitmap *s;

    LIST_FOREACH (s, &i->q->bitmaps.stored, link) {
        if (strcmp(s->name, name) == 0) {
            return s;
        }
    }
    return NULL;
}

/* The flags field of the only bitmap, as it is on disk. */
static uint32_t flags_on_disk(struct image *i)
{
    return load_be32(i->file->data + i->q->bitmaps.directory_offset + BITMAP_ENTRY_FLAGS);
}

static void a_stored_bitmap_comes_back(void *arg)
{
    struct block_bitmap *b;
    struct image i;

    create_with_bitmap("b", false);
    image_open(&i, "a", "");
    b = block_bitmap_find(i.node, "b");
    assert_non_null(b);
    assert_true(b->enabled && b->persistent && !b->inconsistent && !b->read_only);
    assert_int_equal(dirty_bitmap_count(bits_of(b)), 64 * KiB);
    assert_true(dirty_bitmap_get(bits_of(b), MiB));
    assert_int_equal(image_write(&i, 2 * MiB, 64 * KiB, 1), 0);
    image_close(&i);
    image_check("a", 0);
    image_open_read_only(&i, "a");
    b = block_bitmap_find(i.node, "b");
    assert_int_equal(dirty_bitmap_count(bits_of(b)), 128 * KiB);
    assert_true(b->read_only);
    image_close(&i);
}

static void all_ones_and_all_zeroes_take_no_clusters(void *arg)
{
    struct image i;

    image_create("a", 64 * MiB, "cluster_size=512");
    image_open(&i, "a", "");
    dirty_bitmap_set(add(&i, "ones", false)->bits, 0, 64 * MiB);
    add(&i, "zeroes", false);
    image_close(&i);
    image_check("a", 0);
    image_open(&i, "a", "");
    assert_int_equal(dirty_bitmap_count(bits_of(block_bitmap_find(i.node, "ones"))), 64 * MiB);
    assert_int_equal(dirty_bitmap_count(bits_of(block_bitmap_find(i.node, "zeroes"))), 0);
    image_close(&i);
}

/* Refcounts are counted again meanwhile. */
static void a_bitmap_is_added_before_the_image_is_amended(void *arg)
{
    struct options *opts = NULL;
    struct image i;

    image_create("a", DISK, "cluster_size=4k");
    image_open(&i, "a", "");
    add(&i, "b", false);
    assert_int_equal(options_parse("refcount_bits=64", NULL, &opts, NULL), 0);
    block_co_drain_begin(i.node);
    assert_int_equal(i.node->driver->co_amend(i.node, opts, false, NULL, NULL, NULL), 0);
    block_drain_end(i.node);
    options_free(opts);
    assert_int_equal(image_write(&i, 0, 64 * KiB, 1), 0);
    image_close(&i);
    image_check("a", 0);
}

/* --- bits that stay in the image -------------------------------------------------------------- */

/*
 * Clusters of 512 bytes: one has the bits of 256 MiB of the disk. In "a", bits of the first and the
 * third are set.
 */
static void create_with_spread_bits(void)
{
    struct image i;

    image_create("a", GiB, "cluster_size=512");
    image_open(&i, "a", "");
    add(&i, "b", false);
    add(&i, "other", false);
    assert_int_equal(image_write(&i, 0, 10, 1), 0);
    assert_int_equal(image_write(&i, 600 * MiB, 10, 1), 0);
    image_close(&i);
    image_check("a", 0);
}

static uint64_t table_entry(struct image *i, const char *name, unsigned n)
{
    return load_be64(i->file->data + stored(i, name)->table_offset + n * 8);
}

static void bits_are_read_when_they_are_asked_for(void *arg)
{
    struct block_bitmap *b;
    struct image i;

    create_with_spread_bits();
    image_open(&i, "a", "");
    b = block_bitmap_find(i.node, "b");
    assert_true(b->unread);
    assert_int_equal(dirty_bitmap_count(b->bits), 0);
    assert_int_equal(image_write(&i, 300 * MiB, 10, 1), 0);
    assert_true(b->unread);
    assert_int_equal(dirty_bitmap_count(bits_of(b)), 3 * 64 * KiB);
    assert_false(b->unread);
    image_close(&i);
    image_open_read_only(&i, "a");
    assert_int_equal(dirty_bitmap_count(bits_of(block_bitmap_find(i.node, "b"))), 3 * 64 * KiB);
    image_close(&i);
}

static int no_memory(struct block_node *node, struct block_bitmap *b)
{
    return -ENOMEM;
}

static int no_memory_to_count(struct block_node *node, const struct block_bitmap *b, uint64_t *ret)
{
    return -ENOMEM;
}

static uint64_t count_of(struct block_bitmap *b, int want)
{
    uint64_t count = 12345;

    assert_int_equal(block_co_bitmap_count(b, &count, NULL), want);
    return count;
}

/* The last granule is not whole. */
static void bits_are_counted_where_they_are(void *arg)
{
    const uint64_t size = 700 * MiB + 4 * KiB;
    const struct {
        uint64_t from, to;
    } sets[] = {{0, 0},        {0, size}, {size - 1, size}, {0, 1}, {64 * KiB * 8, 300 * MiB},
                {1, 600 * MiB}};
    struct block_bitmap *b;
    struct image i;

    for (size_t k = 0; k < ARRAY_SIZE(sets); k++) {
        image_create("a", size, "cluster_size=512");
        image_open(&i, "a", "");
        b = add(&i, "b", false);
        dirty_bitmap_set(b->bits, sets[k].from, sets[k].to - sets[k].from);
        image_close(&i);
        image_open(&i, "a", "");
        b = block_bitmap_find(i.node, "b");
        for (int again = 0; again < 2; again++) {
            uint64_t count = count_of(b, 0);

            assert_true(b->unread);
            assert_int_equal(dirty_bitmap_count(b->bits), 0);
            assert_int_equal(count, again ? dirty_bitmap_count(bits_of(b)) : count);
        }
        image_close(&i);
    }
}

static void a_count_has_what_was_written_since(void *arg)
{
    struct block_bitmap *b;
    struct image i;

    create_with_spread_bits();
    image_open(&i, "a", "");
    b = block_bitmap_find(i.node, "b");
    assert_int_equal(count_of(b, 0), 2 * 64 * KiB);
    assert_int_equal(image_write(&i, 300 * MiB, 10, 1), 0);
    assert_int_equal(count_of(b, 0), 3 * 64 * KiB);
    image_close(&i);
}

struct late_count {
    struct block_bitmap *bitmap;
    int turns; /* before it begins */
    uint64_t bytes;
    int ret;
    bool done;
};

static void co_count_late(void *arg)
{
    struct late_count *c = arg;

    for (int i = 0; i < c->turns; i++) {
        co_reschedule();
    }
    c->ret = block_co_bitmap_count(c->bitmap, &c->bytes, NULL);
    c->done = true;
}

static void bits_are_counted_while_bitmaps_are_stored(void *arg)
{
    struct image i;

    create_with_bitmap("b", true);
    for (int turns = 0; turns < 60; turns++) {
        struct late_count c = {.turns = turns};
        char name[16];

        snprintf(name, sizeof(name), "c%d", turns);
        image_open(&i, "a", "");
        c.bitmap = block_bitmap_find(i.node, "b");
        add(&i, name, false);
        assert_int_equal(reactor_spawn(reactor_main(), co_count_late, &c), 0);
        assert_int_equal(block_co_inactivate(i.node, NULL), 0);
        while (!c.done) {
            co_reschedule();
        }
        assert_int_equal(c.ret, 0);
        assert_int_equal(c.bytes, 64 * KiB);
        image_close(&i);
    }
}

static void counting_without_memory_fails_and_may_be_tried_again(void *arg)
{
    const struct block_driver *driver;
    struct block_driver poor;
    struct block_bitmap *b;
    struct image i;

    create_with_spread_bits();
    image_open(&i, "a", "");
    driver = i.node->driver;
    poor = *driver;
    poor.co_fetch_bitmap = no_memory;
    poor.co_count_bitmap = no_memory_to_count;
    b = block_bitmap_find(i.node, "b");
    i.node->driver = &poor;
    assert_int_equal(count_of(b, -ENOMEM), 0);
    assert_int_equal(image_write(&i, 300 * MiB, 10, 1), 0);
    assert_int_equal(count_of(b, -ENOMEM), 64 * KiB);
    assert_false(b->inconsistent);
    i.node->driver = driver;
    assert_int_equal(count_of(b, 0), 3 * 64 * KiB);
    image_close(&i);
}

static void a_bitmap_that_cannot_be_counted_is_inconsistent(void *arg)
{
    struct block_bitmap *b;
    struct image i;

    create_with_spread_bits();
    image_open(&i, "a", "");
    store_be64(i.file->data + stored(&i, "b")->table_offset, 1ULL << 40);
    b = block_bitmap_find(i.node, "b");
    assert_int_equal(count_of(b, -EINVAL), 0);
    assert_true(b->inconsistent);
    image_close(&i);
}

/* A query meanwhile costs the user no bitmap. */
static void a_bitmap_can_be_read_when_storage_answers_again(void *arg)
{
    struct block_bitmap *b;
    struct image i;

    create_with_spread_bits();
    image_open(&i, "a", "");
    b = block_bitmap_find(i.node, "b");
    i.file->fail_kinds = MEMORY_FILE_READ;
    i.file->fail_after = 0;
    i.file->fail_errno = EIO;
    assert_int_equal(count_of(b, -EIO), 0);
    assert_int_equal(block_co_bitmap_fetch(b, NULL), -EIO);
    assert_false(b->inconsistent);
    i.file->fail_kinds = 0;
    assert_int_equal(count_of(b, 0), 2 * 64 * KiB);
    assert_int_equal(dirty_bitmap_count(bits_of(b)), 2 * 64 * KiB);
    image_close(&i);
}

static int no_answer(struct block_node *node, struct block_bitmap *b)
{
    return -EIO;
}

/* Nobody has the bits when the removal is undone. Without a log it is the driver that says so. */
static void a_removed_bitmap_that_could_not_be_read_comes_back_inconsistent(void *arg)
{
    const struct block_driver *driver;
    struct block_driver poor;
    struct block_bitmap *b;
    struct image i;

    create_with_spread_bits();
    image_open(&i, "a", ",durable-bitmaps=power");
    driver = i.node->driver;
    poor = *driver;
    poor.co_fetch_bitmap = no_answer;
    b = block_bitmap_find(i.node, "b");
    i.node->driver = &poor;
    block_co_bitmap_detach(b);
    assert_int_equal(block_co_bitmap_remove_detached(b, NULL), 0);
    i.node->driver = driver;
    block_co_bitmap_reattach(b);
    assert_true(b->inconsistent);
    image_close(&i);
}

static void only_clusters_of_bits_that_changed_are_stored_anew(void *arg)
{
    for (int in_memory = 0; in_memory < 2; in_memory++) {
        uint64_t first, third;
        struct image i;

        create_with_spread_bits();
        image_open(&i, "a", "");
        first = table_entry(&i, "b", 0);
        third = table_entry(&i, "b", 2);
        assert_int_not_equal(first, 0);
        if (in_memory) {
            bits_of(block_bitmap_find(i.node, "b"));
        }
        assert_int_equal(image_write(&i, 300 * MiB, 10, 1), 0);
        assert_int_equal(image_write(&i, 640 * MiB, 10, 1), 0);
        image_close(&i);
        image_check("a", 0);
        image_open(&i, "a", "");
        assert_int_equal(table_entry(&i, "b", 0), first);
        assert_int_not_equal(table_entry(&i, "b", 1), 0);
        assert_int_not_equal(table_entry(&i, "b", 2), third);
        assert_int_equal(dirty_bitmap_count(bits_of(block_bitmap_find(i.node, "b"))), 4 * 64 * KiB);
        assert_int_equal(block_co_bitmap_clear(block_bitmap_find(i.node, "b"), NULL, NULL), 0);
        image_close(&i);
        image_check("a", 0);
    }
}

static void a_bitmap_whose_bits_cannot_be_read_is_inconsistent_the_others_are_not(void *arg)
{
    struct block_bitmap *b;
    struct image i;
    uint64_t at;
    ERROR_AUTO(err);

    create_with_spread_bits();
    image_open(&i, "a", "");
    at = stored(&i, "b")->table_offset;
    store_be64(i.file->data + at, 1ULL << 40);
    b = block_bitmap_find(i.node, "b");
    assert_int_equal(block_co_bitmap_fetch(b, &err), -EINVAL);
    assert_true(b->inconsistent);
    assert_int_equal(image_write(&i, 0, 10, 1), 0);
    image_close(&i);
    image_open(&i, "a", "");
    assert_true(block_bitmap_find(i.node, "b")->inconsistent);
    assert_int_equal(dirty_bitmap_count(bits_of(block_bitmap_find(i.node, "other"))), 2 * 64 * KiB);
    image_close(&i);
}

static void a_bitmap_that_cannot_be_read_when_it_is_stored_stays_in_use(void *arg)
{
    struct image i;
    uint64_t entry;

    create_with_spread_bits();
    image_open(&i, "a", "");
    entry = stored(&i, "b")->table_offset + 8 * 2;
    assert_int_equal(image_write(&i, 600 * MiB, 10, 1), 0);
    store_be64(i.file->data + entry, 1ULL << 40);
    image_close(&i);
    image_open(&i, "a", "");
    assert_true(block_bitmap_find(i.node, "b")->inconsistent);
    assert_true(stored(&i, "b")->flags & BITMAP_FLAG_IN_USE);
    assert_int_equal(dirty_bitmap_count(bits_of(block_bitmap_find(i.node, "other"))), 2 * 64 * KiB);
    assert_int_equal(stored(&i, "other")->flags, BITMAP_FLAG_AUTO);
    image_close(&i);
}

/* --- in use ----------------------------------------------------------------------------------- */

static void only_the_first_write_marks_in_use_and_before_it_lands(void *arg)
{
    struct image i;
    unsigned mark = UINT32_MAX, sync = UINT32_MAX, data = UINT32_MAX;

    create_with_bitmap("b", false);
    image_open(&i, "a", "");
    image_expect(&i, 0, C, 0);
    assert_int_equal(block_co_flush(i.edge), 0);
    assert_int_equal(flags_on_disk(&i), BITMAP_FLAG_AUTO);
    i.file->log_count = 0;
    assert_int_equal(image_write(&i, 0, C, 1), 0);
    assert_int_equal(flags_on_disk(&i), BITMAP_FLAG_AUTO | BITMAP_FLAG_IN_USE);
    for (unsigned n = i.file->log_count; n-- > 0;) {
        const struct memory_file_op *op = &i.file->log[n];

        if (op->kind == MEMORY_FILE_FLUSH) {
            sync = n;
        } else if (op->length == 4) {
            mark = n;
        } else if (op->length == C) {
            data = n;
        }
    }
    assert_true(mark < sync && sync < data && data != UINT32_MAX);
    i.file->log_count = 0;
    assert_int_equal(image_write(&i, 0, C, 2), 0);
    assert_int_equal(i.file->log_count, 1);
    image_close(&i);
    image_open_read_only(&i, "a");
    assert_int_equal(flags_on_disk(&i), BITMAP_FLAG_AUTO);
    image_close(&i);
}

static void discards_and_zeroes_mark_in_use_too(void *arg)
{
    struct image i;

    for (int zeroes = 0; zeroes < 2; zeroes++) {
        create_with_bitmap("b", false);
        image_open(&i, "a", "");
        assert_int_equal(zeroes ? block_co_write_zeroes(i.edge, MiB, 100, 0)
                                : block_co_discard(i.edge, MiB, C),
                         0);
        assert_true(flags_on_disk(&i) & BITMAP_FLAG_IN_USE);
        image_close(&i);
    }
}

static void without_a_stable_mark_nothing_is_written(void *arg)
{
    struct image i;

    create_with_bitmap("b", false);
    image_open(&i, "a", "");
    memory_file_fail(i.file, MEMORY_FILE_FLUSH, 0, EIO);
    i.file->log_count = 0;
    for (int n = 0; n < 3; n++) {
        assert_int_equal(image_write(&i, 0, C, 1), -EIO);
    }
    for (unsigned n = 0; n < i.file->log_count; n++) {
        assert_int_not_equal(i.file->log[n].length, C);
    }
    memory_file_fail(i.file, 0, 0, 0);
    assert_int_equal(image_write(&i, 0, C, 1), 0);
    assert_true(flags_on_disk(&i) & BITMAP_FLAG_IN_USE);
    image_close(&i);
}

static void after_a_kill_the_bitmap_is_inconsistent_and_can_be_removed(void *arg)
{
    struct block_bitmap *b;
    struct image i;
    ERROR_AUTO(err);

    create_with_bitmap("b", false);
    image_open(&i, "a", "");
    assert_int_equal(image_write(&i, 0, C, 1), 0);
    image_kill(&i);
    image_check("a", 3);
    image_open(&i, "a", "");
    b = block_bitmap_find(i.node, "b");
    assert_non_null(b);
    assert_true(b->inconsistent && !b->enabled && !b->bits);
    assert_int_equal(block_co_bitmap_clear(b, NULL, &err), -EINVAL);
    assert_int_equal(image_write(&i, C, C, 1), 0);
    image_close(&i);
    image_open(&i, "a", "");
    b = block_bitmap_find(i.node, "b");
    assert_true(b->inconsistent);
    assert_int_equal(block_co_bitmap_remove(b, NULL), 0);
    assert_null(block_bitmap_find(i.node, "b"));
    image_close(&i);
    image_open(&i, "a", "");
    assert_null(block_bitmap_next(i.node, NULL));
    assert_int_equal(i.q->header.autoclear, 0);
    image_close(&i);
    image_check("a", 3);
}

static void a_disabled_bitmap_survives_a_kill(void *arg)
{
    struct block_bitmap *b;
    struct image i;

    create_with_bitmap("b", true);
    image_open(&i, "a", "");
    assert_int_equal(image_write(&i, 4 * MiB, C, 1), 0);
    image_kill(&i);
    image_open(&i, "a", "");
    b = block_bitmap_find(i.node, "b");
    assert_true(!b->inconsistent && !b->enabled);
    assert_int_equal(dirty_bitmap_count(bits_of(b)), 64 * KiB);
    assert_true(dirty_bitmap_get(bits_of(b), MiB));
    image_close(&i);
}

static void what_was_changed_by_hand_is_not_current_after_a_kill(void *arg)
{
    struct image i;

    create_with_bitmap("b", true);
    image_open(&i, "a", "");
    assert_int_equal(block_co_bitmap_clear(block_bitmap_find(i.node, "b"), NULL, NULL), 0);
    image_kill(&i);
    image_open(&i, "a", "");
    assert_true(block_bitmap_find(i.node, "b")->inconsistent);
    image_close(&i);
}

/* --- what is not ours ------------------------------------------------------------------------- */

static void a_bitmap_of_an_unknown_type_is_kept(void *arg)
{
    struct image i;

    create_with_bitmap("b", true);
    image_open(&i, "a", "");
    i.file->data[i.q->bitmaps.directory_offset + BITMAP_ENTRY_TYPE] = 9;
    image_kill(&i);
    image_open(&i, "a", "");
    assert_null(block_bitmap_find(i.node, "b"));
    assert_non_null(stored(&i, "b"));
    add(&i, "ours", false);
    assert_int_equal(image_write(&i, 0, C, 1), 0);
    image_close(&i);
    image_check("a", 0);
    image_open(&i, "a", "");
    assert_non_null(stored(&i, "b"));
    assert_int_equal(stored(&i, "b")->type, 9);
    assert_non_null(block_bitmap_find(i.node, "ours"));
    image_close(&i);
}

static void a_bitmap_that_cannot_be_read_is_marked_before_a_write(void *arg)
{
    struct image i;
    uint64_t at;

    create_with_bitmap("b", false);
    image_open(&i, "a", "");
    at = i.q->bitmaps.directory_offset + BITMAP_ENTRY_TABLE_OFFSET;
    image_close(&i);
    store_be64(i.file->data + at, 123);
    image_open(&i, "a", "");
    assert_true(block_bitmap_find(i.node, "b")->inconsistent);
    assert_int_equal(image_write(&i, 0, C, 1), 0);
    assert_true(flags_on_disk(&i) & BITMAP_FLAG_IN_USE);
    image_close(&i);
}

static void a_directory_without_sense_is_an_error(void *arg)
{
    struct image i;
    uint64_t at;

    create_with_bitmap("b", false);
    image_open(&i, "a", "");
    at = i.q->bitmaps.directory_offset;
    image_close(&i);
    store_be16(i.file->data + at + BITMAP_ENTRY_NAME_SIZE, 4000);
    assert_non_null(strstr(image_open_fails("a", 0), "bitmap directory"));
    store_be16(i.file->data + at + BITMAP_ENTRY_NAME_SIZE, 0);
    assert_non_null(strstr(image_open_fails("a", 0), "name"));
}

/* Room for a header extension before what is there. */
static void insert_extension(struct memory_file *f, uint32_t type, const void *data, uint32_t size)
{
    uint8_t *at = f->data + HDR_OUR_SIZE;

    memmove(at + 8 + round_up(size, 8), at, C - HDR_OUR_SIZE - 8 - round_up(size, 8));
    store_be32(at, type);
    store_be32(at + 4, size);
    memset(at + 8, 0, round_up(size, 8));
    memcpy(at + 8, data, size);
}

/*
 * 1000 bitmaps with one table, all entries of which name one cluster: a small file would take 4 GiB
 * of memory.
 */
static void bitmaps_that_lie_upon_each_other_are_not_all_read(void *arg)
{
    const uint64_t directory = 16 * C, table = 64 * C, bits = 66 * C, count = 1000;
    struct memory_file *f;
    unsigned usable = 0;
    struct block_bitmap *b;
    struct image i;

    image_create("a", 16 * GiB, "cluster_size=4k");
    f = memory_file("a");
    memory_file_grow(f, 68 * C);
    for (uint64_t n = 0; n < count; n++) {
        uint8_t *e = f->data + directory + n * 32;

        store_be64(e + BITMAP_ENTRY_TABLE_OFFSET, table);
        store_be32(e + BITMAP_ENTRY_TABLE_SIZE, 1024);
        e[BITMAP_ENTRY_TYPE] = BITMAP_TYPE_DIRTY;
        e[BITMAP_ENTRY_GRANULARITY_BITS] = 9;
        store_be16(e + BITMAP_ENTRY_NAME_SIZE, 4);
        snprintf((char *)e + BITMAP_ENTRY_FIXED_SIZE, 5, "%04u", (unsigned)n);
    }
    for (uint64_t n = 0; n < 1024; n++) {
        store_be64(f->data + table + n * 8, bits);
    }
    memset(f->data + bits, 0x55, C);
    store_be64(f->data + HDR_AUTOCLEAR, AUTOCLEAR_BITMAPS);
    insert_extension(f, EXT_BITMAPS, (uint8_t[24]){0}, 24);
    store_be32(f->data + HDR_OUR_SIZE + 8, (uint32_t)count);
    store_be64(f->data + HDR_OUR_SIZE + 16, count * 32);
    store_be64(f->data + HDR_OUR_SIZE + 24, directory);
    image_open_read_only(&i, "a");
    for (b = block_bitmap_next(i.node, NULL); b; b = block_bitmap_next(i.node, b)) {
        usable += b->bits != NULL;
    }
    assert_int_equal(usable, 0);
    image_close(&i);
}

/* --- header ----------------------------------------------------------------------------------- */

static void as_many_bitmaps_as_there_may_be_open_in_no_time(void *arg)
{
    const uint64_t directory = 16 * C, count = BITMAPS_MAX;
    struct memory_file *f;
    int64_t began;
    struct image i;

    image_create("a", 4 * C, "cluster_size=4k");
    f = memory_file("a");
    memory_file_grow(f, round_up(directory + count * 32, C));
    for (uint64_t n = 0; n < count; n++) {
        uint8_t *e = f->data + directory + n * 32;

        e[BITMAP_ENTRY_TYPE] = BITMAP_TYPE_DIRTY;
        e[BITMAP_ENTRY_GRANULARITY_BITS] = 9;
        store_be16(e + BITMAP_ENTRY_NAME_SIZE, 5);
        snprintf((char *)e + BITMAP_ENTRY_FIXED_SIZE, 6, "%05u", (unsigned)n);
    }
    store_be64(f->data + HDR_AUTOCLEAR, AUTOCLEAR_BITMAPS);
    insert_extension(f, EXT_BITMAPS, (uint8_t[24]){0}, 24);
    store_be32(f->data + HDR_OUR_SIZE + 8, (uint32_t)count);
    store_be64(f->data + HDR_OUR_SIZE + 16, count * 32);
    store_be64(f->data + HDR_OUR_SIZE + 24, directory);
    log_set_level(LOG_LEVEL_ERROR);
    began = loop_now_ns();
    image_open(&i, "a", "");
    assert_non_null(stored(&i, "65534"));
    image_close(&i);
    log_set_level(LOG_LEVEL_WARNING);
    assert_true(loop_now_ns() - began < 5000000000);
    memcpy(f->data + directory + 32 + BITMAP_ENTRY_FIXED_SIZE, "00000", 5);
    assert_non_null(strstr(image_open_fails("a", 0), "twice"));
}

static void unknown_extensions_are_kept(void *arg)
{
    struct qcow2_extension *e;
    struct image i;

    image_create("a", DISK, "cluster_size=4k");
    insert_extension(memory_file("a"), 0x12345678, "abcde", 5);
    image_open(&i, "a", "");
    add(&i, "b", false);
    image_close(&i);
    image_open(&i, "a", "");
    e = LIST_FIRST(&i.q->header.extensions, struct qcow2_extension, link);
    assert_int_equal(e->type, 0x12345678);
    assert_int_equal(e->size, 5);
    assert_memory_equal(e->data, "abcde", 5);
    assert_non_null(block_bitmap_find(i.node, "b"));
    image_close(&i);
}

static void unknown_autoclear_bits_are_cleared_by_a_writer_alone(void *arg)
{
    struct image i;

    image_create("a", DISK, "cluster_size=4k");
    store_be64(memory_file("a")->data + HDR_AUTOCLEAR, 1ULL << 50);
    image_open_read_only(&i, "a");
    image_close(&i);
    assert_int_equal(load_be64(i.file->data + HDR_AUTOCLEAR), 1ULL << 50);
    image_open(&i, "a", "");
    image_close(&i);
    assert_int_equal(load_be64(i.file->data + HDR_AUTOCLEAR), 0);
}

static void bitmaps_are_void_after_a_writer_that_knows_none(void *arg)
{
    struct image i;

    create_with_bitmap("b", false);
    store_be64(memory_file("a")->data + HDR_AUTOCLEAR, 0);
    image_open(&i, "a", "");
    assert_null(block_bitmap_next(i.node, NULL));
    image_close(&i);
}

/* Stop at each write of the header: what is on disk then opens, with the same backing file name. */
static void stop_at_each_write(const char *backing, size_t extension_size)
{
    for (unsigned after = 0;; after++) {
        static uint8_t extension[2048];
        struct image i;
        char options[1200];
        int r;

        snprintf(options, sizeof(options), "cluster_size=4k,backing_fmt=raw,backing_file=%s",
                 backing);
        image_create("a", DISK, options);
        if (extension_size) {
            uint8_t *h = memory_file("a")->data;

            insert_extension(memory_file("a"), 0x12345678, extension, (uint32_t)extension_size);
            store_be64(h + HDR_BACKING_OFFSET,
                       load_be64(h + HDR_BACKING_OFFSET) + 8 + round_up(extension_size, 8));
        } else {
            /* As qemu-img puts it: right behind the extensions, over the end of the sector. */
            uint8_t *h = memory_file("a")->data;
            uint64_t at = load_be64(h + HDR_BACKING_OFFSET);

            memmove(h + 500, h + at, strlen(backing));
            store_be64(h + HDR_BACKING_OFFSET, 500);
            store_be32(h + HDR_OUR_SIZE + 8 + 8, 0); /* no extensions behind the format */
        }
        image_open_alone(&i, "a");

        add(&i, "b", false);
        memory_file_fail(i.file, MEMORY_FILE_WRITE | MEMORY_FILE_FLUSH, after, EIO);
        r = block_co_inactivate(i.node, NULL);
        memory_file_fail(i.file, 0, 0, 0);
        image_kill(&i);
        image_open_alone(&i, "a");
        assert_string_equal(i.q->header.backing_filename, backing);
        assert_string_equal(i.q->header.backing_format, "raw");
        assert_true(r < 0 || block_bitmap_find(i.node, "b"));
        image_close(&i);
        if (r == 0) {
            assert_true(after > 3);
            return;
        }
    }
}

static void a_header_cut_off_while_it_is_written_is_sound(void *arg)
{
    stop_at_each_write("a-name-of-some-length-that-lies-over-the-end-of-the-first-sector.raw", 0);
    stop_at_each_write("short.raw", 700);
}

/* The bytes of the extension of a type in the header on disk; fails the test if there is none. */
static const uint8_t *extension_at(const struct memory_file *f, uint32_t type, uint32_t *ret_size)
{
    size_t at = HDR_OUR_SIZE;

    while (load_be32(f->data + at) != type) {
        assert_int_not_equal(load_be32(f->data + at), EXT_END);
        at += 8 + round_up(load_be32(f->data + at + 4), 8);
    }
    *ret_size = load_be32(f->data + at + 4);
    return f->data + at + 8;
}

static void feature_names_stand_before_bitmaps(void *arg)
{
    const uint8_t *names, *bitmaps;
    uint32_t size;

    create_with_bitmap("b", false);
    names = extension_at(memory_file("a"), EXT_FEATURE_NAMES, &size);
    assert_int_equal(size, 8 * 48);
    assert_string_equal((const char *)names + 7 * 48 + 2, "raw external data");
    bitmaps = extension_at(memory_file("a"), EXT_BITMAPS, &size);
    assert_int_equal(bitmaps - names, 8 * 48 + 8);
    assert_int_equal(size, EXT_BITMAPS_SIZE);
}

static void the_newest_bitmap_of_a_session_is_stored_first(void *arg)
{
    const char *const names[] = {"c", "a", "b"}, *const stored[] = {"b", "a", "c", "d"};
    struct stored_bitmap *s;
    struct image i;
    unsigned n = 0;

    image_create("a", DISK, "cluster_size=4k");
    image_open(&i, "a", "");
    for (size_t k = 0; k < ARRAY_SIZE(names); k++) {
        add(&i, names[k], k == 1);
    }
    image_close(&i);
    /* Those that record are stored again, the other one is not. */
    image_open(&i, "a", "");
    assert_int_equal(image_write(&i, MiB, 10, 1), 0);
    add(&i, "d", false);
    image_close(&i);
    image_open(&i, "a", "");
    LIST_FOREACH (s, &i.q->bitmaps.stored, link) {
        assert_string_equal(s->name, stored[n++]);
    }
    assert_int_equal(n, ARRAY_SIZE(stored));
    image_close(&i);
}

static char *name_of_length(size_t length, int byte)
{
    char *name = calloc(1, length + 1);

    memset(name, byte, length);
    return name;
}

/*
 * Stop at each write of a header that gets another backing file name: what is on disk has the one
 * or the other.
 */
static void rename_and_stop_at_each_write(size_t from, size_t to)
{
    char *old = name_of_length(from, 'o'), *new = name_of_length(to, 'n');
    int r = -EIO;

    for (unsigned after = 0; r < 0; after++) {
        struct image i;

        image_create("a", DISK, "cluster_size=4k");
        image_open(&i, "a", "");
        add(&i, "b", false);
        assert_int_equal(i.node->driver->co_change_backing(i.node, old, "raw", NULL), 0);
        assert_int_equal(block_co_inactivate(i.node, NULL), 0);
        memory_file_fail(i.file, MEMORY_FILE_WRITE | MEMORY_FILE_FLUSH, after, EIO);
        r = i.node->driver->co_change_backing(i.node, new, "raw", NULL);
        memory_file_fail(i.file, 0, 0, 0);
        image_kill(&i);
        image_open_alone(&i, "a");
        assert_true(strcmp(i.q->header.backing_filename, new) == 0 ||
                    (r < 0 && strcmp(i.q->header.backing_filename, old) == 0));
        assert_non_null(block_bitmap_find(i.node, "b"));
        image_close(&i);
    }
    free(old);
    free(new);
}

static void backing_file_names_are_switched_at_one_time(void *arg)
{
    const size_t lengths[] = {1, 100, 400, 1023};

    log_set_level(LOG_LEVEL_ERROR);
    for (size_t a = 0; a < ARRAY_SIZE(lengths); a++) {
        for (size_t b = 0; b < ARRAY_SIZE(lengths); b++) {
            rename_and_stop_at_each_write(lengths[a], lengths[b]);
        }
    }
    log_set_level(LOG_LEVEL_WARNING);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        CO_TEST(a_stored_bitmap_comes_back),
        CO_TEST(all_ones_and_all_zeroes_take_no_clusters),
        CO_TEST(bits_are_read_when_they_are_asked_for),
        CO_TEST(bits_are_counted_where_they_are),
        CO_TEST(a_count_has_what_was_written_since),
        CO_TEST(bits_are_counted_while_bitmaps_are_stored),
        CO_TEST(counting_without_memory_fails_and_may_be_tried_again),
        CO_TEST(a_bitmap_that_cannot_be_counted_is_inconsistent),
        CO_TEST(a_bitmap_can_be_read_when_storage_answers_again),
        CO_TEST(a_removed_bitmap_that_could_not_be_read_comes_back_inconsistent),
        CO_TEST(only_clusters_of_bits_that_changed_are_stored_anew),
        CO_TEST(a_bitmap_whose_bits_cannot_be_read_is_inconsistent_the_others_are_not),
        CO_TEST(a_bitmap_that_cannot_be_read_when_it_is_stored_stays_in_use),
        CO_TEST(only_the_first_write_marks_in_use_and_before_it_lands),
        CO_TEST(discards_and_zeroes_mark_in_use_too),
        CO_TEST(without_a_stable_mark_nothing_is_written),
        CO_TEST(a_bitmap_is_added_before_the_image_is_amended),
        CO_TEST(after_a_kill_the_bitmap_is_inconsistent_and_can_be_removed),
        CO_TEST(a_disabled_bitmap_survives_a_kill),
        CO_TEST(what_was_changed_by_hand_is_not_current_after_a_kill),
        CO_TEST(a_bitmap_of_an_unknown_type_is_kept),
        CO_TEST(a_bitmap_that_cannot_be_read_is_marked_before_a_write),
        CO_TEST(a_directory_without_sense_is_an_error),
        CO_TEST(bitmaps_that_lie_upon_each_other_are_not_all_read),
        CO_TEST(as_many_bitmaps_as_there_may_be_open_in_no_time),
        CO_TEST(unknown_extensions_are_kept),
        CO_TEST(unknown_autoclear_bits_are_cleared_by_a_writer_alone),
        CO_TEST(bitmaps_are_void_after_a_writer_that_knows_none),
        CO_TEST(a_header_cut_off_while_it_is_written_is_sound),
        CO_TEST(feature_names_stand_before_bitmaps),
        CO_TEST(the_newest_bitmap_of_a_session_is_stored_first),
        CO_TEST(backing_file_names_are_switched_at_one_time),
    };

    return cmocka_run_group_tests(tests, qcow2_group_setup, qcow2_group_teardown);
}
