/* SPDX-License-Identifier: Apache-2.0 */
/* What a job uses of copy-before-write: its copies and those of guest writes exclude each other. */
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
#include "base/log.h"
#include "co/sync.h"
#include "filter/cbw_job.h"
#include "filter/filter.h"
#include "loop/loop.h"

#define DISK_SIZE (16ull * CLUSTER)

struct job_graph {
    struct cbw_graph g; /* without a snapshot-access node */
    struct cbw_state *s;
    struct block_root *job;
    struct cbw_job params;
    uint64_t by_guest, by_job;
    unsigned broken;
};

static void count_copied(void *arg, uint64_t bytes, bool by_guest)
{
    struct job_graph *j = arg;

    *(by_guest ? &j->by_guest : &j->by_job) += bytes;
}

static void count_broken(void *arg)
{
    ((struct job_graph *)arg)->broken++;
}

static struct block_root *attach(struct block_node *node, const char *user, unsigned perm)
{
    struct block_root *root;

    assert_int_equal(block_co_root_new(node, user, perm, BLOCK_PERM_ALL, &root, NULL), 0);
    return root;
}

static struct block_node *open_disk(const char *name, struct memory_disk **ret)
{
    char json[128];
    struct block_node *node;

    snprintf(json, sizeof(json), "{\"driver\":\"memory-disk\",\"node-name\":\"%s\",\"size\":%llu}",
             name, DISK_SIZE);
    node = fixture_open(json);
    *ret = memory_disk_of(node);
    return node;
}

/* A guest on a disk, and a filter for a job between them; `params` without its functions. */
static void job_graph_open(struct job_graph *j, struct cbw_job params, const char *options)
{
    struct cbw_graph *g = &j->g;
    struct options *opts;
    char json[256];

    memset(j, 0, sizeof(*j));
    j->params = params;
    j->params.copied = count_copied;
    j->params.broken = count_broken;
    j->params.arg = j;
    g->disk_node = open_disk("disk", &g->disk);
    g->temp_node = open_disk("temp", &g->temp);
    for (uint64_t at = 0; at < DISK_SIZE; at += CLUSTER) {
        memset(g->disk->data + at, (int)(at / CLUSTER + 1), CLUSTER);
    }
    memset(g->disk->written, 1, DISK_SIZE / 4096 + 1);
    g->guest_root = attach(g->disk_node, "guest", BLOCK_PERM_CONSISTENT_READ | BLOCK_PERM_WRITE);
    g->guest = block_root_edge(g->guest_root);
    snprintf(json, sizeof(json),
             "{\"driver\":\"copy-before-write\",\"node-name\":\"cbw\",\"file\":\"disk\","
             "\"target\":\"temp\",\"on-cbw-error\":\"break-snapshot\"%s%s}",
             strstr(options, "min-cluster-size") ? "" : ",\"min-cluster-size\":65536", options);
    assert_int_equal(options_parse(json, NULL, &opts, NULL), 0);
    assert_int_equal(block_co_open_hidden(opts, BLOCK_OPEN_RDWR, &g->cbw_node, NULL), 0);
    j->s = cbw_of_node(g->cbw_node);
    assert_non_null(j->s);
    assert_null(cbw_of_node(g->disk_node));
    assert_int_equal(cbw_set_job(j->s, &j->params, NULL), 0);
    block_co_drain_begin(g->disk_node);
    block_co_change_begin();
    assert_int_equal(block_co_publish(g->cbw_node, NULL), 0);
    assert_int_equal(block_co_root_replace(g->guest_root, g->cbw_node, NULL), 0);
    assert_int_equal(block_co_change_settle(NULL), 0);
    block_co_change_end();
    j->job = attach(g->cbw_node, "job", 0);
    block_drain_end(g->disk_node);
}

static void job_graph_close(struct job_graph *j)
{
    struct cbw_graph *g = &j->g;

    block_co_root_release(j->job);
    assert_int_equal(block_co_root_replace(g->guest_root, g->disk_node, NULL), 0);
    block_co_unref(g->cbw_node);
    block_co_root_release(g->guest_root);
    block_co_unref(g->temp_node);
    block_co_unref(g->disk_node);
}

static bool target_is_original(struct job_graph *j, uint64_t offset, uint64_t length)
{
    for (uint64_t i = offset; i < offset + length; i++) {
        if (j->g.temp->data[i] != (uint8_t)(i / CLUSTER + 1)) {
            return false;
        }
    }
    return true;
}

struct request {
    struct job_graph *j;
    uint64_t offset, length;
    int r;
};

