/* SPDX-License-Identifier: Apache-2.0 */
/* Named bitmaps of nodes, on null disks and a driver that pretends to store them. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/checked.h"
#include "block/driver.h"
#include "co_test.h"
#include "file/file_drivers.h"
#include "loop/loop.h"

/* --- a driver that stores bitmaps ------------------------------------------------------------- */

/* What the last calls were about; `fail` makes the next ones fail. */
static struct {
    unsigned removed, changed;
    int fail;
    bool fail_writes;
} store;

static int store_co_open(struct block_node *node, struct options *opts, struct error *err)
{
    block_node_set_size(node, 1 * MiB);
    node->limits.cluster_size = 2 * MiB;
    return 0;
}

static int store_co_can_store(struct block_node *node, const char *name, uint32_t granularity,
                              struct error *err)
{
    return store.fail ? error_set(err, ENOSPC, "No room for '%s'", name) : 0;
}

static int store_co_remove(struct block_node *node, const char *name, struct error *err)
{
    store.removed++;
    return store.fail;
}

static int store_co_will_change(struct block_node *node, struct block_bitmap *b, struct error *err)
{
    store.changed++;
    return store.fail;
}

static int store_co_pwritev(struct block_node *node, uint64_t offset, struct iov iov,
                            unsigned flags)
{
    return store.fail_writes ? -EIO : 0;
}

static const struct block_driver store_driver = {
    .name = "store",
    .co_open = store_co_open,
    .co_pwritev = store_co_pwritev,
    .co_can_store_bitmap = store_co_can_store,
    .co_remove_stored_bitmap = store_co_remove,
    .co_bitmap_will_change = store_co_will_change,
};

/* --- helpers ---------------------------------------------------------------------------------- */

static struct block_node *open_disk(const char *options)
{
    struct options *opts = NULL;
    struct block_node *node = NULL;
    ERROR_AUTO(err);

    memset(&store, 0, sizeof(store));
    assert_int_equal(options_parse(options, "driver", &opts, &err), 0);
    if (block_co_open(opts, BLOCK_OPEN_RDWR, &node, &err) < 0) {
        fail_msg("%s", error_message(&err));
    }
    return node;
}

static struct block_bitmap *add(struct block_node *node, const char *name)
{
    struct block_bitmap *b = NULL;

    assert_int_equal(block_co_bitmap_add(node, name, 4096, false, false, &b, NULL), 0);
    return b;
}

static struct block_bitmap *add_stored(struct block_node *node, const char *name)
{
    struct block_bitmap *b = NULL;

    assert_int_equal(block_co_bitmap_add(node, name, 4096, true, false, &b, NULL), 0);
    return b;
}

static void assert_add_fails(struct block_node *node, const char *name, uint32_t granularity,
                             bool persistent, int errnum, const char *sentence)
{
    ERROR_AUTO(err);
    struct block_bitmap *b = NULL;

    assert_int_equal(block_co_bitmap_add(node, name, granularity, persistent, false, &b, &err),
                     -errnum);
    assert_null(b);
    if (!strstr(error_message(&err), sentence)) {
        fail_msg("'%s' is not in '%s'", sentence, error_message(&err));
    }
}

static int write_byte(struct block_node *node, uint64_t offset)
{
    struct block_root *root;
    int r;

    assert_int_equal(
        block_co_root_new(node, "guest", BLOCK_PERM_WRITE, BLOCK_PERM_ALL, &root, NULL), 0);
    r = block_co_pwrite(block_root_edge(root), offset, "x", 1, 0);
    block_co_root_release(root);
    return r;
}

/* --- tests ------------------------------------------------------------------------------------ */

static void bitmaps_are_found_by_node_and_name(void *arg)
{
    struct block_node *node = open_disk("null-co,node-name=n0"), *found = NULL;
    struct block_bitmap *a = add(node, "a"), *b = add(node, "b");
    ERROR_AUTO(no_node);
    ERROR_AUTO(no_bitmap);

    assert_ptr_equal(block_bitmap_find(node, "b"), b);
    assert_ptr_equal(block_bitmap_lookup("n0", "a", &found, NULL), a);
    assert_ptr_equal(found, node);
    assert_null(block_bitmap_lookup("n1", "a", NULL, &no_node));
    assert_non_null(strstr(error_message(&no_node), "node-name='n1'"));
    assert_null(block_bitmap_lookup("n0", "c", NULL, &no_bitmap));
    assert_string_equal(error_message(&no_bitmap), "Dirty bitmap 'c' not found");
    assert_ptr_equal(block_bitmap_next(node, NULL), a);
    assert_ptr_equal(block_bitmap_next(node, a), b);
    assert_null(block_bitmap_next(node, b));
    block_co_unref(node);
}

