/* SPDX-License-Identifier: Apache-2.0 */
/* Persistent bitmaps of a disk whose size is about to change. */
#include <errno.h>

#include "block/bitmaps.h"
#include "qcow2/bitmap/bitmap.h"
#include "qcow2/header/header.h"
#include "qcow2/image.h"
#include "qcow2/table/commit.h"

int qcow2_co_check_bitmaps_fit(struct qcow2 *q, uint64_t size, const char *what, struct error *err)
{
    const char *image = block_node_display_name(q->node);
    const struct stored_bitmap *s;
    struct block_bitmap *b;

    LIST_FOREACH (s, &q->bitmaps.stored, link) {
        if (!s->loaded) {
            error_set(err, ENOTSUP,
                      "Can't %s '%s': its bitmap '%s' was not loaded, so it can't be resized with "
                      "it",
                      what, image, s->name);
            error_hint(err, "Remove the bitmap first: 'img bitmap --remove'");
            return -ENOTSUP;
        }
    }
    for (b = block_bitmap_next(q->node, NULL); b; b = block_bitmap_next(q->node, b)) {
        int r = block_bitmap_check(b, BLOCK_BITMAP_REFUSE_ALL, err);

        if (r >= 0 && b->persistent && size > block_node_size(q->node)) {
            r = qcow2_check_bitmap_size(q, size, b->name, b->granularity, err);
        }
        UNLESS_FAILED(r, block_co_bitmap_fetch(b, err));
        if (r < 0) {
            error_prepend(err, "Can't %s '%s': ", what, image);
            return -ENOTSUP;
        }
    }
    return 0;
}

int qcow2_co_mark_all_bitmaps(struct qcow2 *q, struct error *err)
{
    struct block_bitmap *b;
    int r = 0;

    for (b = block_bitmap_next(q->node, NULL); b && r == 0; b = block_bitmap_next(q->node, b)) {
        if (b->persistent) {
            r = qcow2_co_bitmap_will_change(q->node, b, err);
        }
    }
    return r;
}

bool qcow2_has_durable_bitmaps(const struct qcow2 *q)
{
    struct block_bitmap *b = block_bitmap_next(q->node, NULL);

    while (b && !b->persistent) {
        b = block_bitmap_next(q->node, b);
    }
    return b && q->activity.log;
}

int qcow2_co_switch_with_bitmaps(struct qcow2 *q, struct error *err)
{
    ERROR_AUTO(why);
    int r = qcow2_has_durable_bitmaps(q) ? qcow2_co_store_bitmaps_anew(q, &why) : -ENOSPC;

    if (r < 0 && qcow2_is_no_room(r)) {
        r = qcow2_co_mark_all_bitmaps(q, err);
        return UNLESS_FAILED(r, qcow2_co_write_header(q, err));
    }
    if (r < 0) {
        error_move(err, &why);
    }
    return r;
}
