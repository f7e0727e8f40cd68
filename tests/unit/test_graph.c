/* SPDX-License-Identifier: Apache-2.0 */
/* Graph changes, publication, drains and the end of nodes, on disks in memory. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/checked.h"
#include "block/driver.h"
#include "cbw_fixture.h"
#include "co_test.h"
#include "loop/loop.h"
#include "memory_disk.h"

#define MILLISECOND 1000000 /* in ns */
#define ALL_BUT_WRITE (BLOCK_PERM_ALL & ~BLOCK_PERM_WRITE)

/* --- drivers ---------------------------------------------------------------------------------- */

/*
 * "layer": a format above `backing`, with nothing of its own. Its callbacks are counted.
 */
static struct {
    unsigned inactivated, drain_begun, drain_ended;
    bool busy, only_reads;
    int fail_inactivate;
    int fail_begin;
} layer;

static int layer_co_open(struct block_node *node, struct options *opts, struct error *err)
{
    int r = block_co_open_child(node, opts, "backing", BLOCK_ROLE_BACKING, false, NULL, err);

    if (r == 0) {
        block_node_set_size(node, block_edge_size(node->backing));
    }
    return r;
}

static int layer_co_begin(struct block_node *node, struct error *err)
{
    return layer.fail_begin ? error_set(err, -layer.fail_begin, "It does not begin") : 0;
}

static int layer_co_inactivate(struct block_node *node, struct error *err)
{
    layer.inactivated++;
    return layer.fail_inactivate ? error_set(err, -layer.fail_inactivate, "It stays as it is") : 0;
}

static void layer_drain_begin(struct block_node *node)
{
    layer.drain_begun++;
}

static bool layer_drain_busy(struct block_node *node, const struct block_node *drained)
{
    return layer.busy;
}

static bool layer_drain_only_reads(struct block_node *node, const struct block_node *drained)
{
    return layer.only_reads;
}

static void layer_drain_end(struct block_node *node)
{
    layer.drain_ended++;
}

static int layer_co_preadv(struct block_node *node, uint64_t offset, struct iov iov, unsigned flags)
{
    return block_co_preadv(node->backing, offset, iov, flags);
}

static int layer_co_pwritev(struct block_node *node, uint64_t offset, struct iov iov,
                            unsigned flags)
{
    return 0;
}

static const struct block_driver layer_driver = {
    .name = "layer",
    .is_format = true,
    .co_open = layer_co_open,
    .co_begin = layer_co_begin,
    .co_inactivate = layer_co_inactivate,
    .drain_begin = layer_drain_begin,
    .drain_busy = layer_drain_busy,
    .drain_only_reads = layer_drain_only_reads,
    .drain_end = layer_drain_end,
    .co_preadv = layer_co_preadv,
    .co_pwritev = layer_co_pwritev,
};

/* "pass": a filter that does nothing. */
static int pass_co_open(struct block_node *node, struct options *opts, struct error *err)
{
    int r = block_co_open_child(node, opts, "file", BLOCK_ROLE_FILTERED | BLOCK_ROLE_DATA, false,
                                NULL, err);

    if (r == 0) {
        block_node_set_size(node, block_edge_size(node->file));
    }
    return r;
}

static int pass_co_preadv(struct block_node *node, uint64_t offset, struct iov iov, unsigned flags)
{
    return block_co_preadv(node->file, offset, iov, flags);
}

static int pass_co_pwritev(struct block_node *node, uint64_t offset, struct iov iov, unsigned flags)
{
    return block_co_pwritev(node->file, offset, iov, flags);
}

static const struct block_driver pass_driver = {
    .name = "pass",
    .is_filter = true,
    .co_open = pass_co_open,
    .co_preadv = pass_co_preadv,
    .co_pwritev = pass_co_pwritev,
};

/*
 * "locked": a leaf that records the permissions it is given, and whether it ever gave up writing.
 */
static struct {
    unsigned perm, told;
    bool gave_up_writing;
    bool slow;
    int fail;
} locked;

static int locked_co_open(struct block_node *node, struct options *opts, struct error *err)
{
    block_node_set_size(node, 1 * MiB);
    return 0;
}

