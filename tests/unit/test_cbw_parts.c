/* SPDX-License-Identifier: Apache-2.0 */
/* copy-before-write where guest writes copy parts of clusters. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "cbw_fixture.h"
#include "co_test.h"

#include "base/checked.h"
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

/* --- reads that alternate between the disk and the temporary image ------------------------ */

static void write_every_second_page(struct cbw_graph *g, uint64_t offset, uint64_t length)
{
    for (uint64_t at = offset; at < offset + length; at += (uint64_t)2 * PAGE) {
        assert_int_equal(cbw_guest_fill(g, at, PAGE, 0xee), 0);
    }
}

/* Pages at random, and reads that begin and end anywhere. */
static void reads_at_random_are_exact(void *arg)
{
    struct cbw_graph g;
    uint64_t size = DISK_SIZE + 5 * 512;
    unsigned seed = 1;

    cbw_graph_open(&g, size, PARTS, 0);
    for (unsigned i = 0; i < 500; i++) {
        uint64_t at = (uint64_t)rand_r(&seed) % (size / 512) * 512;
        uint64_t length = 512 + (uint64_t)rand_r(&seed) % (DISK_SIZE / 512) * 512;
        uint64_t page = (uint64_t)rand_r(&seed) % (DISK_SIZE / PAGE) * PAGE;

        assert_int_equal(cbw_guest_fill(&g, page, PAGE, 0xee), 0);
        assert_int_equal(cbw_reads_original(g.snapshot, at, MIN(length, size - at)), 1);
    }
    cbw_graph_close(&g);
}

/* The vector has many elements, none of which ends with a page. */
static void reads_into_many_buffers_are_exact(void *arg)
{
    struct cbw_graph g;
    struct iovec vec[64];
    struct iov iov = {.vec = vec, .count = 64};
    uint64_t offset = CLUSTER + 512, at;
    uint8_t *buf = malloc(64 * 5632);

    cbw_graph_open(&g, DISK_SIZE, PARTS, 0);
    for (unsigned page = 0; page < DISK_SIZE / PAGE; page += 1 + page % 3) {
        assert_int_equal(cbw_guest_fill(&g, (uint64_t)page * PAGE, PAGE, 0xee), 0);
    }
    for (unsigned i = 0; i < 64; i++) { /* in the memory from the end to the beginning */
        vec[i] = (struct iovec){buf + (63 - i) * 5632, 5632};
        iov.size += 5632;
    }
    assert_int_equal(block_co_preadv(g.snapshot, offset, iov, 0), 0);
    at = offset;
    for (unsigned i = 0; i < 64; i++) {
        for (unsigned j = 0; j < 5632; j++, at++) {
            assert_int_equal(((uint8_t *)vec[i].iov_base)[j], at / CLUSTER + 1);
        }
    }
    free(buf);
    cbw_graph_close(&g);
}

static void pieces_end_where_access_ends(void *arg)
{
    struct cbw_graph g;

    cbw_graph_open(&g, DISK_SIZE, PARTS, 0);
    write_every_second_page(&g, 0, DISK_SIZE);
    assert_int_equal(block_co_discard(g.snapshot, 2 * CLUSTER, CLUSTER), 0);
    assert_int_equal(cbw_reads_original(g.snapshot, 0, 2 * CLUSTER), 1);
    assert_int_equal(cbw_reads_original(g.snapshot, 0, 2 * CLUSTER + 512), -EACCES);
    assert_int_equal(cbw_reads_original(g.snapshot, 3 * CLUSTER, DISK_SIZE - 3 * CLUSTER), 1);
    cbw_graph_close(&g);
}

/* The disk is read once, whatever pieces of it are in the temporary image. */
static void pieces_take_one_read_of_the_disk(void *arg)
{
    struct cbw_graph g;
    uint64_t disk, temp;

    cbw_graph_open(&g, DISK_SIZE, PARTS, 0);
    write_every_second_page(&g, 0, 4 * CLUSTER);
    disk = memory_disk_requests(g.disk, MEMORY_DISK_READ);
    temp = memory_disk_requests(g.temp, MEMORY_DISK_READ);
    assert_int_equal(cbw_reads_original(g.snapshot, 0, 4 * CLUSTER), 1);
    assert_int_equal(memory_disk_requests(g.disk, MEMORY_DISK_READ) - disk, 1);
    assert_int_equal(memory_disk_requests(g.temp, MEMORY_DISK_READ) - temp, 2 * CLUSTER / PAGE);
    cbw_graph_close(&g);
}

static void snapshot_read(void *arg)
{
    struct request *r = arg;

    r->ret = cbw_reads_original(r->g->snapshot, r->offset, r->length);
}

