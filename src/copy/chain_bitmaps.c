/* SPDX-License-Identifier: Apache-2.0 */
#include "copy/chain_bitmaps.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/log.h"
#include "block/bitmaps.h"
#include "block/control.h"

struct chain_bitmap {
    char *name;
    /* a copy */
    struct dirty_bitmap *bits;
    /* bytes per bit */
    uint32_t granularity;
    bool enabled, persistent;
    struct block_bitmap_state state;
    /* of the image: 1 is the top */
    int depth;
    /* name of the image; borrowed */
    const char *from;
};

static void chain_bitmap_release(struct chain_bitmap *item)
{
    free(item->name);
    dirty_bitmap_free(item->bits);
}

void chain_bitmaps_clear(struct chain_bitmaps *c)
{
    for (size_t i = 0; i < c->count; i++) {
        chain_bitmap_release(&c->list[i]);
    }
    free(c->list);
    *c = (struct chain_bitmaps){.all = c->all};
}

/* `item` is consumed in any case. 0 or -ENOMEM. */
static int append_bitmap(struct chain_bitmaps *c, struct chain_bitmap *item)
{
    struct chain_bitmap *bigger = NULL;

    if (item->name && item->bits) {
        bigger = realloc(c->list, (c->count + 1) * sizeof(*bigger));
    }
    if (!bigger) {
        chain_bitmap_release(item);
        return -ENOMEM;
    }
    bigger[c->count++] = *item;
    c->list = bigger;
    return 0;
}

/* A copy that covers at least `size` bytes of disk. NULL: out of memory. */
static struct dirty_bitmap *clone_bits(const struct dirty_bitmap *bits, uint64_t size)
{
    struct dirty_bitmap *copy = dirty_bitmap_clone(bits);

    if (copy && dirty_bitmap_size(copy) < size && dirty_bitmap_resize(copy, size) < 0) {
        dirty_bitmap_free(copy);
        copy = NULL;
    }
    return copy;
}

static int co_collect_chain_bitmap(struct chain_bitmaps *c, struct block_bitmap *b,
                                   const char *from, int depth, uint64_t size, struct error *err)
{
    struct chain_bitmap item = {
        .granularity = block_bitmap_granularity(b),
        .enabled = block_bitmap_enabled(b),
        .persistent = block_bitmap_persistent(b),
        .depth = depth,
        .from = from,
    };
    int r = block_co_bitmap_fetch(b, err);

    if (r < 0) {
        return r;
    }
    block_bitmap_get_state(b, &item.state);
    item.name = strdup(block_bitmap_name(b));
    item.bits = clone_bits(block_bitmap_bits(b), size);
    r = append_bitmap(c, &item);
    return r < 0 ? error_set(err, -r, "Out of memory for bitmap '%s' of '%s'", block_bitmap_name(b),
                             from)
                 : 0;
}

int chain_bitmaps_co_collect(struct chain_bitmaps *c, struct block_node *node, int depth,
                             uint64_t size, struct error *err)
{
    const char *from = block_node_display_name(node);
    struct block_bitmap *b = NULL;

    c->greatest = MAX(c->greatest, block_node_greatest_size(node));
    while ((b = block_bitmap_next(node, b))) {
        int r;

        if (!block_bitmap_persistent(b) && !c->all) {
            continue;
        }
        if (block_bitmap_inconsistent(b)) {
            log_warning("Bitmap '%s' of '%s' is inconsistent; ignored", block_bitmap_name(b), from);
            continue;
        }
        r = co_collect_chain_bitmap(c, b, from, depth, size, err);
        if (r < 0) {
            return r;
        }
    }
    return 0;
}