static int locked_co_set_perm(struct block_node *node, unsigned perm, unsigned shared,
                              struct error *err)
{
    if (locked.slow) {
        loop_co_sleep(MILLISECOND);
    }
    if (locked.fail) {
        return error_set(err, -locked.fail, "Failed to get \"write\" lock");
    }
    locked.gave_up_writing = locked.gave_up_writing || (locked.perm & ~perm & BLOCK_PERM_WRITE);
    locked.perm = perm;
    locked.told++;
    return 0;
}

static int locked_co_pwritev(struct block_node *node, uint64_t offset, struct iov iov,
                             unsigned flags)
{
    return 0;
}

static const struct block_driver locked_driver = {
    .name = "locked",
    .co_open = locked_co_open,
    .co_set_perm = locked_co_set_perm,
    .co_preadv = locked_co_pwritev,
    .co_pwritev = locked_co_pwritev,
};

/* --- helpers ---------------------------------------------------------------------------------- */

static struct block_node *open_node(const char *json)
{
    memset(&layer, 0, sizeof(layer));
    return fixture_open(json);
}

static struct block_node *open_disk(const char *name)
{
    char json[128];

    snprintf(json, sizeof(json),
             "{\"driver\":\"memory-disk\",\"node-name\":\"%s\",\"size\":1048576}", name);
    return open_node(json);
}

static struct block_node *open_hidden(const char *json)
{
    struct options *opts = NULL;
    struct block_node *node = NULL;
    ERROR_AUTO(err);

    assert_int_equal(options_parse(json, NULL, &opts, &err), 0);
    if (block_co_open_hidden(opts, BLOCK_OPEN_RDWR, &node, &err) < 0) {
        fail_msg("%s", error_message(&err));
    }
    return node;
}

static struct block_root *attach(struct block_node *node, unsigned perm, unsigned shared)
{
    struct block_root *root;
    ERROR_AUTO(err);

    if (block_co_root_new(node, "guest", perm, shared, &root, &err) < 0) {
        fail_msg("%s", error_message(&err));
    }
    return root;
}

static void write_byte(struct block_root *root)
{
    assert_int_equal(block_co_pwrite(block_root_edge(root), 0, "x", 1, 0), 0);
}

#define WRITER (BLOCK_PERM_CONSISTENT_READ | BLOCK_PERM_WRITE)

/* --- changes as a whole ----------------------------------------------------------------------- */

/*
 * Each step by itself is a conflict: an overlay that is written lets nobody write the disk, and the
 * guest does until it is moved.
 */
static void co_overlay_is_put_under_a_guest_in_one_change(void)
{
    struct block_node *disk = open_disk("disk"), *overlay;
    struct block_root *guest = attach(disk, WRITER, BLOCK_PERM_ALL), *other;
    ERROR_AUTO(err);

    overlay = open_hidden("{\"driver\":\"layer\",\"node-name\":\"top\",\"backing\":\"disk\"}");
    write_byte(guest); /* the hidden node claims nothing */
    assert_int_equal(block_co_publish(overlay, NULL), 0);
    write_byte(guest); /* nor does one that nobody uses */
    assert_int_equal(block_co_root_new(overlay, "early", WRITER, BLOCK_PERM_ALL, &other, &err),
                     -EPERM);
    assert_non_null(strstr(error_message(&err), "Permission conflict on node 'disk'"));
    write_byte(guest);
    block_co_unref(overlay);
    overlay = open_hidden("{\"driver\":\"layer\",\"node-name\":\"top\",\"backing\":\"disk\"}");

    block_co_drain_begin(disk);
    block_co_change_begin();
    assert_int_equal(block_co_publish(overlay, NULL), 0);
    assert_int_equal(block_co_edge_move(block_root_edge(guest), overlay, NULL), 0);
    assert_int_equal(block_co_change_settle(NULL), 0);
    block_co_change_end();
    block_drain_end(disk);
    write_byte(guest);
    assert_ptr_equal(block_root_node(guest), overlay);
    /* The disk below is kept from being written now. */
    assert_int_equal(
        block_co_root_new(disk, "other", BLOCK_PERM_WRITE, BLOCK_PERM_ALL, &other, NULL), -EPERM);
    block_co_root_release(guest);
    block_co_unref(overlay);
    block_co_unref(disk);
}