static void guest_write(void *arg)
{
    struct request *q = arg;

    q->r = cbw_guest_fill(&q->j->g, q->offset, q->length, 0xee);
}

static void job_copy(void *arg)
{
    struct request *q = arg;
    bool reading;

    q->r = cbw_co_copy(q->j->s, q->offset, q->length, &reading);
}

static void each_cluster_is_copied_once_by_whoever_comes_first(void *arg)
{
    struct job_graph j;
    bool reading;

    job_graph_open(&j, (struct cbw_job){0}, "");
    assert_int_equal(cbw_uncopied_bytes(j.s), DISK_SIZE);
    assert_int_equal(cbw_guest_fill(&j.g, 3 * CLUSTER + 512, 512, 0xee), 0);
    assert_int_equal(j.by_guest, CLUSTER);
    assert_int_equal(cbw_co_copy(j.s, 0, DISK_SIZE, &reading), 0);
    assert_int_equal(j.by_job, 15 * CLUSTER);
    assert_int_equal(cbw_uncopied_bytes(j.s), 0);
    assert_int_equal(cbw_guest_fill(&j.g, 0, DISK_SIZE, 0xee), 0);
    assert_int_equal(j.by_guest, CLUSTER);
    assert_true(target_is_original(&j, 0, DISK_SIZE));
    job_graph_close(&j);
}

/* The guest has copied pages here and there; the job copies the rest, and what it may skip. */
static void job_fills_what_guest_writes_left(void *arg)
{
    struct job_graph j;
    uint64_t guest = 0;
    bool reading;

    job_graph_open(&j, (struct cbw_job){0}, ",\"min-cluster-size\":0");
    for (uint64_t at = 4096; at < 4 * CLUSTER; at += 5 * 4096, guest += 4096) {
        assert_int_equal(cbw_guest_fill(&j.g, at, 512, 0xee), 0);
    }
    assert_int_equal(j.by_guest, guest);
    assert_int_equal(cbw_uncopied_bytes(j.s), DISK_SIZE - guest);
    assert_int_equal(cbw_co_copy(j.s, CLUSTER, 2 * CLUSTER, &reading), 0);
    cbw_skip(j.s, 0, 2 * CLUSTER); /* nothing: what is copied in part is copied as a whole */
    assert_int_equal(cbw_co_copy(j.s, 0, DISK_SIZE, &reading), 0);
    assert_int_equal(j.by_job, DISK_SIZE - guest);
    assert_int_equal(cbw_uncopied_bytes(j.s), 0);
    assert_true(target_is_original(&j, 0, DISK_SIZE));
    job_graph_close(&j);
}

static void some_jobs_copy_whole_clusters(void *arg)
{
    struct job_graph j;

    job_graph_open(&j, (struct cbw_job){.skip_unallocated = true}, ",\"min-cluster-size\":0");
    assert_int_equal(cbw_guest_fill(&j.g, 3 * CLUSTER + 8192, 512, 0xee), 0);
    assert_int_equal(j.by_guest, CLUSTER);
    job_graph_close(&j);
}

static void guest_write_waits_for_the_jobs_copy(void *arg)
{
    struct job_graph j;
    struct background copier, writer;
    struct request c = {.j = &j, .length = CLUSTER}, w = {.j = &j, .length = 512};

    job_graph_open(&j, (struct cbw_job){0}, "");
    memory_disk_hold(j.g.temp, MEMORY_DISK_WRITE, 1);
    background_start(&copier, job_copy, &c);
    background_start(&writer, guest_write, &w);
    assert_false(writer.done);
    assert_int_equal(cbw_guest_fill(&j.g, CLUSTER, 512, 0xee), 0); /* others go on */
    memory_disk_release(j.g.temp);
    background_finish(&copier);
    background_finish(&writer);
    assert_int_equal(c.r, 0);
    assert_int_equal(w.r, 0);
    assert_int_equal(j.by_job, CLUSTER);
    assert_int_equal(j.by_guest, CLUSTER);
    assert_true(target_is_original(&j, 0, 2 * CLUSTER));
    job_graph_close(&j);
}

static void job_waits_for_the_copy_of_a_guest_write(void *arg)
{
    struct job_graph j;
    struct background copier, writer;
    struct request c = {.j = &j, .length = 2 * CLUSTER}, w = {.j = &j, .length = 512};

    job_graph_open(&j, (struct cbw_job){0}, "");
    memory_disk_hold(j.g.temp, MEMORY_DISK_WRITE, 1);
    background_start(&writer, guest_write, &w);
    background_start(&copier, job_copy, &c);
    assert_false(copier.done);
    memory_disk_release(j.g.temp);
    background_finish(&copier);
    background_finish(&writer);
    assert_int_equal(j.by_guest, CLUSTER);
    assert_int_equal(j.by_job, CLUSTER);
    job_graph_close(&j);
}

