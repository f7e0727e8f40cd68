/* SPDX-License-Identifier: Apache-2.0 */
/* copy-before-write where guest writes copy parts of clusters. */
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

#include "filter/copy_before_write.h"
#include "filter/filter.h"

#define DISK_SIZE (16ull * CLUSTER)
#define PARTS ",\"min-cluster-size\":0"
#define PAGE 4096u

struct request {
    struct cbw_graph *g;
    uint64_t offset;
    size_t length;
    int ret;
};

static void guest_write(void *arg)
{
    struct request *r = arg;

    r->ret = cbw_guest_fill(r->g, r->offset, r->length, 0xee);
}

/* The number of pages of the temporary image that have been written. */
static unsigned pages_copied(const struct cbw_graph *g)
{
    unsigned n = 0;

    for (uint64_t at = 0; at < DISK_SIZE; at += PAGE) {
        n += g->temp->written[at / PAGE] != 0;
    }
    return n;
}

static void a_write_copies_the_pages_that_it_touches(void *arg)
{
    struct cbw_graph g;

    cbw_graph_open(&g, DISK_SIZE, PARTS, 0);
    assert_int_equal(cbw_guest_fill(&g, 3 * CLUSTER + 5 * PAGE + 512, 512, 0xee), 0);
    assert_int_equal(pages_copied(&g), 1);
    assert_int_equal(cbw_guest_fill(&g, 5 * CLUSTER + 2 * PAGE - 512, 1024, 0xee), 0);
    assert_int_equal(pages_copied(&g), 3);
    assert_int_equal(cbw_guest_fill(&g, 3 * CLUSTER + 5 * PAGE, 2048, 0xdd), 0);
    assert_int_equal(pages_copied(&g), 3);
    assert_int_equal(cbw_reads_original(g.snapshot, 0, DISK_SIZE), 1);
    cbw_graph_close(&g);
}

static void sequential_writes_need_two_copies_for_a_cluster(void *arg)
{
    struct cbw_graph g;

    cbw_graph_open(&g, DISK_SIZE, PARTS, 0);
    for (uint64_t at = 0; at < 2 * CLUSTER; at += PAGE) {
        assert_int_equal(cbw_guest_fill(&g, 4 * CLUSTER + at, PAGE, 0xee), 0);
    }
    assert_int_equal(memory_disk_requests(g.temp, MEMORY_DISK_WRITE), 3);
    assert_int_equal(pages_copied(&g), 2 * CLUSTER / PAGE);
    assert_int_equal(cbw_reads_original(g.snapshot, 0, DISK_SIZE), 1);
    cbw_graph_close(&g);
}

static void the_last_page_may_be_short(void *arg)
{
    struct cbw_graph g;
    uint64_t size = DISK_SIZE + 5 * 512;

    cbw_graph_open(&g, size, PARTS, 0);
    assert_int_equal(cbw_guest_fill(&g, size - 512, 512, 0xee), 0);
    assert_int_equal(cbw_guest_fill(&g, 0, 512, 0xee), 0);
    assert_int_equal(cbw_reads_original(g.snapshot, 0, size), 1);
    cbw_graph_close(&g);
}

/* A write of a whole cluster copies what is left of it, in several runs. */
static void gaps_between_copied_pages_are_copied(void *arg)
{
    struct cbw_graph g;

    cbw_graph_open(&g, DISK_SIZE, PARTS, 0);
    for (unsigned page = 1; page < 16; page += 3) {
        assert_int_equal(cbw_guest_fill(&g, CLUSTER + page * PAGE, PAGE, 0xee), 0);
    }
    assert_int_equal(pages_copied(&g), 5);
    assert_int_equal(cbw_guest_fill(&g, CLUSTER, CLUSTER, 0xdd), 0);
    assert_int_equal(pages_copied(&g), CLUSTER / PAGE);
    assert_int_equal(cbw_reads_original(g.snapshot, 0, DISK_SIZE), 1);
    cbw_graph_close(&g);
}

