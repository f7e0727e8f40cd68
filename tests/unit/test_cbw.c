/* SPDX-License-Identifier: Apache-2.0 */
/* copy-before-write and snapshot-access: what they read, what they copy, who waits for whom. */
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

#include "base/log.h"
#include "filter/filter.h"
#include "loop/loop.h"

#define DISK_SIZE (16ull * CLUSTER)

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

static void snapshot_read(void *arg)
{
    struct request *r = arg;

    r->ret = cbw_reads_original(r->g->snapshot, r->offset, r->length);
}

static void snapshot_reads_old_data_after_a_guest_write(void *arg)
{
    struct cbw_graph g;
    uint8_t byte;

    cbw_graph_open(&g, DISK_SIZE, "", 0);
    assert_int_equal(cbw_guest_fill(&g, 3 * CLUSTER + 512, 4096, 0xee), 0);
    assert_int_equal(block_co_pread(g.guest, 3 * CLUSTER + 512, &byte, 1), 0);
    assert_int_equal(byte, 0xee);
    assert_int_equal(g.disk->data[3 * CLUSTER + 512], 0xee);
    assert_int_equal(g.temp->data[3 * CLUSTER + 512], 4);
    assert_int_equal(cbw_reads_original(g.snapshot, 0, DISK_SIZE), 1);
    cbw_graph_close(&g);
}

static void each_cluster_is_copied_once(void *arg)
{
    struct cbw_graph g;

    cbw_graph_open(&g, DISK_SIZE, "", 0);
    for (int i = 0; i < 16; i++) {
        assert_int_equal(cbw_guest_fill(&g, 5 * CLUSTER + i * 4096, 4096, 0xee), 0);
    }
    assert_int_equal(memory_disk_requests(g.temp, MEMORY_DISK_WRITE), 1);
    assert_int_equal(cbw_reads_original(g.snapshot, 0, DISK_SIZE), 1);
    cbw_graph_close(&g);
}

static void guest_zeroes_and_discards_are_copied_before(void *arg)
{
    struct cbw_graph g;

    cbw_graph_open(&g, DISK_SIZE, "", 0);
    assert_int_equal(block_co_write_zeroes(g.guest, CLUSTER, 2 * CLUSTER, 0), 0);
    assert_int_equal(block_co_discard(g.guest, 7 * CLUSTER, 3 * CLUSTER), 0);
    assert_int_equal(g.disk->data[CLUSTER], 0);
    assert_int_equal(g.disk->data[9 * CLUSTER], 0);
    assert_int_equal(cbw_reads_original(g.snapshot, 0, DISK_SIZE), 1);
    cbw_graph_close(&g);
}

static void last_partial_cluster_is_copied(void *arg)
{
    struct cbw_graph g;
    uint64_t size = DISK_SIZE + 5 * 512;

    cbw_graph_open(&g, size, "", 0);
    assert_int_equal(cbw_guest_fill(&g, size - 512, 512, 0xee), 0);
    assert_int_equal(cbw_reads_original(g.snapshot, 0, size), 1);
    cbw_graph_close(&g);
}

static void zero_areas_are_written_as_zeroes(void *arg)
{
    struct cbw_graph g;
    uint8_t byte;

    cbw_graph_open(&g, DISK_SIZE, "", 0);
    memset(g.temp->data, 0x55, DISK_SIZE); /* the temporary image need not be empty */
    memset(g.disk->data + 2 * CLUSTER, 0, 6 * CLUSTER);
    memset(g.disk->written + 2 * CLUSTER / 4096, 0, 6 * CLUSTER / 4096);
    assert_int_equal(cbw_guest_fill(&g, 2 * CLUSTER, 6 * CLUSTER, 0xee), 0);
    assert_int_equal(memory_disk_requests(g.disk, MEMORY_DISK_READ), 0);
    assert_int_equal(block_co_pread(g.snapshot, 3 * CLUSTER, &byte, 1), 0);
    assert_int_equal(byte, 0);
    cbw_graph_close(&g);
}

