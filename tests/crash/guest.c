/* SPDX-License-Identifier: Apache-2.0 */
#include "guest.h"

#include <errno.h>
#include <stdlib.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "loop/loop.h"
#include "qcow2/image.h"
#include "random.h"

#define WORKERS 4u
#define MAX_CLUSTERS_AT_ONCE 3u
#define MAX_BYTES_AT_ONCE (256 * KiB)
#define HOT_SHARE 4u /* one of this number of requests goes to the hot area */
#define HOT_SIZE (256 * KiB)
#define COMPRESSED_SHARE 3u /* of writes, where there are any */
#define FILL_SHARE 4u       /* of the backing file */

void guest_init(struct guest *g)
{
    range_lock_init(&g->busy);
    co_group_init(&g->workers);
}

void guest_destroy(struct guest *g)
{
    co_group_destroy(&g->workers);
    range_lock_destroy(&g->busy);
}

static void fail(struct guest *g, int ret, const char *what, uint64_t sector)
{
    if (g->ret == 0) {
        g->ret = error_set_errno(g->err, -ret, "guest %s at sector %llu failed", what,
                                 (unsigned long long)sector);
    }
}

/* --- ranges ----------------------------------------------------------------------------------- */

static uint64_t cluster_sectors(const struct guest *g)
{
    return g->w->config.cluster_size / MODEL_SECTOR;
}

static void pick_clusters(struct guest *g, uint64_t *sector, uint64_t *sectors)
{
    uint64_t cluster = cluster_sectors(g);
    uint64_t most = MAX(MIN(MAX_CLUSTERS_AT_ONCE, MAX_BYTES_AT_ONCE / MODEL_SECTOR / cluster), 1);

    *sector = round_down(*sector, cluster);
    *sectors = (1 + random_below(&g->random, most)) * cluster;
}

static void pick_range(struct guest *g, bool clusters, uint64_t *sector, uint64_t *sectors)
{
    uint64_t total = model_sectors_now(&g->w->model), area = total;
    uint64_t longest =
        MIN(MAX_CLUSTERS_AT_ONCE * cluster_sectors(g), MAX_BYTES_AT_ONCE / MODEL_SECTOR);
    uint64_t how = random_below(&g->random, 4);

    if (random_below(&g->random, HOT_SHARE) == 0) {
        area = MIN(total, HOT_SIZE / MODEL_SECTOR);
    }
    *sector = random_below(&g->random, area);
    if (clusters || how == 1) {
        pick_clusters(g, sector, sectors);
    } else if (how == 0) {
        *sectors = 1 + random_below(&g->random, longest);
    } else { /* what guests mostly do */
        *sector = round_down(*sector, 8);
        *sectors = 8;
    }
    *sectors = MIN(*sectors, total - *sector);
}

/* A range that was picked may be gone when it is locked: the disk has shrunk meanwhile. */
static bool is_on_disk(const struct guest *g, uint64_t sector, uint64_t sectors)
{
    return sector + sectors <= model_sectors_now(&g->w->model);
}

/* --- requests --------------------------------------------------------------------------------- */

static int co_write(struct guest *g, uint32_t op, uint64_t sector, uint64_t sectors, unsigned flags)
{
    uint8_t *data AUTO_FREE = malloc(sectors * MODEL_SECTOR);

    if (!data) {
        return -ENOMEM;
    }
    model_stamp(data, sectors * MODEL_SECTOR, sector, op);
    return block_co_pwrite(g->edge, sector * MODEL_SECTOR, data, sectors * MODEL_SECTOR, flags);
}

int guest_co_read_back(struct guest *g, uint64_t sector, uint64_t sectors)
{
    uint8_t *data AUTO_FREE = malloc(sectors * MODEL_SECTOR);
    uint64_t now = g->w->log.clock;
    int ret = data ? block_co_pread(g->edge, sector * MODEL_SECTOR, data, sectors * MODEL_SECTOR)
                   : -ENOMEM;

    for (uint64_t i = 0; i < sectors && ret == 0; i++) {
        uint32_t value = model_value(data + i * MODEL_SECTOR, sector + i);

        /* All that was answered counts: nothing has crashed. */
        if (!model_allows(&g->w->model, sector + i, value, now, now)) {
            ret = -EILSEQ;
        }
    }
    return ret;
}

