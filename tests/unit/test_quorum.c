/* SPDX-License-Identifier: Apache-2.0 */
/* Children that join and leave a quorum in use; requests that overlap, also of blkverify. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include "cbw_fixture.h"
#include "co_test.h"

#include "base/checked.h"
#include "block/vote.h"
#include "filter/filter.h"

#define DISKS 4

struct quorum_graph {
    struct block_node *disks[DISKS], *quorum;
    struct block_root *root;
    struct block_edge *edge;
};

/* A quorum of the first two disks, of `size` bytes. */
static void open_quorum_of(struct quorum_graph *g, size_t size, const char *options)
{
    char json[256];

    for (int i = 0; i < DISKS; i++) {
        snprintf(json, sizeof(json),
                 "{\"driver\":\"memory-disk\",\"node-name\":\"d%d\",\"size\":%zu}", i, size);
        g->disks[i] = fixture_open(json);
    }
    snprintf(json, sizeof(json),
             "{\"driver\":\"quorum\",\"node-name\":\"q\",\"children\":[\"d0\",\"d1\"],%s}",
             options);
    g->quorum = fixture_open(json);
    assert_int_equal(block_co_root_new(g->quorum, "user",
                                       BLOCK_PERM_CONSISTENT_READ | BLOCK_PERM_WRITE,
                                       BLOCK_PERM_ALL, &g->root, NULL),
                     0);
    g->edge = block_root_edge(g->root);
}

static void open_quorum(struct quorum_graph *g, const char *options)
{
    open_quorum_of(g, 64 * KiB, options);
}

static void close_quorum(struct quorum_graph *g)
{
    block_co_root_release(g->root);
    block_co_unref(g->quorum);
    for (int i = 0; i < DISKS; i++) {
        block_co_unref(g->disks[i]);
    }
}

static void write_byte(struct quorum_graph *g, uint8_t byte)
{
    assert_int_equal(block_co_pwrite(g->edge, 0, &byte, 1, 0), 0);
}

static uint8_t byte_of(const struct quorum_graph *g, int disk)
{
    return memory_disk_of(g->disks[disk])->data[0];
}

static void assert_fails(int r, const struct error *err, const char *sentence)
{
    assert_true(r < 0);
    if (!strstr(error_message(err), sentence)) {
        fail_msg("%s", error_message(err));
    }
}

static void add_fails(struct block_node *parent, struct block_node *child, const char *sentence)
{
    ERROR_AUTO(err);
    int r = block_co_add_child(parent, child, &err);

    assert_fails(r, &err, sentence);
}

static void del_fails(struct block_node *parent, const char *name, const char *sentence)
{
    ERROR_AUTO(err);
    int r = block_co_del_child(parent, name, &err);

    assert_fails(r, &err, sentence);
}

static void children_that_join_are_written(void *arg)
{
    struct quorum_graph g;

    open_quorum(&g, "\"vote-threshold\":2");
    write_byte(&g, 1);
    assert_int_equal(block_co_add_child(g.quorum, g.disks[2], NULL), 0);
    write_byte(&g, 2);
    assert_int_equal(byte_of(&g, 0), 2);
    assert_int_equal(byte_of(&g, 1), 2);
    assert_int_equal(byte_of(&g, 2), 2);
    assert_int_equal(byte_of(&g, 3), 0);
    close_quorum(&g);
}

static void children_that_leave_are_not(void *arg)
{
    struct quorum_graph g;
    uint8_t byte = 0;

    open_quorum(&g, "\"vote-threshold\":2");
    assert_int_equal(block_co_add_child(g.quorum, g.disks[2], NULL), 0);
    assert_int_equal(block_co_del_child(g.quorum, "children.0", NULL), 0);
    write_byte(&g, 3);
    assert_int_equal(byte_of(&g, 0), 0);
    assert_int_equal(byte_of(&g, 1), 3);
    assert_int_equal(byte_of(&g, 2), 3);
    assert_int_equal(block_co_pread(g.edge, 0, &byte, 1), 0);
    assert_int_equal(byte, 3);
    /* Nobody uses it any more, so it can come again. */
    assert_int_equal(block_co_add_child(g.quorum, g.disks[0], NULL), 0);
    close_quorum(&g);
}

