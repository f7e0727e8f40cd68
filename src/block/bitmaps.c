/* SPDX-License-Identifier: Apache-2.0 */
#include "block/bitmaps.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/log.h"
#include "block/internal.h"
#include "trace/events.h"

#define DEFAULT_GRANULARITY_MIN 4096u
#define DEFAULT_GRANULARITY_MAX 65536u

/* --- look ------------------------------------------------------------------------------------- */

struct block_bitmap *block_bitmap_lookup(const char *node_name, const char *name,
                                         struct block_node **ret_node, struct error *err)
{
    struct block_node *node = block_node_lookup(node_name, err);
    struct block_bitmap *b;

    if (!node) {
        return NULL;
    }
    b = block_bitmap_find(node, name);
    if (!b) {
        error_set(err, ENOENT, "Dirty bitmap '%s' not found", name);
        return NULL;
    }
    if (ret_node) {
        *ret_node = node;
    }
    return b;
}

/* --- add -------------------------------------------------------------------------------------- */

static int check_new(struct block_node *node, const char *name, uint32_t granularity,
                     struct error *err)
{
    if (!name[0]) {
        return error_set(err, EINVAL, "Bitmap name cannot be empty");
    }
    if (strlen(name) > BLOCK_BITMAP_NAME_MAX) {
        return error_set(err, EINVAL, "Bitmap name too long: it has %zu bytes, at most %d fit",
                         strlen(name), BLOCK_BITMAP_NAME_MAX);
    }
    if (block_bitmap_find(node, name)) {
        return error_set(err, EEXIST, "Bitmap already exists: %s", name);
    }
    if (!is_power_of_2(granularity) || granularity < BITMAP_GRANULARITY_MIN) {
        return error_set(err, EINVAL, "Granularity must be power of 2 and at least %u",
                         BITMAP_GRANULARITY_MIN);
    }
    if (granularity > BITMAP_GRANULARITY_MAX) {
        return error_set(err, EINVAL, "Granularity must be at most %u", BITMAP_GRANULARITY_MAX);
    }
    return 0;
}

static uint32_t default_granularity(const struct block_node *node)
{
    uint32_t cluster = node->limits.cluster_size;

    if (!is_power_of_2(cluster)) {
        return DEFAULT_GRANULARITY_MAX;
    }
    return MIN(MAX(cluster, DEFAULT_GRANULARITY_MIN), DEFAULT_GRANULARITY_MAX);
}

static int co_check_storable(struct block_node *node, const char *name, uint32_t granularity,
                             struct error *err)
{
    int r;

    if (!block_node_stores_bitmaps(node)) {
        return error_set_errno(err, ENOTSUP, "Can't store persistent bitmaps to %s", node->name);
    }
    r = block_co_can_store_bitmap(node, name, granularity, err);
    return r < 0 ? r : block_co_reserve_bitmap(node, name, granularity, err);
}

static int co_add_drained(struct block_node *node, const char *name, uint32_t granularity,
                          bool persistent, struct block_bitmap **ret_bitmap, struct error *err)
{
    struct dirty_bitmap *bits;
    struct block_bitmap *b;
    int r = check_new(node, name, granularity, err);

    if (r >= 0 && persistent) {
        r = co_check_storable(node, name, granularity, err);
        if (r >= 0) {
            /* The driver may have yielded: another command may have taken the name. */
            r = check_new(node, name, granularity, err);
        }
    }
    if (r < 0) {
        return r;
    }
    bits = dirty_bitmap_new(block_node_size(node), granularity);
    b = bits ? block_bitmap_new(node, name, bits, granularity) : NULL;
    if (!b) {
        dirty_bitmap_free(bits);
        return error_set(err, ENOMEM, "Out of memory for bitmap '%s' of node '%s'", name,
                         node->name);
    }
    *ret_bitmap = b;
    return 0;
}

static int co_end_change(struct block_bitmap *b, struct error *err);

/* Undo: take a bitmap off its node, with what the image has of it, and free it. */
static void co_forget_added(struct block_bitmap *b)
{
    struct block_node *node = b->node;
    ERROR_AUTO(err);

    block_bitmap_unlink(b);
    block_activity_update(node);
    if (b->driver_state && block_co_remove_stored_bitmap(node, b->name, &err) < 0) {
        log_error("%s", error_message(&err));
        if (b->driver_state) {
            node->driver->disown_bitmap(b);
        }
    }
    block_bitmap_free(b);
}