static void wrong_names_and_granularities_are_refused(void *arg)
{
    struct block_node *node = open_disk("null-co");
    char name[BLOCK_BITMAP_NAME_MAX + 2];

    add(node, "a");
    memset(name, 'n', sizeof(name));
    name[BLOCK_BITMAP_NAME_MAX + 1] = '\0';
    assert_add_fails(node, "a", 0, false, EEXIST, "Bitmap already exists: a");
    assert_add_fails(node, "", 0, false, EINVAL, "name cannot be empty");
    assert_add_fails(node, name, 0, false, EINVAL, "Bitmap name too long");
    assert_add_fails(node, "b", 1000, false, EINVAL, "Granularity must be power of 2");
    assert_add_fails(node, "b", 256, false, EINVAL, "at least 512");
    name[BLOCK_BITMAP_NAME_MAX] = '\0';
    add(node, name);
    block_co_unref(node);
}

static void persistent_needs_a_driver_that_stores(void *arg)
{
    struct block_node *node = open_disk("null-co");

    assert_add_fails(node, "a", 0, true, ENOTSUP, "Can't store persistent bitmaps to");
    block_co_unref(node);
    node = open_disk("store");
    store.fail = -ENOSPC;
    assert_add_fails(node, "a", 0, true, ENOSPC, "No room for 'a'");
    store.fail = 0;
    assert_true(add_stored(node, "a")->persistent);
    block_co_unref(node);
}

static void default_granularity_follows_clusters_within_bounds(void *arg)
{
    struct block_node *node = open_disk("store");
    static const uint32_t cases[][2] = {
        {2 * MiB, 65536}, {512, 4096}, {16384, 16384}, {0, 65536}, {12345, 65536}};

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct block_bitmap *b;

        node->limits.cluster_size = cases[i][0];
        assert_int_equal(block_co_bitmap_add(node, "b", 0, false, false, &b, NULL), 0);
        assert_int_equal(b->granularity, cases[i][1]);
        assert_int_equal(block_co_bitmap_remove(b, NULL), 0);
    }
    block_co_unref(node);
}

static void writes_mark_bitmaps_that_record(void *arg)
{
    struct block_node *node = open_disk("store");
    struct block_bitmap *on = add(node, "on"), *off = NULL;

    assert_int_equal(block_co_bitmap_add(node, "off", 4096, false, true, &off, NULL), 0);
    assert_int_equal(write_byte(node, 5000), 0);
    assert_int_equal(dirty_bitmap_count(on->bits), 4096);
    assert_true(dirty_bitmap_get(on->bits, 4096));
    assert_int_equal(dirty_bitmap_count(off->bits), 0);
    assert_int_equal(block_co_bitmap_set_enabled(off, true, NULL), 0);
    assert_int_equal(block_co_bitmap_set_enabled(on, false, NULL), 0);
    /* A write that fails may have landed in part. */
    store.fail_writes = true;
    assert_int_equal(write_byte(node, 100000), -EIO);
    assert_int_equal(dirty_bitmap_count(on->bits), 4096);
    assert_true(dirty_bitmap_get(off->bits, 100000));
    block_co_unref(node);
}

static bool knows(const struct dirty_bitmap *b, uint64_t offset)
{
    return dirty_bitmap_is_known_set(b, offset, 1);
}

