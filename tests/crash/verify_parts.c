/* SPDX-License-Identifier: Apache-2.0 */
/* Bitmaps and internal snapshots of a crashed image. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "block/bitmaps.h"
#include "qcow2/image.h"
#include "qcow2/table/alloc.h"
#include "qcow2/table/map.h"
#include "random.h"
#include "verifier.h"

#define READ_SNAPSHOT_EVERY 2u /* states that have one; else it is only listed */

/* --- the file --------------------------------------------------------------------------------- */

/* The end in the file of what the run is mapped to; 0: nowhere. */
static uint64_t end_in_file(const struct qcow2 *q, const struct qcow2_run *run)
{
    uint64_t offset, size;

    switch (run->type) {
    case CLUSTER_NORMAL:
    case CLUSTER_ZERO_ALLOC:
        return round_up(run->host + run->length, q->cluster_size);
    case CLUSTER_COMPRESSED:
        qcow2_compressed_range(q, run->host, &offset, &size);
        return round_up(offset + 1, q->cluster_size); /* the last sector counted may be cut off */
    default:
        return 0;
    }
}

int verify_co_file_covers(struct verifier *v, struct error *err)
{
    struct qcow2 *q = qcow2_state(v->node);
    uint64_t disk = block_node_size(v->node), file = block_edge_size(v->node->file);
    struct qcow2_run run;
    int ret = 0;

    for (uint64_t at = 0; at < disk && ret == 0 && !q->has_data_file; at += run.length) {
        ret = qcow2_co_map(q, at, disk - at, &run);
        if (ret == 0 && end_in_file(q, &run) > file) {
            ret = error_set(err, EILSEQ,
                            "the file ends at %llu, the cluster of guest offset %llu at %llu",
                            (unsigned long long)file, (unsigned long long)at,
                            (unsigned long long)end_in_file(q, &run));
        }
    }
    return ret;
}

/* --- bitmaps ---------------------------------------------------------------------------------- */

/*
 * Whether a job may have put bitmaps into another image, which are new there: as all new bitmaps
 * they are lost if the machine fails before the image is closed.
 */
static bool may_be_moved(const struct model *m, uint64_t time)
{
    for (unsigned i = 0; i < m->session_count; i++) {
        if (m->sessions[i].job_begin <= time && time < m->sessions[i].close_end) {
            return true;
        }
    }
    return false;
}

/* Whether the crash came while no session had the image open, and all that was done is stable. */
static bool cleanly_closed(const struct model *m, uint64_t time)
{
    const struct model_session *last = NULL;

    for (unsigned i = 0; i < m->session_count && m->sessions[i].open_begin <= time; i++) {
        last = &m->sessions[i];
    }
    return last && last->close_end <= time;
}

/* Whether a session that had the bitmap has been closed by then. */
static bool was_stored(const struct model *m, const struct model_bitmap *b, uint64_t time)
{
    for (unsigned i = 0; i < m->session_count; i++) {
        if (b->create_end <= m->sessions[i].close_begin && m->sessions[i].close_end <= time) {
            return true;
        }
    }
    return false;
}

/*
 * The time from which on it covers what changes; MODEL_PENDING while it is being changed itself, or
 * records nothing.
 */
static uint64_t covers_since(const struct model_bitmap *b, uint64_t time)
{
    for (unsigned i = 0; i < b->epoch_count; i++) {
        if (b->epochs[i].base <= time && time < b->epochs[i].until) {
            return b->epochs[i].base;
        }
    }
    return MODEL_PENDING;
}

static int co_check_covers(struct verifier *v, const struct model_bitmap *b,
                           struct block_bitmap *bitmap, struct error *err)
{
    const struct model *m = &v->w->model;
    uint64_t since = covers_since(b, v->state->time);

    if (since == MODEL_PENDING) {
        return 0;
    }
    if (block_co_bitmap_fetch(bitmap, err) < 0) {
        return -EIO;
    }
    for (uint64_t sector = 0; sector < v->sectors; sector++) {
        uint32_t before;

        if (m->sector_counts[sector] == 0 && v->phase == VERIFY_CRASHED) {
            continue;
        }
        before = model_value_at(m, sector, since);
        if (v->disk.values[sector] != before && model_knows_value_at(m, sector, since) &&
            !model_discarded(m, sector, 0, since) &&
            !dirty_bitmap_get(block_bitmap_bits(bitmap), sector * MODEL_SECTOR)) {
            char was[128], is[128];

            model_describe(m, before, was, sizeof(was));
            model_describe(m, v->disk.values[sector], is, sizeof(is));
            return error_set(err, EILSEQ,
                             "bitmap '%s' says sector %llu is clean since %llu, but it held %s "
                             "then and holds %s now",
                             b->name, (unsigned long long)sector, (unsigned long long)since, was,
                             is);
        }
    }
    return 0;
}

