/* SPDX-License-Identifier: Apache-2.0 */
/* Persistent bitmaps: whether one can be added, and removing one. */
#include <errno.h>

#include "block/bitmaps.h"
#include "qcow2/bitmap/reserve.h"
#include "qcow2/bitmap/store.h"
#include "qcow2/header/header.h"
#include "qcow2/table/commit.h"
#include "qcow2/table/verdict.h"

int qcow2_co_can_store_bitmap(struct block_node *node, const char *name, uint32_t granularity,
                              struct error *err)
{
    struct qcow2 *q = qcow2_state(node);
    const struct stored_bitmap *s;
    struct block_bitmap *b;
    uint64_t count = 0;
    int r;

    if (q->read_only) {
        return error_set(err, EROFS, "Image '%s' is read-only: it can't store bitmap '%s'",
                         block_node_display_name(node), name);
    }
    if (q->version < 3) {
        return error_set(err, ENOTSUP, "Cannot store dirty bitmaps in qcow2 v2 files");
    }
    s = qcow2_find_stored(q, name);
    /*
     * A bitmap that was removed from the node leaves the image only when its transaction has
     * succeeded.
     */
    if (s && !(s->loaded && block_bitmap_find(node, name) != s->loaded)) {
        return error_set(err, EEXIST, "Image '%s' stores a bitmap '%s' already",
                         block_node_display_name(node), name);
    }
    r = qcow2_check_bitmap_size(q, block_node_size(node), name, granularity, err);
    if (r < 0) {
        return r;
    }
    LIST_FOREACH (s, &q->bitmaps.stored, link) {
        count++; /* those that were not loaded included */
    }
    for (b = block_bitmap_next(node, NULL); b; b = block_bitmap_next(node, b)) {
        count += b->persistent && !b->driver_state;
    }
    if (count >= BITMAPS_MAX) {
        return error_set(err, ENOSPC, "Image '%s' has %u bitmaps, which is the maximum",
                         block_node_display_name(node), BITMAPS_MAX);
    }
    return qcow2_co_check_room_for_bitmaps(q, err);
}

/* Returns 1, or 0 if no bitmap of that name is stored. */
static int co_remove_bitmap_locked(struct qcow2 *q, const char *name, struct error *err)
{
    struct stored_bitmap *s, *gone = qcow2_find_stored(q, name);
    struct block_bitmap *bitmap = gone ? gone->loaded : NULL;
    struct bitmap_store st;
    ERROR_AUTO(why);
    int r = gone ? qcow2_refuse_broken(q, err) : 0;

    CO_ASSERT_HELD(&q->bitmaps.mutex);
    if (r < 0 || !gone) {
        return r;
    }
    qcow2_store_begin(q, &st);
    st.stays_in_use = true;
    LIST_FOREACH (s, &q->bitmaps.stored, link) {
        struct stored_bitmap *copy = s == gone ? NULL : qcow2_stored_bitmap_copy(s, s->name);

        if (copy) {
            list_append(&st.entries, &copy->link);
        } else if (s != gone) {
            r = error_set(&why, ENOMEM, "Out of memory");
        }
    }
    qcow2_co_collect_clusters(q, gone, &st.old);
    UNLESS_FAILED(r, qcow2_co_switch_directory(q, &st, &why));
    /* With an activity log the bits of a bitmap that stays after all must not be lost. */
    if (qcow2_is_no_room(r) && bitmap && q->activity.offset == 0 &&
        qcow2_co_in_place_directory(q, gone, &st) == 0) {
        error_clear(&why);
        r = qcow2_co_switch_directory(q, &st, &why);
    }
    if (r < 0) {
        error_move(err, &why);
    } else if (bitmap) {
        bitmap->driver_state = NULL;
        if (bitmap->unread) {
            block_bitmap_lose(bitmap, "it was removed from the image before its bits were read");
        }
        bitmap->unread = false;
    }
    r = qcow2_co_store_end(q, &st, r);
    return r < 0 ? r : 1;
}

int qcow2_co_remove_stored_bitmap(struct block_node *node, const char *name, struct error *err)
{
    struct qcow2 *q = qcow2_state(node);
    int r;

    co_mutex_lock(&q->bitmaps.mutex);
    co_mutex_lock(&q->bitmaps.bits_mutex);
    r = co_remove_bitmap_locked(q, name, err);
    co_mutex_unlock(&q->bitmaps.bits_mutex);
    if (r == 1) {
        qcow2_co_reserve_directory_again_locked(q);
    }
    if (r >= 0) {
        qcow2_co_unreserve_bitmap_locked(q, name);
    }
    co_mutex_unlock(&q->bitmaps.mutex);
    return r;
}

void qcow2_disown_bitmap(struct block_bitmap *b)
{
    struct stored_bitmap *s = b->driver_state;

    s->loaded = NULL;
    s->is_void = true;
    b->driver_state = NULL;
}
