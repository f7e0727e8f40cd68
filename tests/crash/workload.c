/* SPDX-License-Identifier: Apache-2.0 */
#include "workload.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "block/gate.h"
#include "co/sync.h"
#include "loop/loop.h"
#include "random.h"

#define WORKERS 4u
#define BATCHES                                                                                    \
    3u /* twice as many with snapshots and changes of size; bitmaps change between batches, when no request is in flight */
#define MAX_CLUSTERS_AT_ONCE 3u
#define HOT_SHARE 4u /* one of so many requests goes to the hot area */
#define HOT_SIZE (256 * KiB)
#define BITMAP_GRANULARITY (64 * KiB)

struct run {
    struct workload *w;
    struct block_edge *guest;
    struct range_lock busy; /* sectors with a request in flight: no two overlap */
    struct co_group workers;
    unsigned left; /* requests of this batch */
    int ret;       /* first error */
    struct error *err;
    uint64_t random;
};

/* --- nodes ------------------------------------------------------------------------------------------- */

static int co_open_json(const char *json, unsigned flags, struct block_node **ret,
                        struct error *err)
{
    struct options *opts;
    int r = options_parse(json, NULL, &opts, err);

    return r < 0 ? r : block_co_open(opts, flags, ret, err);
}

int crash_co_open_disk(const char *node_name, struct block_node **ret, struct error *err)
{
    char json[128];

    snprintf(json, sizeof(json),
             "{\"driver\":\"record-disk\",\"node-name\":\"%s\",\"discard\":\"unmap\"}", node_name);
    return co_open_json(json, BLOCK_OPEN_RDWR, ret, err);
}

int crash_co_open_qcow2(const char *disk_name, bool writable, struct block_node **ret,
                        struct error *err)
{
    char json[128];

    snprintf(json, sizeof(json), "{\"driver\":\"qcow2\",\"file\":\"%s\",\"discard\":\"unmap\"}",
             disk_name);
    return co_open_json(json, writable ? BLOCK_OPEN_RDWR : 0, ret, err);
}

/* Creation works on files, so the empty image is made in one and loaded. */
static int co_make_image(struct workload *w, struct block_node *disk, struct error *err)
{
    char name[] = "crash-XXXXXX.qcow2";
    struct options *opts = options_new();
    uint8_t *data AUTO_FREE = NULL;
    int fd AUTO_CLOSE = mkstemps(name, 6);
    ssize_t n = -1;
    off_t size;
    int ret;

    if (fd < 0) {
        return error_set_errno(err, errno, "Could not make a file for the empty image");
    }
    options_set_uint(opts, "cluster_size", w->cluster_size);
    ret = block_co_create_image("qcow2", name, model_sectors_now(&w->model) * MODEL_SECTOR, opts,
                                err);
    size = lseek(fd, 0, SEEK_END);
    if (ret == 0 && size > 0) {
        data = malloc((size_t)size);
        n = data ? pread(fd, data, (size_t)size, 0) : -1;
    }
    unlink(name);
    if (ret == 0 && (size <= 0 || n != size)) {
        ret = error_set(err, EIO, "Could not read the empty image");
    }
    if (ret == 0) {
        record_disk_load(disk, data, (uint64_t)size);
    }
    return ret;
}

/* --- requests ---------------------------------------------------------------------------------------- */

static void run_fail(struct run *r, int ret, const char *what, uint64_t sector)
{
    if (r->ret == 0) {
        r->ret = error_set_errno(r->err, -ret, "seed %llu: guest %s at sector %llu failed",
                                 (unsigned long long)r->w->seed, what, (unsigned long long)sector);
    }
}