static void failed_copy_of_the_job_leaves_the_guest_alone(void *arg)
{
    struct job_graph j;
    bool reading = true;

    job_graph_open(&j, (struct cbw_job){0}, "");
    memory_disk_fail(j.g.temp, MEMORY_DISK_WRITE, ENOSPC);
    assert_int_equal(cbw_co_copy(j.s, 0, CLUSTER, &reading), -ENOSPC);
    assert_false(reading);
    memory_disk_fail(j.g.temp, 0, 0);
    memory_disk_fail(j.g.disk, MEMORY_DISK_READ, EIO);
    assert_int_equal(cbw_co_copy(j.s, 0, CLUSTER, &reading), -EIO);
    assert_true(reading);
    memory_disk_fail(j.g.disk, 0, 0);
    assert_int_equal(j.broken, 0);
    assert_int_equal(cbw_uncopied_bytes(j.s), DISK_SIZE);
    assert_int_equal(cbw_co_copy(j.s, 0, CLUSTER, &reading), 0); /* the same piece again */
    job_graph_close(&j);
}

static void failed_copy_of_a_guest_write_fails_the_job(void *arg)
{
    struct job_graph j;
    bool reading = true;

    job_graph_open(&j, (struct cbw_job){0}, "");
    assert_int_equal(cbw_error(j.s, &reading), 0);
    memory_disk_fail(j.g.temp, MEMORY_DISK_WRITE, ENOSPC);
    assert_int_equal(cbw_guest_fill(&j.g, 0, 512, 0xee), 0);
    assert_int_equal(j.broken, 1);
    memory_disk_fail(j.g.temp, 0, 0);
    assert_int_equal(cbw_co_copy(j.s, 5 * CLUSTER, CLUSTER, &reading), -ENOSPC);
    assert_false(reading);
    assert_int_equal(cbw_error(j.s, &reading), -ENOSPC);
    assert_int_equal(cbw_guest_fill(&j.g, CLUSTER, 512, 0xee), 0);
    assert_int_equal(j.by_guest, 0);
    job_graph_close(&j);
}

static void uncopied_clusters_are_known_at_the_end(void *arg)
{
    struct dirty_bitmap *bits = dirty_bitmap_new(DISK_SIZE, 4096);
    struct dirty_bitmap *left = dirty_bitmap_new(DISK_SIZE, CLUSTER);
    struct job_graph j;
    uint64_t offset, length;
    bool reading;

    job_graph_open(&j, (struct cbw_job){0}, "");
    dirty_bitmap_set(bits, 2 * CLUSTER + 4096, 4096);
    dirty_bitmap_set(bits, 4 * CLUSTER, 3 * CLUSTER);
    assert_int_equal(cbw_restrict(j.s, bits, NULL), 0);
    assert_int_equal(cbw_uncopied_bytes(j.s), 4 * CLUSTER);
    assert_int_equal(cbw_guest_fill(&j.g, 0, 512, 0xee), 0);
    assert_int_equal(cbw_guest_fill(&j.g, 4 * CLUSTER, 512, 0xee), 0);
    assert_int_equal(cbw_co_copy(j.s, 0, 3 * CLUSTER, &reading), 0);
    assert_true(cbw_next_uncopied(j.s, 0, DISK_SIZE, &offset, &length));
    assert_int_equal(offset, 5 * CLUSTER);
    assert_int_equal(length, 2 * CLUSTER);
    cbw_skip(j.s, 6 * CLUSTER, DISK_SIZE);
    cbw_skip(j.s, 4 * CLUSTER, 2 * CLUSTER - 1); /* copied, and a part */
    cbw_merge_uncopied(j.s, left);
    assert_int_equal(dirty_bitmap_count(left), CLUSTER);
    assert_true(dirty_bitmap_get(left, 5 * CLUSTER));
    assert_int_equal(j.by_guest, CLUSTER);
    assert_int_equal(j.by_job, CLUSTER);
    dirty_bitmap_free(bits);
    dirty_bitmap_free(left);
    job_graph_close(&j);
}