static void small_zero_areas_take_no_space(void *arg)
{
    struct cbw_graph g;

    cbw_graph_open(&g, DISK_SIZE, "", 0);
    memset(g.disk->data + 2 * CLUSTER, 0, CLUSTER); /* zeroes, though they are stored */
    assert_int_equal(cbw_guest_fill(&g, CLUSTER, 3 * CLUSTER, 0xee), 0);
    assert_int_equal(g.temp->data[CLUSTER], 2);
    assert_int_equal(g.temp->data[2 * CLUSTER], 0);
    assert_int_equal(g.temp->data[3 * CLUSTER], 4);
    assert_int_equal(memory_disk_requests(g.disk, MEMORY_DISK_READ), 1);
    assert_int_equal(memory_disk_requests(g.temp, MEMORY_DISK_WRITE), 3);
    cbw_graph_close(&g);
}

static void outside_the_bitmap_nothing_is_read_or_copied(void *arg)
{
    struct cbw_graph g;
    struct block_status status;

    cbw_graph_open(&g, DISK_SIZE, "", 4);
    assert_int_equal(cbw_reads_original(g.snapshot, 0, 4 * CLUSTER), 1);
    assert_int_equal(cbw_reads_original(g.snapshot, 4 * CLUSTER, 512), -EACCES);
    assert_int_equal(cbw_reads_original(g.snapshot, 3 * CLUSTER, 2 * CLUSTER), -EACCES);
    assert_int_equal(block_co_status(g.snapshot, 0, DISK_SIZE, &status), 0);
    assert_int_equal(status.length, 4 * CLUSTER);
    assert_int_equal(block_co_status(g.snapshot, 5 * CLUSTER, CLUSTER, &status), -EACCES);
    assert_int_equal(cbw_guest_fill(&g, 6 * CLUSTER, CLUSTER, 0xee), 0);
    assert_int_equal(memory_disk_requests(g.temp, MEMORY_DISK_WRITE), 0);
    cbw_graph_close(&g);
}

static void discarding_the_snapshot_releases_it(void *arg)
{
    struct cbw_graph g;

    cbw_graph_open(&g, DISK_SIZE, "", 0);
    assert_int_equal(cbw_guest_fill(&g, 2 * CLUSTER, 4096, 0xee), 0);
    assert_int_equal(block_co_discard(g.snapshot, 2 * CLUSTER, 2 * CLUSTER), 0);
    assert_int_equal(g.temp->data[2 * CLUSTER], 0); /* given back */
    assert_int_equal(cbw_reads_original(g.snapshot, 2 * CLUSTER, 512), -EACCES);
    assert_int_equal(cbw_reads_original(g.snapshot, 3 * CLUSTER, 512), -EACCES);
    assert_int_equal(cbw_guest_fill(&g, 3 * CLUSTER, 4096, 0xee), 0);
    assert_int_equal(memory_disk_requests(g.temp, MEMORY_DISK_WRITE), 1);
    assert_int_equal(cbw_reads_original(g.snapshot, 4 * CLUSTER, 12 * CLUSTER), 1);
    cbw_graph_close(&g);
}

static void discard_of_parts_of_clusters_releases_nothing(void *arg)
{
    struct cbw_graph g;

    cbw_graph_open(&g, DISK_SIZE, "", 0);
    assert_int_equal(block_co_discard(g.snapshot, CLUSTER + 512, 2 * CLUSTER - 1024), 0);
    assert_int_equal(cbw_reads_original(g.snapshot, 0, DISK_SIZE), 1);
    cbw_graph_close(&g);
}

static void release_during_the_copy_leaves_nothing_in_the_target(void *arg)
{
    struct cbw_graph g;
    struct background writer;
    struct request w = {.g = &g, .offset = CLUSTER, .length = 4096};

    cbw_graph_open(&g, DISK_SIZE, "", 0);
    memory_disk_hold(g.temp, MEMORY_DISK_WRITE, 1);
    background_start(&writer, guest_write, &w);
    assert_int_equal(memory_disk_held(g.temp), 1);
    assert_int_equal(block_co_discard(g.snapshot, CLUSTER, CLUSTER), 0);
    memory_disk_release(g.temp);
    background_finish(&writer);
    assert_int_equal(w.ret, 0);
    assert_int_equal(g.temp->data[CLUSTER], 0);
    assert_int_equal(cbw_reads_original(g.snapshot, CLUSTER, 512), -EACCES);
    cbw_graph_close(&g);
}