static void pick_range(struct run *r, uint64_t *sector, uint64_t *sectors)
{
    uint64_t total = model_sectors_now(&r->w->model), area = total;
    uint64_t longest = MAX_CLUSTERS_AT_ONCE * r->w->cluster_size / MODEL_SECTOR;

    if (random_below(&r->random, HOT_SHARE) == 0) {
        area = MIN(total, HOT_SIZE / MODEL_SECTOR);
    }
    *sector = random_below(&r->random, area);
    switch (random_below(&r->random, 4)) {
    case 0: /* any length */
        *sectors = 1 + random_below(&r->random, longest);
        break;
    case 1: /* whole clusters */
        *sector = round_down(*sector, r->w->cluster_size / MODEL_SECTOR);
        *sectors = (1 + random_below(&r->random, MAX_CLUSTERS_AT_ONCE)) * r->w->cluster_size /
                   MODEL_SECTOR;
        break;
    default: /* what guests mostly do */
        *sector = round_down(*sector, 8);
        *sectors = 8;
    }
    *sectors = MIN(*sectors, total - *sector);
}

static int co_write(struct run *r, uint32_t op, uint64_t sector, uint64_t sectors)
{
    uint8_t *data AUTO_FREE = malloc(sectors * MODEL_SECTOR);

    if (!data) {
        return -ENOMEM;
    }
    model_stamp(data, sectors * MODEL_SECTOR, sector, op);
    return block_co_pwrite(r->guest, sector * MODEL_SECTOR, data, sectors * MODEL_SECTOR, 0);
}

static int co_read_back(struct run *r, uint64_t sector, uint64_t sectors)
{
    uint8_t *data AUTO_FREE = malloc(sectors * MODEL_SECTOR);
    uint64_t now = r->w->log.clock;
    int ret = data ? block_co_pread(r->guest, sector * MODEL_SECTOR, data, sectors * MODEL_SECTOR)
                   : -ENOMEM;

    for (uint64_t i = 0; i < sectors && ret == 0; i++) {
        uint32_t value = model_value(data + i * MODEL_SECTOR, sector + i);

        /* All that was answered counts: nothing has crashed. */
        if (!model_allows(&r->w->model, sector + i, value, now, now)) {
            ret = -EILSEQ;
        }
    }
    return ret;
}

static void co_change(struct run *r, enum model_kind kind)
{
    static const char *const names[] = {"write", "zeroing", "discard", "flush"};
    struct workload *w = r->w;
    struct range_entry entry;
    uint64_t sector, sectors;
    uint32_t op;
    int ret;

    pick_range(r, &sector, &sectors);
    co_range_lock(&r->busy, &entry, sector, sectors, true);
    op = model_begin(&w->model, kind, sector, sectors, record_tick(&w->log));
    if (kind == MODEL_WRITE) {
        ret = co_write(r, op, sector, sectors);
    } else if (kind == MODEL_ZEROES) {
        ret = block_co_write_zeroes(r->guest, sector * MODEL_SECTOR, sectors * MODEL_SECTOR,
                                    random_below(&r->random, 2) ? BLOCK_REQ_MAY_UNMAP : 0);
    } else {
        ret = block_co_discard(r->guest, sector * MODEL_SECTOR, sectors * MODEL_SECTOR);
    }
    model_end(&w->model, op, record_tick(&w->log));
    if (ret < 0) {
        run_fail(r, ret, names[kind], sector);
    }
    range_unlock(&r->busy, &entry);
}

static void co_flush(struct run *r)
{
    struct workload *w = r->w;
    uint32_t op = model_begin(&w->model, MODEL_FLUSH, 0, 0, record_tick(&w->log));
    int ret = block_co_flush(r->guest);

    model_end(&w->model, op, record_tick(&w->log));
    if (ret < 0) {
        run_fail(r, ret, "flush", 0);
    }
}

static void co_read(struct run *r)
{
    struct range_entry entry;
    uint64_t sector, sectors;
    int ret;

    pick_range(r, &sector, &sectors);
    co_range_lock(&r->busy, &entry, sector, sectors, true);
    ret = co_read_back(r, sector, sectors);
    range_unlock(&r->busy, &entry);
    if (ret < 0) {
        run_fail(r, ret, "read", sector);
    }
}

