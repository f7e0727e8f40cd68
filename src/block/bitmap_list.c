/* SPDX-License-Identifier: Apache-2.0 */
/* The list of named bitmaps of a node: what needs neither a drain nor the image. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/checked.h"
#include "base/debug.h"
#include "block/internal.h"

const char *block_bitmap_name(const struct block_bitmap *b)
{
    return b->name;
}

struct block_node *block_bitmap_node(const struct block_bitmap *b)
{
    return b->node;
}

uint32_t block_bitmap_granularity(const struct block_bitmap *b)
{
    return b->granularity;
}

bool block_bitmap_enabled(const struct block_bitmap *b)
{
    return b->enabled;
}

bool block_bitmap_persistent(const struct block_bitmap *b)
{
    return b->persistent;
}

bool block_bitmap_inconsistent(const struct block_bitmap *b)
{
    return b->inconsistent;
}

int block_bitmap_check(const struct block_bitmap *b, unsigned refuse, struct error *err)
{
    if ((refuse & BLOCK_BITMAP_REFUSE_BUSY) && b->busy) {
        error_set(err, EBUSY,
                  "Bitmap '%s' is currently in use by another operation and cannot be used",
                  b->name);
        if (b->busy_user) {
            error_hint(err, "It is used by %s", b->busy_user);
        }
        return -EBUSY;
    }
    if ((refuse & BLOCK_BITMAP_REFUSE_READ_ONLY) && b->read_only) {
        return error_set(err, EROFS, "Bitmap '%s' is readonly and cannot be modified", b->name);
    }
    if ((refuse & BLOCK_BITMAP_REFUSE_INCONSISTENT) && b->inconsistent) {
        error_set(err, EINVAL, "Bitmap '%s' is inconsistent and cannot be used", b->name);
        error_hint(err, "Try block-dirty-bitmap-remove to delete this bitmap from disk");
        return -EINVAL;
    }
    return 0;
}

bool block_bitmap_read_only(const struct block_bitmap *b)
{
    return b->read_only;
}

bool block_bitmap_busy(const struct block_bitmap *b)
{
    return b->busy > 0;
}

void block_bitmap_get_state(const struct block_bitmap *b, struct block_bitmap_state *ret_state)
{
    *ret_state = (struct block_bitmap_state){.trust = BLOCK_BITMAP_EXACT};
    if (b->inconsistent) {
        ret_state->trust = BLOCK_BITMAP_LOST;
        ret_state->why = b->lost_why ? b->lost_why : "not known";
        ret_state->since = b->lost_since;
    } else if (b->excess > 0) {
        ret_state->trust = BLOCK_BITMAP_SUPERSET;
        ret_state->excess = MIN(b->excess, block_node_size(b->node));
        ret_state->why = b->excess_why;
    }
}

bool block_bitmap_is_counted(const struct block_bitmap *b)
{
    return !b->unread || b->inconsistent || (b->counted && dirty_bitmap_count(b->bits) == 0);
}

uint64_t block_bitmap_known_count(const struct block_bitmap *b)
{
    uint64_t in_memory = dirty_bitmap_count(b->bits);

    return b->unread && b->counted ? MAX(b->stored_count, in_memory) : in_memory;
}

void block_bitmap_get_shown_state(const struct block_bitmap *b,
                                  struct block_bitmap_state *ret_state)
{
    block_bitmap_get_state(b, ret_state);
    if (ret_state->trust == BLOCK_BITMAP_SUPERSET && block_bitmap_is_counted(b)) {
        ret_state->excess = MIN(ret_state->excess, block_bitmap_known_count(b));
        if (ret_state->excess == 0) {
            *ret_state = (struct block_bitmap_state){.trust = BLOCK_BITMAP_EXACT};
        }
    }
}

void block_bitmap_lose(struct block_bitmap *b, const char *why)
{
    if (!b->inconsistent) {
        b->inconsistent = true;
        b->lost_why = why;
        b->lost_since = (int64_t)time(NULL);
    }
}

void block_bitmap_add_excess(struct block_bitmap *b, uint64_t bytes, const char *why)
{
    if (bytes > 0) {
        b->excess += MIN(bytes, UINT64_MAX - b->excess);
        b->excess_why = why;
    }
}

/* A larger granule is dirty as a whole if a smaller one is. */
void block_bitmap_inherit_excess(struct block_bitmap *b, const struct block_bitmap_state *from,
                                 uint32_t granularity)
{
    uint64_t factor = MAX(b->granularity / granularity, 1u);

    if (from->trust == BLOCK_BITMAP_SUPERSET) {
        block_bitmap_add_excess(b, MIN(from->excess, UINT64_MAX / factor) * factor, from->why);
    }
}

struct block_bitmap *block_bitmap_find(struct block_node *node, const char *name)
{
    struct block_bitmap *b;

    LIST_FOREACH (b, &node->bitmaps, link) {
        if (b->name[0] && strcmp(b->name, name) == 0) {
            return b;
        }
    }
    return NULL;
}

struct block_bitmap *block_bitmap_next(struct block_node *node, struct block_bitmap *bitmap)
{
    struct list *next = bitmap ? bitmap->link.next : node->bitmaps.next;

    return next == &node->bitmaps ? NULL : container_of(next, struct block_bitmap, link);
}

struct block_bitmap *block_bitmap_previous(struct block_node *node, struct block_bitmap *bitmap)
{
    struct list *next = bitmap ? bitmap->link.prev : node->bitmaps.prev;

