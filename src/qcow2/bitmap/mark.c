/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Persistent bitmaps: marking in use.
 *
 * A bitmap on disk is as current as the last store. The first guest write marks every bitmap that
 * records_writes writes in use, and syncs, before it goes on (R5). Bitmaps that do not record stay
 * as they are stored, so they need no mark and survive a crash.
 */
#include <errno.h>

#include "base/byteorder.h"
#include "block/bitmaps.h"
#include "qcow2/bitmap/stored.h"

/*
 * Whether guest writes make the stored bitmap wrong. One that could not be read counts too: the
 * next open may be able to read it.
 */
static bool records_writes(const struct stored_bitmap *b)
{
    return b->loaded && !b->loaded->inconsistent ? b->loaded->enabled
                                                 : (b->flags & BITMAP_FLAG_AUTO) != 0;
}

/*
 * Writes a mark. The flags field is four bytes within one sector, so the write is atomic. The
 * caller syncs, and sets b->flags after that.
 */
static int co_write_mark(struct qcow2 *q, const struct stored_bitmap *b)
{
    uint8_t flags[4];
    int r;

    store_be32(flags, b->flags | BITMAP_FLAG_IN_USE);
    r = qcow2_co_overlap_check(q, b->flags_position, sizeof(flags),
                               OVERLAP_BIT(OVERLAP_BITMAP_DIRECTORY));
    return UNLESS_FAILED(
        r, block_co_pwrite(q->node->file, b->flags_position, flags, sizeof(flags), 0));
}

/*
 * A mark that may be on disk, or not: nothing counts on it, and it is removed when the bitmap is
 * stored.
 */
static void doubt_mark(struct stored_bitmap *b)
{
    if (b->loaded) {
        b->loaded->unstored = true;
    }
}

static bool needs_mark(const struct stored_bitmap *b)
{
    return records_writes(b) && !(b->flags & BITMAP_FLAG_IN_USE);
}

/* b->flags have a mark only once it is stable: after an error all marks are written again. */
static int co_mark_all_in_use(struct qcow2 *q)
{
    struct stored_bitmap *b;
    bool any = false;
    int r = 0;

    LIST_FOREACH (b, &q->bitmaps.stored, link) {
        if (needs_mark(b) && r == 0) {
            any = true;
            r = co_write_mark(q, b);
        }
    }
    if (!any) {
        return r;
    }
    UNLESS_FAILED(r, block_co_flush(q->node->file));
    LIST_FOREACH (b, &q->bitmaps.stored, link) {
        if (needs_mark(b) && r == 0) {
            b->flags |= BITMAP_FLAG_IN_USE;
        } else if (needs_mark(b)) {
            doubt_mark(b);
        }
    }
    return r;
}

int qcow2_co_mark_unusable_bitmaps(struct qcow2 *q)
{
    struct stored_bitmap *b;
    int r = 0;

    co_mutex_lock(&q->bitmaps.mutex);
    LIST_FOREACH (b, &q->bitmaps.stored, link) {
        if ((!b->loaded || b->loaded->inconsistent) && needs_mark(b)) {
            r = error_first(r, qcow2_co_mark_in_use_locked(q, b));
        }
    }
    co_mutex_unlock(&q->bitmaps.mutex);
    return r;
}

int qcow2_co_mark_bitmaps(struct qcow2 *q)
{
    int r = 0;

    co_mutex_lock(&q->bitmaps.mutex);
    if (!atomic_load(&q->bitmaps.marked)) {
        r = co_mark_all_in_use(q);
        if (r == 0) {
            atomic_store_explicit(&q->bitmaps.marked, true, memory_order_release);
        }
    }
    co_mutex_unlock(&q->bitmaps.mutex);
    return r;
}

int qcow2_co_mark_before_change(struct qcow2 *q)
{
    struct block_activity *log = q->node->activity;
    int r = log ? block_co_activity_begin(log) : 0;

    return UNLESS_FAILED(r, qcow2_co_mark_bitmaps(q));
}

int qcow2_co_mark_in_use_locked(struct qcow2 *q, struct stored_bitmap *b)
{
    int r;

    CO_ASSERT_HELD(&q->bitmaps.mutex);
    if (b->flags & BITMAP_FLAG_IN_USE) {
        return 0;
    }
    r = co_write_mark(q, b);
    UNLESS_FAILED(r, block_co_flush(q->node->file));
    if (r == 0) {
        b->flags |= BITMAP_FLAG_IN_USE;
    } else {
        doubt_mark(b);
    }
    return r;
}
