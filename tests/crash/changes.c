/* SPDX-License-Identifier: Apache-2.0 */
#include "changes.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "block/bitmaps.h"
#include "block/driver.h"
#include "qcow2/image.h"
#include "random.h"

#define BITMAP_NAMES 3u

/* --- bitmaps ---------------------------------------------------------------------------------- */

static struct model_bitmap *find_live_bitmap(struct model *m, const char *name)
{
    for (unsigned i = m->bitmap_count; i-- > 0;) {
        if (strcmp(m->bitmaps[i].name, name) == 0) {
            return m->bitmaps[i].remove_begin == MODEL_PENDING ? &m->bitmaps[i] : NULL;
        }
    }
    return NULL;
}

static void begin_epoch(struct guest *g, struct model_bitmap *b)
{
    if (b->epoch_count < MODEL_MAX_EPOCHS) {
        b->epochs[b->epoch_count++] =
            (struct model_epoch){.base = record_tick(&g->w->log), .until = MODEL_PENDING};
    }
}

static void end_epoch(struct guest *g, struct model_bitmap *b)
{
    uint64_t now = record_tick(&g->w->log);

    if (b->epoch_count > 0) {
        struct model_epoch *e = &b->epochs[b->epoch_count - 1];

        e->until = MIN(e->until, now);
    }
}

/* Commands may fail in a full file; then nothing has changed. Storing at close must not. */
static bool found_no_room(struct guest *g, int ret)
{
    if (ret != -ENOSPC || g->w->config.room == 0) {
        return false;
    }
    error_clear(g->err);
    return true;
}

static int co_remove_bitmap(struct guest *g, struct block_bitmap *bitmap, struct model_bitmap *b)
{
    int ret;

    end_epoch(g, b);
    b->remove_begin = record_tick(&g->w->log);
    ret = block_co_bitmap_remove(bitmap, g->err);
    if (found_no_room(g, ret)) {
        b->remove_begin = MODEL_PENDING;
        return 0;
    }
    return ret;
}

static int co_add_bitmap(struct guest *g, struct block_node *node, const char *name)
{
    struct model *m = &g->w->model;
    struct model_bitmap *b = &m->bitmaps[m->bitmap_count];
    uint32_t granularity = 512u << random_below(&g->random, 8);
    struct block_bitmap *bitmap;
    int ret;

    if (m->bitmap_count == MODEL_MAX_BITMAPS) {
        return 0;
    }
    m->bitmap_count++;
    *b = (struct model_bitmap){.create_end = MODEL_PENDING, .remove_begin = MODEL_PENDING};
    snprintf(b->name, sizeof(b->name), "%s", name);
    ret = block_co_bitmap_add(node, name, granularity, true, false, &bitmap, g->err);
    if (found_no_room(g, ret)) {
        m->bitmap_count--;
        return 0;
    }
    begin_epoch(g, b);
    b->create_end = b->epochs[0].base;
    return ret;
}

static int co_clear_bitmap(struct guest *g, struct block_bitmap *bitmap, struct model_bitmap *b)
{
    int ret;

    end_epoch(g, b);
    ret = block_co_bitmap_clear(bitmap, NULL, g->err);
    if (found_no_room(g, ret)) {
        return 0;
    }
    if (bitmap->enabled) {
        begin_epoch(g, b);
    }
    return ret;
}

/* One that is enabled again has missed something: it covers nothing until it is cleared. */
static int co_switch_bitmap(struct guest *g, struct block_bitmap *bitmap, struct model_bitmap *b)
{
    int ret;

    end_epoch(g, b);
    ret = block_co_bitmap_set_enabled(bitmap, !bitmap->enabled, g->err);
    return found_no_room(g, ret) ? 0 : ret;
}

/* Of one granularity, or it is refused. */
static int co_merge_bitmap(struct guest *g, struct block_bitmap *bitmap)
{
    struct block_bitmap *other = block_bitmap_next(bitmap->node, NULL);
    int ret;

    while (other && (other == bitmap || other->inconsistent)) {
        other = block_bitmap_next(bitmap->node, other);
    }
    ret = other ? block_co_bitmap_merge(bitmap, &other, 1, NULL, g->err) : 0;
    return found_no_room(g, ret) ? 0 : ret;
}

/* The last one that was cleared as a part of a joint change. */
static struct {
    struct model_bitmap *model;
    bool records;
} cleared;

int changes_co_clear_any(struct guest *g, struct block_node *node)
{
    struct model *m = &g->w->model;

    for (unsigned i = 0; i < m->bitmap_count; i++) {
        struct block_bitmap *bitmap = m->bitmaps[i].remove_begin == MODEL_PENDING
                                          ? block_bitmap_find(node, m->bitmaps[i].name)
                                          : NULL;

        if (bitmap) {
            end_epoch(g, &m->bitmaps[i]);
            cleared.model = &m->bitmaps[i];
            cleared.records = bitmap->enabled;
            return block_co_bitmap_clear(bitmap, NULL, g->err);
        }
    }
    return 0;
}