    return next == &node->bitmaps ? NULL : container_of(next, struct block_bitmap, link);
}

void block_bitmap_free(struct block_bitmap *b)
{
    if (b) {
        dirty_bitmap_free(b->bits);
        free(b->busy_user);
        free(b->name);
        free(b);
    }
}

struct block_bitmap *block_bitmap_new(struct block_node *node, const char *name,
                                      struct dirty_bitmap *bits, uint32_t granularity)
{
    struct block_bitmap *b = calloc(1, sizeof(*b));

    if (!b) {
        return NULL;
    }
    b->name = strdup(name);
    if (!b->name) {
        free(b);
        return NULL;
    }
    list_init(&b->link);
    b->node = node;
    b->bits = bits;
    b->granularity = granularity;
    return b;
}

/* --- recording: what the gate reads */

static struct dirty_bitmap *recorder_of(const struct block_bitmap *b)
{
    return b->enabled && !b->successor ? b->bits : NULL;
}

const struct dirty_bitmap *block_bitmaps_find_recorder(const struct block_node *node)
{
    const struct dirty_bitmap *found = NULL;
    struct block_bitmap *b;

    LIST_FOREACH (b, &node->bitmaps, link) {
        if (b->recorder) {
            found = found ? dirty_bitmap_without_knowledge() : b->recorder;
        }
    }
    return found;
}

/* An image may have tens of thousands: they are looked through only when one of two has gone. */
static void update_recorders(struct block_bitmap *b)
{
    struct block_node *node = b->node;
    bool counted = b->counted_as_recorder;

    b->recorder = recorder_of(b);
    b->counted_as_recorder = b->recorder && !list_is_empty(&b->link);
    node->recorders = node->recorders - counted + b->counted_as_recorder;
    if (node->recorders == 0) {
        node->sole_recorder = NULL;
    } else if (node->recorders > 1) {
        node->sole_recorder = dirty_bitmap_without_knowledge();
    } else if (b->counted_as_recorder) {
        node->sole_recorder = b->recorder;
    } else if (counted) {
        node->sole_recorder = block_bitmaps_find_recorder(node);
    }
    block_update_detour(node);
}

void block_bitmap_set_enabled(struct block_bitmap *b, bool enabled)
{
    b->enabled = enabled;
    update_recorders(b);
}

void block_bitmap_set_successor(struct block_bitmap *b, struct block_bitmap *successor)
{
    b->successor = successor;
    update_recorders(b);
}

void block_bitmap_link(struct block_bitmap *b)
{
    list_append(&b->node->bitmaps, &b->link);
    update_recorders(b);
}

void block_bitmap_unlink(struct block_bitmap *b)
{
    list_remove(&b->link);
    update_recorders(b);
}

int block_bitmap_attach_loaded(struct block_node *node, const char *name, struct dirty_bitmap *bits,
                               uint32_t granularity, struct block_bitmap **ret_bitmap,
                               struct error *err)
{
    struct block_bitmap *b = block_bitmap_new(node, name, bits, granularity);

    if (!b) {
        dirty_bitmap_free(bits);
        return error_set(err, ENOMEM, "Out of memory for bitmap '%s' of node '%s'", name,
                         node->name);
    }
    b->persistent = true;
    b->inconsistent = !bits;
    block_bitmap_link(b);
    *ret_bitmap = b;
    return 0;
}

void block_bitmaps_exchange_persistent(struct block_node *node, struct list *others)
{
    struct list taken = LIST_INIT(taken);
    struct block_bitmap *b, *next;

    LIST_FOREACH_SAFE (b, next, &node->bitmaps, link) {
        if (b->persistent) {
            block_bitmap_unlink(b);
            list_append(&taken, &b->link);
        }
    }
    LIST_FOREACH_SAFE (b, next, others, link) {
        list_remove(&b->link);
        block_bitmap_link(b);
    }
    list_splice(others, &taken);
}

void block_bitmaps_release(struct block_node *node)
{
    struct block_bitmap *b, *next;

    LIST_FOREACH_SAFE (b, next, &node->bitmaps, link) {
        block_bitmap_unlink(b);
        block_bitmap_free(b);
    }
}

int block_bitmaps_resize(struct block_node *node, uint64_t size, struct error *err)
{
    struct block_bitmap *b, *failed = NULL;

    LIST_FOREACH (b, &node->bitmaps, link) {
        if (b->bits && dirty_bitmap_resize(b->bits, size) < 0) {
            failed = b;
            break;
        }
    }
    if (!failed) {
        return 0;
    }
    /* Back to the old size. Bits beyond the new size are lost, and count as dirty. */
    LIST_FOREACH (b, &node->bitmaps, link) {
        uint64_t old_size = dirty_bitmap_size(failed->bits);

        if (b == failed) {
            break;
        }
        if (b->bits && dirty_bitmap_resize(b->bits, old_size) == 0 && size < old_size) {
            dirty_bitmap_set(b->bits, size, old_size - size);
        }
    }
    return error_set(err, ENOMEM, "Out of memory to resize bitmap '%s' of node '%s'", failed->name,
                     node->name);
}

void block_bitmaps_mark(struct block_node *node, uint64_t offset, uint64_t length)
{
    struct block_bitmap *b;

    LIST_FOREACH (b, &node->bitmaps, link) {
        DEBUG_ASSERT(b->recorder == recorder_of(b));
        if (b->recorder) {
            dirty_bitmap_set(b->recorder, offset, length);
        }
    }
}