static void snapshot_cannot_be_written(void *arg)
{
    struct cbw_graph g;
    uint8_t sector[512] = {0};

    cbw_graph_open(&g, DISK_SIZE, "", 0);
    assert_int_equal(block_co_pwrite(g.snapshot, 0, sector, sizeof(sector), 0), -EROFS);
    assert_int_equal(block_co_write_zeroes(g.snapshot, 0, CLUSTER, 0), -EROFS);
    cbw_graph_close(&g);
}

static void status_tells_zeroes_before_and_after_the_copy(void *arg)
{
    struct cbw_graph g;
    struct block_status status;

    cbw_graph_open(&g, DISK_SIZE, "", 0);
    memset(g.disk->data + 2 * CLUSTER, 0, CLUSTER);
    memset(g.disk->written + 2 * CLUSTER / 4096, 0, CLUSTER / 4096);
    assert_int_equal(block_co_status(g.snapshot, 2 * CLUSTER, DISK_SIZE, &status), 0);
    assert_true(status.flags & BLOCK_STATUS_ZERO);
    assert_int_equal(status.length, CLUSTER);
    assert_int_equal(cbw_guest_fill(&g, CLUSTER, 2 * CLUSTER, 0xee), 0);
    assert_int_equal(block_co_status(g.snapshot, CLUSTER, 1, &status), 0);
    assert_true(status.flags & BLOCK_STATUS_DATA);
    assert_false(status.flags & BLOCK_STATUS_OFFSET);
    cbw_graph_close(&g);
}

/* --- who waits for whom --- */

static void fleecing_read_does_not_wait_for_a_copy_in_flight(void *arg)
{
    struct cbw_graph g;
    struct background writer, reader;
    struct request w = {.g = &g, .offset = CLUSTER, .length = 4096};
    struct request r = {.g = &g, .offset = 0, .length = DISK_SIZE};

    cbw_graph_open(&g, DISK_SIZE, "", 0);
    memory_disk_hold(g.temp, MEMORY_DISK_WRITE, 1);
    background_start(&writer, guest_write, &w);
    assert_false(writer.done);
    background_start(&reader, snapshot_read, &r);
    assert_true(reader.done);
    assert_int_equal(r.ret, 1);
    assert_false(writer.done);
    memory_disk_release(g.temp);
    background_finish(&writer);
    assert_int_equal(w.ret, 0);
    cbw_graph_close(&g);
}

static void guest_write_waits_for_a_fleecing_read_of_its_bytes(void *arg)
{
    struct cbw_graph g;
    struct background writer, reader;
    struct request w = {.g = &g, .offset = CLUSTER, .length = 4096};
    struct request r = {.g = &g, .offset = CLUSTER, .length = CLUSTER};

    cbw_graph_open(&g, DISK_SIZE, "", 0);
    memory_disk_hold(g.disk, MEMORY_DISK_READ, 1);
    background_start(&reader, snapshot_read, &r);
    assert_int_equal(memory_disk_held(g.disk), 1);
    background_start(&writer, guest_write, &w);
    assert_false(writer.done);
    assert_int_equal(g.disk->data[CLUSTER], 2); /* not yet written */
    memory_disk_release(g.disk);
    background_finish(&reader);
    background_finish(&writer);
    assert_int_equal(r.ret, 1);
    assert_int_equal(w.ret, 0);
    assert_int_equal(g.disk->data[CLUSTER], 0xee);
    cbw_graph_close(&g);
}

static void guest_write_elsewhere_does_not_wait_for_a_fleecing_read(void *arg)
{
    struct cbw_graph g;
    struct background writer, reader;
    struct request w = {.g = &g, .offset = 4 * CLUSTER, .length = 4096};
    struct request r = {.g = &g, .offset = CLUSTER, .length = CLUSTER};

    cbw_graph_open(&g, DISK_SIZE, "", 0);
    memory_disk_hold(g.disk, MEMORY_DISK_READ, 1);
    background_start(&reader, snapshot_read, &r);
    background_start(&writer, guest_write, &w);
    assert_true(writer.done);
    assert_false(reader.done);
    memory_disk_release(g.disk);
    background_finish(&reader);
    cbw_graph_close(&g);
}