static void co_settle_that_fails_leaves_what_was_in_force(void)
{
    struct block_node *disk = open_disk("disk"), *other = open_disk("other");
    struct block_root *guest = attach(disk, WRITER, BLOCK_PERM_ALL);
    struct block_root *keeper = attach(other, 0, ALL_BUT_WRITE);
    ERROR_AUTO(err);

    assert_int_equal(block_co_root_replace(guest, other, &err), -EPERM);
    assert_ptr_equal(block_root_node(guest), disk);
    write_byte(guest);
    assert_int_equal(block_co_node_replace(disk, other, &err), -EPERM);
    assert_ptr_equal(block_root_node(guest), disk);
    write_byte(guest);
    block_co_root_release(keeper);
    assert_int_equal(block_co_node_replace(disk, other, &err), 0);
    assert_ptr_equal(block_root_node(guest), other);
    write_byte(guest);
    block_co_root_release(guest);
    block_co_unref(other);
    block_co_unref(disk);
}

static void co_locks_are_not_given_up_by_a_move_to_a_filter(void)
{
    struct block_node *disk, *filter;
    struct block_root *guest;
    ERROR_AUTO(err);

    memset(&locked, 0, sizeof(locked));
    disk = open_node("{\"driver\":\"locked\",\"node-name\":\"disk\"}");
    guest = attach(disk, WRITER, BLOCK_PERM_ALL);
    filter = open_node("{\"driver\":\"pass\",\"node-name\":\"filter\",\"file\":\"disk\"}");
    for (int i = 0; i < 3; i++) {
        assert_int_equal(block_co_root_replace(guest, filter, &err), 0);
        write_byte(guest);
        assert_int_equal(block_co_root_replace(guest, disk, &err), 0);
        write_byte(guest);
    }
    assert_false(locked.gave_up_writing);
    block_co_root_release(guest);
    assert_true(locked.gave_up_writing);
    block_co_unref(filter);
    block_co_unref(disk);
}

static void co_lock_that_is_not_to_be_had_leaves_the_guest_writing(void)
{
    struct block_node *disk, *other = open_disk("other");
    struct block_root *guest = attach(other, WRITER, BLOCK_PERM_ALL);
    ERROR_AUTO(err);

    memset(&locked, 0, sizeof(locked));
    disk = open_node("{\"driver\":\"locked\",\"node-name\":\"disk\"}");
    locked.fail = -EAGAIN;
    assert_int_equal(block_co_root_replace(guest, disk, &err), -EAGAIN);
    assert_non_null(strstr(error_message(&err), "write"));
    assert_ptr_equal(block_root_node(guest), other);
    write_byte(guest);
    locked.fail = 0;
    assert_int_equal(block_co_root_replace(guest, disk, &err), 0);
    write_byte(guest);
    block_co_root_release(guest);
    block_co_unref(disk);
    block_co_unref(other);
}

struct other_user {
    struct block_node *node;
    struct block_root *root;
    int ret;
    bool done;
};

static void co_attach_other(void *arg)
{
    struct other_user *o = arg;

    o->ret = block_co_root_new(o->node, "other", WRITER, BLOCK_PERM_ALL, &o->root, NULL);
    o->done = true;
}

static void co_user_who_waited_is_not_told_of_anothers_lock(void)
{
    struct other_user o = {.node = open_disk("other")};
    struct block_node *disk;
    struct block_root *guest;

    memset(&locked, 0, sizeof(locked));
    disk = open_node("{\"driver\":\"locked\",\"node-name\":\"disk\"}");
    locked.slow = true;
    locked.fail = -EAGAIN;
    assert_int_equal(reactor_spawn(reactor_main(), co_attach_other, &o), 0);
    assert_int_equal(block_co_root_new(disk, "guest", WRITER, BLOCK_PERM_ALL, &guest, NULL),
                     -EAGAIN);
    while (!o.done) {
        loop_co_sleep(MILLISECOND);
    }
    assert_int_equal(o.ret, 0);
    block_co_root_release(o.root);
    block_co_unref(o.node);
    block_co_unref(disk);
}

