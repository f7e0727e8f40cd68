/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The activity log in a file that fails while guests write: a bitmap that is reported consistent
 * after the end of the process has all that was written, and nothing counts on what is not stable.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "qcow2_fixture.h"

#include "base/checked.h"
#include "base/log.h"
#include "block/activity.h"
#include "block/bitmaps.h"
#include "block/block.h"
#include "co/sync.h"
#include "loop/loop.h"

#define REGION (64 * KiB)
#define DISK (512 * MiB)
/* What fills the log: it has room for 1% of the disk. */
#define FULL 90u

static void make_image(void)
{
    struct block_bitmap *b;
    struct image i;

    image_create("good", DISK, "cluster_size=512");
    image_open(&i, "good", "");
    assert_int_equal(block_co_bitmap_add(i.node, "b", REGION, true, false, &b, NULL), 0);
    image_close(&i);
}

static struct block_activity_figures figures_of(struct image *i)
{
    struct block_activity_figures f;

    block_activity_read_figures(i->q->activity.log, &f);
    return f;
}

/* Every second region, so that nothing is heated ahead. */
static int write_region(struct image *i, unsigned n)
{
    return image_write(i, 2ULL * n * REGION, 512, 1);
}

/* The bitmap of a killed process has all that was tried, or is inconsistent. */
static void expect_dirty(const char *name, unsigned count)
{
    struct block_bitmap *b;
    struct image i;

    image_open_read_only(&i, name);
    b = block_bitmap_find(i.node, "b");
    assert_non_null(b);
    if (!block_bitmap_inconsistent(b)) {
        assert_int_equal(block_co_bitmap_fetch(b, NULL), 0);
        for (unsigned n = 0; n < count; n++) {
            assert_true(dirty_bitmap_get(block_bitmap_bits(b), 2ULL * n * REGION));
        }
    }
    image_close(&i);
}

/* What is written with request `after` and later ones failing. False: nothing has failed. */
static bool writes_that_fail(unsigned kinds, int errnum, unsigned after)
{
    struct block_activity_figures before, then;
    bool failed = false;
    struct image i;
    unsigned n = 0;

    memory_file_copy(memory_file("a"), memory_file("good"));
    image_open(&i, "a", ",durable-bitmaps=power");
    for (; n < FULL; n++) {
        assert_int_equal(write_region(&i, n), 0);
    }
    memory_file_fail(i.file, kinds, after, errnum);
    before = figures_of(&i);
    for (; n < FULL + 8 && !failed; n++) {
        before = figures_of(&i);
        failed = write_region(&i, n) < 0;
    }
    then = figures_of(&i);
    memory_file_fail(i.file, 0, 0, 0);
    if (failed && !atomic_load(&i.q->broken)) {
        /* The map was not written: the bits before it are not known to be stable. */
        bool map_failed = then.heated == before.heated;

        then = figures_of(&i);
        assert_int_equal(write_region(&i, n++), 0);
        assert_true(!map_failed || figures_of(&i).cooled == then.cooled);
        assert_int_equal(write_region(&i, n++), 0);
    }
    image_kill(&i);
    expect_dirty("a", failed ? 0 : n);
    return failed;
}

static void faults_of_writes(void *arg)
{
    static const unsigned kinds[] = {MEMORY_FILE_WRITE, MEMORY_FILE_FLUSH,
                                     MEMORY_FILE_WRITE | MEMORY_FILE_FLUSH};
    static const int errors[] = {EIO, ENOSPC};

    (void)arg;
    make_image();
    for (unsigned k = 0; k < ARRAY_SIZE(kinds); k++) {
        for (unsigned e = 0; e < ARRAY_SIZE(errors); e++) {
            for (unsigned after = 0; writes_that_fail(kinds[k], errors[e], after); after++) {
            }
        }
    }
    memory_file_free_all();
}

/* A process may have been killed between a write of the map and its sync. */
static void what_is_taken_over_is_synced_first(void *arg)
{
    struct image i;

    (void)arg;
    make_image();
    memory_file_copy(memory_file("a"), memory_file("good"));
    image_open(&i, "a", ",durable-bitmaps=power");
    assert_int_equal(write_region(&i, 0), 0);
    image_kill(&i);
    image_open(&i, "a", ",durable-bitmaps=power");
    memory_file_fail(i.file, MEMORY_FILE_FLUSH, 0, EIO);
    assert_int_equal(write_region(&i, 0), -EIO);
    memory_file_fail(i.file, MEMORY_FILE_FLUSH, 0, EIO);
    assert_int_equal(write_region(&i, 0), -EIO); /* it is still not known to be stable */
    memory_file_fail(i.file, 0, 0, 0);
    assert_int_equal(write_region(&i, 0), 0);
    memory_file_fail(i.file, MEMORY_FILE_FLUSH, 0, EIO);
    assert_int_equal(write_region(&i, 0), 0); /* it is hot now */
    memory_file_fail(i.file, 0, 0, 0);
    image_kill(&i);
    expect_dirty("a", 1);
    memory_file_free_all();
}

