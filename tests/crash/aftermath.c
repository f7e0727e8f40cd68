/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "random.h"
#include "verifier.h"

#define REQUESTS 8u
#define SNAPSHOT_EVERY 8u      /* states */
#define FIRST_STAMP (1u << 30) /* no request before the crash has such a number */
#define MAX_SECTORS 256u

/* Some clusters, or a few sectors anywhere. */
static void pick_range(const struct verifier *v, uint64_t *random, bool clusters, uint64_t *sector,
                       uint64_t *sectors)
{
    uint64_t cluster = v->w->config.cluster_size / MODEL_SECTOR;

    *sector = random_below(random, v->sectors);
    *sectors = 1 + random_below(random, 24);
    if (clusters) {
        *sector = round_down(*sector, cluster);
        *sectors = cluster > MAX_SECTORS ? cluster : (1 + random_below(random, 2)) * cluster;
    }
    *sectors = MIN(*sectors, v->sectors - *sector);
}

static int co_write(struct verifier *v, uint32_t stamp, uint64_t sector, uint64_t sectors,
                    unsigned flags)
{
    uint8_t *data AUTO_FREE = malloc(sectors * MODEL_SECTOR);

    if (!data) {
        return -ENOMEM;
    }
    model_stamp(data, sectors * MODEL_SECTOR, sector, stamp);
    return block_co_pwrite(v->edge, sector * MODEL_SECTOR, data, sectors * MODEL_SECTOR, flags);
}

static int co_request(struct verifier *v, uint64_t *random, uint32_t number)
{
    uint64_t what = random_below(random, 8), sector, sectors;
    bool compressed = what == 0 && v->w->config.compressed;
    uint32_t value;
    int ret;

    pick_range(v, random, compressed || random_below(random, 3) == 0, &sector, &sectors);
    if (what < 5) {
        value = FIRST_STAMP + number;
        ret = co_write(v, value, sector, sectors, compressed ? BLOCK_REQ_COMPRESSED : 0);
    } else if (what == 5) {
        value = MODEL_ZERO;
        ret = block_co_write_zeroes(v->edge, sector * MODEL_SECTOR, sectors * MODEL_SECTOR,
                                    random_below(random, 2) ? BLOCK_REQ_MAY_UNMAP : 0);
    } else if (what == 6) {
        value = MODEL_ANY;
        ret = block_co_discard(v->edge, sector * MODEL_SECTOR, sectors * MODEL_SECTOR);
    } else {
        return block_co_flush(v->edge);
    }
    for (uint64_t i = sector; i < sector + sectors; i++) {
        v->disk.expected[i] = v->raw.expected[i] = value;
        v->disk.untouched[i] = v->raw.untouched[i] = MODEL_ANY;
    }
    return ret;
}

static void expect_as_it_is(const struct verifier *v, struct view *view)
{
    size_t size = v->w->model.sectors * sizeof(*view->values);

    memcpy(view->expected, view->values, size);
    memcpy(view->untouched, view->values, size);
}

/* One is made and taken away again, or few bits can't count it. */
static int co_snapshot(struct verifier *v, struct error *err)
{
    const struct block_driver *driver = v->node->driver;
    int ret;

    v->had_snapshot = true;
    block_co_drain_begin(v->node);
    ret = driver->co_snapshot_create(v->node, AFTERMATH_SNAPSHOT, err);
    ret = ret < 0 ? ret : driver->co_snapshot_delete(v->node, AFTERMATH_SNAPSHOT, err);
    block_drain_end(v->node);
    if (ret == -ERANGE) {
        error_clear(err);
        ret = 0;
    }
    return ret;
}

int aftermath_co_write(struct verifier *v, struct error *err)
{
    uint64_t random = random_mix(v->state->hash + v->stable);
    int ret = 0;

    expect_as_it_is(v, &v->disk);
    expect_as_it_is(v, &v->raw);
    for (uint32_t i = 0; i < REQUESTS && ret == 0; i++) {
        ret = co_request(v, &random, i);
    }
    if (ret == 0 && v->w->config.snapshots && v->state->index % SNAPSHOT_EVERY == 1) {
        ret = co_snapshot(v, err);
        if (ret < 0) {
            return ret;
        }
        ret = co_request(v, &random, REQUESTS);
    }
    ret = ret < 0 ? ret : block_co_flush(v->edge);
    return ret < 0 ? error_set_errno(err, -ret, "working on the image failed") : 0;
}