static void source_is_discarded_before_the_guest_writes(void *arg)
{
    struct job_graph j;
    struct background copier, writer;
    struct request c = {.j = &j, .length = CLUSTER}, w = {.j = &j, .length = 512};
    uint8_t byte;

    job_graph_open(&j, (struct cbw_job){.discard_source = true}, "");
    memory_disk_hold(j.g.disk, MEMORY_DISK_DISCARD, 1);
    background_start(&copier, job_copy, &c);
    background_start(&writer, guest_write, &w);
    assert_int_equal(memory_disk_held(j.g.disk), 1);
    assert_false(writer.done);
    memory_disk_release(j.g.disk);
    background_finish(&copier);
    background_finish(&writer);
    assert_int_equal(block_co_pread(j.g.guest, 0, &byte, 1), 0);
    assert_int_equal(byte, 0xee);
    assert_int_equal(j.g.disk->data[1024], 0);
    assert_true(target_is_original(&j, 0, CLUSTER));
    job_graph_close(&j);
}

static void stopped_filter_copies_no_more(void *arg)
{
    struct job_graph j;
    bool reading;

    job_graph_open(&j, (struct cbw_job){0}, "");
    cbw_stop(j.s);
    assert_int_equal(cbw_guest_fill(&j.g, 0, CLUSTER, 0xee), 0);
    assert_int_equal(memory_disk_requests(j.g.temp, MEMORY_DISK_WRITE), 0);
    assert_int_equal(cbw_co_copy(j.s, 0, CLUSTER, &reading), -ECANCELED);
    assert_int_equal(j.broken, 0);
    job_graph_close(&j);
}

static void others_read_the_target_of_a_job(void *arg)
{
    struct job_graph j;
    struct block_root *reader;

    job_graph_open(&j, (struct cbw_job){0}, "");
    reader = attach(j.g.temp_node, "reader", BLOCK_PERM_CONSISTENT_READ);
    block_co_root_release(reader);
    assert_int_equal(
        block_co_root_new(j.g.disk_node, "writer", BLOCK_PERM_WRITE, BLOCK_PERM_ALL, &reader, NULL),
        -EPERM);
    job_graph_close(&j);
}

/* --- old data in memory ----------------------------------------------------------------------- */

#define UNIT 4096u
#define HOLDING ((struct cbw_job){.hold_bytes = 8 * CLUSTER})
#define PARTS ",\"min-cluster-size\":0"

static unsigned target_writes(const struct job_graph *j)
{
    return (unsigned)memory_disk_requests(j->g.temp, MEMORY_DISK_WRITE);
}

/* The target hangs; the job writes what guests have left there in one piece with the rest. */
static void held_data_wait_for_the_job(void *arg)
{
    struct job_graph j;
    bool reading;

    job_graph_open(&j, HOLDING, PARTS);
    memory_disk_hold(j.g.temp, MEMORY_DISK_WRITE, 1);
    for (unsigned i = 0; i < 4; i++) {
        assert_int_equal(cbw_guest_fill(&j.g, (2 * i + 1) * UNIT, UNIT, 0xee), 0);
    }
    assert_int_equal(cbw_guest_fill(&j.g, UNIT, UNIT, 0xdd), 0); /* again */
    assert_int_equal(cbw_guest_fill(&j.g, 3 * CLUSTER - UNIT, 2 * UNIT, 0xee), 0);
    memory_disk_release(j.g.temp);
    assert_int_equal(j.by_guest, 6 * UNIT);
    assert_int_equal(cbw_uncopied_bytes(j.s), DISK_SIZE - 6 * UNIT);
    assert_int_equal(target_writes(&j), 0);
    assert_int_equal(cbw_co_copy(j.s, 0, CLUSTER, &reading), 0);
    assert_int_equal(target_writes(&j), 1);
    assert_true(target_is_original(&j, 0, CLUSTER));
    assert_int_equal(cbw_co_copy(j.s, 0, DISK_SIZE, &reading), 0);
    assert_true(target_is_original(&j, 0, DISK_SIZE));
    assert_int_equal(j.by_guest + j.by_job, DISK_SIZE);
    job_graph_close(&j);
}

/* What the guest writes while the job reads the place again is not what the job writes. */
static void guest_writes_to_what_is_held_during_the_copy(void *arg)
{
    struct job_graph j;
    struct background copier, writer;
    struct request c = {.j = &j, .length = CLUSTER}, w = {.j = &j, .length = UNIT};

    job_graph_open(&j, HOLDING, PARTS);
    assert_int_equal(cbw_guest_fill(&j.g, 0, UNIT, 0xee), 0);
    memory_disk_hold(j.g.disk, MEMORY_DISK_READ, 1);
    background_start(&copier, job_copy, &c);
    background_start(&writer, guest_write, &w);
    memory_disk_release(j.g.disk);
    background_finish(&copier);
    background_finish(&writer);
    assert_int_equal(c.r, 0);
    assert_int_equal(w.r, 0);
    assert_true(target_is_original(&j, 0, CLUSTER));
    job_graph_close(&j);
}