static void co_interior_edges_move_and_circles_do_not(void)
{
    struct block_node *disk = open_disk("disk"), *other = open_disk("other");
    struct block_node *top =
        open_node("{\"driver\":\"layer\",\"node-name\":\"top\",\"backing\":\"disk\"}");
    struct block_node *filter =
        open_node("{\"driver\":\"pass\",\"node-name\":\"filter\",\"file\":\"top\"}");
    ERROR_AUTO(err);

    block_co_drain_begin(disk);
    assert_int_equal(block_co_edge_move(top->backing, filter, &err), -EINVAL);
    assert_non_null(strstr(error_message(&err), "cycle"));
    assert_int_equal(block_co_edge_move(top->backing, other, NULL), 0);
    assert_ptr_equal(top->backing->node, other);
    block_drain_end(disk);
    assert_false(block_node_in_use(disk));
    /* Everybody on a node goes to a filter above it, but for that filter itself. */
    assert_int_equal(block_co_node_replace(top, filter, NULL), 0);
    assert_ptr_equal(block_node_child(filter, "file"), top);
    block_co_unref(filter);
    block_co_unref(top);
    block_co_unref(other);
    block_co_unref(disk);
}

/* --- flushes ---------------------------------------------------------------------------------- */

static void co_node_that_is_left_is_flushed(void)
{
    struct block_node *disk = open_disk("disk"), *other = open_disk("other");
    struct memory_disk *m = memory_disk_of(disk);
    struct block_root *guest = attach(disk, WRITER, BLOCK_PERM_ALL);
    ERROR_AUTO(err);

    write_byte(guest);
    memory_disk_fail(m, MEMORY_DISK_FLUSH, EIO);
    assert_int_equal(block_co_root_replace(guest, other, &err), -EIO);
    assert_string_equal(error_message(&err), "Could not flush node 'disk' before it is left: "
                                             "Input/output error");
    assert_ptr_equal(block_root_node(guest), disk);
    memory_disk_fail(m, 0, 0);
    assert_int_equal(block_co_root_replace(guest, other, &err), 0);
    assert_int_equal(memory_disk_requests(m, MEMORY_DISK_FLUSH), 2);
    block_co_root_release(guest);
    block_co_unref(other);
    block_co_unref(disk);
}

/*
 * What was written below the filter meanwhile is made stable by a flush on it, and nothing by the
 * way there.
 */
static void co_filter_passes_each_flush_on(void)
{
    struct block_node *disk = open_disk("disk");
    struct memory_disk *m = memory_disk_of(disk);
    struct block_root *guest = attach(disk, WRITER, BLOCK_PERM_ALL);
    struct block_node *filter =
        open_node("{\"driver\":\"pass\",\"node-name\":\"filter\",\"file\":\"disk\"}");

    assert_int_equal(block_co_root_replace(guest, filter, NULL), 0);
    write_byte(guest);
    assert_int_equal(block_co_flush(block_root_edge(guest)), 0);
    assert_int_equal(block_co_root_replace(guest, disk, NULL), 0);
    write_byte(guest);
    assert_int_equal(block_co_root_replace(guest, filter, NULL), 0);
    assert_int_equal(memory_disk_requests(m, MEMORY_DISK_FLUSH), 1);
    assert_int_equal(block_co_flush(block_root_edge(guest)), 0);
    assert_int_equal(memory_disk_requests(m, MEMORY_DISK_FLUSH), 2);
    block_co_root_release(guest);
    block_co_unref(filter);
    block_co_unref(disk);
}

/* --- names and publication -------------------------------------------------------------------- */

static bool others_find;

static void co_look(void *arg)
{
    others_find = block_node_find("disk") != NULL;
    *(bool *)arg = true;
}

static void co_hidden_node_is_found_by_its_opener_alone(void)
{
    struct block_node *disk =
        open_hidden("{\"driver\":\"memory-disk\",\"node-name\":\"disk\",\"size\":4096}");
    bool looked = false;

    assert_ptr_equal(block_node_find("disk"), disk);
    assert_null(block_node_next(NULL));
    assert_int_equal(reactor_spawn(reactor_main(), co_look, &looked), 0);
    while (!looked) {
        loop_co_sleep(1000);
    }
    assert_false(others_find);
    assert_non_null(strstr(
        fixture_open_fails("{\"driver\":\"memory-disk\",\"node-name\":\"disk\",\"size\":4096}"),
        "Duplicate nodes with node-name='disk'"));
    assert_int_equal(block_co_publish(disk, NULL), 0);
    looked = false;
    assert_int_equal(reactor_spawn(reactor_main(), co_look, &looked), 0);
    while (!looked) {
        loop_co_sleep(1000);
    }
    assert_true(others_find);
    block_unpublish(disk);
    assert_null(block_node_next(NULL));
    block_co_unref(disk);
}

