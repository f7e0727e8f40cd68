/* SPDX-License-Identifier: Apache-2.0 */
/* Bitmaps whose bits a job needs as they are: a successor records meanwhile. */
#include <assert.h>
#include <errno.h>

#include "block/internal.h"

static int co_freeze_drained(struct block_bitmap *b, const char *user, struct error *err)
{
    int r = block_bitmap_check(b, BLOCK_BITMAP_REFUSE_ALL, err);
    struct dirty_bitmap *bits;
    struct block_bitmap *successor;

    UNLESS_FAILED(r, block_co_bitmap_fetch(b, err));
    if (!b->node->log) {
        UNLESS_FAILED(r, block_co_bitmap_will_change(b, err));
    }
    if (r < 0) {
        return r;
    }
    bits = dirty_bitmap_new(dirty_bitmap_size(b->bits), b->granularity);
    successor = bits ? block_bitmap_new(b->node, "", bits, b->granularity) : NULL;
    if (!successor) {
        dirty_bitmap_free(bits);
        return error_set(err, ENOMEM, "Out of memory for the successor of bitmap '%s'", b->name);
    }
    block_bitmap_set_enabled(successor, b->enabled);
    block_bitmap_set_successor(b, successor);
    block_bitmap_link(successor);
    block_bitmap_take(b, user);
    return 0;
}

int block_co_bitmap_freeze(struct block_bitmap *b, const char *user, struct error *err)
{
    int r;

    block_co_drain_begin(b->node);
    r = co_freeze_drained(b, user, err);
    block_drain_end(b->node);
    return r;
}

struct dirty_bitmap *block_bitmap_frozen_bits(struct block_bitmap *b)
{
    assert(b->successor);
    return b->bits;
}

static void end_successor(struct block_bitmap *b)
{
    block_bitmap_unlink(b->successor);
    block_bitmap_free(b->successor);
    block_bitmap_set_successor(b, NULL);
    block_bitmap_give(b);
}

void block_co_bitmap_abdicate(struct block_bitmap *b)
{
    block_co_drain_begin(b->node);
    block_co_bitmap_mark_again(b);
    dirty_bitmap_swap(b->bits, b->successor->bits);
    end_successor(b);
    block_co_bitmap_changed(b);
    block_drain_end(b->node);
}

void block_co_bitmap_reclaim(struct block_bitmap *b)
{
    block_co_drain_begin(b->node);
    block_co_bitmap_mark_again(b);
    (void)dirty_bitmap_merge_alone(b->bits, b->successor->bits); /* without memory: more bits */
    end_successor(b);
    block_co_bitmap_changed(b);
    block_drain_end(b->node);
}

void block_bitmaps_fold_successors(struct block_node *node)
{
    struct block_bitmap *b;

    LIST_FOREACH (b, &node->bitmaps, link) {
        if (b->successor) {
            (void)dirty_bitmap_merge(b->bits, b->successor->bits);
        }
    }
}
