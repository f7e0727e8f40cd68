/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/carry.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "block/bitmaps.h"
#include "block/control.h"
#include "cli/cli.h"

struct carry_item {
    char *name;
    struct dirty_bitmap *bits; /* a copy */
    uint32_t granularity;
    bool enabled;
    int depth;        /* of its image: 1 is the top */
    const char *from; /* name of the image; borrowed */
};

bool carry_is_wanted(bool yes, bool no)
{
    return yes || (!no && !cli_is_compat());
}

static void item_release(struct carry_item *item)
{
    free(item->name);
    dirty_bitmap_free(item->bits);
}

void carry_clear(struct carry *c)
{
    for (size_t i = 0; i < c->count; i++) {
        item_release(&c->item[i]);
    }
    free(c->item);
    *c = (struct carry){NULL, 0};
}

static int append(struct carry *c, struct carry_item *item /* consumed */)
{
    struct carry_item *bigger = NULL;

    if (item->name && item->bits) {
        bigger = realloc(c->item, (c->count + 1) * sizeof(*bigger));
    }
    if (!bigger) {
        item_release(item);
        return -ENOMEM;
    }
    bigger[c->count++] = *item;
    c->item = bigger;
    return 0;
}

/* A copy that has room for `size` bytes of disk. */
static struct dirty_bitmap *copy_of(const struct dirty_bitmap *bits, uint64_t size)
{
    struct dirty_bitmap *copy = dirty_bitmap_clone(bits);

    if (copy && dirty_bitmap_size(copy) < size && dirty_bitmap_resize(copy, size) < 0) {
        dirty_bitmap_free(copy);
        copy = NULL;
    }
    return copy;
}

int carry_co_collect(struct carry *c, struct block_node *node, int depth, uint64_t size,
                     struct error *err)
{
    struct block_bitmap *b = NULL;

    while ((b = block_bitmap_next(node, b))) {
        struct carry_item item = {
            .granularity = b->granularity,
            .enabled = b->enabled,
            .depth = depth,
            .from = block_node_display_name(node),
        };

        if (!b->persistent) {
            continue;
        }
        if (b->inconsistent) {
            cli_warn("Bitmap '%s' of '%s' is inconsistent, and left out", b->name, item.from);
            continue;
        }
        if (block_co_bitmap_fetch(b, err) < 0) {
            return -EIO;
        }
        item.name = strdup(b->name);
        item.bits = copy_of(b->bits, size);
        if (append(c, &item) < 0) {
            return error_set(err, ENOMEM, "Out of memory for bitmap '%s' of '%s'", b->name,
                             item.from);
        }
    }
    return 0;
}

/* Whether `to` can store a bitmap that it has not yet; the user is warned if not. */
static bool co_can_make(const struct carry_item *item, struct block_node *to)
{
    ERROR_AUTO(err);

    if (block_co_can_store_bitmap(to, item->name, item->granularity, &err) == 0) {
        return true;
    }
    cli_warn("Bitmap '%s' of '%s' can't be stored in '%s', and stays where it is: %s", item->name,
             item->from, block_node_display_name(to), error_message(&err));
    return false;
}

int carry_co_check(struct carry *c, struct block_node *to, struct error *err)
{
    size_t kept = 0;

    for (size_t i = 0; i < c->count; i++) {
        const struct carry_item *item = &c->item[i];
        const struct block_bitmap *there = block_bitmap_find(to, item->name);

        if (there && there->inconsistent) {
            error_set(
                err, EINVAL,
                "Bitmap '%s' of '%s' can't be merged into that of '%s', which is inconsistent",
                item->name, item->from, block_node_display_name(to));
            error_hint(err,
                       "Remove the latter ('%s bitmap --remove'), or leave all bitmaps where they "
                       "are with --no-bitmaps",
                       cli_program());
            return -EINVAL;
        }
    }
    for (size_t i = 0; i < c->count; i++) {
        if (block_bitmap_find(to, c->item[i].name) || co_can_make(&c->item[i], to)) {
            c->item[kept++] = c->item[i];
        } else {
            item_release(&c->item[i]);
        }
    }
    c->count = kept;
    return 0;
}

void carry_mark(struct carry *c, uint64_t offset, uint64_t length, int depth)
{
    for (size_t i = 0; i < c->count; i++) {
        if (c->item[i].enabled && c->item[i].depth > depth) {
            dirty_bitmap_set(c->item[i].bits, offset, length);
        }
    }
}

void carry_mark_all(struct carry *c, uint64_t offset, uint64_t length)
{
    for (size_t i = 0; i < c->count; i++) {
        dirty_bitmap_set(c->item[i].bits, offset, length);
    }
}

/* The finest granularity that the images have for a name: nothing becomes less exact. */
static uint32_t granularity_of(const struct carry *c, const char *name)
{
    uint32_t finest = 0;

    for (size_t i = 0; i < c->count; i++) {
        if (strcmp(c->item[i].name, name) == 0 &&
            (finest == 0 || c->item[i].granularity < finest)) {
            finest = c->item[i].granularity;
        }
    }
    return finest;
}

static int co_store_item(const struct carry *c, const struct carry_item *item,
                         struct block_node *to, struct error *err)
{
    struct block_bitmap *b = block_bitmap_find(to, item->name);
    int rc = 0;

    if (!b) {
        rc =
            block_co_bitmap_add(to, item->name, granularity_of(c, item->name), true, true, &b, err);
    }
    if (rc == 0) {
        rc = block_co_bitmap_add_bits(b, item->bits, err);
    }
    if (rc == 0 && item->enabled) {
        rc = block_co_bitmap_set_enabled(b, true, err);
    }
    if (rc < 0) {
        error_prepend(err, "Could not merge bitmap '%s' of '%s' into '%s': ", item->name,
                      item->from, block_node_display_name(to));
    }
    return rc;
}

int carry_co_store(const struct carry *c, struct block_node *to, struct error *err)
{
    int rc = 0;

    for (size_t i = 0; i < c->count && rc == 0; i++) {
        rc = co_store_item(c, &c->item[i], to, err);
    }
    return rc;
}
