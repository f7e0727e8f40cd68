/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reopening a node with the image of another file.
 *
 * What a node has in memory is of the image that it was opened with, and must never be written over
 * another one. So before any edge changes the node is completed: nothing of it is left to write.
 * When all nodes have their new files, and the permissions for these, each reads its image as an
 * open does, and what it had of the former one is dropped. An undo gives the files back, and reads
 * the former images again, since opening an image can write to it. A node that can't is inactive:
 * nobody reads or writes it until its image can be read (blockdev-set-active).
 *
 * That is for a node that nobody uses: guests, jobs and overlays rely on the contents.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/log.h"
#include "block/bitmaps.h"
#include "block/internal.h"
#include "block/reopen_plan.h"

static bool shows_all_of_its_file(const struct block_node *node)
{
    return node->file && strcmp(node->driver->name, "raw") == 0 &&
           !json_object_object_get_ex(node->options, "offset", NULL);
}

/* What has the image: below filters, and nodes that show a file as it is. */
static const struct block_node *image_storage_of(const struct block_node *node)
{
    while (node->filtered || shows_all_of_its_file(node)) {
        node = (node->filtered ?: node->file)->node;
    }
    return node;
}

bool reopen_has_other_storage(const struct reopen_entry *e)
{
    return image_storage_of(e->file.was) != image_storage_of(e->file.next);
}

/* --- images above ----------------------------------------------------------------------------- */

static int64_t offset_of(struct json_object *options)
{
    struct json_object *offset = NULL;

    json_object_object_get_ex(options, "offset", &offset);
    return json_object_get_int64(offset);
}

/* Whether a node that shows its file, as raw and filters do, shows other contents now. */
static bool shows_other_contents(const struct reopen_entry *e)
{
    const struct block_node *node = e->node;

    return node->driver->exchanges_file && node->driver->file_head == 0 &&
           ((e->file.changes && reopen_has_other_storage(e)) ||
            (e->options && offset_of(e->options) != offset_of(node->options)) ||
            block_node_size(node) < e->old_size);
}

static bool reads_image(const struct block_reopen *plan, const struct block_node *node)
{
    const struct reopen_entry *e;

    LIST_FOREACH (e, &plan->entries, link) {
        if (e->node == node) {
            return e->reads_image;
        }
    }
    return false;
}

/* A format above `node` that keeps the image that it has; NULL: none. */
static const struct block_node *find_image_above(const struct block_reopen *plan,
                                                 const struct block_node *node)
{
    const struct block_node *found = NULL;
    const struct block_edge *edge;

    LIST_FOREACH (edge, &node->parents, in_node) {
        const struct block_node *parent = edge->parent;

        if (found || !parent || (edge->role & BLOCK_ROLE_BACKING) || reads_image(plan, parent)) {
            continue;
        }
        found = parent->driver->is_format && strcmp(parent->driver->name, "raw") != 0
                    ? parent
                    : find_image_above(plan, parent);
    }
    return found;
}

int reopen_check_images_above(const struct block_reopen *plan, const struct reopen_entry *e,
                              struct error *err)
{
    const struct block_node *image =
        shows_other_contents(e) ? find_image_above(plan, e->node) : NULL;

    return image ? error_set(err, EINVAL,
                             "Node '%s' would not have the contents of the file of '%s' any more",
                             e->node->name, image->name)
                 : 0;
}

/* --- the image of another file ---------------------------------------------------------------- */

static bool has_other_image(const struct reopen_entry *e)
{
    return e->file.changes && e->node->driver->co_exchange_image && reopen_has_other_storage(e) &&
           list_is_empty(&e->node->parents);
}

static int check_bitmaps_are_free(const struct block_node *node, struct error *err)
{
    struct block_bitmap *b;
    int r = 0;

    LIST_FOREACH (b, &node->bitmaps, link) {
        UNLESS_FAILED(r, block_bitmap_check(b, BLOCK_BITMAP_REFUSE_BUSY, err));
    }
    return r;
}

int reopen_co_leave_images(struct block_reopen *plan, struct error *err)
{
    struct reopen_entry *e;
    int r = 0;

    LIST_FOREACH (e, &plan->entries, link) {
        e->reads_image = has_other_image(e);
        if (e->reads_image) {
            UNLESS_FAILED(r, check_bitmaps_are_free(e->node, err));
            UNLESS_FAILED(r, block_co_inactivate(e->node, err));
        }
    }
    return r;
}

static struct block_bitmap *find_unstored(const struct block_node *node)
{
    struct block_bitmap *b;

    LIST_FOREACH (b, &node->bitmaps, link) {
        if (!b->persistent) {
            return b;
        }
    }
    return NULL;
}

/* Whether the image can be what the options make of it. */
static int check_image_of_file(const struct reopen_entry *e, struct error *err)
{
    struct block_node *node = e->node;
    struct block_bitmap *b = find_unstored(node);
    const char *file = node->file->node->name;

    if (node->auto_backing && !json_object_object_get_ex(e->options, "backing", NULL)) {
        return error_set(err, EINVAL,
                         "backing is missing for '%s': the image of '%s' has the backing file '%s'",
                         node->name, file, node->auto_backing);
    }
    if (b && block_node_size(node) != e->old_size) {
        return error_set(err, EINVAL,
                         "Node '%s' has a bitmap '%s' of %" PRIu64 " bytes, the image of '%s' "
                         "has %" PRIu64,
                         node->name, block_bitmap_name(b), e->old_size, file,
                         block_node_size(node));
    }
    LIST_FOREACH (b, &node->bitmaps, link) {
        if (b->persistent && block_bitmap_name(b) &&
            block_bitmap_find(node, block_bitmap_name(b)) != b) {
            return error_set(err, EEXIST,
                             "Node '%s' has a bitmap '%s', and so has the image of '%s'",
                             node->name, block_bitmap_name(b), file);
        }
    }
    return 0;
}

static int co_read_image_of_file(struct block_node *node, struct error *err)
{
    struct block_info info = {0};
    int r = node->driver->co_exchange_image(node, err);

    if (r >= 0 && node->driver->co_get_info(node, &info) == 0) {
        block_set_auto_backing(node, info.backing_filename);
    }
    return r;
}

int reopen_co_read_image(struct reopen_entry *e, struct error *err)
{
    struct block_node *node = e->node;
    struct json_object *options = node->options;
    int r;

    e->has_read = true;
    node->options = e->options; /* of the caches */
    r = co_read_image_of_file(node, err);
    node->options = options;
    if (r < 0) {
        error_prepend(err, "Node '%s' can't have the image of '%s': ", node->name,
                      node->file->node->name);
    }
    return UNLESS_FAILED(r, check_image_of_file(e, err));
}

void reopen_keep_image(struct reopen_entry *e)
{
    struct block_bitmap *b;

    LIST_FOREACH (b, &e->node->bitmaps, link) {
        if (!b->persistent && b->bits && b->enabled) {
            dirty_bitmap_set(b->bits, 0, dirty_bitmap_size(b->bits));
        }
    }
}

void reopen_co_read_former_image(struct reopen_entry *e)
{
    ERROR_AUTO(err);

    if (!e->has_read || co_read_image_of_file(e->node, &err) >= 0) {
        return;
    }
    log_error("node '%s' is inactive, since its image can't be read again: %s", e->node->name,
              error_message(&err));
    block_node_put_away(e->node);
}