static void reads_of_copied_clusters_do_not_hold_up_the_guest(void *arg)
{
    struct cbw_graph g;
    struct background writer, reader;
    struct request w = {.g = &g, .offset = CLUSTER, .length = 4096};
    struct request r = {.g = &g, .offset = CLUSTER, .length = CLUSTER};

    cbw_graph_open(&g, DISK_SIZE, "", 0);
    assert_int_equal(cbw_guest_fill(&g, CLUSTER, 4096, 0xaa), 0);
    memory_disk_hold(g.temp, MEMORY_DISK_READ, 1);
    background_start(&reader, snapshot_read, &r);
    assert_int_equal(memory_disk_held(g.temp), 1);
    background_start(&writer, guest_write, &w);
    assert_true(writer.done);
    memory_disk_release(g.temp);
    background_finish(&reader);
    assert_int_equal(r.ret, 1);
    cbw_graph_close(&g);
}

static void clusters_of_one_write_are_copied_in_parallel(void *arg)
{
    struct cbw_graph g;
    struct background writer;
    struct request w = {.g = &g, .offset = 0, .length = DISK_SIZE};

    cbw_graph_open(&g, DISK_SIZE, "", 0);
    memory_disk_hold(g.temp, MEMORY_DISK_WRITE, 1000);
    background_start(&writer, guest_write, &w);
    assert_int_equal(memory_disk_held(g.temp), DISK_SIZE / (256 * 1024));
    memory_disk_release(g.temp);
    background_finish(&writer);
    assert_int_equal(cbw_reads_original(g.snapshot, 0, DISK_SIZE), 1);
    cbw_graph_close(&g);
}

static void two_writes_share_one_copy(void *arg)
{
    struct cbw_graph g;
    struct background first, second;
    struct request a = {.g = &g, .offset = CLUSTER, .length = 4096};
    struct request b = {.g = &g, .offset = CLUSTER + 4096, .length = CLUSTER};

    cbw_graph_open(&g, DISK_SIZE, "", 0);
    memory_disk_hold(g.temp, MEMORY_DISK_WRITE, 1);
    background_start(&first, guest_write, &a);
    background_start(&second, guest_write, &b);
    assert_false(second.done);
    memory_disk_release(g.temp);
    background_finish(&first);
    background_finish(&second);
    assert_int_equal(memory_disk_requests(g.temp, MEMORY_DISK_WRITE), 2);
    assert_int_equal(cbw_reads_original(g.snapshot, 0, DISK_SIZE), 1);
    cbw_graph_close(&g);
}

/* --- failing copies --- */

static void failed_copy_breaks_the_guest_write_by_default(void *arg)
{
    struct cbw_graph g;

    cbw_graph_open(&g, DISK_SIZE, "", 0);
    memory_disk_fail(g.temp, MEMORY_DISK_WRITE, ENOSPC);
    assert_int_equal(cbw_guest_fill(&g, CLUSTER, 4096, 0xee), -ENOSPC);
    assert_int_equal(g.disk->data[CLUSTER], 2);
    assert_int_equal(cbw_reads_original(g.snapshot, 0, DISK_SIZE), 1);
    memory_disk_fail(g.temp, 0, 0);
    assert_int_equal(cbw_guest_fill(&g, CLUSTER, 4096, 0xee), 0);
    assert_int_equal(cbw_reads_original(g.snapshot, 0, DISK_SIZE), 1);
    cbw_graph_close(&g);
}

static void failed_copy_breaks_the_snapshot_if_told_so(void *arg)
{
    struct cbw_graph g;
    struct block_status status;

    cbw_graph_open(&g, DISK_SIZE, ",\"on-cbw-error\":\"break-snapshot\"", 0);
    memory_disk_fail(g.temp, MEMORY_DISK_WRITE, ENOSPC);
    assert_int_equal(cbw_guest_fill(&g, CLUSTER, 4096, 0xee), 0);
    assert_int_equal(g.disk->data[CLUSTER], 0xee);
    assert_int_equal(cbw_reads_original(g.snapshot, 5 * CLUSTER, 512), -EACCES);
    assert_int_equal(block_co_status(g.snapshot, 0, CLUSTER, &status), -EACCES);
    memory_disk_fail(g.temp, 0, 0);
    assert_int_equal(cbw_guest_fill(&g, 9 * CLUSTER, 4096, 0xee), 0);
    assert_int_equal(cbw_reads_original(g.snapshot, 5 * CLUSTER, 512), -EACCES);
    cbw_graph_close(&g);
}

