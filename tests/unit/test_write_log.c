/* SPDX-License-Identifier: Apache-2.0 */
/* blklogwrites: what it logs, in which order, and what it refuses. */
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

#include "base/byteorder.h"
#include "filter/filter.h"
#include "loop/loop.h"

#define SECTOR 512u
#define FLUSH 1u
#define FUA 2u
#define DISCARD 4u

struct log_graph {
    struct block_node *file_node, *log_node, *filter_node;
    struct memory_disk *file, *log;
    struct block_root *root;
    struct block_edge *edge;
};

static void open_filter(struct log_graph *g, const char *more)
{
    char json[256];

    snprintf(json, sizeof(json),
             "{\"driver\":\"blklogwrites\",\"node-name\":\"filter\",\"file\":\"file\",\"log\":"
             "\"log\"%s}",
             more);
    g->filter_node = fixture_open(json);
    assert_int_equal(block_co_root_new(g->filter_node, "test",
                                       BLOCK_PERM_CONSISTENT_READ | BLOCK_PERM_WRITE,
                                       BLOCK_PERM_ALL, &g->root, NULL),
                     0);
    g->edge = block_root_edge(g->root);
}

static void close_filter(struct log_graph *g)
{
    block_co_root_release(g->root);
    block_co_unref(g->filter_node);
}

static void open_graph(struct log_graph *g, const char *more)
{
    g->file_node =
        fixture_open("{\"driver\":\"memory-disk\",\"node-name\":\"file\",\"size\":1048576}");
    g->log_node =
        fixture_open("{\"driver\":\"memory-disk\",\"node-name\":\"log\",\"size\":4194304}");
    g->file = memory_disk_of(g->file_node);
    g->log = memory_disk_of(g->log_node);
    open_filter(g, more);
}

static void close_graph(struct log_graph *g)
{
    block_co_unref(g->log_node);
    block_co_unref(g->file_node);
}

static void assert_entry(const struct log_graph *g, uint64_t log_sector, uint64_t sector,
                         uint64_t sectors, uint64_t flags)
{
    const uint8_t *entry = g->log->data + log_sector * SECTOR;

    assert_int_equal(load_le64(entry), sector);
    assert_int_equal(load_le64(entry + 8), sectors);
    assert_int_equal(load_le64(entry + 16), flags);
    assert_int_equal(load_le64(entry + 24), 0);
}

static void a_flush_makes_the_log_stable_last(void *arg)
{
    struct log_graph g;

    open_graph(&g, "");
    assert_int_equal(block_co_pwrite(g.edge, 8192, (uint8_t[SECTOR]){1}, SECTOR, 0), 0);
    assert_int_equal(block_co_flush(g.edge), 0);
    assert_int_equal(memory_disk_requests(g.file, MEMORY_DISK_FLUSH), 1);
    assert_int_equal(memory_disk_requests(g.log, MEMORY_DISK_FLUSH), 1);
    memory_disk_fail(g.log, MEMORY_DISK_FLUSH, EIO);
    assert_int_equal(block_co_pwrite(g.edge, 8192, (uint8_t[SECTOR]){2}, SECTOR, 0), 0);
    assert_int_equal(block_co_flush(g.edge), -EIO);
    memory_disk_fail(g.log, 0, 0);
    close_filter(&g);
    close_graph(&g);
}

static void log_has_the_format_of_dm_log_writes(void *arg)
{
    struct log_graph g;
    uint8_t data[4096];

    open_graph(&g, "");
    memset(data, 0xab, sizeof(data));
    assert_int_equal(block_co_pwrite(g.edge, 8192, data, sizeof(data), 0), 0);
    assert_int_equal(block_co_flush(g.edge), 0);
    assert_int_equal(block_co_discard(g.edge, 65536, 4096), 0);
    assert_int_equal(block_co_write_zeroes(g.edge, 8192, 1024, 0), 0);
    assert_int_equal(block_co_pwrite(g.edge, 512, data, 512, BLOCK_REQ_FUA), 0);
    close_filter(&g);

    assert_int_equal(load_le64(g.log->data), 0x6a736677736872ull);
    assert_int_equal(load_le64(g.log->data + 8), 1);
    assert_int_equal(load_le64(g.log->data + 16), 5);
    assert_int_equal(load_le32(g.log->data + 24), SECTOR);
    assert_entry(&g, 1, 16, 8, 0);
    assert_memory_equal(g.log->data + 2 * SECTOR, data, sizeof(data));
    assert_entry(&g, 10, 0, 0, FLUSH);
    assert_entry(&g, 11, 128, 8, DISCARD);
    assert_entry(&g, 12, 16, 2, 0);
    assert_int_equal(g.log->data[13 * SECTOR], 0);
    assert_entry(&g, 15, 1, 1, FUA);
    assert_memory_equal(g.log->data + 16 * SECTOR, data, SECTOR);
    assert_int_equal(g.file->data[8192], 0);
    assert_int_equal(g.file->data[8192 + 1024], 0xab);
    close_graph(&g);
}