void changes_end_clear(struct guest *g)
{
    if (cleared.model && cleared.records) {
        begin_epoch(g, cleared.model);
    }
    cleared.model = NULL;
}

int changes_co_bitmaps(struct guest *g, struct block_node *node)
{
    char name[16];
    struct model_bitmap *b;
    struct block_bitmap *bitmap;
    unsigned what = (unsigned)random_below(&g->random, 10);

    snprintf(name, sizeof(name), "bitmap%llu",
             (unsigned long long)random_below(&g->random, BITMAP_NAMES));
    b = find_live_bitmap(&g->w->model, name);
    bitmap = block_bitmap_find(node, name);
    if (b && !bitmap && g->w->config.job) {
        return 0; /* it is in an image below */
    }
    if (b && !bitmap) {
        return error_set(g->err, EIO, "bitmap '%s' is gone", name);
    }
    if (!b) {
        return co_add_bitmap(g, node, name);
    }
    if (bitmap->inconsistent) {
        return error_set(g->err, EIO, "bitmap '%s' is inconsistent without a crash", name);
    }
    switch (what) {
    case 0:
        return co_remove_bitmap(g, bitmap, b);
    case 1:
    case 2:
        return co_clear_bitmap(g, bitmap, b);
    case 3:
        return co_switch_bitmap(g, bitmap, b);
    case 4:
        return co_merge_bitmap(g, bitmap);
    default:
        return 0;
    }
}

/* --- size ------------------------------------------------------------------------------------- */

uint64_t changes_random_size(const struct workload *w, uint64_t *random)
{
    uint64_t most = w->size / MODEL_SECTOR, least = most / 4;
    uint64_t sectors = least + random_below(random, most - least + 1);
    uint64_t cluster = w->config.cluster_size / MODEL_SECTOR;

    return random_below(random, 2) ? MAX(round_down(sectors, cluster), least) : sectors;
}

static int co_resize(struct guest *g)
{
    struct workload *w = g->w;
    uint64_t old = model_sectors_now(&w->model), sectors = changes_random_size(w, &g->random);
    enum block_prealloc prealloc = BLOCK_PREALLOC_OFF;
    struct model_size *size;
    uint64_t now;
    uint32_t op;
    int ret;

    if (w->model.size_count == MODEL_MAX_SIZES) {
        return 0;
    }
    if (sectors > old && !w->config.backing && random_below(&g->random, 4) == 0) {
        prealloc = BLOCK_PREALLOC_METADATA + random_below(&g->random, 3);
    }
    now = record_tick(&w->log);
    size = model_add_size(&w->model, sectors, now);
    op = model_begin(&w->model, MODEL_RESIZE, sectors, old > sectors ? old - sectors : 0, now);
    ret = block_co_truncate(g->edge, sectors * MODEL_SECTOR, prealloc, g->err);
    size->end = record_tick(&w->log);
    model_end(&w->model, op, size->end);
    if (sectors > old && block_edge_size(g->edge) == old * MODEL_SECTOR && found_no_room(g, ret)) {
        w->model.size_count--;
        return 0;
    }
    return ret;
}

/* --- snapshots -------------------------------------------------------------------------------- */

/*
 * Few bits can't count many snapshots, version 2 has no sizes of their own for them: that is said,
 * and nothing happens.
 */
static bool is_refused(const struct guest *g, int ret)
{
    const struct crash_config *c = &g->w->config;

    if (ret == -ENOTSUP && c->amend == AMEND_VERSION && g->w->model.snapshot_count > 0) {
        return true;
    }
    return ret == -ERANGE && (c->refcount_bits < 8 || c->amend == AMEND_REFCOUNT_BITS);
}

/* What the disk reads as now, by sector. */
static int co_read_values(struct guest *g, uint32_t *values)
{
    const struct model *m = &g->w->model;
    uint8_t data[MODEL_SECTOR];
    int ret = 0;

    for (uint64_t i = 0; i < m->sectors && ret == 0; i++) {
        values[i] = MODEL_ZERO;
        if (m->sector_counts[i] > 0 && i < model_sectors_now(m)) {
            ret = block_co_pread(g->edge, i * MODEL_SECTOR, data, sizeof(data));
            values[i] = model_value(data, i);
        }
    }
    return ret;
}

static int co_create_snapshot(struct guest *g, struct block_node *node)
{
    struct model *m = &g->w->model;
    struct model_snapshot *s = &m->snapshots[m->snapshot_count];
    uint32_t op;
    int ret;

    if (m->snapshot_count == MODEL_MAX_SNAPSHOTS) {
        return 0;
    }
    *s = (struct model_snapshot){.sectors = model_sectors_now(m),
                                 .create_end = MODEL_PENDING,
                                 .delete_begin = MODEL_PENDING};
    s->values = calloc(m->sectors, sizeof(*s->values));
    ret = s->values ? co_read_values(g, s->values) : -ENOMEM;
    m->snapshot_count++;
    if (ret < 0) {
        return error_set_errno(g->err, -ret, "reading what the snapshot holds failed");
    }
    snprintf(s->name, sizeof(s->name), "snapshot%u", m->snapshot_count);
    s->create_begin = record_tick(&g->w->log);
    op = model_begin(m, MODEL_SNAPSHOT_CREATE, 0, 0, s->create_begin);
    block_co_drain_begin(node);
    ret = node->driver->co_snapshot_create(node, s->name, g->err);
    block_drain_end(node);
    s->create_end = record_tick(&g->w->log);
    model_end(m, op, s->create_end);
    if (is_refused(g, ret)) {
        error_clear(g->err);
        m->snapshot_count--;
        free(s->values);
        return 0;
    }
    return ret;
}