void block_co_bitmap_undo_add(struct block_bitmap *b)
{
    struct block_node *node = b->node;

    block_co_drain_begin(node);
    co_forget_added(b);
    block_drain_end(node);
}

int block_co_bitmap_add(struct block_node *node, const char *name, uint32_t granularity,
                        bool persistent, bool disabled, struct block_bitmap **ret_bitmap,
                        struct error *err)
{
    struct block_bitmap *b = NULL;
    int r;

    if (granularity == 0) {
        granularity = default_granularity(node);
    }
    block_co_drain_begin(node);
    r = co_add_drained(node, name, granularity, persistent, &b, err);
    if (b) {
        b->persistent = persistent;
        block_bitmap_set_enabled(b, !disabled);
        block_bitmap_link(b);
        r = co_end_change(b, err);
        if (r < 0) {
            co_forget_added(b);
            b = NULL;
        }
    }
    if (b && ret_bitmap) {
        *ret_bitmap = b;
    }
    block_drain_end(node);
    return r;
}

/* --- remove ----------------------------------------------------------------------------------- */

int block_co_bitmap_remove(struct block_bitmap *b, struct error *err)
{
    struct block_node *node = b->node;
    int r;

    block_co_drain_begin(node);
    r = block_bitmap_check(b, BLOCK_BITMAP_REFUSE_BUSY | BLOCK_BITMAP_REFUSE_READ_ONLY, err);
    if (r >= 0 && b->persistent) {
        r = block_co_remove_stored_bitmap(node, b->name, err);
    }
    if (r >= 0) {
        block_bitmap_unlink(b);
        block_bitmap_free(b);
        block_activity_update(node);
    }
    block_drain_end(node);
    return MIN(r, 0);
}

int block_co_bitmap_remove_unloaded(struct block_node *node, const char *name, struct error *err)
{
    int r = 0;

    if (!block_bitmap_find(node, name)) {
        r = block_co_remove_stored_bitmap(node, name, err);
    }
    return r == 0 ? error_set(err, ENOENT, "Dirty bitmap '%s' not found", name) : MIN(r, 0);
}

void block_co_bitmap_detach(struct block_bitmap *b)
{
    block_co_drain_begin(b->node);
    block_bitmap_unlink(b);
    b->detached = true;
    block_activity_update(b->node);
    block_drain_end(b->node);
}

void block_co_bitmap_reattach(struct block_bitmap *b)
{
    block_co_drain_begin(b->node);
    block_bitmap_link(b);
    b->detached = false;
    block_co_bitmap_changed(b);
    block_drain_end(b->node);
}

int block_co_bitmap_remove_detached(struct block_bitmap *b, struct error *err)
{
    struct block_node *node = b->node;
    int r;

    if (!b->persistent || !block_node_stores_bitmaps(node)) {
        return 0;
    }
    /*
     * Read the bits that are in the image only, which an undo would need. A bitmap that cannot be
     * read may be removed all the same.
     */
    if (!b->inconsistent) {
        (void)block_co_bitmap_fetch(b, NULL);
    }
    r = node->log && b->driver_state ? co_end_change(b, err)
                                     : block_co_remove_stored_bitmap(node, b->name, err);
    if (r >= 0 && b->unread) {
        block_bitmap_lose(b, "its bits could not be read from the image"); /* they are gone */
    }
    return MIN(r, 0);
}

void block_bitmap_free_detached(struct block_bitmap *b)
{
    block_bitmap_free(b);
}

/* --- fetch ------------------------------------------------------------------------------------ */

/* Storage that fails may answer later. */
static int cannot_read(struct block_bitmap *b, int r, struct error *err)
{
    if (r == -EINVAL) {
        block_bitmap_lose(b, "its bits could not be read from the image");
    }
    return error_set_errno(err, -r, "Could not read bitmap '%s' of '%s'", b->name,
                           block_node_display_name(b->node));
}

int block_co_bitmap_fetch(struct block_bitmap *b, struct error *err)
{
    int r = b->unread ? b->node->driver->co_fetch_bitmap(b->node, b) : 0;

    if (r == 0) {
        b->unread = false;
        return 0;
    }
    return cannot_read(b, r, err);
}

/* Dirty bytes in the stored bits of a bitmap that is `unread`. */
static int co_count_stored(struct block_bitmap *b, struct error *err)
{
    int r = b->counted ? 0 : b->node->driver->co_count_bitmap(b->node, b, &b->stored_count);

    b->counted = r == 0;
    return r < 0 ? cannot_read(b, r, err) : 0;
}