static void worker(void *arg)
{
    struct run *r = arg;

    while (r->left > 0 && r->ret == 0) {
        uint64_t what = random_below(&r->random, 100);

        r->left--;
        if (what < 58) {
            co_change(r, MODEL_WRITE);
        } else if (what < 68) {
            co_change(r, MODEL_ZEROES);
        } else if (what < 80) {
            co_change(r, MODEL_DISCARD);
        } else if (what < 92) {
            co_flush(r);
        } else {
            co_read(r);
        }
    }
    co_group_done(&r->workers);
}

static void co_run_batch(struct run *r, unsigned ops)
{
    r->left = ops;
    for (unsigned i = 0; i < WORKERS; i++) {
        co_group_add(&r->workers);
        if (reactor_spawn(reactor_current(), worker, r) < 0) {
            co_group_done(&r->workers);
        }
    }
    co_group_wait(&r->workers);
}

/* --- bitmaps ----------------------------------------------------------------------------------------- */

static struct model_bitmap *find_live_bitmap(struct model *m, const char *name)
{
    for (unsigned i = m->bitmap_count; i-- > 0;) {
        if (strcmp(m->bitmaps[i].name, name) == 0) {
            return m->bitmaps[i].remove_begin == MODEL_PENDING ? &m->bitmaps[i] : NULL;
        }
    }
    return NULL;
}

static int co_add_bitmap(struct run *r, struct block_node *node, const char *name)
{
    struct model *m = &r->w->model;
    struct model_bitmap *b = &m->bitmaps[m->bitmap_count];
    struct block_bitmap *bitmap;
    int ret;

    *b = (struct model_bitmap){.granularity = BITMAP_GRANULARITY,
                               .base = MODEL_PENDING,
                               .create_end = MODEL_PENDING,
                               .remove_begin = MODEL_PENDING};
    snprintf(b->name, sizeof(b->name), "%s", name);
    m->bitmap_count++;
    ret = block_co_bitmap_add(node, name, BITMAP_GRANULARITY, true, false, &bitmap, r->err);
    b->base = b->create_end = record_tick(&r->w->log);
    return ret;
}

/* The state of the bitmap in the image is unknown to the model while its base moves: a new entry takes over. */
static int co_clear_bitmap(struct run *r, struct block_bitmap *bitmap, struct model_bitmap *b)
{
    int ret = block_co_bitmap_clear(bitmap, NULL, r->err);

    b->base = record_tick(&r->w->log);
    return ret;
}

static int co_change_bitmaps(struct run *r, struct block_node *node)
{
    struct model *m = &r->w->model;
    char name[16];
    struct model_bitmap *b;
    struct block_bitmap *bitmap;
    unsigned what = (unsigned)random_below(&r->random, 6);

    snprintf(name, sizeof(name), "bitmap%llu", (unsigned long long)random_below(&r->random, 2));
    b = find_live_bitmap(m, name);
    bitmap = block_bitmap_find(node, name);
    if (b && !bitmap) {
        return error_set(r->err, EIO, "seed %llu: bitmap '%s' is gone",
                         (unsigned long long)r->w->seed, name);
    }
    if (!b) {
        return m->bitmap_count < MODEL_MAX_BITMAPS ? co_add_bitmap(r, node, name) : 0;
    }
    if (bitmap->inconsistent) {
        return error_set(r->err, EIO, "seed %llu: bitmap '%s' is inconsistent without a crash",
                         (unsigned long long)r->w->seed, name);
    }
    if (what == 0) {
        b->remove_begin = record_tick(&r->w->log);
        return block_co_bitmap_remove(bitmap, r->err);
    }
    return what == 1 ? co_clear_bitmap(r, bitmap, b) : 0;
}

/* --- snapshots and size ------------------------------------------------------------------------------ */

/* Sectors of a disk of any size from a quarter of the largest on; often whole clusters. */
static uint64_t random_size(const struct workload *w, uint64_t *random)
{
    uint64_t most = w->size / MODEL_SECTOR, least = most / 4;
    uint64_t sectors = least + random_below(random, most - least + 1);

    return random_below(random, 2) ? MAX(round_down(sectors, w->cluster_size / MODEL_SECTOR), least)
                                   : sectors;
}