static void timeout_breaks_the_guest_write_by_default(void *arg)
{
    struct cbw_graph g;

    cbw_graph_open(&g, DISK_SIZE, ",\"cbw-timeout\":1", 0);
    memory_disk_hold(g.temp, MEMORY_DISK_WRITE, 1);
    assert_int_equal(cbw_guest_fill(&g, CLUSTER, 4096, 0xee), -ETIMEDOUT);
    assert_int_equal(g.disk->data[CLUSTER], 2);
    assert_int_equal(cbw_reads_original(g.snapshot, 0, DISK_SIZE), 1);
    memory_disk_release(g.temp);
    assert_int_equal(cbw_guest_fill(&g, CLUSTER, 4096, 0xee), 0);
    assert_int_equal(cbw_reads_original(g.snapshot, 0, DISK_SIZE), 1);
    cbw_graph_close(&g);
}

static void timeout_breaks_the_snapshot_if_told_so(void *arg)
{
    struct cbw_graph g;

    cbw_graph_open(&g, DISK_SIZE, ",\"cbw-timeout\":1,\"on-cbw-error\":\"break-snapshot\"", 0);
    memory_disk_hold(g.temp, MEMORY_DISK_WRITE, 1);
    assert_int_equal(cbw_guest_fill(&g, CLUSTER, 4096, 0xee), 0);
    assert_int_equal(g.disk->data[CLUSTER], 0xee);
    assert_int_equal(cbw_reads_original(g.snapshot, 0, 512), -EACCES);
    memory_disk_release(g.temp);
    cbw_graph_close(&g);
}

static void drain_both(void *arg)
{
    struct cbw_graph *g = arg;

    block_co_drain_begin(g->temp_node);
    block_co_drain_begin(g->disk_node);
    block_drain_end(g->disk_node);
    block_drain_end(g->temp_node);
}

static void drain_waits_for_a_copy_whose_write_gave_up(void *arg)
{
    struct background drain;
    struct cbw_graph g;

    cbw_graph_open(&g, DISK_SIZE, ",\"cbw-timeout\":1", 0);
    memory_disk_hold(g.temp, MEMORY_DISK_WRITE, 1);
    assert_int_equal(cbw_guest_fill(&g, CLUSTER, 4096, 0xee), -ETIMEDOUT);
    background_start(&drain, drain_both, &g);
    loop_co_sleep(5000000);
    assert_false(drain.done);
    memory_disk_release(g.temp);
    background_finish(&drain);
    cbw_graph_close(&g);
}

struct frozen_read {
    struct cbw_graph *g;
    int ret;
};

static void read_cluster_1(void *arg)
{
    struct frozen_read *r = arg;

    r->ret = cbw_reads_original(r->g->snapshot, CLUSTER, CLUSTER);
}

static void release_cluster_1(void *arg)
{
    struct frozen_read *r = arg;

    r->ret = block_co_discard(r->g->snapshot, CLUSTER, CLUSTER);
}

/*
 * What a read that is under way is reading may not vanish under it; later ones are refused at once.
 */
static void release_waits_for_reads_of_copied_clusters(void *arg)
{
    struct background reader, releaser;
    struct cbw_graph g;
    struct frozen_read read = {.g = &g}, release = {.g = &g, .ret = 1};

    cbw_graph_open(&g, DISK_SIZE, "", 0);
    assert_int_equal(cbw_guest_fill(&g, CLUSTER, 4096, 0xee), 0);
    memory_disk_hold(g.temp, MEMORY_DISK_READ, 1);
    background_start(&reader, read_cluster_1, &read);
    background_start(&releaser, release_cluster_1, &release);
    assert_false(reader.done);
    assert_false(releaser.done);
    assert_int_equal(memory_disk_requests(g.temp, MEMORY_DISK_DISCARD), 0);
    assert_int_equal(cbw_reads_original(g.snapshot, CLUSTER, 512), -EACCES);
    memory_disk_release(g.temp);
    background_finish(&reader);
    background_finish(&releaser);
    assert_int_equal(read.ret, 1);
    assert_int_equal(release.ret, 0);
    assert_int_equal(memory_disk_requests(g.temp, MEMORY_DISK_DISCARD), 1);
    cbw_graph_close(&g);
}

/* --- opening and permissions --- */

