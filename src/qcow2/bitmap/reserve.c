/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Room for bitmaps. A bitmap can be stored once there is a place for its table, and for a directory that names it: its
 * bits may be stored as "all dirty" where there is none. Both places are taken when the bitmap is added, or the disk grows, so that
 * want of room is told to somebody who can act on it; not when the image is closed.
 *
 *   add, grow  -> clusters allocated, written with zeroes (so that a file system has given them), nothing refers to them
 *   store      -> the table and the directory go there; what was not used is given back
 *   crash      -> leaked clusters (R6)
 *
 * On disk they are seen by their refcounts alone: other programs see no bitmap before the first store.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "qcow2/bitmap/bitmap.h"
#include "qcow2/snapshot/references.h"
#include "qcow2/table/commit.h"

/* Clusters that are kept for the table of a bitmap, or for the directory. */
struct reserved_run {
    struct list link;
    char *name; /* of the bitmap; NULL: the directory's */
    uint64_t offset, length;
    bool used; /* by the store that is under way */
};

static struct reserved_run *find_run(struct qcow2 *q, const char *name)
{
    struct reserved_run *run;

    LIST_FOREACH (run, &q->bitmaps.reserve, link) {
        if (name ? run->name && strcmp(run->name, name) == 0 : !run->name) {
            return run;
        }
    }
    return NULL;
}

static void free_run(struct reserved_run *run)
{
    list_remove(&run->link);
    free(run->name);
    free(run);
}

static void co_give_back(struct qcow2 *q, struct reserved_run *run)
{
    if (!run->used) {
        qcow2_co_free_new_clusters(q, run->offset, run->length);
    }
    free_run(run);
}

/* In place of a shorter one. */
static int co_reserve(struct qcow2 *q, const char *name, uint64_t bytes)
{
    struct reserved_run *old = find_run(q, name), *run;
    AUTO_FREE uint8_t *zeroes = NULL;
    int r;

    if (bytes == 0 || (old && old->length >= bytes)) {
        return 0;
    }
    run = calloc(1, sizeof(*run));
    zeroes = calloc(1, bytes);
    if (!run || !zeroes || (name && !(run->name = strdup(name)))) {
        free(run);
        return -ENOMEM;
    }
    list_init(&run->link);
    run->length = round_up(bytes, q->cluster_size);
    r = qcow2_co_write_new_clusters(q, zeroes, bytes, &run->offset);
    if (r < 0) {
        free_run(run);
        return r;
    }
    list_append(&q->bitmaps.reserve, &run->link);
    if (old) {
        co_give_back(q, old);
    }
    return 0;
}

/* The directory's is of no use without one for a table. */
static void co_give_back_directory(struct qcow2 *q)
{
    struct reserved_run *run, *directory = find_run(q, NULL);

    LIST_FOREACH (run, &q->bitmaps.reserve, link) {
        if (run->name) {
            return;
        }
    }
    if (directory) {
        co_give_back(q, directory);
    }
}

void qcow2_co_unreserve_bitmap(struct qcow2 *q, const char *name)
{
    struct reserved_run *run = find_run(q, name);

    if (run) {
        co_give_back(q, run);
        co_give_back_directory(q);
    }
}

/* Of a directory with all bitmaps that are stored or are going to be, and `name` if there is none of that name yet. */
static uint64_t directory_bytes(struct qcow2 *q, const char *name)
{
    const struct stored_bitmap *s;
    struct block_bitmap *b;
    uint64_t bytes = 0;

    LIST_FOREACH (s, &q->bitmaps.stored, link) {
        bytes += qcow2_bitmap_entry_bytes(s->name, s->extra_size);
    }
    for (b = block_bitmap_next(q->node, NULL); b; b = block_bitmap_next(q->node, b)) {
        if (b->persistent && !b->driver_state) {
            bytes += qcow2_bitmap_entry_bytes(b->name, 0);
        }
    }
    return name ? bytes + qcow2_bitmap_entry_bytes(name, 0) : bytes;
}

static uint64_t table_bytes(const struct qcow2 *q, uint64_t disk_size, uint32_t granularity)
{
    return qcow2_bitmap_table_entries(q, disk_size, (unsigned)__builtin_ctz(granularity)) * 8;
}

static int no_room(struct qcow2 *q, const char *name, int r, struct error *err)
{
    return error_set_errno(err, -r, "Could not reserve room for bitmap '%s' in '%s'", name,
                           block_node_display_name(q->node));
}

int qcow2_co_reserve_bitmap(struct block_node *node, const char *name, uint32_t granularity,
                            struct error *err)
{
    struct qcow2 *q = qcow2_state(node);
    int r;