static uint64_t first_size(const struct workload *w)
{
    uint64_t random = random_mix(w->seed + 99);

    return w->guest_only ? w->size / MODEL_SECTOR : random_size(w, &random);
}

static int co_resize(struct run *r, struct block_node *node)
{
    struct workload *w = r->w;
    uint64_t old = model_sectors_now(&w->model), sectors = random_size(w, &r->random);
    enum block_prealloc prealloc = BLOCK_PREALLOC_OFF;
    struct model_size *size;
    uint64_t now;
    uint32_t op;
    int ret;

    if (w->model.size_count == MODEL_MAX_SIZES) {
        return 0;
    }
    if (sectors > old && random_below(&r->random, 4) == 0) {
        prealloc = BLOCK_PREALLOC_METADATA;
    }
    now = record_tick(&w->log);
    size = model_add_size(&w->model, sectors, now);
    op = model_begin(&w->model, MODEL_RESIZE, sectors, old > sectors ? old - sectors : 0, now);
    ret = block_co_truncate(r->guest, sectors * MODEL_SECTOR, prealloc, r->err);
    size->end = record_tick(&w->log);
    model_end(&w->model, op, size->end);
    return ret;
}

/* What the disk reads as now, by sector. */
static int co_read_values(struct run *r, uint32_t *values)
{
    const struct model *m = &r->w->model;
    uint8_t data[MODEL_SECTOR];
    int ret = 0;

    for (uint64_t i = 0; i < m->sectors && ret == 0; i++) {
        values[i] = MODEL_ZERO;
        if (m->sector_counts[i] > 0 && i < model_sectors_now(m)) {
            ret = block_co_pread(r->guest, i * MODEL_SECTOR, data, sizeof(data));
            values[i] = model_value(data, i);
        }
    }
    return ret;
}

static int co_create_snapshot(struct run *r, struct block_node *node)
{
    struct model *m = &r->w->model;
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
    ret = s->values ? co_read_values(r, s->values) : -ENOMEM;
    m->snapshot_count++;
    if (ret < 0) {
        return error_set_errno(r->err, -ret, "reading what the snapshot holds failed");
    }
    snprintf(s->name, sizeof(s->name), "snapshot%u", m->snapshot_count);
    s->create_begin = record_tick(&r->w->log);
    op = model_begin(m, MODEL_SNAPSHOT_CREATE, 0, 0, s->create_begin);
    block_co_drain_begin(node);
    ret = node->driver->co_snapshot_create(node, s->name, r->err);
    block_co_drain_end(node);
    s->create_end = record_tick(&r->w->log);
    model_end(m, op, s->create_end);
    return ret;
}

static int co_apply_snapshot(struct run *r, struct block_node *node, struct model_snapshot *s)
{
    struct model *m = &r->w->model;
    uint64_t now = record_tick(&r->w->log);
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
    ret = node->driver->co_snapshot_apply(node, s->name, r->err);
    block_co_drain_end(node);
    size->end = record_tick(&r->w->log);
    model_end(m, op, size->end);
    if (ret == 0) {
        ret = co_read_back(r, 0, s->sectors);
        if (ret < 0) {
            error_set_errno(r->err, -ret, "the disk is not what it was when '%s' was made",
                            s->name);
        }
    }
    return ret;
}

static int co_delete_snapshot(struct run *r, struct block_node *node, struct model_snapshot *s)
{
    struct model *m = &r->w->model;
    uint32_t op;
    int ret;

    s->delete_begin = record_tick(&r->w->log);
    op = model_begin(m, MODEL_SNAPSHOT_DELETE, 0, 0, s->delete_begin);
    block_co_drain_begin(node);
    ret = node->driver->co_snapshot_delete(node, s->name, r->err);
    block_co_drain_end(node);
    model_end(m, op, record_tick(&r->w->log));
    return ret;
}