/* A piece in flight, to a target that hangs: the guest holds what it overwrites, and goes on. */
static void guest_does_not_wait_for_a_piece_in_flight(void *arg)
{
    struct job_graph j;
    struct background copier, writer;
    struct request c = {.j = &j, .length = CLUSTER}, w = {.j = &j, .length = 2 * UNIT};

    job_graph_open(&j, HOLDING, PARTS);
    memory_disk_hold(j.g.temp, MEMORY_DISK_WRITE, 1);
    background_start(&copier, job_copy, &c);
    while (memory_disk_held(j.g.temp) == 0) {
        co_reschedule();
    }
    background_start(&writer, guest_write, &w);
    background_finish(&writer);
    assert_int_equal(w.r, 0);
    assert_int_equal(cbw_guest_fill(&j.g, UNIT, 2 * UNIT, 0xdd), 0);
    memory_disk_release(j.g.temp);
    background_finish(&copier);
    assert_int_equal(c.r, 0);
    assert_true(target_is_original(&j, 0, CLUSTER));
    assert_int_equal(j.by_guest, 3 * UNIT);
    assert_int_equal(j.by_guest + j.by_job, CLUSTER);
    job_graph_close(&j);
}

/* What the job reads after the guest's write is not what the target has at the end. */
static void guest_overwrites_what_a_piece_is_about_to_read(void *arg)
{
    struct job_graph j;
    struct background copier, writer;
    struct request c = {.j = &j, .length = CLUSTER};
    struct request w = {.j = &j, .offset = UNIT, .length = UNIT};

    job_graph_open(&j, HOLDING, PARTS);
    memory_disk_hold(j.g.disk, MEMORY_DISK_READ, 1);
    background_start(&copier, job_copy, &c);
    while (memory_disk_held(j.g.disk) == 0) {
        co_reschedule();
    }
    background_start(&writer, guest_write, &w);
    background_finish(&writer);
    assert_int_equal(w.r, 0);
    memory_disk_release(j.g.disk);
    background_finish(&copier);
    assert_int_equal(c.r, 0);
    assert_true(target_is_original(&j, 0, CLUSTER));
    job_graph_close(&j);
}

/*
 * A piece ends while a guest's write still reads, to hold it, what that piece had: the next write
 * to the same unit waits, or what it writes would be held.
 */
static void guest_waits_for_what_another_still_reads(void *arg)
{
    struct job_graph j;
    struct background copier, first, second;
    struct request c = {.j = &j, .length = CLUSTER};
    struct request w1 = {.j = &j, .length = 512}, w2 = {.j = &j, .offset = 512, .length = 512};

    job_graph_open(&j, HOLDING, PARTS);
    memory_disk_hold(j.g.temp, MEMORY_DISK_WRITE, 1);
    background_start(&copier, job_copy, &c);
    while (memory_disk_held(j.g.temp) == 0) {
        co_reschedule();
    }
    memory_disk_hold(j.g.disk, MEMORY_DISK_READ, 1);
    background_start(&first, guest_write, &w1);
    assert_int_equal(memory_disk_held(j.g.disk), 1);
    memory_disk_release(j.g.temp);
    while (j.by_job == 0) {
        co_reschedule();
    }
    background_start(&second, guest_write, &w2);
    let_others_run();
    memory_disk_release(j.g.disk);
    background_finish(&first);
    background_finish(&second);
    background_finish(&copier);
    assert_int_equal(w1.r, 0);
    assert_int_equal(w2.r, 0);
    assert_int_equal(c.r, 0);
    assert_true(target_is_original(&j, 0, CLUSTER));
    job_graph_close(&j);
}

/* The area of a piece that turns out to need no copy, while another copy still reads it. */
static void guest_waits_where_a_piece_reads_what_is_skipped(void *arg)
{
    struct job_graph j;
    struct background copier, writer;
    struct request c = {.j = &j, .length = 2 * CLUSTER}, w = {.j = &j, .length = UNIT};

    job_graph_open(&j, HOLDING, PARTS);
    memory_disk_hold(j.g.disk, MEMORY_DISK_READ, 1);
    background_start(&copier, job_copy, &c);
    while (memory_disk_held(j.g.disk) == 0) {
        co_reschedule();
    }
    cbw_skip(j.s, 0, CLUSTER);
    background_start(&writer, guest_write, &w);
    let_others_run();
    assert_int_equal(j.g.disk->data[0], 1);
    memory_disk_release(j.g.disk);
    background_finish(&copier);
    background_finish(&writer);
    assert_int_equal(w.r, 0);
    assert_true(target_is_original(&j, 0, 2 * CLUSTER));
    job_graph_close(&j);
}