static void co_node_and_its_child_can_not_have_one_name(void)
{
    assert_non_null(
        strstr(fixture_open_fails("{\"driver\":\"layer\",\"node-name\":\"a\",\"backing\":{"
                                  "\"driver\":\"memory-disk\",\"node-name\":\"a\",\"size\":4096}}"),
               "Duplicate nodes with node-name='a'"));
    assert_null(block_node_find("a"));
}

static void co_publication_that_fails_shows_nothing(void)
{
    struct block_node *top =
        open_hidden("{\"driver\":\"layer\",\"node-name\":\"top\",\"backing\":{\"driver\":"
                    "\"memory-disk\",\"node-name\":\"disk\",\"size\":4096}}");
    ERROR_AUTO(err);

    memset(&layer, 0, sizeof(layer));
    layer.fail_begin = -EBUSY;
    assert_int_equal(block_co_publish(top, &err), -EBUSY);
    assert_null(block_node_next(NULL));
    layer.fail_begin = 0;
    assert_int_equal(block_co_publish(top, NULL), 0);
    assert_non_null(block_node_next(NULL));
    block_co_unref(top);
    assert_null(block_node_find("disk"));
}

/* --- the end of a node ------------------------------------------------------------------------ */

static void co_closing_a_filter_leaves_what_is_below_alone(void)
{
    struct block_node *disk = open_disk("disk");
    struct block_node *top =
        open_node("{\"driver\":\"layer\",\"node-name\":\"top\",\"backing\":\"disk\"}");
    struct block_node *filter =
        open_node("{\"driver\":\"pass\",\"node-name\":\"filter\",\"file\":\"top\"}");
    struct block_root *guest = attach(top, BLOCK_PERM_CONSISTENT_READ, BLOCK_PERM_ALL);

    memset(&layer, 0, sizeof(layer));
    assert_int_equal(block_co_inactivate(filter, NULL), 0);
    block_co_unref(filter);
    assert_int_equal(layer.inactivated, 0);
    block_co_root_release(guest);
    assert_int_equal(layer.inactivated, 0);
    block_co_unref(top);
    assert_int_equal(layer.inactivated, 1);
    block_co_unref(disk);
}

static void co_node_that_can_not_be_completed_is_closed_and_told(void)
{
    struct block_node *disk = open_disk("disk");
    struct block_node *top =
        open_node("{\"driver\":\"layer\",\"node-name\":\"top\",\"backing\":\"disk\"}");
    ERROR_AUTO(err);

    layer.fail_inactivate = -ENOSPC;
    assert_int_equal(block_co_close(top, &err), -ENOSPC);
    assert_string_equal(error_message(&err), "It stays as it is");
    assert_null(block_node_find("top"));
    assert_false(block_node_in_use(disk));
    block_co_unref(disk);
}

static void co_what_was_written_is_flushed_at_the_end(void)
{
    struct block_node *disk = open_disk("disk");
    struct block_root *guest = attach(disk, WRITER, BLOCK_PERM_ALL);
    ERROR_AUTO(err);

    write_byte(guest);
    block_co_root_release(guest);
    memory_disk_fail(memory_disk_of(disk), MEMORY_DISK_FLUSH, EIO);
    assert_int_equal(block_co_close(disk, &err), -EIO);
    assert_non_null(strstr(error_message(&err), "Could not flush 'disk'"));
}

/* The name is free before anything that can wait. */
static void co_find_nothing(void *arg)
{
    *(bool *)arg = block_node_find("disk") == NULL;
}

static void co_name_is_gone_while_a_node_is_closed(void)
{
    struct block_node *disk = open_disk("disk");
    struct block_root *guest = attach(disk, WRITER, BLOCK_PERM_ALL);
    struct memory_disk *m = memory_disk_of(disk);
    bool gone = false;

    write_byte(guest);
    block_co_root_release(guest);
    memory_disk_hold(m, MEMORY_DISK_FLUSH, 0);
    assert_int_equal(reactor_spawn(reactor_main(), co_find_nothing, &gone), 0);
    block_co_unref(disk); /* yields in its flush */
    assert_true(gone);
}