    co_mutex_lock(&q->bitmaps.mutex);
    r = co_reserve(q, name, table_bytes(q, block_node_size(node), granularity));
    r = r < 0 ? r : co_reserve(q, NULL, directory_bytes(q, name));
    if (r < 0) {
        qcow2_co_unreserve_bitmap(q, name);
    }
    co_mutex_unlock(&q->bitmaps.mutex);
    return r < 0 ? no_room(q, name, r, err) : 0;
}

/* Room for a table of `bytes`, unless the bitmap has one that can be so long. */
static int co_reserve_table(struct qcow2 *q, const struct block_bitmap *b, uint64_t bytes,
                            bool *ret_any)
{
    const struct stored_bitmap *s = b->driver_state;
    uint64_t has = s ? round_up((uint64_t)s->table_entries * 8, q->cluster_size) : 0;

    if (bytes <= has) {
        return 0;
    }
    *ret_any = true;
    return co_reserve(q, b->name, bytes);
}

int qcow2_co_reserve_bitmaps_locked(struct qcow2 *q, uint64_t disk_size, struct error *err)
{
    struct block_bitmap *b;
    bool any = false;
    int r = 0;

    for (b = block_bitmap_next(q->node, NULL); b; b = block_bitmap_next(q->node, b)) {
        if (b->persistent && !b->inconsistent && !b->read_only) {
            any |= !b->driver_state;
            r = co_reserve_table(q, b, table_bytes(q, disk_size, b->granularity), &any);
        }
        if (r < 0) {
            return no_room(q, b->name, r, err);
        }
    }
    r = any ? co_reserve(q, NULL, directory_bytes(q, NULL)) : 0;
    return r < 0 ? error_set_errno(err, -r, "Could not reserve room for the bitmaps of '%s'",
                                   block_node_display_name(q->node))
                 : 0;
}

void qcow2_co_unreserve_longer_tables(struct qcow2 *q)
{
    struct reserved_run *run, *next;

    co_mutex_lock(&q->bitmaps.mutex);
    LIST_FOREACH_SAFE (run, next, &q->bitmaps.reserve, link) {
        if (run->name && qcow2_find_stored(q, run->name)) {
            co_give_back(q, run);
        }
    }
    co_give_back_directory(q);
    co_mutex_unlock(&q->bitmaps.mutex);
}

int qcow2_co_reserve_bitmaps(struct qcow2 *q, uint64_t disk_size, struct error *err)
{
    int r;

    co_mutex_lock(&q->bitmaps.mutex);
    r = qcow2_co_reserve_bitmaps_locked(q, disk_size, err);
    co_mutex_unlock(&q->bitmaps.mutex);
    return r;
}

void qcow2_bitmap_reserve_begin(struct qcow2 *q)
{
    struct reserved_run *run;

    LIST_FOREACH (run, &q->bitmaps.reserve, link) {
        run->used = false;
    }
}

bool qcow2_co_bitmap_reserve_use(struct qcow2 *q, const char *name, uint64_t bytes,
                                 uint64_t *ret_offset)
{
    struct reserved_run *run = find_run(q, name);

    if (!run || run->length < bytes) {
        return false;
    }
    run->used = true;
    *ret_offset = run->offset;
    /* Longer than needed, for a directory from which bitmaps were removed: nothing refers to the rest. */
    bytes = round_up(bytes, q->cluster_size);
    if (run->length > bytes) {
        qcow2_co_free_new_clusters(q, run->offset + bytes, run->length - bytes);
        run->length = bytes;
    }
    return true;
}

void qcow2_co_bitmap_reserve_again(struct qcow2 *q)
{
    struct reserved_run *run = find_run(q, NULL);

    if (!run || !run->used) {
        return;
    }
    free_run(run);
    /* What the old directory had is free after a commit. */
    if (co_reserve(q, NULL, directory_bytes(q, NULL)) < 0 && qcow2_co_commit(q) == 0) {
        (void)co_reserve(q, NULL, directory_bytes(q, NULL));
    }
}

void qcow2_co_bitmap_reserve_end(struct qcow2 *q)
{
    struct reserved_run *run, *next;

    LIST_FOREACH_SAFE (run, next, &q->bitmaps.reserve, link) {
        co_give_back(q, run);
    }
}

void qcow2_co_unreserve_bitmaps(struct qcow2 *q)
{
    co_mutex_lock(&q->bitmaps.mutex);
    qcow2_bitmap_reserve_begin(q);
    qcow2_co_bitmap_reserve_end(q);
    co_mutex_unlock(&q->bitmaps.mutex);
}

void qcow2_free_bitmap_reserve(struct qcow2 *q)
{
    struct reserved_run *run, *next;

    LIST_FOREACH_SAFE (run, next, &q->bitmaps.reserve, link) {
        free_run(run);
    }
}