static void a_discard_gives_back_clusters_copied_in_part(void *arg)
{
    struct cbw_graph g;

    cbw_graph_open(&g, DISK_SIZE, PARTS, 0);
    assert_int_equal(cbw_guest_fill(&g, CLUSTER + 2 * PAGE, PAGE, 0xee), 0);
    assert_int_equal(cbw_guest_fill(&g, CLUSTER + 9 * PAGE, PAGE, 0xee), 0);
    assert_int_equal(block_co_discard(g.snapshot, CLUSTER, CLUSTER / 2), 0);
    assert_int_equal(cbw_reads_original(g.snapshot, 0, DISK_SIZE), 1);
    assert_int_equal(block_co_discard(g.snapshot, CLUSTER + CLUSTER / 2, CLUSTER / 2), 0);
    assert_int_equal(pages_copied(&g), 0);
    assert_int_equal(cbw_reads_original(g.snapshot, CLUSTER + 9 * PAGE, 512), -EACCES);
    assert_int_equal(cbw_guest_fill(&g, CLUSTER + 4 * PAGE, PAGE, 0xee), 0);
    assert_int_equal(pages_copied(&g), 0);
    cbw_graph_close(&g);
}

/* The cluster is released while a page of it is on its way: all of it is given back afterwards. */
static void a_discard_during_a_copy_leaves_nothing(void *arg)
{
    struct cbw_graph g;
    struct background writer;
    struct request w = {.g = &g, .offset = CLUSTER + 7 * PAGE, .length = PAGE};

    cbw_graph_open(&g, DISK_SIZE, PARTS, 0);
    assert_int_equal(cbw_guest_fill(&g, CLUSTER, PAGE, 0xee), 0);
    memory_disk_hold(g.temp, MEMORY_DISK_WRITE, 1);
    background_start(&writer, guest_write, &w);
    assert_int_equal(memory_disk_held(g.temp), 1);
    assert_int_equal(block_co_discard(g.snapshot, CLUSTER, CLUSTER), 0);
    memory_disk_release(g.temp);
    background_finish(&writer);
    assert_int_equal(w.ret, 0);
    assert_int_equal(pages_copied(&g), 0);
    cbw_graph_close(&g);
}

/* Others of the same cluster do not wait for it. */
static void writes_to_other_pages_do_not_wait(void *arg)
{
    struct cbw_graph g;
    struct background writer;
    struct request w = {.g = &g, .offset = CLUSTER, .length = PAGE};

    cbw_graph_open(&g, DISK_SIZE, PARTS, 0);
    memory_disk_hold(g.temp, MEMORY_DISK_WRITE, 1);
    background_start(&writer, guest_write, &w);
    assert_int_equal(memory_disk_held(g.temp), 1);
    assert_int_equal(cbw_guest_fill(&g, CLUSTER + 8 * PAGE, PAGE, 0xee), 0);
    assert_int_equal(cbw_reads_original(g.snapshot, 0, DISK_SIZE), 1);
    memory_disk_release(g.temp);
    background_finish(&writer);
    assert_int_equal(w.ret, 0);
    assert_int_equal(cbw_reads_original(g.snapshot, 0, DISK_SIZE), 1);
    cbw_graph_close(&g);
}

static uint32_t unit_of_filter(const char *size, const char *target)
{
    char json[512];
    struct block_node *disk, *temp, *cbw;
    uint32_t unit;

    snprintf(json, sizeof(json), "{\"driver\":\"memory-disk\",\"node-name\":\"disk\",\"size\":%s}",
             size);
    disk = fixture_open(json);
    temp = fixture_open(target);
    cbw = fixture_open("{\"driver\":\"copy-before-write\",\"node-name\":\"cbw\","
                       "\"file\":\"disk\",\"target\":\"temp\"}");
    unit = cbw_of_node(cbw)->unit;
    block_co_unref(cbw);
    block_co_unref(temp);
    block_co_unref(disk);
    return unit;
}

static void the_unit_follows_the_target(void *arg)
{
    assert_int_equal(unit_of_filter("1048576", "{\"driver\":\"memory-disk\","
                                               "\"node-name\":\"temp\",\"size\":1048576}"),
                     PAGE);
    assert_int_equal(unit_of_filter("1048576", "{\"driver\":\"memory-disk\","
                                               "\"node-name\":\"temp\",\"size\":1048576,"
                                               "\"cluster-size\":262144}"),
                     PAGE);
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
        CO_TEST(a_write_copies_the_pages_that_it_touches),
        CO_TEST(sequential_writes_need_two_copies_for_a_cluster),
        CO_TEST(the_last_page_may_be_short),
        CO_TEST(gaps_between_copied_pages_are_copied),
        CO_TEST(a_discard_gives_back_clusters_copied_in_part),
        CO_TEST(a_discard_during_a_copy_leaves_nothing),
        CO_TEST(writes_to_other_pages_do_not_wait),
        CO_TEST(the_unit_follows_the_target),
    };

    return cmocka_run_group_tests(tests, setup, co_test_teardown);
}
