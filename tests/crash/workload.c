/* SPDX-License-Identifier: Apache-2.0 */
#include "workload.h"

#include <errno.h>
#include <stdlib.h>

#include "base/checked.h"
#include "chain.h"
#include "changes.h"
#include "guest.h"
#include "image.h"
#include "joint.h"
#include "keys.h"
#include "loop/loop.h"
#include "random.h"

/* Batches of requests in a session; the changes of changes.h are made between them. */
#define BATCHES 6u
#define LARGE_CLUSTER (128 * KiB)

struct run {
    struct workload *w;
    struct image_disks disks;
    struct chain chain; /* of config.job */
    struct error *err;
    uint64_t random;
};

static uint64_t first_size(const struct workload *w)
{
    uint64_t random = random_mix(w->seed + 99);

    return w->config.resize ? changes_random_size(w, &random) : w->size / MODEL_SECTOR;
}

/* Much is copied where clusters are large. */
static unsigned requests_of_session(const struct workload *w)
{
    return w->config.cluster_size < LARGE_CLUSTER ? w->ops : w->ops / 2;
}

static int co_run_batches(struct guest *g, struct block_node *node)
{
    const struct crash_config *c = &g->w->config;
    int ret = 0;

    for (unsigned i = 0; i < BATCHES && ret == 0; i++) {
        if (c->bitmaps) {
            ret = changes_co_bitmaps(g, node);
        }
        if (ret == 0 && c->joint) {
            ret = joint_co_change(g, node);
        }
        if (ret == 0 && c->keys) {
            ret = keys_co_change(g, node);
        }
        if (ret == 0 && (c->resize || c->snapshots)) {
            ret = changes_co_disk(g, node);
        }
        if (ret == 0) {
            guest_co_run(g, requests_of_session(g->w) / BATCHES);
            ret = g->ret;
        }
    }
    return ret;
}

static struct model_session *begin_session(struct workload *w)
{
    struct model_session *s = &w->model.sessions[w->model.session_count++];

    *s = (struct model_session){.open_begin = record_tick(&w->log),
                                .close_begin = MODEL_PENDING,
                                .close_end = MODEL_PENDING,
                                .job_begin = MODEL_PENDING};
    return s;
}

static int co_run_session(struct run *r)
{
    struct workload *w = r->w;
    struct guest g = {.w = w, .err = r->err, .random = random_next(&r->random)};
    struct model_session *session = begin_session(w);
    struct block_root *root = NULL;
    struct block_node *node;
    int ret;

    r->disks.key = w->config.keys ? keys_valid() : 0;
    ret = w->config.job ? chain_co_open(&r->chain, &node)
                        : image_co_open(&r->disks, &w->config, IMAGE_WRITABLE, &node, r->err);

    if (ret == 0 && w->config.joint) {
        ret = joint_co_open(&r->disks, &w->config, r->err);
    }
    if (ret < 0) {
        return ret;
    }
    guest_init(&g);
    ret = block_co_root_new(node, "workload",
                            BLOCK_PERM_CONSISTENT_READ | BLOCK_PERM_WRITE |
                                (w->config.job ? 0 : BLOCK_PERM_RESIZE),
                            BLOCK_PERM_ALL, &root, r->err);
    if (ret == 0) {
        g.edge = block_root_edge(root);
        ret = w->config.job ? chain_co_work(&r->chain, &g, requests_of_session(w))
                            : co_run_batches(&g, node);
    }
    block_co_root_release(root);
    session->close_begin = record_tick(&w->log);
    if (w->config.job) {
        ret = ret < 0 ? ret : chain_co_close(&r->chain);
    } else {
        ret = ret < 0 ? ret : block_co_inactivate(node, r->err);
        block_co_unref(node);
    }
    if (w->config.joint) {
        ret = error_first(ret, joint_co_close(r->err));
    }
    session->close_end = record_tick(&w->log);
    guest_destroy(&g);
    return ret;
}

