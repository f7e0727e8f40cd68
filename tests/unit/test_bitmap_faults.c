/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Persistent bitmaps in a file that fails, at each request of each operation: what fails says so
 * and changes nothing, in memory or, when the file is well again, on disk. If the program ends
 * there, the image opens, and each bitmap is as before, as after, or inconsistent.
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

#include "qcow2_fixture.h"

#include "base/checked.h"
#include "base/log.h"
#include "block/bitmaps.h"
#include "qcow2/bitmap/bitmap.h"

#define DISK (64 * MiB)
#define GRANULE (64 * KiB)
#define NAMES 3
/* More requests than any of the operations makes. */
#define REQUESTS_MAX 60

static const char *const names[NAMES] = {"one", "two", "new"};

/* What an image shows of its bitmaps. */
struct shown {
    struct {
        bool exists, enabled, inconsistent;
        uint64_t dirty; /* one bit for each of the first 64 granules */
        uint64_t count;
    } bitmap[NAMES];
};

typedef int operation(struct image *i, struct error *err);

/* --- operations ------------------------------------------------------------------------------- */

static struct block_bitmap *find(struct image *i, const char *name)
{
    struct block_bitmap *b = block_bitmap_find(i->node, name);

    assert_non_null(b);
    return b;
}

static int op_add(struct image *i, struct error *err)
{
    struct block_bitmap *b;

    return block_co_bitmap_add(i->node, "new", GRANULE, true, false, &b, err);
}

static int op_remove(struct image *i, struct error *err)
{
    return block_co_bitmap_remove(find(i, "one"), err);
}

static int op_clear(struct image *i, struct error *err)
{
    return block_co_bitmap_clear(find(i, "one"), NULL, err);
}

static int op_merge(struct image *i, struct error *err)
{
    struct block_bitmap *source = find(i, "one");

    return block_co_bitmap_merge(find(i, "two"), &source, 1, NULL, err);
}

static int op_enable(struct image *i, struct error *err)
{
    return block_co_bitmap_set_enabled(find(i, "two"), true, err);
}

static int op_disable(struct image *i, struct error *err)
{
    return block_co_bitmap_set_enabled(find(i, "one"), false, err);
}

static int op_store(struct image *i, struct error *err)
{
    return qcow2_co_store_bitmaps(i->q, err);
}

/* --- what there is ---------------------------------------------------------------------------- */

static void look(struct image *i, struct shown *ret_shown)
{
    memset(ret_shown, 0, sizeof(*ret_shown));
    for (unsigned n = 0; n < NAMES; n++) {
        struct block_bitmap *b = block_bitmap_find(i->node, names[n]);

        if (!b) {
            continue;
        }
        ret_shown->bitmap[n].exists = true;
        ret_shown->bitmap[n].inconsistent = block_bitmap_inconsistent(b);
        if (block_bitmap_inconsistent(b)) {
            continue;
        }
        ret_shown->bitmap[n].enabled = block_bitmap_enabled(b);
        assert_int_equal(block_co_bitmap_fetch(b, NULL), 0);
        ret_shown->bitmap[n].count = dirty_bitmap_count(block_bitmap_bits(b));
        for (unsigned k = 0; k < 64; k++) {
            ret_shown->bitmap[n].dirty |=
                (uint64_t)dirty_bitmap_get(block_bitmap_bits(b), k * GRANULE) << k;
        }
    }
}

static void look_into(const char *name, struct shown *ret_shown)
{
    struct image i;

    image_open(&i, name, "");
    look(&i, ret_shown);
    image_close(&i);
    image_check(name, UINT64_MAX);
}

/* Each bitmap is as in one of the two, or is inconsistent. */
static void expect_either(const struct shown *got, const struct shown *a, const struct shown *b)
{
    for (unsigned n = 0; n < NAMES; n++) {
        if (memcmp(&got->bitmap[n], &a->bitmap[n], sizeof(got->bitmap[n])) != 0 &&
            memcmp(&got->bitmap[n], &b->bitmap[n], sizeof(got->bitmap[n])) != 0 &&
            !got->bitmap[n].inconsistent) {
            fail_msg("bitmap '%s': exists %d, enabled %d, dirty %llx", names[n],
                     got->bitmap[n].exists, got->bitmap[n].enabled,
                     (unsigned long long)got->bitmap[n].dirty);
        }
    }
}

/* "good": `one` records, and has granules 1 to 3; `two` is frozen, with granule 5. */
static void make_image(void)
{
    struct block_bitmap *b;
    struct image i;

    image_create("good", DISK, "cluster_size=4k");
    image_open(&i, "good", "");
    assert_int_equal(block_co_bitmap_add(i.node, "two", GRANULE, true, false, &b, NULL), 0);
    assert_int_equal(image_write(&i, 5 * GRANULE, 1, 1), 0);
    assert_int_equal(block_co_bitmap_set_enabled(b, false, NULL), 0);
    assert_int_equal(block_co_bitmap_add(i.node, "one", GRANULE, true, false, &b, NULL), 0);
    assert_int_equal(image_write(&i, GRANULE, 3 * GRANULE, 1), 0);
    image_close(&i);
}