/* A write into what the only recorder knows to be dirty marks nothing. Nobody else misses it. */
static void what_a_bitmap_knows_is_for_itself_alone(void *arg)
{
    struct block_node *node = open_disk("store");
    struct block_bitmap *a = add(node, "a"), *b = NULL;

    assert_int_equal(block_co_bitmap_add(node, "off", 4096, false, true, &b, NULL), 0);
    for (unsigned i = 0; i < 1000 && !knows(a->bits, 5000); i++) {
        assert_int_equal(write_byte(node, 5000), 0);
    }
    assert_true(knows(a->bits, 5000));
    assert_ptr_equal(node->sole_recorder, a->bits); /* also with disabled ones */
    for (int round = 0; round < 2; round++) {
        if (round == 0) {
            b = add(node, "b");
        } else {
            assert_int_equal(block_co_bitmap_set_enabled(b, true, NULL), 0);
        }
        assert_false(knows(node->sole_recorder, 5000));
        assert_int_equal(write_byte(node, 5000), 0);
        assert_int_equal(dirty_bitmap_count(b->bits), 4096);
        assert_int_equal(block_co_bitmap_set_enabled(b, false, NULL), 0);
        assert_int_equal(block_co_bitmap_clear(b, NULL, NULL), 0);
        assert_ptr_equal(node->sole_recorder, a->bits);
    }
    assert_int_equal(block_co_bitmap_freeze(a, "a job", NULL), 0);
    assert_ptr_equal(node->sole_recorder, a->successor->bits);
    assert_int_equal(write_byte(node, 5000), 0);
    assert_int_equal(dirty_bitmap_count(a->successor->bits), 4096);
    block_co_bitmap_reclaim(a);
    block_co_bitmap_detach(a);
    assert_null(node->sole_recorder);
    block_co_bitmap_reattach(a);
    assert_ptr_equal(node->sole_recorder, a->bits);
    assert_int_equal(block_co_bitmap_remove(a, NULL), 0);
    assert_null(node->sole_recorder);
    block_co_unref(node);
}

/* As when a driver reads its image again, and gives that up. */
static void persistent_ones_are_exchanged_with_what_they_record(void *arg)
{
    struct block_node *node = open_disk("store");
    struct list others = LIST_INIT(others);
    struct block_bitmap *b = NULL, *memory = NULL;

    assert_int_equal(block_co_bitmap_add(node, "b", 4096, true, false, &b, NULL), 0);
    assert_int_equal(block_co_bitmap_add(node, "memory", 4096, false, false, &memory, NULL), 0);
    block_bitmaps_exchange_persistent(node, &others);
    assert_false(list_is_empty(&others));
    assert_ptr_equal(node->sole_recorder, memory->bits);
    assert_int_equal(block_co_bitmap_set_enabled(memory, false, NULL), 0);
    assert_null(node->sole_recorder);
    block_bitmaps_exchange_persistent(node, &others);
    assert_true(list_is_empty(&others));
    assert_ptr_equal(node->sole_recorder, b->bits);
    assert_int_equal(write_byte(node, 5000), 0);
    assert_int_equal(dirty_bitmap_count(b->bits), 4096);
    assert_int_equal(dirty_bitmap_count(memory->bits), 0);
    block_co_unref(node);
}

/* `why` NULL: any. */
static void assert_state(const struct block_bitmap *b, enum block_bitmap_trust trust,
                         uint64_t excess, const char *why)
{
    struct block_bitmap_state state;

    block_bitmap_get_state(b, &state);
    assert_int_equal(state.trust, trust);
    assert_int_equal(state.excess, excess);
    if (why) {
        assert_string_equal(state.why, why);
    }
}

static void clear_can_be_undone(void *arg)
{
    struct block_node *node = open_disk("null-co");
    struct block_bitmap *b = add(node, "b");
    struct block_bitmap_backup backup = {0};

    dirty_bitmap_set(b->bits, 0, 8192);
    block_bitmap_add_excess(b, 4096, "why");
    assert_int_equal(block_co_bitmap_clear(b, &backup, NULL), 0);
    assert_int_equal(dirty_bitmap_count(b->bits), 0);
    assert_state(b, BLOCK_BITMAP_EXACT, 0, NULL);
    block_co_bitmap_restore(b, &backup);
    assert_int_equal(dirty_bitmap_count(b->bits), 8192);
    assert_state(b, BLOCK_BITMAP_SUPERSET, 4096, "why");
    assert_int_equal(block_co_bitmap_clear(b, NULL, NULL), 0);
    assert_int_equal(dirty_bitmap_count(b->bits), 0);
    block_co_unref(node);
}

static void merge_adds_all_sources_and_can_be_undone(void *arg)
{
    struct block_node *node = open_disk("null-co");
    struct block_bitmap *dest = add(node, "dest"), *s[2] = {add(node, "s0"), add(node, "s1")};
    struct block_bitmap_backup backup = {0};

    dirty_bitmap_set(dest->bits, 0, 1);
    block_bitmap_add_excess(dest, 4096, "why");
    block_bitmap_add_excess(s[1], 8192, "another reason");
    dirty_bitmap_set(s[0]->bits, 8192, 1);
    dirty_bitmap_set(s[1]->bits, 65536, 1);
    assert_int_equal(block_co_bitmap_merge(dest, s, 2, &backup, NULL), 0);
    assert_int_equal(dirty_bitmap_count(dest->bits), 3 * 4096);
    assert_state(dest, BLOCK_BITMAP_SUPERSET, 4096 + 8192, "another reason");
    block_co_bitmap_restore(dest, &backup);
    assert_int_equal(dirty_bitmap_count(dest->bits), 4096);
    assert_state(dest, BLOCK_BITMAP_SUPERSET, 4096, "why");
    assert_int_equal(block_co_bitmap_merge(dest, s, 2, NULL, NULL), 0);
    assert_int_equal(dirty_bitmap_count(dest->bits), 3 * 4096);
    block_co_unref(node);
}