static void target_is_not_shared(void *arg)
{
    struct cbw_graph g;
    struct block_root *root;

    cbw_graph_open(&g, DISK_SIZE, "", 0);
    assert_int_equal(block_co_root_new(g.temp_node, "another", BLOCK_PERM_CONSISTENT_READ,
                                       BLOCK_PERM_ALL, &root, NULL),
                     -EPERM);
    cbw_graph_close(&g);
}

static void nobody_writes_behind_a_filter_in_use(void *arg)
{
    struct cbw_graph g;
    struct block_root *root;

    cbw_graph_open(&g, DISK_SIZE, "", 0);
    assert_int_equal(
        block_co_root_new(g.disk_node, "another", BLOCK_PERM_WRITE, BLOCK_PERM_ALL, &root, NULL),
        -EPERM);
    assert_int_equal(block_co_root_new(g.disk_node, "another", BLOCK_PERM_CONSISTENT_READ,
                                       BLOCK_PERM_ALL, &root, NULL),
                     0);
    block_co_root_release(root);
    cbw_graph_close(&g);
}

static void bad_options_are_refused_by_name(void *arg)
{
    struct block_node *disk, *small, *temp;
    const char *message;

    disk = fixture_open("{\"driver\":\"memory-disk\",\"node-name\":\"disk\",\"size\":1048576}");
    small = fixture_open("{\"driver\":\"memory-disk\",\"node-name\":\"small\",\"size\":65536}");
    temp = fixture_open("{\"driver\":\"memory-disk\",\"node-name\":\"temp\",\"size\":1048576}");
    message = fixture_open_fails("{\"driver\":\"copy-before-write\",\"node-name\":\"cbw\","
                                 "\"file\":\"disk\",\"target\":\"small\"}");
    assert_non_null(message);
    assert_non_null(strstr(message, "needs at least 1048576"));
    message = fixture_open_fails("{\"driver\":\"copy-before-write\",\"node-name\":\"cbw\",\"file\":"
                                 "\"disk\",\"target\":\"temp\",\"on-cbw-error\":\"panic\"}");
    assert_non_null(message);
    assert_non_null(strstr(message, "panic"));
    message = fixture_open_fails(
        "{\"driver\":\"copy-before-write\",\"node-name\":\"cbw\",\"file\":\"disk\",\"target\":"
        "\"temp\",\"bitmap\":{\"node\":\"disk\",\"name\":\"none\"}}");
    assert_non_null(message);
    assert_non_null(strstr(message, "none"));
    message = fixture_open_fails("{\"driver\":\"snapshot-access\",\"file\":\"disk\"}");
    assert_non_null(message);
    assert_non_null(strstr(message, "copy-before-write"));
    block_co_unref(temp);
    block_co_unref(small);
    block_co_unref(disk);
}

static void granularity_follows_the_target(void *arg)
{
    struct block_node *disk, *temp, *cbw;
    struct block_root *guest;
    uint8_t sector[512] = {0};

    disk = fixture_open("{\"driver\":\"memory-disk\",\"node-name\":\"disk\",\"size\":4194304}");
    temp = fixture_open("{\"driver\":\"memory-disk\",\"node-name\":\"temp\",\"size\":4194304,"
                        "\"cluster-size\":1048576}");
    memset(memory_disk_of(disk)->data, 7, 4194304);
    memset(memory_disk_of(disk)->written, 1, 1024);
    cbw = fixture_open("{\"driver\":\"copy-before-write\",\"node-name\":\"cbw\",\"file\":\"disk\","
                       "\"target\":\"temp\",\"min-cluster-size\":65536}");
    assert_int_equal(
        block_co_root_new(cbw, "guest", BLOCK_PERM_WRITE, BLOCK_PERM_ALL, &guest, NULL), 0);
    assert_int_equal(block_co_pwrite(block_root_edge(guest), 1048576 + 4096, sector, 512, 0), 0);
    assert_int_equal(memory_disk_of(temp)->data[1048576], 7);
    assert_int_equal(memory_disk_of(temp)->data[2 * 1048576 - 1], 7);
    assert_int_equal(memory_disk_of(temp)->data[2 * 1048576], 0);
    block_co_root_release(guest);
    block_co_unref(cbw);
    block_co_unref(temp);
    block_co_unref(disk);
}

