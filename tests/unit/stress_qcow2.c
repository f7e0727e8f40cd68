/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One qcow2 image, guests on four reactors: writes that allocate, zeroes, discards, flushes, reads.
 * Meanwhile bitmaps are added, changed, stored and removed, and internal snapshots are made and
 * deleted.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "model_disk.h"
#include "qcow2_fixture.h"

#include "base/checked.h"
#include "block/bitmaps.h"

#define REACTORS 4
#define SIZE (8 * MiB)
#define GRANULARITY 4096

/* Records from the beginning, and is never cleared. */
#define ALL "all"

static struct reactor *reactors[REACTORS];

/* --- the keeper of bitmaps and snapshots ------------------------------------------------------ */

struct keeper {
    struct block_node *node;
    uint64_t random;
    bool snapshots;
    atomic_bool stop;
    unsigned failures, steps;
    struct co_group group;
};

static struct block_bitmap *some_bitmap(struct keeper *k)
{
    char name[8];

    snprintf(name, sizeof(name), "b%u", (unsigned)(model_random(&k->random) % 4));
    return block_bitmap_find(k->node, name);
}

static int co_add_or_remove(struct keeper *k)
{
    struct block_bitmap *b = some_bitmap(k), *added;
    char name[8];

    if (b) {
        return block_co_bitmap_remove(b, NULL);
    }
    snprintf(name, sizeof(name), "b%u", (unsigned)(model_random(&k->random) % 4));
    if (block_bitmap_find(k->node, name)) {
        return 0;
    }
    return block_co_bitmap_add(k->node, name, GRANULARITY, true, false, &added, NULL);
}

static int co_change_bitmap(struct keeper *k)
{
    struct block_bitmap *b = some_bitmap(k), *all = block_bitmap_find(k->node, ALL);

    if (!b) {
        return 0;
    }
    switch (model_random(&k->random) % 3) {
    case 0:
        return block_co_bitmap_set_enabled(b, !b->enabled, NULL);
    case 1:
        return block_co_bitmap_clear(b, NULL, NULL);
    default:
        return block_co_bitmap_merge(b, &all, 1, NULL, NULL);
    }
}

/* What a close does, with guests that go on afterwards. */
static int co_store(struct keeper *k)
{
    int r;

    block_co_drain_begin(k->node);
    r = block_co_inactivate(k->node, NULL);
    block_drain_end(k->node);
    return r;
}

static int co_snapshot(struct keeper *k)
{
    const struct block_driver *d = k->node->driver;
    struct block_snapshot_info *infos = NULL;
    size_t count = 0;
    int r;

    block_co_drain_begin(k->node);
    r = d->co_snapshot_list(k->node, &infos, &count, NULL);
    if (r == 0) {
        r = count < 2 ? d->co_snapshot_create(k->node, "", NULL)
                      : d->co_snapshot_delete(k->node, infos[0].id, NULL);
    }
    block_drain_end(k->node);
    free(infos);
    return r;
}

static int co_step(struct keeper *k)
{
    unsigned what = (unsigned)(model_random(&k->random) % 8);

    if (what < 2) {
        return co_add_or_remove(k);
    }
    if (what < 4) {
        return co_change_bitmap(k);
    }
    return what == 7 && k->snapshots ? co_snapshot(k) : co_store(k);
}

static void keeper_main(void *arg)
{
    struct keeper *k = arg;

    while (!atomic_load(&k->stop)) {
        k->failures += co_step(k) < 0;
        k->steps++;
        loop_co_sleep(model_random(&k->random) % 500);
    }
    co_group_done(&k->group);
}

/* Whatever is not zero was written, so it is dirty. */
static void co_verify_bitmap(const struct model_disk *disk, struct block_node *node)
{
    struct block_bitmap *all = block_bitmap_find(node, ALL);

    assert_non_null(all);
    assert_false(all->inconsistent);
    assert_int_equal(block_co_bitmap_fetch(all, NULL), 0);
    for (uint64_t at = 0; at < SIZE; at++) {
        if (disk->bytes[at] != 0 && !dirty_bitmap_get(block_bitmap_bits(all), at)) {
            fail_msg("byte %llu was written, but is not dirty", (unsigned long long)at);
        }
    }
}

/* TIDEMARK_STRESS_SEED chooses other requests. */
static uint64_t first_seed(void)
{
    const char *text = getenv("TIDEMARK_STRESS_SEED");

    return text ? strtoull(text, NULL, 10) : 1;
}

/* --- guests ----------------------------------------------------------------------------------- */

struct run {
    const char *create_options, *open_options;
    unsigned ops;
    bool compressed, bitmaps, snapshots;
};