static void bitmaps_of_different_sizes_are_not_merged(void *arg)
{
    struct block_node *small = open_disk("null-co,size=1M"), *large = open_disk("null-co,size=2M");
    struct block_bitmap *dest = add(small, "dest"), *source = add(large, "source");
    ERROR_AUTO(err);

    assert_int_equal(block_co_bitmap_merge(dest, &source, 1, NULL, &err), -EINVAL);
    assert_non_null(strstr(error_message(&err), "different sizes"));
    block_co_unref(small);
    block_co_unref(large);
}

static void a_busy_bitmap_is_left_alone(void *arg)
{
    struct block_node *node = open_disk("null-co");
    struct block_bitmap *b = add(node, "b"), *other = add(node, "other");
    ERROR_AUTO(err);

    block_bitmap_take(b, "NBD export 'x'");
    block_bitmap_take(b, "job 'y'");
    assert_int_equal(block_co_bitmap_remove(b, &err), -EBUSY);
    assert_string_equal(error_message(&err),
                        "Bitmap 'b' is currently in use by another operation and cannot be used");
    assert_string_equal(err.hint, "It is used by NBD export 'x'");
    assert_int_equal(block_co_bitmap_clear(b, NULL, NULL), -EBUSY);
    assert_int_equal(block_co_bitmap_set_enabled(b, false, NULL), -EBUSY);
    assert_int_equal(block_co_bitmap_merge(b, &other, 1, NULL, NULL), -EBUSY);
    assert_int_equal(block_co_bitmap_merge(other, &b, 1, NULL, NULL), -EBUSY);
    block_bitmap_give(b);
    assert_int_equal(block_co_bitmap_remove(b, NULL), -EBUSY);
    block_bitmap_give(b);
    assert_int_equal(block_co_bitmap_remove(b, NULL), 0);
    assert_null(block_bitmap_find(node, "b"));
    block_co_unref(node);
}

static void an_inconsistent_bitmap_can_only_be_removed(void *arg)
{
    struct block_node *node = open_disk("store");
    struct block_bitmap *b, *other = add(node, "other");
    ERROR_AUTO(err);

    assert_int_equal(block_bitmap_attach_loaded(node, "b", NULL, 65536, &b, NULL), 0);
    assert_true(b->inconsistent && b->persistent && !b->enabled);
    assert_int_equal(block_co_bitmap_clear(b, NULL, &err), -EINVAL);
    assert_string_equal(error_message(&err), "Bitmap 'b' is inconsistent and cannot be used");
    assert_string_equal(err.hint, "Try block-dirty-bitmap-remove to delete this bitmap from disk");
    assert_int_equal(block_co_bitmap_set_enabled(b, true, NULL), -EINVAL);
    assert_int_equal(block_co_bitmap_merge(other, &b, 1, NULL, NULL), -EINVAL);
    assert_int_equal(write_byte(node, 0), 0);
    assert_int_equal(block_bitmaps_resize(node, 2 * MiB, NULL), 0);
    assert_int_equal(block_co_bitmap_remove(b, NULL), 0);
    assert_int_equal(store.removed, 1);
    block_co_unref(node);
}

static void a_read_only_bitmap_is_not_modified(void *arg)
{
    struct block_node *node = open_disk("store");
    struct block_bitmap *b = add_stored(node, "b"), *other = add(node, "other");
    ERROR_AUTO(err);

    b->read_only = true;
    assert_int_equal(block_co_bitmap_clear(b, NULL, &err), -EROFS);
    assert_string_equal(error_message(&err), "Bitmap 'b' is readonly and cannot be modified");
    assert_int_equal(block_co_bitmap_remove(b, NULL), -EROFS);
    assert_int_equal(block_co_bitmap_merge(other, &b, 1, NULL, NULL), 0);
    assert_int_equal(store.changed + store.removed, 0);
    block_co_unref(node);
}

