/* SPDX-License-Identifier: Apache-2.0 */
#include "verify.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "block/bitmaps.h"
#include "block/driver.h"
#include "block/gate.h"
#include "random.h"

#define CHUNK (64 * KiB)
#define CHUNK_SECTORS (CHUNK / MODEL_SECTOR)
#define HEADER_INCOMPATIBLE 79u /* the byte of the header with the dirty bit, bit 0 */
#define WHOLE_DISK_EVERY 16u    /* states; else only where the guest ever did something */

struct verifier {
    struct workload *w;
    const struct crash_state *state;
    struct block_node *node; /* the image */
    struct block_edge *edge;
    uint64_t stable;  /* model_stable_until() the crash */
    uint32_t *values; /* by sector, as read; MODEL_ZERO where nothing was read */
    uint64_t sectors; /* that the disk has */
    const struct model_snapshot *snapshot; /* that the node shows; NULL: the disk itself */
};

static int wrong(struct error *err, const char *what)
{
    return error_set(err, EILSEQ, "%s", what);
}

/* --- the image --------------------------------------------------------------------------------------- */

static int co_check_image(struct block_node *node, const char *when, struct error *err)
{
    struct block_check_result result = {0};
    int ret = node->driver->co_check(node, 0, &result, err);

    if (ret < 0) {
        error_prepend(err, "check %s: ", when);
        return ret;
    }
    if (result.corruptions > 0 || result.check_errors > 0) {
        return error_set(err, EILSEQ, "check %s found %llu corruptions, %llu errors", when,
                         (unsigned long long)result.corruptions,
                         (unsigned long long)result.check_errors);
    }
    return 0;
}

/* --- the data ---------------------------------------------------------------------------------------- */

static bool chunk_is_touched(const struct model *m, uint64_t first, uint64_t end)
{
    for (uint64_t i = first; i < end; i++) {
        if (m->sector_counts[i] > 0) {
            return true;
        }
    }
    return false;
}

static int check_sector(struct verifier *v, uint64_t sector, const uint8_t *data, struct error *err)
{
    const struct model *m = &v->w->model;
    uint32_t value = model_value(data, sector);
    char found[128], expected[128];

    if (v->snapshot) {
        return value == v->snapshot->values[sector]
                   ? 0
                   : error_set(err, EILSEQ, "sector %llu of '%s' has changed",
                               (unsigned long long)sector, v->snapshot->name);
    }
    v->values[sector] = value;
    if (model_allows(m, sector, value, v->state->time, v->stable)) {
        return 0;
    }
    model_describe(m, value, found, sizeof(found));
    model_describe(m, model_value_at(m, sector, v->state->time), expected, sizeof(expected));
    return error_set(err, EILSEQ,
                     "sector %llu holds %s; the last sent was %s, stable is what was answered by "
                     "%llu",
                     (unsigned long long)sector, found, expected, (unsigned long long)v->stable);
}

static int co_check_data(struct verifier *v, struct error *err)
{
    const struct model *m = &v->w->model;
    uint8_t *data AUTO_FREE = malloc(CHUNK);
    bool all = v->state->index % WHOLE_DISK_EVERY == 0;
    int ret = data ? 0 : -ENOMEM;

    for (uint64_t first = 0; first < v->sectors && ret == 0; first += CHUNK_SECTORS) {
        uint64_t end = MIN(first + CHUNK_SECTORS, v->sectors);

        if (!all && !chunk_is_touched(m, first, end)) {
            continue;
        }
        ret = block_co_pread(v->edge, first * MODEL_SECTOR, data, (end - first) * MODEL_SECTOR);
        if (ret < 0) {
            return error_set_errno(err, -ret, "reading at sector %llu failed",
                                   (unsigned long long)first);
        }
        for (uint64_t i = first; i < end && ret == 0; i++) {
            ret = check_sector(v, i, data + (i - first) * MODEL_SECTOR, err);
        }
    }
    return ret;
}

/* --- the bitmaps --------------------------------------------------------------------------------------- */

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

static int co_check_covers(struct verifier *v, const struct model_bitmap *b,
                           struct block_bitmap *bitmap, struct error *err)
{
    const struct model *m = &v->w->model;

    if (b->base > v->state->time) {
        return 0; /* while it is created or cleared, what it began with is not determined */
    }
    if (block_co_bitmap_fetch(bitmap, err) < 0) {
        return -EIO;
    }
    for (uint64_t sector = 0; sector < v->sectors; sector++) {
        uint32_t before;

        if (m->sector_counts[sector] == 0) {
            continue;
        }
        before = model_value_at(m, sector, b->base);
        if (v->values[sector] != before && !model_discarded(m, sector, 0, b->base) &&
            !dirty_bitmap_get(block_bitmap_bits(bitmap), sector * MODEL_SECTOR)) {
            char was[128], is[128];

            model_describe(m, before, was, sizeof(was));
            model_describe(m, v->values[sector], is, sizeof(is));
            return error_set(err, EILSEQ,
                             "bitmap '%s' says sector %llu is clean since %llu, but it held %s "
                             "then and holds %s now",
                             b->name, (unsigned long long)sector, (unsigned long long)b->base, was,
                             is);
        }
    }
    return 0;
}