static void filter_comes_and_goes_under_a_live_root(void *arg)
{
    struct block_node *disk, *temp, *cbw;
    struct block_root *guest;
    uint8_t sector[512] = {1};

    disk = fixture_open("{\"driver\":\"memory-disk\",\"node-name\":\"disk\",\"size\":1048576}");
    temp = fixture_open("{\"driver\":\"memory-disk\",\"node-name\":\"temp\",\"size\":1048576}");
    assert_int_equal(block_co_root_new(disk, "guest", BLOCK_PERM_CONSISTENT_READ | BLOCK_PERM_WRITE,
                                       BLOCK_PERM_ALL, &guest, NULL),
                     0);
    cbw = fixture_open("{\"driver\":\"copy-before-write\",\"node-name\":\"cbw\",\"file\":\"disk\","
                       "\"target\":\"temp\"}");
    assert_int_equal(block_co_pwrite(block_root_edge(guest), 0, sector, 512, 0), 0);
    assert_int_equal(memory_disk_requests(memory_disk_of(temp), MEMORY_DISK_WRITE), 0);
    assert_int_equal(block_co_root_replace(guest, cbw, NULL), 0);
    assert_int_equal(block_co_pwrite(block_root_edge(guest), 0, sector, 512, 0), 0);
    assert_int_equal(memory_disk_requests(memory_disk_of(temp), MEMORY_DISK_WRITE), 1);
    assert_int_equal(block_co_flush(block_root_edge(guest)), 0);
    assert_int_equal(memory_disk_requests(memory_disk_of(disk), MEMORY_DISK_FLUSH), 1);
    assert_int_equal(memory_disk_requests(memory_disk_of(temp), MEMORY_DISK_FLUSH), 0);
    assert_int_equal(block_co_root_replace(guest, disk, NULL), 0);
    block_co_unref(cbw);
    assert_int_equal(block_co_pwrite(block_root_edge(guest), 65536, sector, 512, 0), 0);
    block_co_root_release(guest);
    block_co_unref(temp);
    block_co_unref(disk);
}

static int setup(void **state)
{
    block_register_driver(&memory_disk_driver);
    filter_register_drivers();
    log_set_level(LOG_LEVEL_ERROR); /* broken snapshots are meant to break here */
    return co_test_setup();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        CO_TEST(snapshot_reads_old_data_after_a_guest_write),
        CO_TEST(each_cluster_is_copied_once),
        CO_TEST(guest_zeroes_and_discards_are_copied_before),
        CO_TEST(last_partial_cluster_is_copied),
        CO_TEST(zero_areas_are_written_as_zeroes),
        CO_TEST(small_zero_areas_take_no_space),
        CO_TEST(outside_the_bitmap_nothing_is_read_or_copied),
        CO_TEST(discarding_the_snapshot_releases_it),
        CO_TEST(discard_of_parts_of_clusters_releases_nothing),
        CO_TEST(release_during_the_copy_leaves_nothing_in_the_target),
        CO_TEST(snapshot_cannot_be_written),
        CO_TEST(status_tells_zeroes_before_and_after_the_copy),
        CO_TEST(fleecing_read_does_not_wait_for_a_copy_in_flight),
        CO_TEST(guest_write_waits_for_a_fleecing_read_of_its_bytes),
        CO_TEST(guest_write_elsewhere_does_not_wait_for_a_fleecing_read),
        CO_TEST(reads_of_copied_clusters_do_not_hold_up_the_guest),
        CO_TEST(clusters_of_one_write_are_copied_in_parallel),
        CO_TEST(two_writes_share_one_copy),
        CO_TEST(failed_copy_breaks_the_guest_write_by_default),
        CO_TEST(failed_copy_breaks_the_snapshot_if_told_so),
        CO_TEST(timeout_breaks_the_guest_write_by_default),
        CO_TEST(timeout_breaks_the_snapshot_if_told_so),
        CO_TEST(drain_waits_for_a_copy_whose_write_gave_up),
        CO_TEST(release_waits_for_reads_of_copied_clusters),
        CO_TEST(target_is_not_shared),
        CO_TEST(nobody_writes_behind_a_filter_in_use),
        CO_TEST(bad_options_are_refused_by_name),
        CO_TEST(granularity_follows_the_target),
        CO_TEST(filter_comes_and_goes_under_a_live_root),
    };

    return cmocka_run_group_tests(tests, setup, co_test_teardown);
}