static void the_store_is_told_before_a_persistent_bitmap_changes(void *arg)
{
    struct block_node *node = open_disk("store");
    struct block_bitmap *b = add_stored(node, "b"), *other = add(node, "other");

    dirty_bitmap_set(b->bits, 0, 4096);
    dirty_bitmap_set(other->bits, 8192, 4096);
    store.fail = -EIO;
    assert_int_equal(block_co_bitmap_clear(b, NULL, NULL), -EIO);
    assert_int_equal(block_co_bitmap_merge(b, &other, 1, NULL, NULL), -EIO);
    assert_int_equal(block_co_bitmap_set_enabled(b, false, NULL), -EIO);
    assert_int_equal(block_co_bitmap_remove(b, NULL), -EIO);
    assert_int_equal(store.changed, 3);
    assert_true(b->enabled);
    assert_int_equal(dirty_bitmap_count(b->bits), 4096);
    assert_ptr_equal(block_bitmap_find(node, "b"), b);
    store.fail = 0;
    assert_int_equal(block_co_bitmap_clear(b, NULL, NULL), 0);
    assert_int_equal(store.changed, 4);
    assert_int_equal(block_co_bitmap_clear(other, NULL, NULL), 0);
    assert_int_equal(store.changed, 4);
    block_co_unref(node);
}

static void a_detached_bitmap_comes_back_or_goes(void *arg)
{
    struct block_node *node = open_disk("store");
    struct block_bitmap *b = add_stored(node, "b"), *second;

    dirty_bitmap_set(b->bits, 0, 4096);
    block_co_bitmap_detach(b);
    assert_null(block_bitmap_find(node, "b"));
    assert_int_equal(write_byte(node, 8192), 0);
    block_co_bitmap_reattach(b);
    assert_ptr_equal(block_bitmap_find(node, "b"), b);
    assert_int_equal(dirty_bitmap_count(b->bits), 4096);
    block_co_bitmap_detach(b);
    second = add(node, "b");
    assert_ptr_equal(block_bitmap_find(node, "b"), second);
    block_bitmap_free_detached(b);
    assert_int_equal(store.removed, 0);
    block_co_unref(node);
}

static void a_bitmap_loaded_without_bits_is_inconsistent(void *arg)
{
    struct block_node *node = open_disk("store");
    struct dirty_bitmap *bits = dirty_bitmap_new(1 * MiB, 4096);
    struct block_bitmap *b;

    dirty_bitmap_set(bits, 0, 1);
    assert_int_equal(block_bitmap_attach_loaded(node, "b", bits, 4096, &b, NULL), 0);
    assert_false(b->inconsistent);
    assert_int_equal(dirty_bitmap_count(b->bits), 4096);
    assert_int_equal(block_bitmap_attach_loaded(node, "c", NULL, 4096, &b, NULL), 0);
    assert_true(b->inconsistent);
    block_co_unref(node);
}

static void bitmaps_follow_the_size_of_the_node(void *arg)
{
    struct block_node *node = open_disk("null-co,size=1M");
    struct block_bitmap *a = add(node, "a"), *b = add(node, "b");

    dirty_bitmap_set(a->bits, 0, 1 * MiB);
    assert_int_equal(block_bitmaps_resize(node, 2 * MiB, NULL), 0);
    assert_int_equal(dirty_bitmap_size(a->bits), 2 * MiB);
    assert_int_equal(dirty_bitmap_size(b->bits), 2 * MiB);
    assert_int_equal(dirty_bitmap_count(a->bits), 1 * MiB);
    block_co_unref(node);
}

/* --- frozen ----------------------------------------------------------------------------------- */

static void write_at(struct block_node *node, uint64_t offset)
{
    struct block_root *root;

    assert_int_equal(
        block_co_root_new(node, "guest", BLOCK_PERM_WRITE, BLOCK_PERM_ALL, &root, NULL), 0);
    assert_int_equal(block_co_pwrite(block_root_edge(root), offset, "x", 1, 0), 0);
    block_co_root_release(root);
}