/* As QEMU does: the index of the child that was added last is free again when that one leaves. */
static void names_count_up(void *arg)
{
    struct quorum_graph g;

    open_quorum(&g, "\"vote-threshold\":2");
    assert_int_equal(block_co_add_child(g.quorum, g.disks[2], NULL), 0);
    assert_int_equal(block_co_add_child(g.quorum, g.disks[3], NULL), 0);
    assert_int_equal(block_co_del_child(g.quorum, "children.2", NULL), 0);
    assert_int_equal(block_co_add_child(g.quorum, g.disks[2], NULL), 0);
    assert_ptr_equal(block_node_child(g.quorum, "children.4"), g.disks[2]);
    assert_int_equal(block_co_del_child(g.quorum, "children.4", NULL), 0);
    assert_int_equal(block_co_add_child(g.quorum, g.disks[2], NULL), 0);
    assert_ptr_equal(block_node_child(g.quorum, "children.4"), g.disks[2]);
    close_quorum(&g);
}

static void what_can_not_be_is_refused(void *arg)
{
    struct quorum_graph g;
    struct block_node *small =
        fixture_open("{\"driver\":\"memory-disk\",\"node-name\":\"small\",\"size\":512}");

    open_quorum(&g, "\"vote-threshold\":2");
    add_fails(g.quorum, g.disks[1], "The node d1 already has a parent");
    add_fails(g.quorum, small, "have to be of one size");
    add_fails(g.disks[0], g.disks[2], "The node d0 does not support adding a child");
    del_fails(g.quorum, "children.0", "cannot be lower than the vote threshold 2");
    del_fails(g.quorum, "children.9", "Node 'q' does not have child 'children.9'");
    close_quorum(&g);
    open_quorum(&g, "\"vote-threshold\":2,\"blkverify\":true");
    add_fails(g.quorum, g.disks[2], "Cannot add a child to a quorum in blkverify mode");
    close_quorum(&g);
    block_co_unref(small);
}

/* A child without a parent that a quorum of itself is below. */
static void a_quorum_is_not_its_own_child(void *arg)
{
    struct quorum_graph g;

    open_quorum(&g, "\"vote-threshold\":1");
    block_co_root_release(g.root);
    g.root = NULL;
    add_fails(g.quorum, g.quorum, "would create a cycle");
    close_quorum(&g);
}

/* --- requests that overlap -------------------------------------------------------------------- */

struct byte_request {
    struct block_edge *edge;
    uint8_t byte;
};

static void co_write_one(void *arg)
{
    const struct byte_request *w = arg;

    assert_int_equal(block_co_pwrite(w->edge, 0, &w->byte, 1, 0), 0);
}

static void co_read_one(void *arg)
{
    struct byte_request *w = arg;

    assert_int_equal(block_co_pread(w->edge, 0, &w->byte, 1), 0);
}

/* The first write reaches the first disk late. */
static void children_have_the_data_of_one_write(void *arg)
{
    struct quorum_graph g;
    struct byte_request first, second;
    struct background b1, b2;
    struct memory_disk *late;
    uint8_t byte = 0;

    open_quorum(&g, "\"vote-threshold\":2");
    late = memory_disk_of(g.disks[0]);
    first = (struct byte_request){g.edge, 1};
    second = (struct byte_request){g.edge, 2};
    memory_disk_hold(late, MEMORY_DISK_WRITE, 1);
    background_start(&b1, co_write_one, &first);
    let_others_run();
    assert_int_equal(memory_disk_held(late), 1);
    background_start(&b2, co_write_one, &second);
    let_others_run();
    memory_disk_release(late);
    background_finish(&b1);
    background_finish(&b2);
    assert_int_equal(block_co_pread(g.edge, 0, &byte, 1), 0);
    assert_int_equal(byte, byte_of(&g, 0));
    assert_int_equal(byte, byte_of(&g, 1));
    close_quorum(&g);
}