/* --- drains ----------------------------------------------------------------------------------- */

struct held_write {
    struct block_root *root;
    bool done;
};

static void co_held_write(void *arg)
{
    struct held_write *w = arg;

    write_byte(w->root);
    w->done = true;
}

static void start_write(struct held_write *w)
{
    assert_int_equal(reactor_spawn(reactor_main(), co_held_write, w), 0);
    loop_co_sleep(1000000);
}

static void co_drain_waits_for_its_own_disk_only(void)
{
    struct block_node *slow = open_disk("slow"), *fast = open_disk("fast");
    struct held_write w = {.root = attach(slow, WRITER, BLOCK_PERM_ALL)};

    memory_disk_hold(memory_disk_of(slow), MEMORY_DISK_WRITE, 1);
    start_write(&w);
    assert_false(w.done);
    block_co_drain_begin(fast); /* would hang here */
    block_drain_end(fast);
    assert_false(w.done);
    memory_disk_release(memory_disk_of(slow));
    block_co_drain_begin(slow);
    assert_true(w.done);
    block_drain_end(slow);
    block_co_root_release(w.root);
    block_co_unref(fast);
    block_co_unref(slow);
}

static void co_drain_but_one_lets_that_root_go_on(void)
{
    struct block_node *disk = open_disk("disk");
    struct held_write job = {.root = attach(disk, WRITER, BLOCK_PERM_ALL)};
    struct held_write guest = {.root = attach(disk, WRITER, BLOCK_PERM_ALL)};
    struct block_drain d;

    block_co_drain_begin_writers(&d, disk, job.root);
    start_write(&guest);
    assert_false(guest.done);
    write_byte(job.root);
    block_drain_end_but(&d);
    loop_co_sleep(1000000);
    assert_true(guest.done);
    block_co_root_release(guest.root);
    block_co_root_release(job.root);
    block_co_unref(disk);
}

static bool is_fourth_look(const void *looks)
{
    return ++*(unsigned *)(uintptr_t)looks > 3;
}

static bool is_never(const void *arg)
{
    return false;
}

static void co_drain_but_one_can_be_given_up(void)
{
    struct block_node *disk = open_disk("disk");
    struct held_write job = {.root = attach(disk, WRITER, BLOCK_PERM_ALL)};
    struct held_write guest = {.root = attach(disk, WRITER, BLOCK_PERM_ALL)};
    struct block_drain d;
    unsigned looks = 0;

    memory_disk_hold(memory_disk_of(disk), MEMORY_DISK_WRITE, 1);
    start_write(&guest);
    assert_false(block_co_drain_begin_but_unless(&d, disk, job.root, is_fourth_look, &looks));
    assert_int_equal(looks, 4);
    write_byte(guest.root); /* nothing is drained any more */
    memory_disk_release(memory_disk_of(disk));
    assert_true(block_co_drain_begin_but_unless(&d, disk, job.root, is_never, NULL));
    assert_true(guest.done);
    write_byte(job.root);
    block_drain_end_but(&d);
    block_co_root_release(guest.root);
    block_co_root_release(job.root);
    block_co_unref(disk);
}

static void co_let_layer_rest(void *arg)
{
    loop_co_sleep(3000000);
    layer.busy = false;
}

static void co_drivers_are_told_of_drains_and_waited_for(void)
{
    struct block_node *disk = open_disk("disk");
    struct block_node *top =
        open_node("{\"driver\":\"layer\",\"node-name\":\"top\",\"backing\":\"disk\"}");

    layer.busy = true;
    assert_int_equal(reactor_spawn(reactor_main(), co_let_layer_rest, NULL), 0);
    block_co_drain_begin(disk); /* also of what reaches it */
    assert_false(layer.busy);
    block_co_drain_begin(top);
    assert_int_equal(layer.drain_begun, 1);
    assert_int_equal(layer.drain_ended, 0);
    block_drain_end(top);
    block_drain_end(disk);
    assert_int_equal(layer.drain_begun, 1);
    assert_int_equal(layer.drain_ended, 1);
    block_co_unref(top);
    block_co_unref(disk);
}