static void a_frozen_bitmap_has_a_successor(void *arg)
{
    struct block_node *node = open_disk("driver=store,node-name=disk");
    struct block_bitmap *b;

    for (int reclaims = 0; reclaims < 2; reclaims++) {
        assert_int_equal(block_co_bitmap_add(node, "b", 4096, true, false, &b, NULL), 0);
        write_at(node, 0);
        assert_int_equal(block_co_bitmap_freeze(b, "a job", NULL), 0);
        assert_int_equal(block_co_bitmap_freeze(b, "a job", NULL), -EBUSY);
        assert_int_equal(block_co_bitmap_remove(b, NULL), -EBUSY);
        assert_null(block_bitmap_find(node, ""));
        write_at(node, 65536);
        assert_int_equal(dirty_bitmap_count(block_bitmap_frozen_bits(b)), 4096);
        assert_int_equal(dirty_bitmap_count(b->successor->bits), 4096);
        if (reclaims) {
            block_co_bitmap_reclaim(b);
        } else {
            block_co_bitmap_abdicate(b);
        }
        write_at(node, 131072);
        assert_int_equal(dirty_bitmap_get(b->bits, 0), reclaims);
        assert_true(dirty_bitmap_get(b->bits, 65536) && dirty_bitmap_get(b->bits, 131072));
        assert_null(block_bitmap_next(node, b));
        assert_int_equal(block_co_bitmap_remove(b, NULL), 0);
    }
    block_co_unref(node);
}

/* Nothing is lost if the image is completed while a job has the bitmap; the job may still end. */
static void an_image_is_completed_with_the_bits_of_the_successor(void *arg)
{
    struct block_node *node = open_disk("driver=store,node-name=disk");
    struct block_bitmap *b;

    assert_int_equal(block_co_bitmap_add(node, "b", 4096, true, false, &b, NULL), 0);
    assert_int_equal(block_co_bitmap_freeze(b, "a job", NULL), 0);
    write_at(node, 65536);
    assert_int_equal(block_co_inactivate(node, NULL), 0);
    assert_true(dirty_bitmap_get(b->bits, 65536));
    store.changed = 0;
    block_co_bitmap_abdicate(b);
    assert_int_equal(store.changed, 1);
    assert_int_equal(dirty_bitmap_count(b->bits), 4096);
    block_co_unref(node);
}

static void a_bitmap_that_can_not_be_marked_is_not_frozen(void *arg)
{
    struct block_node *node = open_disk("driver=store,node-name=disk");
    struct block_bitmap *b;

    assert_int_equal(block_co_bitmap_add(node, "b", 4096, true, true, &b, NULL), 0);
    store.fail = -EIO;
    assert_int_equal(block_co_bitmap_freeze(b, "a job", NULL), -EIO);
    store.fail = 0;
    assert_int_equal(b->busy, 0);
    assert_null(block_bitmap_next(node, b));
    assert_int_equal(block_co_bitmap_freeze(b, "a job", NULL), 0);
    write_at(node, 65536); /* disabled: neither of the two records */
    block_co_bitmap_reclaim(b);
    assert_int_equal(dirty_bitmap_count(b->bits), 0);
    assert_false(b->enabled);
    block_co_unref(node);
}

/* --- running ---------------------------------------------------------------------------------- */

static int setup(void **state)
{
    file_register_drivers();
    block_register_driver(&store_driver);
    return co_test_setup();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        CO_TEST(bitmaps_are_found_by_node_and_name),
        CO_TEST(wrong_names_and_granularities_are_refused),
        CO_TEST(persistent_needs_a_driver_that_stores),
        CO_TEST(default_granularity_follows_clusters_within_bounds),
        CO_TEST(writes_mark_bitmaps_that_record),
        CO_TEST(what_a_bitmap_knows_is_for_itself_alone),
        CO_TEST(persistent_ones_are_exchanged_with_what_they_record),
        CO_TEST(clear_can_be_undone),
        CO_TEST(merge_adds_all_sources_and_can_be_undone),
        CO_TEST(bitmaps_of_different_sizes_are_not_merged),
        CO_TEST(a_busy_bitmap_is_left_alone),
        CO_TEST(an_inconsistent_bitmap_can_only_be_removed),
        CO_TEST(a_read_only_bitmap_is_not_modified),
        CO_TEST(the_store_is_told_before_a_persistent_bitmap_changes),
        CO_TEST(a_detached_bitmap_comes_back_or_goes),
        CO_TEST(a_bitmap_loaded_without_bits_is_inconsistent),
        CO_TEST(bitmaps_follow_the_size_of_the_node),
        CO_TEST(a_frozen_bitmap_has_a_successor),
        CO_TEST(an_image_is_completed_with_the_bits_of_the_successor),
        CO_TEST(a_bitmap_that_can_not_be_marked_is_not_frozen),
    };

    return cmocka_run_group_tests(tests, setup, co_test_teardown);
}