static void co_run_round(const struct run *run, struct model_disk *disk, struct image *i,
                         unsigned round)
{
    struct keeper keeper = {
        .node = i->node, .random = first_seed() + round, .snapshots = run->snapshots};

    co_group_init(&keeper.group);
    if (run->bitmaps) {
        co_group_add(&keeper.group);
        assert_int_equal(reactor_spawn(reactors[0], keeper_main, &keeper), 0);
    }
    model_disk_co_run(&(struct model_guests){
        .disk = disk,
        .edge = i->edge,
        .reactors = reactors,
        .reactor_count = REACTORS,
        .per_reactor = 3,
        .ops = run->ops,
        .seed = first_seed() + round,
        .cluster_size = i->node->limits.cluster_size,
        .compressed = run->compressed,
    });
    atomic_store(&keeper.stop, true);
    co_group_wait(&keeper.group);
    co_group_destroy(&keeper.group);
    assert_int_equal(keeper.failures, 0);
    assert_true(!run->bitmaps || keeper.steps > 0);
}

static void co_guests(const struct run *run)
{
    struct block_bitmap *all;
    struct model_disk disk;
    struct image i;

    model_disk_init(&disk, SIZE);
    image_create("a", SIZE, run->create_options);
    for (unsigned round = 0; round < 2; round++) {
        image_open(&i, "a", run->open_options);
        if (run->bitmaps && round == 0) {
            assert_int_equal(block_co_bitmap_add(i.node, ALL, GRANULARITY, true, false, &all, NULL),
                             0);
        }
        co_run_round(run, &disk, &i, round);
        if (atomic_load(&disk.failures) == 0) {
            model_disk_co_verify(&disk, i.edge);
        }
        if (atomic_load(&disk.failures) > 0) {
            fail_msg("%s, %s: %s", run->create_options, run->open_options, disk.why);
        }
        image_close(&i);
        image_check("a", 0);
        if (run->bitmaps) {
            image_open_read_only(&i, "a");
            co_verify_bitmap(&disk, i.node);
            image_close(&i);
        }
    }
    model_disk_release(&disk);
}

static void run_guests(const char *create_options, const char *open_options, unsigned ops,
                       bool compressed)
{
    co_guests(&(struct run){create_options, open_options, ops, compressed, false, false});
}

static void small_clusters_and_small_caches(void *arg)
{
    run_guests("cluster_size=512",
               ",l2-cache-size=512,l2-cache-entry-size=512,refcount-cache-size=512", 150, false);
}

static void compressed_and_plain_clusters(void *arg)
{
    run_guests("cluster_size=4k", "", 150, true);
}

static void large_clusters(void *arg)
{
    run_guests("cluster_size=64k", "", 60, false);
}

/* Entries of two words: readers must not see one old and one new. */
static void subclusters(void *arg)
{
    run_guests("cluster_size=16k,extended_l2=on", "", 80, true);
    run_guests("cluster_size=64k,extended_l2=on", ",l2-cache-size=1k,l2-cache-entry-size=512", 30,
               false);
}

static void bitmaps_beside_guests(void *arg)
{
    co_guests(&(struct run){"cluster_size=4k", "", 150, true, true, false});
    co_guests(&(struct run){"cluster_size=512", ",l2-cache-size=512,l2-cache-entry-size=512", 80,
                            false, true, false});
}

static void bitmaps_and_snapshots_beside_guests(void *arg)
{
    co_guests(&(struct run){"cluster_size=4k", "", 150, false, true, true});
    co_guests(&(struct run){"cluster_size=16k,extended_l2=on", "", 100, true, true, true});
    co_guests(&(struct run){"cluster_size=64k,refcount_bits=64", ",l2-cache-size=64k", 60, true,
                            true, true});
}

static void co_start_reactors(void *arg)
{
    reactors[0] = reactor_main();
    for (unsigned n = 1; n < REACTORS; n++) {
        assert_int_equal(reactor_create("guest", &reactors[n], NULL), 0);
    }
}

static void co_stop_reactors(void *arg)
{
    for (unsigned n = 1; n < REACTORS; n++) {
        reactor_destroy(reactors[n]);
    }
}

static int setup(void **state)
{
    int r = qcow2_group_setup(state);

    return r < 0 ? r : reactor_run_until_done(co_start_reactors, NULL);
}

static int teardown(void **state)
{
    reactor_run_until_done(co_stop_reactors, NULL);
    return qcow2_group_teardown(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        CO_TEST(small_clusters_and_small_caches),
        CO_TEST(compressed_and_plain_clusters),
        CO_TEST(large_clusters),
        CO_TEST(subclusters),
        CO_TEST(bitmaps_beside_guests),
        CO_TEST(bitmaps_and_snapshots_beside_guests),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
