/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Storing persistent bitmaps.
 *
 * Bits that changed, tables and a directory are written to new clusters. Then one write of the
 * header's first sector switches to the new directory (R3), in which the bitmaps are not marked in
 * use (R5). Then the clusters that only the old directory used are freed. A crash before the switch
 * leaves the old directory with its marks. Without space for new clusters, in_place.c stores the
 * bitmaps over the old ones.
 */
#include <errno.h>
#include <string.h>

#include "base/log.h"
#include "block/bitmaps.h"
#include "qcow2/bitmap/joint.h"
#include "qcow2/bitmap/reserve.h"
#include "qcow2/bitmap/store.h"
#include "qcow2/stats.h"
#include "qcow2/table/commit.h"
#include "trace/events.h"

/* A check has not loaded the bitmaps, and leaves them as they are. */
static bool is_check(const struct qcow2 *q)
{
    return q->node->open_flags & BLOCK_OPEN_CHECK;
}

static bool has_stale_bitmaps(struct qcow2 *q)
{
    const struct stored_bitmap *s;
    struct block_bitmap *b;

    if (q->joint.state == JOINT_PREPARED && !is_check(q)) {
        return true; /* the directory that was prepared is to be forgotten */
    }
    LIST_FOREACH (s, &q->bitmaps.stored, link) {
        if (s->loaded && s->loaded->detached) {
            return true; /* it is to be removed */
        }
    }
    for (b = block_bitmap_next(q->node, NULL); b; b = block_bitmap_next(q->node, b)) {
        if (qcow2_bitmap_is_stale(b->driver_state, b)) {
            return true;
        }
    }
    return false;
}

/*
 * Writes the bits of `b`. If their table can't be read, or is invalid, the stored bitmap stays as
 * it is, in use.
 */
static int co_store_stale_bitmap(struct qcow2 *q, struct bitmap_store *st, struct block_bitmap *b,
                                 const struct stored_bitmap *s, struct stored_bitmap *copy)
{
    size_t made = st->made.count;
    int r;

    trace_qcow2_bitmap_store(q->node->name, b->name);
    copy->loaded = b;
    r = qcow2_co_store_bits(q, st, b, s, copy);
    if (r < 0 && s && b->inconsistent) {
        log_warning("image '%s': bitmap '%s' can't be read (%s); it is inconsistent",
                    block_node_display_name(q->node), b->name, strerror(-r));
        qcow2_co_store_give_back(q, st, made);
        copy->table_offset = s->table_offset;
        copy->table_entries = s->table_entries;
        copy->flags = s->flags | BITMAP_FLAG_IN_USE;
        return 0;
    }
    return r;
}

/* Bitmaps that were added since the image was opened come last, the newest of them first. */
static void insert_recent(struct bitmap_store *st, struct stored_bitmap *entry)
{
    entry->is_recent = true;
    list_append(st->first_recent ? &st->first_recent->link : &st->entries, &entry->link);
    st->first_recent = entry;
}

static void append_stored(struct bitmap_store *st, struct stored_bitmap *entry)
{
    list_append(&st->entries, &entry->link);
    if (entry->is_recent && !st->first_recent) {
        st->first_recent = entry;
    }
}

/* Adds a copy of the entry `s` (NULL: an empty one); if `b` is not NULL its bits are written. */
static int co_add_to_directory(struct qcow2 *q, struct bitmap_store *st, const char *name,
                               const struct stored_bitmap *s, struct block_bitmap *b)
{
    struct stored_bitmap *copy = qcow2_stored_bitmap_copy(s, name);

    if (!copy) {
        return -ENOMEM;
    }
    if (s) {
        append_stored(st, copy);
    } else {
        insert_recent(st, copy);
    }
    return b ? co_store_stale_bitmap(q, st, b, s, copy) : 0;
}

/* Stored bitmaps in their order, then new ones, in the order of QEMU: see insert_recent(). */
int qcow2_co_build_directory(struct qcow2 *q, struct bitmap_store *st)
{
    struct stored_bitmap *s;
    struct block_bitmap *b;
    int r = 0;

    LIST_FOREACH (s, &q->bitmaps.stored, link) {
        bool stale = s->loaded && qcow2_bitmap_is_stale(s, s->loaded);

        if (s->loaded && s->loaded->detached) {
            qcow2_co_collect_clusters(q, s, &st->old);
            continue;
        }
        r = co_add_to_directory(q, st, s->name, s, stale ? s->loaded : NULL);
        if (r < 0) {
            return r;
        }
    }
    for (b = block_bitmap_next(q->node, NULL); b; b = block_bitmap_next(q->node, b)) {
        if (!b->driver_state && qcow2_bitmap_is_stale(NULL, b)) {
            r = co_add_to_directory(q, st, b->name, NULL, b);
            if (r < 0) {
                return r;
            }
        }
    }
    return 0;
}