/* Without room the guest waits for the piece: what that reads is what the target gets. */
static void guest_waits_for_a_piece_when_memory_is_full(void *arg)
{
    struct job_graph j;
    struct background copier, writer;
    struct request c = {.j = &j, .offset = 9 * CLUSTER, .length = CLUSTER};
    struct request w = {.j = &j, .offset = 9 * CLUSTER, .length = UNIT};

    job_graph_open(&j, HOLDING, PARTS);
    assert_int_equal(cbw_guest_fill(&j.g, 0, 8 * CLUSTER, 0xee), 0);
    memory_disk_hold(j.g.disk, MEMORY_DISK_READ, 1);
    background_start(&copier, job_copy, &c);
    while (memory_disk_held(j.g.disk) == 0) {
        co_reschedule();
    }
    background_start(&writer, guest_write, &w);
    let_others_run();
    assert_int_equal(j.g.disk->data[9 * CLUSTER], 10);
    memory_disk_release(j.g.disk);
    background_finish(&copier);
    background_finish(&writer);
    assert_int_equal(w.r, 0);
    assert_true(target_is_original(&j, 9 * CLUSTER, CLUSTER));
    job_graph_close(&j);
}

/* With a speed limit: what is held, and nothing around it. */
static void a_slow_job_writes_only_what_is_held(void *arg)
{
    struct cbw_held_step step = {.held_only = true, .more = true};
    struct job_graph j;

    job_graph_open(&j, HOLDING, PARTS);
    for (uint64_t at = 0; at < DISK_SIZE; at += 2 * UNIT) {
        if (at / CLUSTER < 12) {
            assert_int_equal(cbw_guest_fill(&j.g, at, UNIT, 0xee), 0);
        }
    }
    while (step.more) {
        assert_int_equal(cbw_co_write_held(j.s, &step), 0);
    }
    assert_int_equal(step.copied, 2 * CLUSTER);
    assert_int_equal(memory_disk_requests(j.g.temp, MEMORY_DISK_WRITE), 2 * CLUSTER / UNIT);
    job_graph_close(&j);
}

static void guests_copy_when_memory_is_full(void *arg)
{
    struct job_graph j;
    struct cbw_held_step step = {.more = true};
    bool reading;

    job_graph_open(&j, HOLDING, PARTS);
    for (uint64_t at = 0; at < 8 * CLUSTER; at += CLUSTER) {
        assert_int_equal(cbw_guest_fill(&j.g, at, CLUSTER, 0xee), 0);
    }
    assert_int_equal(target_writes(&j), 0);
    assert_int_equal(cbw_guest_fill(&j.g, 10 * CLUSTER, UNIT, 0xee), 0);
    assert_int_equal(target_writes(&j), 1);
    while (step.more) { /* down to the half: four clusters at once */
        assert_int_equal(cbw_co_write_held(j.s, &step), 0);
    }
    assert_int_equal(step.copied, 4 * CLUSTER);
    assert_int_equal(target_writes(&j), 1 + 1);
    assert_true(target_is_original(&j, 0, 4 * CLUSTER));
    assert_int_equal(cbw_guest_fill(&j.g, 11 * CLUSTER, UNIT, 0xee), 0);
    assert_int_equal(target_writes(&j), 1 + 1);
    assert_int_equal(cbw_co_copy(j.s, 0, DISK_SIZE, &reading), 0);
    assert_true(target_is_original(&j, 0, DISK_SIZE));
    job_graph_close(&j);
}

/* A failure is the job's, which may try again; until then the data count as not copied. */
static void held_data_survive_a_failed_copy(void *arg)
{
    struct dirty_bitmap *left = dirty_bitmap_new(DISK_SIZE, UNIT);
    struct job_graph j;
    bool reading = true;

    job_graph_open(&j, HOLDING, PARTS);
    assert_int_equal(cbw_co_copy(j.s, CLUSTER, DISK_SIZE - CLUSTER, &reading), 0);
    assert_int_equal(cbw_guest_fill(&j.g, 0, CLUSTER, 0xee), 0);
    assert_int_equal(cbw_uncopied_bytes(j.s), 0);
    memory_disk_fail(j.g.temp, MEMORY_DISK_WRITE, ENOSPC);
    assert_int_equal(cbw_co_copy(j.s, 0, DISK_SIZE, &reading), -ENOSPC);
    assert_false(reading);
    assert_int_equal(j.broken, 0);
    cbw_merge_uncopied(j.s, left);
    assert_int_equal(dirty_bitmap_count(left), CLUSTER);
    memory_disk_fail(j.g.temp, 0, 0);
    assert_int_equal(cbw_co_copy(j.s, 0, DISK_SIZE, &reading), 0);
    assert_false(cbw_merge_held(j.s, left));
    assert_true(target_is_original(&j, 0, DISK_SIZE));
    dirty_bitmap_free(left);
    job_graph_close(&j);
}