/* Any of those that are there; NULL if there is none. */
static struct model_snapshot *pick_snapshot(struct run *r)
{
    struct model *m = &r->w->model;
    struct model_snapshot *live[MODEL_MAX_SNAPSHOTS];
    unsigned count = 0;

    for (unsigned i = 0; i < m->snapshot_count; i++) {
        if (m->snapshots[i].delete_begin == MODEL_PENDING) {
            live[count++] = &m->snapshots[i];
        }
    }
    return count ? live[random_below(&r->random, count)] : NULL;
}

/* No request is in flight. */
static int co_change_disk(struct run *r, struct block_node *node)
{
    uint64_t what = random_below(&r->random, 10);
    struct model_snapshot *s = pick_snapshot(r);

    if (what < 3) {
        return co_resize(r, node);
    }
    if (what < 6) {
        return co_create_snapshot(r, node);
    }
    if (what < 8 && s) {
        return co_delete_snapshot(r, node, s);
    }
    return what == 8 && s && !r->w->bitmaps ? co_apply_snapshot(r, node, s) : 0;
}

/* --- sessions ---------------------------------------------------------------------------------------- */

static int co_run_batches(struct run *r, struct block_node *node)
{
    int ret = 0;

    unsigned batches = r->w->guest_only ? BATCHES : 2 * BATCHES;

    for (unsigned i = 0; i < batches && ret == 0; i++) {
        if (r->w->bitmaps) {
            ret = co_change_bitmaps(r, node);
        }
        if (ret == 0 && !r->w->guest_only) {
            ret = co_change_disk(r, node);
        }
        if (ret == 0) {
            co_run_batch(r, r->w->ops / batches);
            ret = r->ret;
        }
    }
    return ret;
}

static int co_run_session(struct workload *w, unsigned index, struct error *err)
{
    struct run r = {.w = w, .err = err, .random = random_mix(w->seed * 1000003 + index)};
    struct model_session *session = &w->model.sessions[w->model.session_count++];
    struct block_root *root = NULL;
    struct block_node *node;
    int ret;

    *session = (struct model_session){.open_begin = record_tick(&w->log),
                                      .close_begin = MODEL_PENDING,
                                      .close_end = MODEL_PENDING};
    ret = crash_co_open_qcow2("live", true, &node, err);
    if (ret < 0) {
        return ret;
    }
    range_lock_init(&r.busy);
    co_group_init(&r.workers);
    ret = block_co_root_new(node, "workload",
                            BLOCK_PERM_CONSISTENT_READ | BLOCK_PERM_WRITE | BLOCK_PERM_RESIZE,
                            BLOCK_PERM_ALL, &root, err);
    if (ret == 0) {
        r.guest = block_root_edge(root);
        ret = co_run_batches(&r, node);
    }
    block_co_root_release(root);
    session->close_begin = record_tick(&w->log);
    if (ret == 0) {
        ret = block_co_inactivate(node, err);
    }
    block_co_unref(node);
    session->close_end = record_tick(&w->log);
    co_group_destroy(&r.workers);
    range_lock_destroy(&r.busy);
    return ret;
}

int workload_co_run(struct workload *w, struct error *err)
{
    struct block_node *disk;
    int ret;

    model_init(&w->model, w->size);
    model_add_size(&w->model, first_size(w), 0)->end = 0;
    w->log = (struct record_log){.is_guest_data = model_is_guest_data};
    ret = crash_co_open_disk("live", &disk, err);
    if (ret < 0) {
        return ret;
    }
    ret = co_make_image(w, disk, err);
    if (ret == 0) {
        record_disk_set_log(disk, &w->log);
    }
    reactor_set_seed(reactor_current(), w->seed);
    for (unsigned i = 0; i < w->sessions && ret == 0; i++) {
        ret = co_run_session(w, i, err);
    }
    reactor_set_seed(reactor_current(), 0);
    block_co_unref(disk);
    return ret;
}

void workload_clear(struct workload *w)
{
    model_clear(&w->model);
    record_log_clear(&w->log);
}