static int check_bitmap(struct verifier *v, const struct model_bitmap *b, struct error *err)
{
    const struct model *m = &v->w->model;
    struct block_bitmap *bitmap = block_bitmap_find(v->node, b->name);
    uint64_t time = v->state->time;

    if (b->remove_begin <= time) {
        return 0; /* there or not, a later entry of that name tells more */
    }
    if (!bitmap) {
        return was_stored(m, b, time)
                   ? error_set(err, EILSEQ, "bitmap '%s', stored before, is gone", b->name)
                   : 0;
    }
    if (!bitmap->inconsistent) {
        return co_check_covers(v, b, bitmap, err);
    }
    if (cleanly_closed(m, time) && was_stored(m, b, time)) {
        return error_set(err, EILSEQ, "bitmap '%s' is inconsistent though the image was closed",
                         b->name);
    }
    return 0;
}

static int check_bitmaps(struct verifier *v, struct error *err)
{
    const struct model *m = &v->w->model;
    int ret = 0;

    for (unsigned i = 0; i < m->bitmap_count && ret == 0; i++) {
        if (m->bitmaps[i].create_end <= v->state->time) {
            ret = check_bitmap(v, &m->bitmaps[i], err);
        }
    }
    return ret;
}

/* --- snapshots --------------------------------------------------------------------------------------- */

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
        if (there && random_mix(v->state->hash + i) % ++seen == 0) {
            *ret = s;
        }
        if (!there && s->create_end <= v->state->time && s->delete_begin > v->state->time) {
            return error_set(err, EILSEQ, "snapshot '%s' is gone", s->name);
        }
    }
    return seen == count ? 0 : wrong(err, "there are snapshots that were not made");
}

/* All are listed, and one of them holds what it shall. The node shows that one afterwards. */
static int co_check_snapshots(struct verifier *v, struct error *err)
{
    struct block_snapshot_info *infos = NULL;
    size_t count = 0;
    int ret = v->node->driver->co_snapshot_list(v->node, &infos, &count, err);

    ret = ret < 0 ? ret : pick_snapshot(v, infos, count, &v->snapshot, err);
    free(infos);
    if (ret < 0 || !v->snapshot) {
        return ret;
    }
    ret = v->node->driver->co_snapshot_show(v->node, NULL, v->snapshot->name, err);
    v->sectors = block_node_size(v->node) / MODEL_SECTOR;
    if (ret == 0 && v->sectors != v->snapshot->sectors) {
        ret = wrong(err, "a snapshot has another size than it had");
    }
    ret = ret < 0 ? ret : co_check_data(v, err);
    v->snapshot = NULL;
    return ret;
}

/* --- all of it ----------------------------------------------------------------------------------------- */

static int co_try_to_write(struct verifier *v, struct error *err)
{
    /* The last sector can be written and made stable: what was leaked or lost does not stand in the way. */
    uint64_t offset = (v->sectors - 1) * MODEL_SECTOR;
    uint8_t data[MODEL_SECTOR];
    int ret = block_co_pread(v->edge, offset, data, MODEL_SECTOR);

    ret = ret < 0 ? ret : block_co_pwrite(v->edge, offset, data, MODEL_SECTOR, 0);
    ret = ret < 0 ? ret : block_co_flush(v->edge);
    return ret < 0 ? error_set_errno(err, -ret, "writing to the image failed") : 0;
}

static int co_check_contents(struct verifier *v, bool writable, struct error *err)
{
    struct block_root *root;
    unsigned perm = BLOCK_PERM_CONSISTENT_READ | (writable ? BLOCK_PERM_WRITE : 0);
    int ret;

    ret = block_co_root_new(v->node, "verification", perm, BLOCK_PERM_ALL, &root, err);
    if (ret < 0) {
        return ret;
    }
    v->edge = block_root_edge(root);
    v->sectors = block_node_size(v->node) / MODEL_SECTOR;
    if (!model_allows_size(&v->w->model, v->sectors, v->state->time)) {
        ret = wrong(err, "the disk has a size that it can't have");
    } else {
        ret = writable ? co_try_to_write(v, err) : co_check_data(v, err);
    }
    ret = ret < 0 ? ret : check_bitmaps(v, err);
    if (ret == 0 && !writable) {
        ret = co_check_snapshots(v, err);
    }
    block_co_root_release(root);
    return ret;
}

static int co_open_and_check(struct verifier *v, bool writable, bool metadata, const char *when,
                             struct error *err)
{
    int ret = crash_co_open_qcow2("crashed", writable, &v->node, err);

    if (ret < 0) {
        error_prepend(err, "opening %s: ", when);
        return ret;
    }
    if (metadata) {
        ret = co_check_image(v->node, when, err);
    }
    ret = ret < 0 ? ret : co_check_contents(v, writable, err);
    if (ret < 0) {
        error_prepend(err, "%s: ", when);
    } else if (writable) {
        ret = block_co_inactivate(v->node, err);
    }
    block_co_unref(v->node);
    return ret;
}

static bool is_dirty(const struct crash_state *state)
{
    return state->size > HEADER_INCOMPATIBLE && (state->data[HEADER_INCOMPATIBLE] & 1);
}

int verify_co_state(struct workload *w, const struct crash_state *state, struct block_node *disk,
                    struct error *err)
{
    struct verifier v = {.w = w, .state = state};
    int ret;

    v.stable = model_stable_until(&w->model, state->time);
    v.values = malloc(w->model.sectors * sizeof(*v.values));
    if (!v.values) {
        return wrong(err, "out of memory");
    }
    for (uint64_t i = 0; i < w->model.sectors; i++) {
        v.values[i] = MODEL_ZERO;
    }
    record_disk_load(disk, state->data, state->size);
    ret = co_open_and_check(&v, false, !is_dirty(state), "read-only", err);
    ret = ret < 0 ? ret : co_open_and_check(&v, true, false, "for writing", err);
    ret = ret < 0 ? ret : co_open_and_check(&v, false, true, "after writing", err);
    free(v.values);
    return ret;
}