int block_co_bitmap_count(struct block_bitmap *b, uint64_t *ret_value, struct error *err)
{
    bool in_image = b->unread && dirty_bitmap_count(b->bits) == 0;
    int r = in_image ? co_count_stored(b, err) : block_co_bitmap_fetch(b, err);

    b->warned = b->warned && r < 0;
    *ret_value = in_image && r == 0 ? b->stored_count : dirty_bitmap_count(b->bits);
    return r;
}

bool block_bitmap_warns(struct block_bitmap *b)
{
    bool first = !b->warned;

    b->warned = true;
    return first;
}

const struct dirty_bitmap *block_bitmap_bits(const struct block_bitmap *b)
{
    assert(!b->unread);
    return b->bits;
}

/* --- change ----------------------------------------------------------------------------------- */

/* From here on the stored bits must not count as current. */
int block_co_bitmap_will_change(struct block_bitmap *b, struct error *err)
{
    if (!b->persistent || b->read_only || !b->node->driver->co_bitmap_will_change) {
        return 0;
    }
    return b->node->driver->co_bitmap_will_change(b->node, b, err);
}

/*
 * Before and after a command changes a bitmap. With an activity log the stored bitmaps stay valid
 * until the change is committed: now, or at the end of the transaction. Otherwise they are marked,
 * and stored when the node is closed.
 */
static int co_begin_change(struct block_bitmap *b, struct error *err)
{
    return b->node->log ? 0 : block_co_bitmap_will_change(b, err);
}

static int co_end_change(struct block_bitmap *b, struct error *err)
{
    struct block_node *node = b->node;

    if (!node->log) {
        return 0;
    }
    block_activity_update(node);
    if (!b->persistent || b->read_only) {
        return 0;
    }
    b->unstored = true;
    if (block_bitmap_defer_commit(node)) {
        return 0;
    }
    return node->driver->co_commit_bitmaps(node, err);
}

/* After a change that can't be taken back. If the commit fails, closing the node stores it. */
void block_co_bitmap_changed(struct block_bitmap *b)
{
    ERROR_AUTO(err);

    if (co_end_change(b, &err) < 0) {
        log_error("%s", error_message(&err));
    }
}

int block_co_bitmaps_will_change(struct block_node *node, struct error *err)
{
    struct block_bitmap *b;
    int r = 0;

    LIST_FOREACH (b, &node->bitmaps, link) {
        UNLESS_FAILED(r, block_co_bitmap_will_change(b, err));
    }
    return r;
}

/* Works for a read-only bitmap too: the flag is this process's, and the image is not written. */
int block_co_bitmap_set_enabled(struct block_bitmap *b, bool enabled, struct error *err)
{
    int r;

    block_co_drain_begin(b->node);
    r = block_bitmap_check(b, BLOCK_BITMAP_REFUSE_BUSY | BLOCK_BITMAP_REFUSE_INCONSISTENT, err);
    if (r >= 0 && b->enabled != enabled) {
        r = co_begin_change(b, err);
        if (r >= 0) {
            block_bitmap_set_enabled(b, enabled);
            r = co_end_change(b, err);
            block_bitmap_set_enabled(b, r < 0 ? !enabled : enabled);
            block_activity_update(b->node);
        }
    }
    block_drain_end(b->node);
    return r;
}

/* Put the present bits and excess aside, `bits` in their place. */
static struct block_bitmap_backup swap_bits(struct block_bitmap *b, struct dirty_bitmap *bits)
{
    dirty_bitmap_swap(b->bits, bits);
    return (struct block_bitmap_backup){
        .bits = bits, .excess = b->excess, .excess_why = b->excess_why};
}

static void swap_back(struct block_bitmap *b, const struct block_bitmap_backup *backup)
{
    dirty_bitmap_swap(b->bits, backup->bits);
    b->excess = backup->excess;
    b->excess_why = backup->excess_why;
}

static int co_clear_drained(struct block_bitmap *b, struct block_bitmap_backup *ret_backup,
                            struct error *err)
{
    struct block_bitmap_backup backup;
    struct dirty_bitmap *empty = NULL;
    int r = block_bitmap_check(b, BLOCK_BITMAP_REFUSE_ALL, err);

    UNLESS_FAILED(r, block_co_bitmap_fetch(b, err));
    if (r < 0) {
        return r;
    }
    empty = dirty_bitmap_new(dirty_bitmap_size(b->bits), b->granularity);
    if (!empty) {
        return error_set(err, ENOMEM, "Out of memory to clear bitmap '%s'", b->name);
    }
    r = co_begin_change(b, err);
    if (r == 0) {
        backup = swap_bits(b, empty);
        b->excess = 0; /* before the header is written with the bits */
        r = co_end_change(b, err);
        if (r < 0) {
            swap_back(b, &backup);
        }
    }
    if (r < 0 || !ret_backup) {
        dirty_bitmap_free(empty);
    } else {
        *ret_backup = backup;
    }
    return r;
}