static int co_apply_snapshot(struct guest *g, struct block_node *node, struct model_snapshot *s)
{
    struct model *m = &g->w->model;
    uint64_t now = record_tick(&g->w->log);
    struct model_size *size;
    uint32_t op;
    int ret;

    if (m->size_count == MODEL_MAX_SIZES) {
        return 0;
    }
    size = model_add_size(m, s->sectors, now);
    op = model_begin(m, MODEL_SNAPSHOT_APPLY, 0, m->sectors, now);
    m->ops[op].values = s->values;
    block_co_drain_begin(node);
    ret = node->driver->co_snapshot_apply(node, s->name, g->err);
    block_drain_end(node);
    size->end = record_tick(&g->w->log);
    if (is_refused(g, ret)) {
        error_clear(g->err);
        model_cancel(m, op, size->end);
        m->size_count--;
        return 0;
    }
    model_end(m, op, size->end);
    if (ret == 0) {
        ret = guest_co_read_back(g, 0, s->sectors);
        if (ret < 0) {
            error_set_errno(g->err, -ret, "the disk is not what it was when '%s' was made",
                            s->name);
        }
    }
    return ret;
}

static int co_delete_snapshot(struct guest *g, struct block_node *node, struct model_snapshot *s)
{
    struct model *m = &g->w->model;
    uint32_t op;
    int ret;

    s->delete_begin = record_tick(&g->w->log);
    op = model_begin(m, MODEL_SNAPSHOT_DELETE, 0, 0, s->delete_begin);
    block_co_drain_begin(node);
    ret = node->driver->co_snapshot_delete(node, s->name, g->err);
    block_drain_end(node);
    model_end(m, op, record_tick(&g->w->log));
    return ret;
}

/* Any of those that are there; NULL if there is none. */
static struct model_snapshot *pick_snapshot(struct guest *g)
{
    struct model *m = &g->w->model;
    struct model_snapshot *live[MODEL_MAX_SNAPSHOTS];
    unsigned count = 0;

    for (unsigned i = 0; i < m->snapshot_count; i++) {
        if (m->snapshots[i].delete_begin == MODEL_PENDING) {
            live[count++] = &m->snapshots[i];
        }
    }
    return count ? live[random_below(&g->random, count)] : NULL;
}

/* --- the image itself ------------------------------------------------------------------------- */

static void set_amend_options(struct guest *g, struct options *opts)
{
    static const char *const versions[] = {"v2", "v3"};

    switch (g->w->config.amend) {
    case AMEND_REFCOUNT_BITS:
        options_set_uint(opts, "refcount_bits", 1ULL << random_below(&g->random, 7));
        break;
    case AMEND_LAZY_REFCOUNTS:
        options_set_bool(opts, "lazy_refcounts", random_below(&g->random, 2));
        break;
    case AMEND_VERSION:
        options_set_str(opts, "compat", versions[random_below(&g->random, 2)]);
        break;
    case AMEND_NOTHING:
        break;
    }
}

static int co_amend(struct guest *g, struct block_node *node)
{
    struct model *m = &g->w->model;
    struct options *opts = options_new();
    uint32_t op = model_begin(m, MODEL_AMEND, 0, 0, record_tick(&g->w->log));
    int ret;

    if (!opts) {
        abort();
    }
    set_amend_options(g, opts);
    block_co_drain_begin(node);
    ret = node->driver->co_amend(node, opts, false, NULL, NULL, g->err);
    block_drain_end(node);
    options_free(opts);
    model_end(m, op, record_tick(&g->w->log));
    if (is_refused(g, ret)) {
        error_clear(g->err);
        ret = 0;
    }
    return ret;
}

/* --- any of these ----------------------------------------------------------------------------- */

int changes_co_disk(struct guest *g, struct block_node *node)
{
    const struct crash_config *c = &g->w->config;
    uint64_t what = random_below(&g->random, 10);
    struct model_snapshot *s = pick_snapshot(g);

    if (c->amend != AMEND_NOTHING && random_below(&g->random, 2)) {
        return co_amend(g, node);
    }
    if (what < 3) {
        /* Version 2 does not record the sizes of snapshots. */
        return c->resize && !(qcow2_state(node)->version == 2 && s) ? co_resize(g) : 0;
    }
    if (!c->snapshots) {
        return 0;
    }
    if (what < 6) {
        return co_create_snapshot(g, node);
    }
    if (what < 8 && s) {
        return co_delete_snapshot(g, node, s);
    }
    return what == 8 && s ? co_apply_snapshot(g, node, s) : 0;
}