/* The bits of a request are set at its end: until then its region stays hot, unused as it looks. */
static void a_region_stays_hot_under_a_long_write(void *arg)
{
    block_activity_entry entry;
    struct block_activity *log;
    struct image i;

    (void)arg;
    make_image();
    memory_file_copy(memory_file("a"), memory_file("good"));
    image_open(&i, "a", ",durable-bitmaps=power");
    log = i.q->activity.log;
    assert_int_equal(block_co_activity_enter(log, 0, 512, &entry), 0);
    for (unsigned n = 1; n < 4 * FULL; n++) {
        assert_int_equal(write_region(&i, n), 0);
    }
    assert_true(figures_of(&i).cooled > FULL);
    image_kill(&i);
    expect_dirty("a", 1);
    memory_file_free_all();
}

/* After a resize that fails once the size has changed, the log is one for that size. */
static bool shrink_that_fails(unsigned after)
{
    struct image i;
    bool broken;
    int r;

    memory_file_copy(memory_file("a"), memory_file("good"));
    image_open(&i, "a", ",durable-bitmaps=power");
    assert_int_equal(write_region(&i, DISK / REGION / 2 - 1), 0);
    memory_file_fail(i.file, MEMORY_FILE_WRITE, after, EIO);
    r = block_co_truncate(i.edge, MiB, BLOCK_PREALLOC_OFF, NULL);
    memory_file_fail(i.file, 0, 0, 0);
    broken = atomic_load(&i.q->broken);
    if (!broken) {
        for (unsigned n = 0; n < 8; n++) {
            assert_int_equal(write_region(&i, n), 0);
        }
        for (unsigned n = 0; n < 8; n++) {
            image_expect(&i, 2ULL * n * REGION, 512, 1);
        }
    }
    image_kill(&i);
    if (!broken) {
        expect_dirty("a", 8);
    }
    return r < 0;
}

static void a_shrink_that_fails(void *arg)
{
    (void)arg;
    make_image();
    for (unsigned after = 0; shrink_that_fails(after); after++) {
    }
    memory_file_free_all();
}

static void co_wait_for_flushes(struct memory_file *f, unsigned count)
{
    while (memory_file_flushes(f) < count) {
        loop_co_sleep(NS_PER_MS);
    }
}

struct resizer {
    struct image *i;
    struct co_group *group;
    uint64_t size;
    int result;
};

static void co_resizer(void *arg)
{
    struct resizer *s = arg;

    s->result = block_co_truncate(s->i->edge, s->size, BLOCK_PREALLOC_OFF, NULL);
    co_group_done(s->group);
}

/* One that begins meanwhile waits: each replaces the log. */
static void two_resizes_at_a_time(void *arg)
{
    struct resizer s[2];
    struct co_group group;
    struct image i;

    (void)arg;
    make_image();
    memory_file_copy(memory_file("a"), memory_file("good"));
    image_open(&i, "a", ",durable-bitmaps=power");
    co_group_init(&group);
    memory_file_script(i.file, true);
    for (unsigned k = 0; k < ARRAY_SIZE(s); k++) {
        s[k] = (struct resizer){.i = &i, .group = &group, .size = DISK + (k + 1) * MiB};
        co_group_add(&group);
        assert_int_equal(reactor_spawn(reactor_main(), co_resizer, &s[k]), 0);
        co_wait_for_flushes(i.file, 1);
        loop_co_sleep(20 * NS_PER_MS);
    }
    assert_int_equal(memory_file_flushes(i.file), 1);
    memory_file_script(i.file, false);
    co_group_wait(&group);
    co_group_destroy(&group);
    assert_int_equal(s[0].result, 0);
    assert_int_equal(s[1].result, 0);
    assert_int_equal(block_edge_size(i.edge), DISK + 2 * MiB);
    assert_int_equal(write_region(&i, 0), 0);
    image_kill(&i);
    expect_dirty("a", 1);
    memory_file_free_all();
}

/* A write to a region, in a coroutine of its own. */
struct writer {
    struct image *i;
    struct co_group *group;
    unsigned region;
    atomic_bool ended;
    int result;
};

static void co_writer(void *arg)
{
    struct writer *w = arg;

    w->result = write_region(w->i, w->region);
    atomic_store(&w->ended, true);
    co_group_done(w->group);
}

static void start_writer(struct image *i, struct co_group *group, struct writer *w, unsigned region)
{
    *w = (struct writer){.i = i, .group = group, .region = region};
    co_group_add(group);
    assert_int_equal(reactor_spawn(reactor_main(), co_writer, w), 0);
}