/* Whether `to` can store a new bitmap like this one. Logs a warning if not. */
static bool co_can_store(const struct chain_bitmap *item, struct block_node *to)
{
    ERROR_AUTO(err);

    if (!item->persistent) {
        return true;
    }
    if (block_co_can_store_bitmap(to, item->name, item->granularity, &err) == 0) {
        return true;
    }
    log_warning("Bitmap '%s' of '%s' can't be stored in '%s', and stays where it is: %s",
                item->name, item->from, block_node_display_name(to), error_message(&err));
    return false;
}

int chain_bitmaps_co_check(struct chain_bitmaps *c, struct block_node *to, struct error *err)
{
    size_t kept = 0;

    for (size_t i = 0; i < c->count; i++) {
        const struct chain_bitmap *item = &c->list[i];
        const struct block_bitmap *there = block_bitmap_find(to, item->name);

        if (there && block_bitmap_inconsistent(there)) {
            return error_set(
                err, EEXIST,
                "Bitmap '%s' of '%s' can't be merged into that of '%s', which is inconsistent",
                item->name, item->from, block_node_display_name(to));
        }
    }
    for (size_t i = 0; i < c->count; i++) {
        if (block_bitmap_find(to, c->list[i].name) || co_can_store(&c->list[i], to)) {
            c->list[kept++] = c->list[i];
        } else {
            chain_bitmap_release(&c->list[i]);
        }
    }
    c->count = kept;
    return 0;
}

void chain_bitmaps_mark(struct chain_bitmaps *c, uint64_t offset, uint64_t length, int depth)
{
    for (size_t i = 0; i < c->count; i++) {
        if (c->list[i].enabled && c->list[i].depth > depth) {
            dirty_bitmap_set(c->list[i].bits, offset, length);
        }
    }
}

bool chain_bitmaps_want_marks(const struct chain_bitmaps *c)
{
    for (size_t i = 0; i < c->count; i++) {
        if (c->list[i].enabled && c->list[i].depth > 1) {
            return true;
        }
    }
    return false;
}

void chain_bitmaps_mark_all(struct chain_bitmaps *c, uint64_t offset, uint64_t length)
{
    for (size_t i = 0; i < c->count; i++) {
        dirty_bitmap_set(c->list[i].bits, offset, length);
    }
}

/* The finest granularity that the images have for a name, so that no bitmap becomes less exact. */
static uint32_t finest_granularity(const struct chain_bitmaps *c, const char *name)
{
    uint32_t finest = 0;

    for (size_t i = 0; i < c->count; i++) {
        if (strcmp(c->list[i].name, name) == 0 &&
            (finest == 0 || c->list[i].granularity < finest)) {
            finest = c->list[i].granularity;
        }
    }
    return finest;
}

static int co_store_bitmap(const struct chain_bitmaps *c, const struct chain_bitmap *item,
                           struct block_node *to, struct error *err)
{
    struct block_bitmap *b = block_bitmap_find(to, item->name);
    int r = 0;

    if (!b) {
        r = block_co_bitmap_add(to, item->name, finest_granularity(c, item->name), item->persistent,
                                true, &b, err);
    }
    if (r == 0) {
        block_bitmap_inherit_excess(b, &item->state, item->granularity);
        r = block_co_bitmap_add_bits(b, item->bits, err);
    }
    if (item->enabled) {
        UNLESS_FAILED(r, block_co_bitmap_set_enabled(b, true, err));
    }
    if (r < 0) {
        error_prepend(err, "Could not merge bitmap '%s' of '%s' into '%s': ", item->name,
                      item->from, block_node_display_name(to));
    }
    return r;
}

int chain_bitmaps_co_store(const struct chain_bitmaps *c, struct block_node *to, struct error *err)
{
    struct block_bitmap_commits commits;
    int r = 0;

    block_node_remember_size(to, c->greatest);
    /* All at once: no crash finds a bitmap that has only some of its bits. */
    block_bitmap_commits_begin(&commits);
    for (size_t i = 0; i < c->count && r == 0; i++) {
        r = co_store_bitmap(c, &c->list[i], to, err);
    }
    return block_co_bitmap_commits_finish(&commits, r, err);
}