static int co_request(struct guest *g, uint32_t op, enum model_kind kind, uint64_t sector,
                      uint64_t sectors, bool compressed)
{
    uint64_t offset = sector * MODEL_SECTOR, length = sectors * MODEL_SECTOR;

    switch (kind) {
    case MODEL_WRITE:
        return co_write(g, op, sector, sectors, compressed ? BLOCK_REQ_COMPRESSED : 0);
    case MODEL_ZEROES:
        return block_co_write_zeroes(g->edge, offset, length,
                                     random_below(&g->random, 2) ? BLOCK_REQ_MAY_UNMAP : 0);
    default:
        return block_co_discard(g->edge, offset, length);
    }
}

/*
 * Something is going to be free with the next commit, other than places of tables: those are no
 * reason to make one.
 */
static bool could_make_room(const struct guest *g)
{
    const struct cluster_runs *frees = &qcow2_state(block_edge_node(g->edge))->alloc.frees;

    for (size_t i = 0; i < frees->count; i++) {
        if (frees->runs[i].why != QCOW2_FREED_BY_OTHER) {
            return true;
        }
    }
    return false;
}

static void co_change(struct guest *g, enum model_kind kind)
{
    struct workload *w = g->w;
    bool compressed = kind == MODEL_WRITE && w->config.compressed &&
                      random_below(&g->random, COMPRESSED_SHARE) == 0;
    struct range_entry entry;
    uint64_t sector, sectors;
    uint32_t op;
    int ret;

    pick_range(g, compressed, &sector, &sectors);
    co_range_lock(&g->busy, &entry, sector, sectors, true);
    if (!is_on_disk(g, sector, sectors)) {
        range_unlock(&g->busy, &entry);
        return;
    }
    op = model_begin(&w->model, kind, sector, sectors, record_tick(&w->log));
    ret = co_request(g, op, kind, sector, sectors, compressed);
    if (ret == -ENOSPC && w->config.room > 0) {
        /* A part of it may be there: as if it had not been answered. */
        ret = g->alone && could_make_room(g) ? -EAGAIN : 0;
    } else {
        model_end(&w->model, op, record_tick(&w->log));
    }
    if (ret < 0) {
        fail(g, ret, model_kind_name(kind), sector);
    }
    range_unlock(&g->busy, &entry);
}

static void co_flush(struct guest *g)
{
    struct workload *w = g->w;
    uint32_t op = model_begin(&w->model, MODEL_FLUSH, 0, 0, record_tick(&w->log));
    int ret = block_co_flush(g->edge);

    model_end(&w->model, op, record_tick(&w->log));
    if (ret < 0) {
        fail(g, ret, "flush", 0);
    }
}

static void co_read(struct guest *g)
{
    struct range_entry entry;
    uint64_t sector, sectors;
    int ret;

    pick_range(g, false, &sector, &sectors);
    co_range_lock(&g->busy, &entry, sector, sectors, true);
    ret = is_on_disk(g, sector, sectors) ? guest_co_read_back(g, sector, sectors) : 0;
    range_unlock(&g->busy, &entry);
    if (ret < 0) {
        fail(g, ret, "read", sector);
    }
}

static void worker(void *arg)
{
    struct guest *g = arg;

    while (g->left > 0 && g->ret == 0) {
        uint64_t what = random_below(&g->random, 100);

        g->left--;
        if (what < 58) {
            co_change(g, MODEL_WRITE);
        } else if (what < 68) {
            co_change(g, MODEL_ZEROES);
        } else if (what < 80) {
            co_change(g, MODEL_DISCARD);
        } else if (what < 92) {
            co_flush(g);
        } else {
            co_read(g);
        }
    }
    co_group_done(&g->workers);
}

void guest_co_run(struct guest *g, unsigned requests)
{
    g->left = requests;
    for (unsigned i = 0; i < WORKERS; i++) {
        co_group_add(&g->workers);
        if (reactor_spawn(reactor_current(), worker, g) < 0) {
            co_group_done(&g->workers);
        }
    }
    co_group_wait(&g->workers);
    if (g->w->config.room > 0 && g->ret == 0) {
        g->alone = true; /* it may find no room, but only if nothing waits to be free */
        co_change(g, MODEL_WRITE);
        g->alone = false;
    }
}

int guest_co_fill(struct guest *g)
{
    uint64_t total = model_sectors_now(&g->w->model), step = MAX(cluster_sectors(g), 128);
    int ret = 0;

    for (uint64_t sector = 0; sector < total && ret == 0; sector += step) {
        uint64_t sectors = 1 + random_below(&g->random, step);
        uint32_t op;

        sectors = MIN(sectors, total - sector);
        if (random_below(&g->random, FILL_SHARE) == 0) {
            op = model_begin(&g->w->model, MODEL_WRITE, sector, sectors, 0);
            ret = co_write(g, op, sector, sectors, 0);
            model_end(&g->w->model, op, 0);
        }
    }
    return ret;
}