static void held_data_may_be_zeroes(void *arg)
{
    struct job_graph j;
    bool reading;

    job_graph_open(&j, HOLDING, PARTS);
    memset(j.g.disk->data + CLUSTER, 0, CLUSTER);
    memset(j.g.temp->data + CLUSTER, 0x55, CLUSTER);
    assert_int_equal(cbw_guest_fill(&j.g, CLUSTER, CLUSTER, 0xee), 0);
    assert_int_equal(cbw_co_copy(j.s, 0, DISK_SIZE, &reading), 0);
    for (size_t i = CLUSTER; i < 2 * CLUSTER; i++) {
        assert_int_equal(j.g.temp->data[i], 0);
    }
    job_graph_close(&j);
}

static void a_stopped_filter_keeps_what_is_held_as_uncopied(void *arg)
{
    struct dirty_bitmap *left = dirty_bitmap_new(DISK_SIZE, UNIT);
    struct job_graph j;
    struct cbw_held_step step = {.more = true};

    job_graph_open(&j, HOLDING, PARTS);
    assert_int_equal(cbw_guest_fill(&j.g, 0, 6 * CLUSTER, 0xee), 0);
    cbw_stop(j.s);
    assert_int_equal(cbw_co_write_held(j.s, &step), 0);
    assert_false(step.more);
    assert_int_equal(target_writes(&j), 0);
    cbw_merge_uncopied(j.s, left);
    assert_int_equal(dirty_bitmap_count(left), DISK_SIZE);
    dirty_bitmap_free(left);
    job_graph_close(&j);
}

/* A reader of the frozen contents finds them in memory, and what is around them elsewhere. */
static void readers_find_what_is_held(void *arg)
{
    static uint8_t buf[3 * CLUSTER];
    struct job_graph j;
    struct block_root *reader;
    struct block_node *view;
    struct block_status status;

    job_graph_open(&j, HOLDING, PARTS);
    view = fixture_open("{\"driver\":\"snapshot-access\",\"file\":\"cbw\"}");
    reader = attach(view, "reader", BLOCK_PERM_CONSISTENT_READ);
    assert_int_equal(cbw_guest_fill(&j.g, UNIT, UNIT, 0xee), 0);
    assert_int_equal(cbw_guest_fill(&j.g, CLUSTER, CLUSTER, 0xee), 0);
    assert_int_equal(block_co_pread(block_root_edge(reader), 0, buf, sizeof(buf)), 0);
    for (size_t i = 0; i < sizeof(buf); i++) {
        assert_int_equal(buf[i], i / CLUSTER + 1);
    }
    assert_int_equal(block_co_pread(block_root_edge(reader), CLUSTER + 100, buf, 300), 0);
    assert_int_equal(buf[0], 2);
    assert_int_equal(block_co_status(block_root_edge(reader), CLUSTER, 2 * CLUSTER, &status), 0);
    assert_true(status.flags & BLOCK_STATUS_DATA);
    assert_false(status.flags & BLOCK_STATUS_ZERO);
    block_co_root_release(reader);
    block_co_unref(view);
    job_graph_close(&j);
}

/* --- all at once ------------------------------------------------------------------------------ */

#define ACTORS 7u
#define ROUNDS (4u * DISK_SIZE / CLUSTER)
#define SEEDS 30u

struct melee {
    struct job_graph j;
    struct block_root *reader;
    struct co_group group;
    unsigned failed;
};

struct actor {
    struct melee *m;
    uint64_t random;
};

/* Less than `limit`. */
static uint64_t next_random(struct actor *a, uint64_t limit)
{
    a->random ^= a->random << 13;
    a->random ^= a->random >> 7;
    a->random ^= a->random << 17;
    return a->random % limit;
}

/* All go through the disk together. Sectors: others write in the same units. */
static void melee_guest(void *arg)
{
    struct actor *a = arg;

    for (unsigned i = 0; i < ROUNDS; i++) {
        uint64_t offset = i / 4 * CLUSTER + next_random(a, 40) * 512;
        uint64_t length = (1 + next_random(a, 40)) * 512;

        a->m->failed += cbw_guest_fill(&a->m->j.g, offset, length, 0xee) < 0;
    }
    co_group_done(&a->m->group);
}

