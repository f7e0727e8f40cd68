/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Clusters reserved for bitmaps.
 *
 * A bitmap can be stored if there are clusters for its table and for a directory that names it:
 * bits without a cluster are stored as "all dirty". Both are allocated when the bitmap is added, or
 * the disk grows. So a lack of space is reported to a caller that can act on it, not when the image
 * is closed.
 *
 *   add, grow  -> clusters are allocated and written with zeroes, so that the file system allocates
 *                 them; nothing refers to them
 *   store      -> the table and the directory are written there; unused clusters are given back
 *   crash      -> leaked clusters (R6)
 *
 * On disk they have refcounts, and no references: other programs see no bitmap before the first
 * store.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "block/bitmaps.h"
#include "qcow2/bitmap/reserve.h"
#include "qcow2/bitmap/stored.h"
#include "qcow2/table/commit.h"
#include "qcow2/table/new_table.h"

/* Contiguous clusters reserved for the table of a bitmap, or for the directory. */
struct reserved_run {
    struct list link; /* in bitmaps.reserve */
    char *name;       /* of the bitmap; NULL: for the directory */
    uint64_t offset;  /* in the file */
    uint64_t length;  /* bytes */
    bool used;        /* by the attempt to store that is under way */
};

/* The run for the table of bitmap `name`; NULL: for the directory. NULL if there is none. */
static struct reserved_run *find_reserved(struct qcow2 *q, const char *name)
{
    struct reserved_run *run;

    LIST_FOREACH (run, &q->bitmaps.reserve, link) {
        if (name ? run->name && strcmp(run->name, name) == 0 : !run->name) {
            return run;
        }
    }
    return NULL;
}

static void free_reserved(struct reserved_run *run)
{
    list_remove(&run->link);
    free(run->name);
    free(run);
}

static void co_give_back_reserved(struct qcow2 *q, struct reserved_run *run)
{
    if (!run->used) {
        qcow2_co_free_new_clusters(q, run->offset, run->length);
    }
    free_reserved(run);
}

/* Reserves clusters for `bytes` bytes. They replace a shorter run for the same purpose. */
static int co_reserve_run(struct qcow2 *q, const char *name, uint64_t bytes)
{
    struct reserved_run *old = find_reserved(q, name), *run;
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
        free_reserved(run);
        return r;
    }
    list_append(&q->bitmaps.reserve, &run->link);
    if (old) {
        co_give_back_reserved(q, old);
    }
    return 0;
}

/* The directory needs reserved clusters only while a table has some. */
static void co_give_back_directory_if_alone(struct qcow2 *q)
{
    struct reserved_run *run, *directory = find_reserved(q, NULL);

    LIST_FOREACH (run, &q->bitmaps.reserve, link) {
        if (run->name) {
            return;
        }
    }
    if (directory) {
        co_give_back_reserved(q, directory);
    }
}

void qcow2_co_unreserve_bitmap_locked(struct qcow2 *q, const char *name)
{
    struct reserved_run *run = find_reserved(q, name);

    CO_ASSERT_HELD(&q->bitmaps.mutex);
    if (run) {
        co_give_back_reserved(q, run);
        co_give_back_directory_if_alone(q);
    }
}

/*
 * Bytes of a directory with all bitmaps that are stored or are going to be, and with `name` unless
 * it is NULL.
 */
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

static int refuse_reservation(struct qcow2 *q, const char *name, int r, struct error *err)
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
    r = co_reserve_run(q, name, table_bytes(q, block_node_size(node), granularity));
    UNLESS_FAILED(r, co_reserve_run(q, NULL, directory_bytes(q, name)));
    if (r < 0) {
        qcow2_co_unreserve_bitmap_locked(q, name);
    }
    co_mutex_unlock(&q->bitmaps.mutex);
    return r < 0 ? refuse_reservation(q, name, r, err) : 0;
}

/*
 * Reserves clusters for a table of `bytes` bytes, unless the stored table has enough of them.
 * *ret_any is set if it has not.
 */