/* What becomes of batches whose syncs overlap: the first one's ends last, with `result`. */
static void syncs_overlap(int result)
{
    struct writer w[4];
    struct co_group group;
    struct image i;

    memory_file_copy(memory_file("a"), memory_file("good"));
    image_open(&i, "a", ",durable-bitmaps=power");
    co_group_init(&group);
    assert_int_equal(write_region(&i, 0), 0);
    memory_file_script(i.file, true);
    start_writer(&i, &group, &w[0], 1);
    co_wait_for_flushes(i.file, 1);
    start_writer(&i, &group, &w[1], 2);
    start_writer(&i, &group, &w[2], 3);
    loop_co_sleep(20 * NS_PER_MS); /* both wait */
    memory_file_end_flush(i.file, 0, 0);
    co_wait_for_flushes(i.file, 2);
    start_writer(&i, &group, &w[3], 4);
    co_wait_for_flushes(i.file, 3);
    assert_int_equal(figures_of(&i).batches, 4);
    memory_file_end_flush(i.file, 2, 0);
    loop_co_sleep(20 * NS_PER_MS);
    /* The failure of the first one may concern what the second one has written, too. */
    assert_false(atomic_load(&w[3].ended));
    memory_file_end_flush(i.file, 1, result);
    memory_file_script(i.file, false);
    co_group_wait(&group);
    co_group_destroy(&group);
    for (unsigned k = 0; k < ARRAY_SIZE(w); k++) {
        assert_int_equal(w[k].result, k == 0 ? 0 : result);
    }
    assert_int_equal(figures_of(&i).hot, (result == 0 ? 5 : 2) * REGION);
    for (unsigned n = 0; n < 5; n++) {
        assert_int_equal(write_region(&i, n), 0);
    }
    image_kill(&i);
    expect_dirty("a", 5);
}

static void batches_that_fly_together(void *arg)
{
    (void)arg;
    make_image();
    syncs_overlap(0);
    syncs_overlap(-EIO);
    memory_file_free_all();
}

/*
 * A batch is sent while another one syncs, which has stored bits of its victims. Returns whether
 * the first one had victims: without, none is sent next to it.
 */
static bool nothing_cools_during_the_sync(struct image *i, unsigned n)
{
    struct writer w[2];
    struct co_group group;
    uint64_t cooled;
    bool both = false;

    co_group_init(&group);
    memory_file_script(i->file, true);
    start_writer(i, &group, &w[0], n);
    co_wait_for_flushes(i->file, 1);
    cooled = figures_of(i).cooled;
    start_writer(i, &group, &w[1], n + 1);
    for (unsigned ms = 0; ms < 20 && !both; ms++) {
        loop_co_sleep(NS_PER_MS);
        both = memory_file_flushes(i->file) == 2;
    }
    if (both) {
        assert_int_equal(figures_of(i).cooled, cooled);
    }
    memory_file_script(i->file, false);
    co_group_wait(&group);
    co_group_destroy(&group);
    assert_int_equal(w[0].result, 0);
    assert_int_equal(w[1].result, 0);
    return both;
}

static void a_region_stays_hot_until_its_bits_are_stable(void *arg)
{
    struct image i;
    unsigned n = 0, checked = 0;
    uint64_t cooled;

    (void)arg;
    make_image();
    memory_file_copy(memory_file("a"), memory_file("good"));
    image_open(&i, "a", ",durable-bitmaps=power");
    for (; n < FULL; n++) {
        assert_int_equal(write_region(&i, n), 0);
    }
    cooled = figures_of(&i).cooled;
    for (; checked < 3; n += 2) {
        assert_true(n < DISK / REGION / 2 - 2);
        checked += nothing_cools_during_the_sync(&i, n);
    }
    assert_true(figures_of(&i).cooled > cooled);
    image_kill(&i);
    expect_dirty("a", n);
    memory_file_free_all();
}

/* The log has at most 1% of a disk, unless that is less than four regions of 4 KiB. */
static void the_log_is_small_on_small_disks(void *arg)
{
    static const uint64_t sizes[] = {MiB,      2 * MiB,  7 * MiB, 25 * MiB,
                                     26 * MiB, 99 * MiB, DISK,    64 * GiB};

    (void)arg;
    for (unsigned k = 0; k < ARRAY_SIZE(sizes); k++) {
        struct block_activity_figures f;
        struct image i;

        image_create("a", sizes[k], "cluster_size=65536");
        image_open(&i, "a", ",durable-bitmaps=power");
        f = figures_of(&i);
        assert_in_range(f.limit, 1, MAX(sizes[k] / 100, 16 * KiB));
        assert_true(f.limit >= sizes[k] / 200);
        assert_in_range(f.region_size, 4 * KiB, MiB);
        image_close(&i);
    }
    memory_file_free_all();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        CO_TEST(faults_of_writes),
        CO_TEST(what_is_taken_over_is_synced_first),
        CO_TEST(a_region_stays_hot_under_a_long_write),
        CO_TEST(a_shrink_that_fails),
        CO_TEST(two_resizes_at_a_time),
        CO_TEST(batches_that_fly_together),
        CO_TEST(a_region_stays_hot_until_its_bits_are_stable),
        CO_TEST(the_log_is_small_on_small_disks),
    };

    log_set_level(LOG_LEVEL_ERROR);
    return cmocka_run_group_tests(tests, qcow2_group_setup, qcow2_group_teardown);
}