static void melee_job(void *arg)
{
    struct actor *a = arg;
    struct cbw_state *s = a->m->j.s;
    bool reading;

    for (unsigned i = 0; i < DISK_SIZE / CLUSTER; i++) {
        struct cbw_held_step step = {.held_only = next_random(a, 2) == 0};
        uint64_t length = next_random(a, 3) * CLUSTER;

        a->m->failed += cbw_co_copy(s, i * CLUSTER, length, &reading) < 0;
        do {
            a->m->failed += cbw_co_write_held(s, &step) < 0;
        } while (step.more);
    }
    co_group_done(&a->m->group);
}

static void melee_reader(void *arg)
{
    struct actor *a = arg;

    for (unsigned i = 0; i < ROUNDS; i++) {
        uint64_t offset = next_random(a, DISK_SIZE / 512) * 512;
        uint64_t length = (1 + next_random(a, 400)) * 512;

        length = MIN(length, DISK_SIZE - offset);
        a->m->failed += cbw_reads_original(block_root_edge(a->m->reader), offset, length) != 1;
    }
    co_group_done(&a->m->group);
}

static void run_melee(uint64_t seed)
{
    static co_entry *const entries[ACTORS] = {melee_guest, melee_guest, melee_guest, melee_guest,
                                              melee_job,   melee_job,   melee_reader};
    struct actor actors[ACTORS];
    struct melee m = {.failed = 0};
    struct block_node *view;
    bool reading;

    job_graph_open(&m.j, (struct cbw_job){.hold_bytes = seed % 6 * CLUSTER}, PARTS);
    view = fixture_open("{\"driver\":\"snapshot-access\",\"file\":\"cbw\"}");
    m.reader = attach(view, "reader", BLOCK_PERM_CONSISTENT_READ);
    co_group_init(&m.group);
    for (unsigned i = 0; i < ACTORS; i++) {
        actors[i] = (struct actor){.m = &m, .random = seed * 0x9e3779b97f4a7c15u + i + 1};
        co_group_add(&m.group);
        assert_int_equal(reactor_spawn(reactor_main(), entries[i], &actors[i]), 0);
    }
    co_group_wait(&m.group);
    co_group_destroy(&m.group);
    m.failed += cbw_co_copy(m.j.s, 0, DISK_SIZE, &reading) < 0;
    if (m.failed > 0 || !target_is_original(&m.j, 0, DISK_SIZE)) {
        fail_msg("seed %llu: %u requests failed, or the target has new data",
                 (unsigned long long)seed, m.failed);
    }
    block_co_root_release(m.reader);
    block_co_unref(view);
    job_graph_close(&m.j);
}

static void target_is_right_under_every_seed(void *arg)
{
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        reactor_set_seed(reactor_main(), seed);
        run_melee(seed);
    }
    reactor_set_seed(reactor_main(), 0);
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
        CO_TEST(each_cluster_is_copied_once_by_whoever_comes_first),
        CO_TEST(job_fills_what_guest_writes_left),
        CO_TEST(some_jobs_copy_whole_clusters),
        CO_TEST(guest_write_waits_for_the_jobs_copy),
        CO_TEST(job_waits_for_the_copy_of_a_guest_write),
        CO_TEST(failed_copy_of_the_job_leaves_the_guest_alone),
        CO_TEST(failed_copy_of_a_guest_write_fails_the_job),
        CO_TEST(uncopied_clusters_are_known_at_the_end),
        CO_TEST(source_is_discarded_before_the_guest_writes),
        CO_TEST(stopped_filter_copies_no_more),
        CO_TEST(others_read_the_target_of_a_job),
        CO_TEST(held_data_wait_for_the_job),
        CO_TEST(guest_writes_to_what_is_held_during_the_copy),
        CO_TEST(guest_does_not_wait_for_a_piece_in_flight),
        CO_TEST(guest_overwrites_what_a_piece_is_about_to_read),
        CO_TEST(guest_waits_for_what_another_still_reads),
        CO_TEST(guest_waits_where_a_piece_reads_what_is_skipped),
        CO_TEST(guest_waits_for_a_piece_when_memory_is_full),
        CO_TEST(a_slow_job_writes_only_what_is_held),
        CO_TEST(guests_copy_when_memory_is_full),
        CO_TEST(held_data_survive_a_failed_copy),
        CO_TEST(held_data_may_be_zeroes),
        CO_TEST(a_stopped_filter_keeps_what_is_held_as_uncopied),
        CO_TEST(readers_find_what_is_held),
        CO_TEST(target_is_right_under_every_seed),
    };

    return cmocka_run_group_tests(tests, setup, co_test_teardown);
}