/* Stores all in new clusters. */
static int co_store_in_new_clusters(struct qcow2 *q, bool stays_in_use, struct error *err)
{
    struct bitmap_store st;
    int r;

    qcow2_store_begin(q, &st);
    st.stays_in_use = stays_in_use;
    r = qcow2_co_build_directory(q, &st);
    if (r < 0) {
        error_set_errno(err, -r, "Could not store the bitmaps of '%s'",
                        block_node_display_name(q->node));
    } else {
        r = qcow2_co_switch_directory(q, &st, err);
    }
    return qcow2_co_store_end(q, &st, r);
}

/*
 * Stores all over the clusters of the stored bitmaps: see in_place.c. A crash meanwhile must not
 * find them trusted by the activity log.
 */
static int co_store_in_place_locked(struct qcow2 *q, struct error *err)
{
    struct bitmap_store st;
    int r = qcow2_co_drop_activity_locked(q, err);

    UNLESS_FAILED(r, qcow2_co_in_place_begin(q, err));

    qcow2_store_begin(q, &st);
    st.in_place = true;
    if (r < 0) {
        return qcow2_co_store_end(q, &st, r);
    }
    r = qcow2_co_build_directory(q, &st);
    UNLESS_FAILED(r, qcow2_co_in_place_write_tables(q, &st));
    if (r == 0 && !st.moved) {
        r = qcow2_co_in_place_finish(q, &st);
    }
    if (r < 0) {
        error_set_errno(err, -r, "Could not store the bitmaps of '%s'",
                        block_node_display_name(q->node));
    } else if (st.moved) {
        r = qcow2_co_switch_directory(q, &st, err);
    }
    return qcow2_co_store_end(q, &st, r);
}

void qcow2_note_stored_locked(struct qcow2 *q)
{
    struct stored_bitmap *s;

    CO_ASSERT_HELD(&q->bitmaps.mutex);
    LIST_FOREACH (s, &q->bitmaps.stored, link) {
        if (s->loaded) {
            s->loaded->unstored = false;
        }
    }
    atomic_store(&q->bitmaps.marked, false); /* the next write marks again */
}

static int co_store_bitmaps_locked(struct qcow2 *q, bool stays_in_use, struct error *err)
{
    ERROR_AUTO(why);
    int r;

    CO_ASSERT_HELD(&q->bitmaps.mutex);
    if (!has_stale_bitmaps(q)) {
        return stays_in_use || !q->activity.log ? 0 : qcow2_co_drop_activity_locked(q, err);
    }
    r = co_store_in_new_clusters(q, stays_in_use, &why);
    if (qcow2_is_no_room(r) && !stays_in_use) {
        error_clear(&why);
        r = co_store_in_place_locked(q, &why);
    }
    if (r < 0) {
        error_move(err, &why);
        return r;
    }
    qcow2_note_stored_locked(q);
    return 0;
}

static int co_store_bitmaps(struct qcow2 *q, bool stays_in_use, struct error *err)
{
    int r;

    if (q->read_only) {
        return 0;
    }
    co_mutex_lock(&q->bitmaps.mutex);
    co_mutex_lock(&q->bitmaps.bits_mutex);
    trace_qcow2_bitmaps_store_begin(q->node->name);
    r = co_store_bitmaps_locked(q, stays_in_use, err);
    trace_qcow2_bitmaps_store_end(q->node->name, r);
    counters_count(&q->counters, QCOW2_STAT_BITMAP_STORES);
    co_mutex_unlock(&q->bitmaps.bits_mutex);
    if (r == 0) {
        qcow2_co_reserve_end_locked(q);
    }
    if (r == 0 && !stays_in_use && !is_check(q)) {
        r = qcow2_co_joint_retire_locked(q, err);
    }
    co_mutex_unlock(&q->bitmaps.mutex);
    return r;
}

int qcow2_co_store_bitmaps(struct qcow2 *q, struct error *err)
{
    return co_store_bitmaps(q, false, err);
}

int qcow2_co_store_bitmaps_anew(struct qcow2 *q, struct error *err)
{
    struct block_bitmap *b;
    int r;

    co_mutex_lock(&q->bitmaps.mutex);
    co_mutex_lock(&q->bitmaps.bits_mutex);
    for (b = block_bitmap_next(q->node, NULL); b; b = block_bitmap_next(q->node, b)) {
        b->unstored = true;
    }
    r = co_store_in_new_clusters(q, false, err);
    if (r == 0) {
        qcow2_note_stored_locked(q);
    }
    co_mutex_unlock(&q->bitmaps.bits_mutex);
    if (r == 0) {
        qcow2_co_reserve_end_locked(q);
    }
    co_mutex_unlock(&q->bitmaps.mutex);
    return r;
}

int qcow2_co_commit_bitmaps(struct block_node *node, struct error *err)
{
    return co_store_bitmaps(qcow2_state(node), true, err);
}