static int co_commit(struct run *r)
{
    struct workload *w = r->w;
    struct model_session *session = begin_session(w);
    uint32_t op = model_begin(&w->model, MODEL_COMMIT, 0, 0, session->open_begin);
    int ret;

    /*
     * The guest is gone: whatever the image is opened for, it is closed at the end, and nothing
     * else has to be stable.
     */
    session->close_begin = session->open_begin;
    ret = image_co_commit(&r->disks, &w->config, r->err);
    session->close_end = record_tick(&w->log);
    model_end(&w->model, op, session->close_end);
    return ret;
}

/* The backing file has contents before anything is logged. */
static int co_fill_base(struct run *r)
{
    struct guest g = {.w = r->w, .err = r->err, .random = random_next(&r->random)};
    struct block_root *root = NULL;
    struct block_node *node;
    int ret = image_co_open(&r->disks, &r->w->config, IMAGE_WRITABLE | IMAGE_BASE, &node, r->err);

    if (ret < 0) {
        return ret;
    }
    ret = block_co_root_new(node, "filling", BLOCK_PERM_WRITE, BLOCK_PERM_ALL, &root, r->err);
    if (ret == 0) {
        g.edge = block_root_edge(root);
        ret = guest_co_fill(&g);
        ret = ret < 0 ? error_set_errno(r->err, -ret, "filling the backing file failed")
                      : block_co_inactivate(node, r->err);
    }
    block_co_root_release(root);
    block_co_unref(node);
    return ret;
}

/* What was never written is noise in a disk of LUKS; the model wants zeroes. */
static int co_fill_with_zeroes(struct run *r)
{
    struct block_root *root = NULL;
    struct block_node *node;
    int ret = image_co_open(&r->disks, &r->w->config, IMAGE_WRITABLE, &node, r->err);

    if (ret < 0) {
        return ret;
    }
    ret = block_co_root_new(node, "filling", BLOCK_PERM_WRITE, BLOCK_PERM_ALL, &root, r->err);
    if (ret == 0) {
        ret = block_co_write_zeroes(block_root_edge(root), 0, block_node_size(node), 0);
        ret = ret < 0 ? error_set_errno(r->err, -ret, "filling the disk failed") : 0;
    }
    block_co_root_release(root);
    block_co_unref(node);
    return ret;
}

static int co_prepare(struct run *r)
{
    struct workload *w = r->w;
    uint64_t size = model_sectors_now(&w->model) * MODEL_SECTOR;
    int ret = image_co_create(&r->disks, &w->config, size, r->err);

    r->chain = (struct chain){
        .w = w, .disks = &r->disks, .err = r->err, .random = random_mix(w->seed + 815)};
    keys_reset();
    if (ret == 0 && w->config.backing) {
        ret = co_fill_base(r);
    }
    if (ret == 0 && w->config.keys && w->config.format) {
        ret = co_fill_with_zeroes(r);
    }
    if (ret == 0 && w->config.job) {
        ret = chain_co_fill(&r->chain);
    }
    for (unsigned i = 0; i < RECORD_DISKS && ret == 0; i++) {
        record_disk_set_log(r->disks.nodes[i], &w->log, i, i == IMAGE_DATA_FILE);
    }
    if (w->config.room > 0) {
        struct block_node *file = r->disks.nodes[IMAGE_FILE];

        record_disk_set_limit(file, round_up(block_node_size(file), w->config.cluster_size) +
                                        (uint64_t)w->config.room * w->config.cluster_size);
    }
    return ret;
}

int workload_co_run(struct workload *w, struct error *err)
{
    struct run r = {.w = w, .err = err, .random = random_mix(w->seed * 1000003)};
    int ret;

    model_init(&w->model, w->size);
    model_add_size(&w->model, first_size(w), 0)->end = 0;
    w->log = (struct record_log){.is_guest_data = model_is_guest_data};
    ret = image_co_open_disks(&r.disks, "live", err);
    ret = ret < 0 ? ret : co_prepare(&r);
    reactor_set_seed(reactor_current(), w->seed + 1);
    for (unsigned i = 0; i < w->sessions && ret == 0; i++) {
        ret = co_run_session(&r);
        if (ret == 0 && w->config.commit && random_below(&r.random, 3) > 0) {
            ret = co_commit(&r);
        }
    }
    image_co_close_disks(&r.disks);
    return ret;
}

void workload_clear(struct workload *w)
{
    model_clear(&w->model);
    record_log_clear(&w->log);
}