static int co_reserve_table(struct qcow2 *q, const struct block_bitmap *b, uint64_t bytes,
                            bool *ret_any)
{
    const struct stored_bitmap *s = b->driver_state;
    uint64_t has = s ? round_up((uint64_t)s->table_entries * 8, q->cluster_size) : 0;

    if (bytes <= has) {
        return 0;
    }
    *ret_any = true;
    return co_reserve_run(q, b->name, bytes);
}

int qcow2_co_reserve_bitmaps_locked(struct qcow2 *q, uint64_t disk_size, struct error *err)
{
    struct block_bitmap *b;
    bool any = false;
    int r = 0;

    CO_ASSERT_HELD(&q->bitmaps.mutex);
    for (b = block_bitmap_next(q->node, NULL); b; b = block_bitmap_next(q->node, b)) {
        if (b->persistent && !b->inconsistent && !b->read_only) {
            any |= !b->driver_state;
            r = co_reserve_table(q, b, table_bytes(q, disk_size, b->granularity), &any);
        }
        if (r < 0) {
            return refuse_reservation(q, b->name, r, err);
        }
    }
    r = any ? co_reserve_run(q, NULL, directory_bytes(q, NULL)) : 0;
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
            co_give_back_reserved(q, run);
        }
    }
    co_give_back_directory_if_alone(q);
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

void qcow2_reserve_begin_locked(struct qcow2 *q)
{
    struct reserved_run *run;

    CO_ASSERT_HELD(&q->bitmaps.mutex);
    LIST_FOREACH (run, &q->bitmaps.reserve, link) {
        run->used = false;
    }
}

bool qcow2_co_reserve_use_locked(struct qcow2 *q, const char *name, uint64_t bytes,
                                 uint64_t *ret_offset)
{
    struct reserved_run *run = find_reserved(q, name);

    CO_ASSERT_HELD(&q->bitmaps.mutex);
    if (!run || run->length < bytes) {
        return false;
    }
    run->used = true;
    *ret_offset = run->offset;
    /*
     * The run is longer than needed if bitmaps were removed meanwhile. The rest has no references.
     */
    bytes = round_up(bytes, q->cluster_size);
    if (run->length > bytes) {
        qcow2_co_free_new_clusters(q, run->offset + bytes, run->length - bytes);
        run->length = bytes;
    }
    return true;
}

void qcow2_co_reserve_directory_again_locked(struct qcow2 *q)
{
    struct reserved_run *run = find_reserved(q, NULL);

    CO_ASSERT_HELD(&q->bitmaps.mutex);
    if (!run || !run->used) {
        return;
    }
    free_reserved(run);
    /* A commit frees the clusters of the old directory. */
    if (co_reserve_run(q, NULL, directory_bytes(q, NULL)) < 0 && qcow2_co_commit(q) == 0) {
        (void)co_reserve_run(q, NULL, directory_bytes(q, NULL));
    }
}

void qcow2_reserve_take_used_locked(struct qcow2 *q, struct cluster_runs *ret_runs)
{
    struct reserved_run *run, *next;

    CO_ASSERT_HELD(&q->bitmaps.mutex);
    LIST_FOREACH_SAFE (run, next, &q->bitmaps.reserve, link) {
        if (run->used) {
            /* Without memory they leak, if the attempt fails. */
            (void)cluster_runs_add(
                ret_runs, (struct cluster_run){.offset = run->offset, .length = run->length});
            free_reserved(run);
        }
    }
}

void qcow2_co_reserve_end_locked(struct qcow2 *q)
{
    struct reserved_run *run, *next;

    CO_ASSERT_HELD(&q->bitmaps.mutex);
    LIST_FOREACH_SAFE (run, next, &q->bitmaps.reserve, link) {
        co_give_back_reserved(q, run);
    }
}

void qcow2_co_unreserve_bitmaps(struct qcow2 *q)
{
    co_mutex_lock(&q->bitmaps.mutex);
    qcow2_reserve_begin_locked(q);
    qcow2_co_reserve_end_locked(q);
    co_mutex_unlock(&q->bitmaps.mutex);
}

void qcow2_free_bitmap_reserve(struct qcow2 *q)
{
    struct reserved_run *run, *next;

    LIST_FOREACH_SAFE (run, next, &q->bitmaps.reserve, link) {
        free_reserved(run);
    }
}