static void open_copy(struct image *i, bool used)
{
    memory_file_copy(memory_file("a"), memory_file("good"));
    image_open(i, "a", "");
    if (used) {
        assert_int_equal(image_write(i, 7 * GRANULE, 1, 2), 0);
    }
}

/* --- the sweep -------------------------------------------------------------------------------- */

/*
 * With the request `after` and later ones failing. The bits are still in the image when the
 * operation begins. False: it succeeded.
 */
static bool fails_once(operation *op, bool used, unsigned kinds, int errnum, unsigned after,
                       const struct shown *before, const struct shown *done)
{
    struct shown now, crashed;
    struct image i;
    bool broken;
    ERROR_AUTO(err);
    int r;

    open_copy(&i, used);
    memory_file_fail(i.file, kinds, after, errnum);
    r = op(&i, &err);
    memory_file_copy(memory_file("crash"), i.file);
    memory_file_fail(i.file, 0, 0, 0);
    look(&i, &now);
    broken = atomic_load(&i.q->broken);
    if (r >= 0) {
        assert_memory_equal(&now, done, sizeof(now));
    } else {
        assert_true(error_is_set(&err));
        assert_memory_equal(&now, before, sizeof(now));
    }
    if (broken) {
        image_kill(&i);
        look_into("a", &now);
        expect_either(&now, before, done);
    } else {
        image_close(&i);
        image_check("a", 0);
        look_into("a", &crashed);
        assert_memory_equal(&crashed, &now, sizeof(now));
    }
    look_into("crash", &crashed);
    expect_either(&crashed, before, done);
    return r < 0;
}

static void sweep(operation *op, bool used)
{
    static const unsigned kinds[] = {MEMORY_FILE_WRITE, MEMORY_FILE_FLUSH,
                                     MEMORY_FILE_WRITE | MEMORY_FILE_FLUSH};
    static const int errors[] = {EIO, ENOSPC};
    struct shown before, done;
    struct image i;

    make_image();
    open_copy(&i, used);
    look(&i, &before);
    assert_int_equal(op(&i, NULL), 0);
    look(&i, &done);
    image_close(&i);
    for (unsigned k = 0; k < ARRAY_SIZE(kinds); k++) {
        for (unsigned e = 0; e < ARRAY_SIZE(errors); e++) {
            unsigned after = 0, succeeded = 0;

            for (; after < REQUESTS_MAX && succeeded < 3; after++) {
                succeeded = fails_once(op, used, kinds[k], errors[e], after, &before, &done)
                                ? 0
                                : succeeded + 1;
            }
            assert_true(after < REQUESTS_MAX);
        }
    }
    memory_file_free_all();
}