/* The reader has what it needs of the disk, and waits for the temporary image. */
static void guest_writes_while_a_read_of_pieces_hangs(void *arg)
{
    struct cbw_graph g;
    struct background reader, writer;
    struct request r = {.g = &g, .length = CLUSTER}, w = {.g = &g, .length = CLUSTER};

    cbw_graph_open(&g, DISK_SIZE, PARTS, 0);
    write_every_second_page(&g, 0, CLUSTER);
    memory_disk_hold(g.temp, MEMORY_DISK_READ, 1);
    background_start(&reader, snapshot_read, &r);
    while (memory_disk_held(g.temp) == 0) {
        co_reschedule();
    }
    background_start(&writer, guest_write, &w);
    background_finish(&writer);
    assert_int_equal(w.ret, 0);
    memory_disk_release(g.temp);
    background_finish(&reader);
    assert_int_equal(r.ret, 1);
    cbw_graph_close(&g);
}

static void errors_of_pieces_that_are_needed(void *arg)
{
    struct cbw_graph g;

    cbw_graph_open(&g, DISK_SIZE, PARTS, 0);
    write_every_second_page(&g, 0, DISK_SIZE);
    memory_disk_fail(g.temp, MEMORY_DISK_READ, EIO);
    assert_int_equal(cbw_reads_original(g.snapshot, 0, CLUSTER), -EIO);
    memory_disk_fail(g.temp, 0, 0);
    memory_disk_fail(g.disk, MEMORY_DISK_READ, EIO);
    assert_int_equal(cbw_reads_original(g.snapshot, 0, CLUSTER), -EIO);
    memory_disk_fail(g.disk, 0, 0);
    assert_int_equal(cbw_reads_original(g.snapshot, 0, DISK_SIZE), 1);
    cbw_graph_close(&g);
}

/* A client that asks which areas have data need not ask for each page. */
static void the_status_of_many_pieces_is_one(void *arg)
{
    struct cbw_graph g;
    struct block_status status;

    cbw_graph_open(&g, DISK_SIZE, PARTS, 0);
    write_every_second_page(&g, 0, DISK_SIZE);
    assert_int_equal(cbw_co_snapshot_status(cbw_of_node(g.cbw_node), 0, DISK_SIZE, &status), 0);
    assert_int_equal(status.length, 256 * 1024);
    assert_int_equal(status.flags, BLOCK_STATUS_DATA | BLOCK_STATUS_ALLOCATED);
    assert_int_equal(block_co_discard(g.snapshot, CLUSTER, CLUSTER), 0);
    assert_int_equal(cbw_co_snapshot_status(cbw_of_node(g.cbw_node), 0, DISK_SIZE, &status), 0);
    assert_int_equal(status.length, CLUSTER);
    assert_int_equal(
        cbw_co_snapshot_status(cbw_of_node(g.cbw_node), CLUSTER, DISK_SIZE - CLUSTER, &status),
        -EACCES);
    cbw_graph_close(&g);
}

/* Nor is the temporary image asked for one old page among others, or the disk read twice. */
static void one_old_page_among_others_is_a_piece(void *arg)
{
    struct cbw_graph g;
    struct block_status status;
    uint64_t reads;

    cbw_graph_open(&g, DISK_SIZE, PARTS, 0);
    assert_int_equal(cbw_guest_fill(&g, 5 * PAGE, PAGE, 0xee), 0);
    assert_int_equal(cbw_co_snapshot_status(cbw_of_node(g.cbw_node), 0, DISK_SIZE, &status), 0);
    assert_int_equal(status.length, 256 * 1024);
    assert_int_equal(status.flags, BLOCK_STATUS_DATA | BLOCK_STATUS_ALLOCATED);
    reads = memory_disk_requests(g.disk, MEMORY_DISK_READ);
    assert_int_equal(cbw_reads_original(g.snapshot, 0, 2 * CLUSTER), 1);
    assert_int_equal(memory_disk_requests(g.disk, MEMORY_DISK_READ) - reads, 1);
    cbw_graph_close(&g);
}

/* A hole of the disk is none of the data around it. */
static void the_status_keeps_holes_exact(void *arg)
{
    struct cbw_graph g;
    struct block_status status;

    cbw_graph_open(&g, DISK_SIZE, PARTS, 0);
    write_every_second_page(&g, 0, 2 * CLUSTER);
    assert_int_equal(block_co_discard(block_root_edge(g.guest_root), 3 * PAGE, PAGE), 0);
    assert_int_equal(cbw_co_snapshot_status(cbw_of_node(g.cbw_node), 0, DISK_SIZE, &status), 0);
    assert_int_equal(status.length, PAGE);
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
        CO_TEST(reads_at_random_are_exact),
        CO_TEST(reads_into_many_buffers_are_exact),
        CO_TEST(pieces_end_where_access_ends),
        CO_TEST(pieces_take_one_read_of_the_disk),
        CO_TEST(guest_writes_while_a_read_of_pieces_hangs),
        CO_TEST(errors_of_pieces_that_are_needed),
        CO_TEST(the_status_of_many_pieces_is_one),
        CO_TEST(one_old_page_among_others_is_a_piece),
        CO_TEST(the_status_keeps_holes_exact),
        CO_TEST(the_unit_follows_the_target),
    };

    return cmocka_run_group_tests(tests, setup, co_test_teardown);
}