static void co_reads_of_drivers_may_go_on_where_writers_are_drained(void)
{
    struct block_node *disk = open_disk("disk");
    struct block_node *top =
        open_node("{\"driver\":\"layer\",\"node-name\":\"top\",\"backing\":\"disk\"}");
    struct block_root *reader = attach(top, BLOCK_PERM_CONSISTENT_READ, BLOCK_PERM_ALL);
    struct block_drain d;
    unsigned looks = 0;

    layer.busy = layer.only_reads = true;
    block_co_drain_begin_writers(&d, disk, reader);
    assert_true(layer.busy);
    block_drain_end_but(&d);
    /* Where the graph may change they count. */
    assert_false(block_co_drain_begin_but_unless(&d, disk, reader, is_fourth_look, &looks));
    /* As does work that may do more. */
    layer.only_reads = false;
    assert_int_equal(reactor_spawn(reactor_main(), co_let_layer_rest, NULL), 0);
    block_co_drain_begin_writers(&d, disk, reader);
    assert_false(layer.busy);
    block_drain_end_but(&d);
    block_co_root_release(reader);
    block_co_unref(top);
    block_co_unref(disk);
}

static unsigned owner_begun, owner_ended, owner_busy;

static void owner_drain_begin(void *arg)
{
    owner_begun++;
}

static bool owner_drain_busy(void *arg)
{
    return owner_busy > 0 && owner_busy-- > 0;
}

static void owner_drain_end(void *arg)
{
    owner_ended++;
}

static void co_owners_of_roots_are_told_of_drains_and_waited_for(void)
{
    static const struct block_root_ops ops = {
        .drain_begin = owner_drain_begin,
        .drain_busy = owner_drain_busy,
        .drain_end = owner_drain_end,
    };
    struct block_node *disk = open_disk("disk");
    struct block_root *root = attach(disk, WRITER, BLOCK_PERM_ALL);

    block_root_set_ops(root, &ops, NULL);
    owner_busy = 3;
    block_co_drain_begin(disk);
    assert_int_equal(owner_busy, 0);
    assert_int_equal(owner_begun, 1);
    block_drain_end(disk);
    assert_int_equal(owner_ended, 1);
    block_co_root_release(root);
    block_co_unref(disk);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        CO_TEST(co_overlay_is_put_under_a_guest_in_one_change),
        CO_TEST(co_settle_that_fails_leaves_what_was_in_force),
        CO_TEST(co_locks_are_not_given_up_by_a_move_to_a_filter),
        CO_TEST(co_lock_that_is_not_to_be_had_leaves_the_guest_writing),
        CO_TEST(co_user_who_waited_is_not_told_of_anothers_lock),
        CO_TEST(co_interior_edges_move_and_circles_do_not),
        CO_TEST(co_node_that_is_left_is_flushed),
        CO_TEST(co_filter_passes_each_flush_on),
        CO_TEST(co_hidden_node_is_found_by_its_opener_alone),
        CO_TEST(co_node_and_its_child_can_not_have_one_name),
        CO_TEST(co_publication_that_fails_shows_nothing),
        CO_TEST(co_closing_a_filter_leaves_what_is_below_alone),
        CO_TEST(co_node_that_can_not_be_completed_is_closed_and_told),
        CO_TEST(co_what_was_written_is_flushed_at_the_end),
        CO_TEST(co_name_is_gone_while_a_node_is_closed),
        CO_TEST(co_drain_waits_for_its_own_disk_only),
        CO_TEST(co_drain_but_one_lets_that_root_go_on),
        CO_TEST(co_drain_but_one_can_be_given_up),
        CO_TEST(co_drivers_are_told_of_drains_and_waited_for),
        CO_TEST(co_reads_of_drivers_may_go_on_where_writers_are_drained),
        CO_TEST(co_owners_of_roots_are_told_of_drains_and_waited_for),
    };

    if (co_test_setup() < 0) {
        return 1;
    }
    block_register_driver(&layer_driver);
    block_register_driver(&locked_driver);
    block_register_driver(&memory_disk_driver);
    block_register_driver(&pass_driver);
    return cmocka_run_group_tests(tests, NULL, co_test_teardown);
}