int block_co_bitmap_clear(struct block_bitmap *b, struct block_bitmap_backup *ret_backup,
                          struct error *err)
{
    int r;

    block_co_drain_begin(b->node);
    r = co_clear_drained(b, ret_backup, err);
    block_drain_end(b->node);
    return r;
}

static int co_check_sources(const struct block_bitmap *dest, struct block_bitmap *const *sources,
                            size_t count, struct error *err)
{
    for (size_t i = 0; i < count; i++) {
        struct block_bitmap *s = sources[i];
        int r =
            block_bitmap_check(s, BLOCK_BITMAP_REFUSE_BUSY | BLOCK_BITMAP_REFUSE_INCONSISTENT, err);

        UNLESS_FAILED(r, block_co_bitmap_fetch(s, err));
        if (r < 0) {
            return r;
        }
        if (dirty_bitmap_size(s->bits) != dirty_bitmap_size(dest->bits)) {
            return error_set(err, EINVAL,
                             "Bitmaps are of different sizes and can't be merged: '%s' covers "
                             "%" PRIu64 " bytes, the destination '%s' %" PRIu64,
                             s->name, dirty_bitmap_size(s->bits), dest->name,
                             dirty_bitmap_size(dest->bits));
        }
    }
    return 0;
}

/* The bits of `dest` and of all sources. NULL if out of memory. */
static struct dirty_bitmap *merged_bits(const struct block_bitmap *dest,
                                        struct block_bitmap *const *sources, size_t count)
{
    struct dirty_bitmap *merged =
        dirty_bitmap_clone_merged(dest->bits, count > 0 ? sources[0]->bits : NULL);

    for (size_t i = 1; merged && i < count; i++) {
        if (dirty_bitmap_merge_alone(merged, sources[i]->bits) < 0) {
            dirty_bitmap_free(merged);
            merged = NULL;
        }
    }
    return merged;
}

static int co_merge_drained(struct block_bitmap *dest, struct block_bitmap *const *sources,
                            size_t count, struct block_bitmap_backup *ret_backup, struct error *err)
{
    struct block_bitmap_backup backup;
    struct dirty_bitmap *bits; /* the new ones, then the old ones */
    int r = block_bitmap_check(dest, BLOCK_BITMAP_REFUSE_ALL, err);

    UNLESS_FAILED(r, block_co_bitmap_fetch(dest, err));
    UNLESS_FAILED(r, co_check_sources(dest, sources, count, err));
    UNLESS_FAILED(r, co_begin_change(dest, err));
    if (r < 0) {
        return r;
    }
    bits = merged_bits(dest, sources, count);
    if (!bits) {
        return error_set(err, ENOMEM, "Out of memory to merge into bitmap '%s'", dest->name);
    }
    backup = swap_bits(dest, bits);
    for (size_t i = 0; i < count; i++) {
        struct block_bitmap_state state;

        block_bitmap_get_state(sources[i], &state);
        block_bitmap_inherit_excess(dest, &state, sources[i]->granularity);
    }
    r = co_end_change(dest, err);
    if (r < 0) {
        swap_back(dest, &backup);
    }
    if (r < 0 || !ret_backup) {
        dirty_bitmap_free(bits);
    } else {
        *ret_backup = backup;
    }
    return r;
}

int block_co_bitmap_merge(struct block_bitmap *dest, struct block_bitmap *const *sources,
                          size_t count, struct block_bitmap_backup *ret_backup, struct error *err)
{
    int r;

    block_co_drain_begin(dest->node);
    r = co_merge_drained(dest, sources, count, ret_backup, err);
    block_drain_end(dest->node);
    return r;
}

/* Whether the activity log says, of what is not stored yet, where its bits may be set. */
static bool is_covered(const struct block_bitmap *b)
{
    return b->node->log && b->persistent && b->enabled && !b->borrowed;
}

int block_co_bitmap_borrow_bits(struct block_bitmap *b, struct dirty_bitmap **ret_bits,
                                struct error *err)
{
    int r;