/* Not removed: else, there or not, a later entry of that name tells more. */
static bool is_wanted(const struct model_bitmap *b, uint64_t time)
{
    return b->create_end <= time && b->remove_begin > time;
}

/*
 * Whether bitmaps survive every crash. A full file may have no room for the activity log, or for
 * bitmaps of another size.
 */
static bool is_durable(const struct verifier *v)
{
    return v->w->config.room == 0 && v->phase != VERIFY_SECOND;
}

int verify_bitmaps_found(const struct verifier *v, struct error *err)
{
    const struct model *m = &v->w->model;
    uint64_t time = v->state->time;

    for (unsigned i = 0; i < m->bitmap_count; i++) {
        const struct model_bitmap *b = &m->bitmaps[i];

        if (!is_wanted(b, time) || (!is_durable(v) && !was_stored(m, b, time))) {
            continue;
        }
        if (!v->has_bitmap[i] && !may_be_moved(m, time)) {
            return error_set(err, EILSEQ, "bitmap '%s', stored before, is gone", b->name);
        }
        if (!v->has_consistent[i] && v->phase != VERIFY_SECOND && cleanly_closed(m, time)) {
            return error_set(err, EILSEQ, "bitmap '%s' is inconsistent though the image was closed",
                             b->name);
        }
        if (!v->has_consistent[i] && v->has_bitmap[i] && is_durable(v)) {
            return error_set(err, EILSEQ,
                             "bitmap '%s' is inconsistent in spite of its activity log", b->name);
        }
    }
    return 0;
}

int verify_co_bitmaps(struct verifier *v, struct error *err)
{
    const struct model *m = &v->w->model;
    int ret = 0;

    for (unsigned i = 0; i < m->bitmap_count && ret == 0; i++) {
        const struct model_bitmap *b = &m->bitmaps[i];
        struct block_bitmap *bitmap =
            is_wanted(b, v->state->time) ? block_bitmap_find(v->node, b->name) : NULL;

        v->has_bitmap[i] |= bitmap != NULL;
        if (bitmap && !bitmap->inconsistent) {
            v->has_consistent[i] = true;
            ret = v->spoiled ? 0 : co_check_covers(v, b, bitmap, err);
        }
    }
    return ret;
}

/* --- snapshots -------------------------------------------------------------------------------- */

/* One of those that may be there; the list must have those that were made and not deleted. */
static int pick_snapshot(struct verifier *v, const struct block_snapshot_info *infos, size_t count,
                         const struct model_snapshot **ret, struct error *err)
{
    const struct model *m = &v->w->model;
    unsigned seen = 0;

    *ret = NULL;
    for (unsigned i = 0; i < m->snapshot_count; i++) {
        const struct model_snapshot *s = &m->snapshots[i];
        bool there = false;

        for (size_t k = 0; k < count; k++) {
            there |= strcmp(infos[k].name, s->name) == 0;
        }
        if (there && random_mix(v->state->hash + 4 * i + v->phase) % ++seen == 0) {
            *ret = s;
        }
        if (!there && s->create_end <= v->state->time && s->delete_begin > v->state->time) {
            return error_set(err, EILSEQ, "snapshot '%s' is gone", s->name);
        }
    }
    for (size_t k = 0; k < count && v->phase == VERIFY_SECOND && v->had_snapshot; k++) {
        seen += strcmp(infos[k].name, AFTERMATH_SNAPSHOT) == 0;
    }
    return seen == count ? 0 : error_set(err, EILSEQ, "there are snapshots that were not made");
}

int verify_co_snapshots(struct verifier *v, struct error *err)
{
    const struct block_driver *driver = v->node->driver;
    struct block_snapshot_info *infos = NULL;
    size_t count = 0;
    int ret = driver->co_snapshot_list(v->node, &infos, &count, err);

    ret = ret < 0 ? ret : pick_snapshot(v, infos, count, &v->snapshot, err);
    free(infos);
    if (ret < 0 || !v->snapshot || random_mix(v->state->hash + v->phase) % READ_SNAPSHOT_EVERY) {
        v->snapshot = NULL;
        return ret;
    }
    ret = driver->co_snapshot_show(v->node, NULL, v->snapshot->name, err);
    v->sectors = block_node_size(v->node) / MODEL_SECTOR;
    if (ret == 0 && v->sectors != v->snapshot->sectors) {
        ret =
            error_set(err, EILSEQ, "snapshot '%s' has another size than it had", v->snapshot->name);
    }
    ret = ret < 0 ? ret : verify_co_data(v, err);
    v->snapshot = NULL;
    return ret;
}