/* A job, say, reads what a guest writes. */
static void blkverify_compares_nothing_that_a_write_is_about_to_change(void *arg)
{
    struct quorum_graph g;
    struct block_node *node;
    struct block_root *root;
    struct byte_request write = {.byte = 5}, read = {.byte = 0};
    struct background b1, b2;
    struct memory_disk *late;

    open_quorum(&g, "\"vote-threshold\":2");
    node = fixture_open(
        "{\"driver\":\"blkverify\",\"node-name\":\"v\",\"raw\":\"d2\",\"test\":\"d3\"}");
    assert_int_equal(block_co_root_new(node, "user", BLOCK_PERM_CONSISTENT_READ | BLOCK_PERM_WRITE,
                                       BLOCK_PERM_ALL, &root, NULL),
                     0);
    write.edge = read.edge = block_root_edge(root);
    late = memory_disk_of(g.disks[2]);
    memory_disk_hold(late, MEMORY_DISK_WRITE, 1);
    background_start(&b1, co_write_one, &write);
    let_others_run();
    assert_int_equal(memory_disk_held(late), 1);
    assert_int_equal(byte_of(&g, 3), 5);
    background_start(&b2, co_read_one, &read);
    let_others_run();
    memory_disk_release(late);
    background_finish(&b1);
    background_finish(&b2);
    assert_int_equal(read.byte, 5);
    block_co_root_release(root);
    block_co_unref(node);
    close_quorum(&g);
}

/* --- reports ---------------------------------------------------------------------------------- */

static struct {
    int count;
    char node_name[8];
    uint64_t offset, length;
} votes;

static void on_vote(const struct block_vote *v)
{
    votes.count++;
    snprintf(votes.node_name, sizeof(votes.node_name), "%s", v->node_name);
    votes.offset = v->offset;
    votes.length = v->length;
}

/* However many pieces it is read in: the events of a second are limited. */
static void a_read_that_is_long_is_reported_as_one(void *arg)
{
    static const size_t bad[] = {5 * MiB, 10 * MiB};
    size_t size = 12 * MiB;
    uint8_t *data = test_malloc(size);
    struct quorum_graph g;

    open_quorum_of(&g, size, "\"vote-threshold\":1,\"rewrite-corrupted\":true");
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        memory_disk_of(g.disks[0])->data[bad[i]] = 1;
    }
    block_set_vote_fn(on_vote);
    assert_int_equal(block_co_pread(g.edge, 512, data, size - 512), 0);
    block_set_vote_fn(NULL);
    assert_int_equal(votes.count, 1);
    assert_string_equal(votes.node_name, "d1");
    assert_int_equal(votes.offset, 512);
    assert_int_equal(votes.length, size - 512);
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        assert_int_equal(data[bad[i] - 512], 1);
        assert_int_equal(memory_disk_of(g.disks[1])->data[bad[i]], 1);
    }
    test_free(data);
    close_quorum(&g);
}

static int setup(void **state)
{
    block_register_driver(&memory_disk_driver);
    filter_register_drivers();
    return co_test_setup();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        CO_TEST(children_that_join_are_written),
        CO_TEST(children_that_leave_are_not),
        CO_TEST(names_count_up),
        CO_TEST(what_can_not_be_is_refused),
        CO_TEST(a_quorum_is_not_its_own_child),
        CO_TEST(children_have_the_data_of_one_write),
        CO_TEST(blkverify_compares_nothing_that_a_write_is_about_to_change),
        CO_TEST(a_read_that_is_long_is_reported_as_one),
    };

    return cmocka_run_group_tests(tests, setup, co_test_teardown);
}