#define SWEEPS(name)                                                                               \
    static void name##_that_fails(void *arg)                                                       \
    {                                                                                              \
        sweep(op_##name, false);                                                                   \
    }                                                                                              \
    static void name##_that_fails_after_a_write(void *arg)                                         \
    {                                                                                              \
        sweep(op_##name, true);                                                                    \
    }

SWEEPS(add)
SWEEPS(remove)
SWEEPS(clear)
SWEEPS(merge)
SWEEPS(enable)
SWEEPS(disable)
SWEEPS(store)

/* --- two images at once ----------------------------------------------------------------------- */

#define LOG ",durable-bitmaps=power"

/* Granules 1 to 3, which `one` has before it is cleared. */
#define BEFORE 0xeu

/* A transaction: clear `one` in both. */
static int clear_both(struct image *pair, struct error *err)
{
    struct block_bitmap_backup backup[2] = {0};
    struct block_bitmap_commits commits;
    unsigned cleared = 0;
    int r = 0;

    block_bitmap_commits_begin(&commits);
    while (cleared < 2 && r == 0) {
        r = block_co_bitmap_clear(find(&pair[cleared], "one"), &backup[cleared], err);
        cleared += r == 0;
    }
    UNLESS_FAILED(r, block_co_bitmap_commits_run(&commits, err));
    while (r < 0 && cleared > 0) {
        cleared--;
        block_co_bitmap_restore(find(&pair[cleared], "one"), &backup[cleared]);
    }
    if (r < 0) {
        block_co_bitmap_commits_retry(&commits);
    } else {
        dirty_bitmap_free(backup[0].bits);
        dirty_bitmap_free(backup[1].bits);
    }
    block_bitmap_commits_end(&commits);
    return r;
}

/* What both have of `one`, which is the same. */
static uint64_t look_at_both(struct image *pair)
{
    struct shown shown[2];

    for (unsigned n = 0; n < 2; n++) {
        look(&pair[n], &shown[n]);
        assert_true(shown[n].bitmap[0].exists && !shown[n].bitmap[0].inconsistent);
    }
    assert_int_equal(shown[0].bitmap[0].dirty & BEFORE, shown[1].bitmap[0].dirty & BEFORE);
    return shown[0].bitmap[0].dirty & BEFORE;
}

static uint64_t look_into_both(const char *const *files)
{
    struct image pair[2];
    uint64_t dirty;

    image_open(&pair[0], files[0], LOG);
    image_open(&pair[1], files[1], LOG);
    dirty = look_at_both(pair);
    for (unsigned n = 0; n < 2; n++) {
        image_close(&pair[n]);
        image_check(files[n], UINT64_MAX);
    }
    return dirty;
}

/* With the request `after` and later ones of one of the files failing. False: it succeeded. */
static bool both_fail_once(unsigned which, unsigned kinds, int errnum, unsigned after)
{
    static const char *const files[] = {"a", "b"}, *const crashed[] = {"crash-a", "crash-b"};
    struct image pair[2];
    uint64_t found;
    bool broken;
    ERROR_AUTO(err);
    int r;

    for (unsigned n = 0; n < 2; n++) {
        memory_file_copy(memory_file(files[n]), memory_file("good"));
        image_open(&pair[n], files[n], LOG);
        assert_int_equal(image_write(&pair[n], 7 * GRANULE, 1, 2), 0);
    }
    memory_file_fail(pair[which].file, kinds, after, errnum);
    r = clear_both(pair, &err);
    for (unsigned n = 0; n < 2; n++) {
        memory_file_copy(memory_file(crashed[n]), pair[n].file);
    }
    memory_file_fail(pair[which].file, 0, 0, 0);
    assert_true(r == 0 || error_is_set(&err));
    assert_int_equal(look_at_both(pair), r < 0 ? BEFORE : 0);
    broken = atomic_load(&pair[0].q->broken) || atomic_load(&pair[1].q->broken);
    for (unsigned n = 0; n < 2; n++) {
        if (broken) {
            image_kill(&pair[n]);
        } else {
            image_close(&pair[n]);
        }
    }
    found = look_into_both(files);
    assert_true(broken || found == (r < 0 ? BEFORE : 0));
    found = look_into_both(crashed);
    assert_true(found == 0 || found == BEFORE);
    return r < 0;
}

/*
 * Not when the flush of the decision fails in the first image and nothing more can be written to
 * it: what it has is not known then, and the others are taken back (docs/qcow2.md).
 */
static void joint_change_that_fails(void *arg)
{
    static const struct {
        unsigned which, kinds;
    } cases[] = {{0, MEMORY_FILE_WRITE},
                 {0, MEMORY_FILE_FLUSH},
                 {1, MEMORY_FILE_WRITE},
                 {1, MEMORY_FILE_FLUSH},
                 {1, MEMORY_FILE_WRITE | MEMORY_FILE_FLUSH}};

    (void)arg;
    make_image();
    for (unsigned n = 0; n < ARRAY_SIZE(cases); n++) {
        unsigned after = 0, succeeded = 0;

        for (; after < REQUESTS_MAX && succeeded < 8; after++) {
            bool failed =
                both_fail_once(cases[n].which, cases[n].kinds, after % 2 ? EIO : ENOSPC, after);

            succeeded = failed ? 0 : succeeded + 1;
        }
        assert_true(after > 8 && after < REQUESTS_MAX); /* some have failed */
    }
    memory_file_free_all();
}

/* An add is undone, and the image can't be changed any more, or not for a while. */
static void undo_fails(int errnum, unsigned after)
{
    struct block_bitmap *b;
    struct shown shown;
    struct image i;
    bool written = false;

    open_copy(&i, false);
    assert_int_equal(block_co_bitmap_add(i.node, "new", GRANULE, true, false, &b, NULL), 0);
    assert_int_equal(op_store(&i, NULL), 0);
    memory_file_fail(i.file, MEMORY_FILE_WRITE, after, errnum);
    block_co_bitmap_undo_add(b);
    memory_file_fail(i.file, 0, 0, 0);
    assert_null(block_bitmap_find(i.node, "new"));
    if (atomic_load(&i.q->broken)) {
        image_kill(&i);
    } else {
        written = true;
        assert_int_equal(image_write(&i, 9 * GRANULE, 1, 2), 0);
        assert_int_equal(op_clear(&i, NULL), 0);
        image_close(&i);
    }
    look_into("a", &shown);
    /* It has not seen the write. */
    assert_true(!shown.bitmap[2].exists || shown.bitmap[2].inconsistent || !written);
}

static void undo_of_an_add_that_fails(void *arg)
{
    (void)arg;
    make_image();
    for (unsigned after = 0; after < 8; after++) {
        undo_fails(ENOSPC, after);
        undo_fails(EIO, after);
    }
    memory_file_free_all();
}

#define BOTH(name) CO_TEST(name##_that_fails), CO_TEST(name##_that_fails_after_a_write)

int main(void)
{
    const struct CMUnitTest tests[] = {
        BOTH(add),
        BOTH(remove),
        BOTH(clear),
        BOTH(merge),
        BOTH(enable),
        BOTH(disable),
        BOTH(store),
        CO_TEST(undo_of_an_add_that_fails),
        CO_TEST(joint_change_that_fails),
    };

    log_set_level(LOG_LEVEL_ERROR);
    return cmocka_run_group_tests(tests, qcow2_group_setup, qcow2_group_teardown);
}