static void discards_are_of_whole_sectors(void *arg)
{
    struct log_graph g;

    open_graph(&g, "");
    assert_int_equal(block_co_discard(g.edge, 100, 100), 0);
    assert_int_equal(block_co_discard(g.edge, 65536 + 100, 4096), 0);
    close_filter(&g);
    assert_int_equal(load_le64(g.log->data + 16), 1);
    assert_entry(&g, 1, 129, 7, DISCARD);
    close_graph(&g);
}

static void flush_in_background(void *arg)
{
    struct log_graph *g = arg;

    assert_int_equal(block_co_flush(g->edge), 0);
}

static void write_in_background(void *arg)
{
    struct log_graph *g = arg;
    uint8_t data[SECTOR] = {7};

    assert_int_equal(block_co_pwrite(g->edge, 4096, data, sizeof(data), 0), 0);
}

static void writes_that_complete_during_a_flush_follow_it(void *arg)
{
    struct log_graph g;
    struct background flush, write;
    uint8_t data[SECTOR] = {1};

    open_graph(&g, "");
    assert_int_equal(block_co_pwrite(g.edge, 0, data, sizeof(data), 0), 0);
    memory_disk_hold(g.file, MEMORY_DISK_FLUSH, 1);
    background_start(&flush, flush_in_background, &g);
    background_start(&write, write_in_background, &g);
    assert_int_equal(g.file->data[4096], 7); /* it is on the disk, but after the flush began */
    memory_disk_release(g.file);
    background_finish(&flush);
    background_finish(&write);
    close_filter(&g);
    assert_entry(&g, 1, 0, 1, 0);
    assert_entry(&g, 3, 0, 0, FLUSH);
    assert_entry(&g, 4, 8, 1, 0);
    close_graph(&g);
}

static void log_can_be_appended_to(void *arg)
{
    struct log_graph g;
    uint8_t data[4096] = {3};

    open_graph(&g, ",\"log-sector-size\":4096");
    assert_int_equal(block_co_pwrite(g.edge, 0, data, 4096, 0), 0);
    assert_int_equal(block_co_discard(g.edge, 8192, 4096), 0);
    close_filter(&g);
    open_filter(&g, ",\"log-append\":true");
    assert_int_equal(block_co_pwrite(g.edge, 4096, data, 4096, 0), 0);
    close_filter(&g);
    assert_int_equal(load_le64(g.log->data + 16), 3);
    assert_int_equal(load_le32(g.log->data + 24), 4096);
    assert_int_equal(load_le64(g.log->data + 4 * 4096), 1); /* sector of the third entry */
    assert_int_equal(g.log->data[5 * 4096], 3);
    close_graph(&g);
}

static void bad_logs_and_options_are_refused(void *arg)
{
    static const char base[] = "{\"driver\":\"blklogwrites\",\"file\":\"file\",\"log\":\"log\",%s}";
    struct log_graph g;
    const char *message;
    char json[256];

    open_graph(&g, "");
    close_filter(&g);
    snprintf(json, sizeof(json), base, "\"log-sector-size\":1000");
    message = fixture_open_fails(json);
    assert_non_null(message);
    assert_non_null(strstr(message, "1000"));
    snprintf(json, sizeof(json), base, "\"log-append\":true,\"log-sector-size\":512");
    assert_non_null(fixture_open_fails(json));
    store_le64(g.log->data + 16, 1u << 30); /* more entries than can be in there */
    snprintf(json, sizeof(json), base, "\"log-append\":true");
    assert_non_null(fixture_open_fails(json));
    store_le64(g.log->data, 1);
    message = fixture_open_fails(json);
    assert_non_null(message);
    assert_non_null(strstr(message, "not a write log"));
    close_graph(&g);
}

static void error_of_the_log_fails_the_write(void *arg)
{
    struct log_graph g;
    uint8_t data[SECTOR] = {1};

    open_graph(&g, "");
    memory_disk_fail(g.log, MEMORY_DISK_WRITE, ENOSPC);
    assert_int_equal(block_co_pwrite(g.edge, 0, data, sizeof(data), 0), -ENOSPC);
    memory_disk_fail(g.log, 0, 0);
    close_filter(&g);
    close_graph(&g);
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
        CO_TEST(a_flush_makes_the_log_stable_last),
        CO_TEST(log_has_the_format_of_dm_log_writes),
        CO_TEST(discards_are_of_whole_sectors),
        CO_TEST(writes_that_complete_during_a_flush_follow_it),
        CO_TEST(log_can_be_appended_to),
        CO_TEST(bad_logs_and_options_are_refused),
        CO_TEST(error_of_the_log_fails_the_write),
    };

    return cmocka_run_group_tests(tests, setup, co_test_teardown);
}
