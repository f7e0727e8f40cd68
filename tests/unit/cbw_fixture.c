/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "cbw_fixture.h"

#include "base/checked.h"
#include "co/co.h"
#include "loop/loop.h"

#define TURNS 200

static struct options *parse(const char *json)
{
    struct options *opts = NULL;
    ERROR_AUTO(err);

    if (options_parse(json, NULL, &opts, &err) < 0) {
        fail_msg("%s: %s", json, error_message(&err));
    }
    return opts;
}

struct block_node *fixture_open(const char *json)
{
    struct block_node *node = NULL;
    ERROR_AUTO(err);

    if (block_co_open(parse(json), BLOCK_OPEN_RDWR, &node, &err) < 0) {
        fail_msg("%s: %s", json, error_message(&err));
    }
    return node;
}

const char *fixture_open_fails(const char *json)
{
    static char message[512];
    struct block_node *node = NULL;
    ERROR_AUTO(err);

    if (block_co_open(parse(json), BLOCK_OPEN_RDWR, &node, &err) == 0) {
        block_co_unref(node);
        return NULL;
    }
    snprintf(message, sizeof(message), "%s", error_message(&err));
    return message;
}

static struct block_edge *attach(struct block_node *node, const char *user, unsigned perm,
                                 struct block_root **ret)
{
    ERROR_AUTO(err);

    if (block_co_root_new(node, user, perm, BLOCK_PERM_ALL, ret, &err) < 0) {
        fail_msg("%s", error_message(&err));
    }
    return block_root_edge(*ret);
}

static void add_bitmap(struct cbw_graph *g, unsigned clusters)
{
    struct block_bitmap *bitmap;
    ERROR_AUTO(err);

    if (block_co_bitmap_add(g->disk_node, "snap", CLUSTER, false, true, &bitmap, &err) < 0) {
        fail_msg("%s", error_message(&err));
    }
    dirty_bitmap_set(bitmap->bits, 0, (uint64_t)clusters * CLUSTER);
}

void cbw_graph_open(struct cbw_graph *g, uint64_t size, const char *cbw_options,
                    unsigned bitmap_clusters)
{
    char json[512];

    memset(g, 0, sizeof(*g));
    snprintf(json, sizeof(json),
             "{\"driver\":\"memory-disk\",\"node-name\":\"disk\",\"size\":%llu}",
             (unsigned long long)size);
    g->disk_node = fixture_open(json);
    snprintf(json, sizeof(json),
             "{\"driver\":\"memory-disk\",\"node-name\":\"temp\",\"size\":%llu}",
             (unsigned long long)size);
    g->temp_node = fixture_open(json);
    g->disk = memory_disk_of(g->disk_node);
    g->temp = memory_disk_of(g->temp_node);
    for (uint64_t at = 0; at < size; at += CLUSTER) {
        memset(g->disk->data + at, (int)(at / CLUSTER + 1), MIN(CLUSTER, size - at));
    }
    memset(g->disk->written, 1, size / 4096 + 1);
    if (bitmap_clusters) {
        add_bitmap(g, bitmap_clusters);
    }
    snprintf(json, sizeof(json),
             "{\"driver\":\"copy-before-write\",\"node-name\":\"cbw\",\"file\":\"disk\","
             "\"target\":\"temp\"%s%s%s}",
             strstr(cbw_options, "min-cluster-size") ? "" : ",\"min-cluster-size\":65536",
             bitmap_clusters ? ",\"bitmap\":{\"node\":\"disk\",\"name\":\"snap\"}" : "",
             cbw_options);
    g->cbw_node = fixture_open(json);
    g->access_node =
        fixture_open("{\"driver\":\"snapshot-access\",\"node-name\":\"access\",\"file\":\"cbw\"}");
    g->guest =
        attach(g->cbw_node, "guest", BLOCK_PERM_CONSISTENT_READ | BLOCK_PERM_WRITE, &g->guest_root);
    g->snapshot = attach(g->access_node, "backup", BLOCK_PERM_CONSISTENT_READ | BLOCK_PERM_WRITE,
                         &g->snapshot_root);
}

void cbw_graph_close(struct cbw_graph *g)
{
    block_co_root_release(g->snapshot_root);
    block_co_root_release(g->guest_root);
    block_co_unref(g->access_node);
    block_co_unref(g->cbw_node);
    block_co_unref(g->temp_node);
    block_co_unref(g->disk_node);
}

int cbw_reads_original(struct block_edge *edge, uint64_t offset, size_t length)
{
    uint8_t *buf = malloc(length);
    int ret = block_co_pread(edge, offset, buf, length);

    if (ret == 0) {
        ret = 1;
        for (size_t i = 0; i < length && ret; i++) {
            ret = buf[i] == (uint8_t)((offset + i) / CLUSTER + 1);
        }
    }
    free(buf);
    return ret;
}

int cbw_guest_fill(struct cbw_graph *g, uint64_t offset, size_t length, int byte)
{
    uint8_t *buf = malloc(length);
    int ret;

    memset(buf, byte, length);
    ret = block_co_pwrite(g->guest, offset, buf, length, 0);
    free(buf);
    return ret;
}

static void background_entry(void *arg)
{
    struct background *b = arg;

    b->entry(b->arg);
    b->done = true;
}

void background_start(struct background *b, void (*entry)(void *arg), void *arg)
{
    *b = (struct background){.entry = entry, .arg = arg};
    assert_int_equal(co_spawn(co_get_home(co_self()), background_entry, b), 0);
    let_others_run();
}

void background_finish(struct background *b)
{
    for (int i = 0; i < 5000 && !b->done; i++) {
        loop_co_sleep(1000000);
    }
    assert_true(b->done);
}

void let_others_run(void)
{
    for (int i = 0; i < TURNS; i++) {
        co_reschedule();
    }
}