    block_co_drain_begin(b->node);
    r = block_bitmap_check(b, BLOCK_BITMAP_REFUSE_READ_ONLY | BLOCK_BITMAP_REFUSE_INCONSISTENT,
                           err);
    UNLESS_FAILED(r, block_co_bitmap_fetch(b, err));
    if (r >= 0 && !is_covered(b)) {
        r = block_co_bitmap_will_change(b, err);
        b->borrowed = r >= 0;
    }
    if (r >= 0) {
        *ret_bits = b->bits;
    }
    block_drain_end(b->node);
    return r;
}

int block_co_bitmap_note_set(struct block_bitmap *b, uint64_t offset, uint64_t length)
{
    return is_covered(b) ? block_co_activity_heat(b->node->log, offset, length) : 0;
}

int block_co_bitmap_note_all(struct block_bitmap *b, struct error *err)
{
    int r = is_covered(b) ? co_end_change(b, err) : 0;

    if (r == 0 && is_covered(b)) {
        block_co_activity_cool(b->node->log);
    }
    return r;
}

void block_co_bitmap_return_bits(struct block_bitmap *b)
{
    ERROR_AUTO(err);

    block_co_drain_begin(b->node);
    if (b->borrowed) {
        b->borrowed = false;
        block_co_bitmap_changed(b);
    } else if (block_co_bitmap_note_all(b, &err) < 0) {
        log_error("%s", error_message(&err));
    }
    block_drain_end(b->node);
}

int block_co_bitmap_add_bits(struct block_bitmap *b, const struct dirty_bitmap *bits,
                             struct error *err)
{
    int r;

    block_co_drain_begin(b->node);
    r = block_bitmap_check(b, BLOCK_BITMAP_REFUSE_ALL, err);
    UNLESS_FAILED(r, block_co_bitmap_fetch(b, err));
    if (r >= 0) {
        r = co_begin_change(b, err);
    }
    /* After a failure there are more bits than before, never fewer. */
    if (r >= 0 && dirty_bitmap_merge_alone(b->bits, bits) < 0) {
        r = error_set(err, ENOMEM, "Out of memory to merge into bitmap '%s'", b->name);
    }
    UNLESS_FAILED(r, co_end_change(b, err));
    block_drain_end(b->node);
    return r;
}

void block_co_bitmap_mark_again(struct block_bitmap *b)
{
    ERROR_AUTO(err);

    if (!b->node->log && block_co_bitmap_will_change(b, &err) < 0) {
        b->unstored = true;
        log_error("%s", error_message(&err));
    }
}

void block_co_bitmap_restore(struct block_bitmap *b, struct block_bitmap_backup *backup)
{
    block_co_drain_begin(b->node);
    block_co_bitmap_mark_again(b);
    swap_back(b, backup);
    block_co_bitmap_changed(b);
    block_drain_end(b->node);
    dirty_bitmap_free(backup->bits);
    backup->bits = NULL;
}

/* --- users ------------------------------------------------------------------------------------ */

void block_bitmap_take(struct block_bitmap *b, const char *user)
{
    if (b->busy++ == 0) {
        b->busy_user = strdup(user); /* NULL without memory: messages do without the name */
    }
}

void block_bitmap_give(struct block_bitmap *b)
{
    if (--b->busy == 0) {
        free(b->busy_user);
        b->busy_user = NULL;
    }
}

static int co_read_own_bitmap(struct block_bitmap *b, struct dirty_bitmap *bits, struct error *err)
{
    int r;

    if (b->inconsistent) {
        return error_set(err, ENOENT, "Bitmap '%s' of node '%s' is inconsistent", b->name,
                         block_node_name(b->node));
    }
    r = block_co_bitmap_fetch(b, err);
    if (r < 0) {
        return r;
    }
    r = dirty_bitmap_merge(bits, block_bitmap_bits(b));
    return r < 0 ? error_out_of_memory(err) : 0;
}

int block_co_read_bitmap(struct block_node *node, const char *name, struct dirty_bitmap *bits,
                         struct error *err)
{
    struct block_bitmap *b;
    int r;

    for (; node; node = node->filtered ? node->filtered->node : NULL) {
        b = block_bitmap_find(node, name);
        if (b) {
            return co_read_own_bitmap(b, bits, err);
        }
        if (node->driver->co_read_bitmap) {
            trace_block_control_begin(node->name, "co_read_bitmap");
            r = node->driver->co_read_bitmap(node, name, bits, err);
            trace_block_control_end(node->name, r);
            return r;
        }
        if (!node->filtered) {
            return error_set(err, ENOENT, "Dirty bitmap '%s' not found on node '%s'", name,
                             block_node_name(node));
        }
    }
    return -ENOENT;
}
