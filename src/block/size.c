/* SPDX-License-Identifier: Apache-2.0 */
/* Changes of the size of a node, and who has to follow. */
#include <errno.h>
#include <inttypes.h>

#include "base/checked.h"
#include "base/log.h"
#include "block/control.h"
#include "block/device.h"
#include "block/internal.h"
#include "block/size_max.h"
#include "trace/events.h"

bool block_node_has_size_of(const struct block_node *node, const struct block_edge *child)
{
    if (node->driver->has_size_of_file && node->file == child) {
        return node->driver->has_size_of_file(node);
    }
    return node->filtered == child && node->driver->passes_size;
}

bool block_node_grows(const struct block_node *node)
{
    while (node->filtered || node->driver->grows_with_file) {
        node = node->filtered ? node->filtered->node : node->file->node;
    }
    return !node->driver->is_format;
}

int block_node_check_growth(const struct block_node *node, const struct block_node *to,
                            struct error *err)
{
    struct block_edge *edge;
    int r = 0;

    if (block_node_grows(to)) {
        return 0;
    }
    LIST_FOREACH (edge, &node->parents, in_node) {
        struct block_node *parent = edge->parent;

        if (r < 0 || !parent || !(edge->perm & BLOCK_PERM_RESIZE)) {
            continue;
        }
        r = block_node_has_size_of(parent, edge)
                ? block_node_check_growth(parent, to, err)
                : error_set(err, EBUSY,
                            "Node '%s' is busy: node is used as '%s' of '%s', which extends it; "
                            "node '%s' can't be extended so",
                            block_node_device_or_name(node), edge->name,
                            block_node_device_or_name(parent), to->name);
    }
    return r;
}

uint64_t block_node_greatest_size(const struct block_node *node)
{
    uint64_t known = node->driver->greatest_size ? node->driver->greatest_size(node) : 0;

    return MAX(known, block_node_size(node));
}

uint64_t block_node_greatest_size_of_chain(const struct block_node *node)
{
    uint64_t greatest = 0;

    for (; node; node = block_node_filter_or_backing(node)) {
        greatest = MAX(greatest, block_node_greatest_size(node));
    }
    return greatest;
}

void block_node_remember_size(struct block_node *node, uint64_t size)
{
    if (node->driver->remember_size) {
        node->driver->remember_size(node, size);
    }
}

/* Whoever reads the bits of a bitmap that is in use reads them with the size that it had. */
static int check_bitmaps_at_rest(const struct block_node *node, struct error *err)
{
    struct block_bitmap *b;
    int r = 0;

    LIST_FOREACH (b, &node->bitmaps, link) {
        UNLESS_FAILED(r, block_bitmap_check(b, BLOCK_BITMAP_REFUSE_BUSY, err));
    }
    return r;
}

int block_node_check_resize(const struct block_node *node, struct error *err)
{
    struct block_edge *edge;
    int r = 0;

    LIST_FOREACH (edge, &node->parents, in_node) {
        if (r == 0 && edge->parent && !block_node_has_size_of(edge->parent, edge)) {
            r = error_set(err, EBUSY, "Node '%s' is busy: node is used as '%s' of '%s'",
                          block_node_device_or_name(node), edge->name,
                          block_node_device_or_name(edge->parent));
        }
        UNLESS_FAILED(r, edge->parent ? check_bitmaps_at_rest(edge->parent, err) : 0);
        UNLESS_FAILED(r, edge->parent ? block_node_check_resize(edge->parent, err) : 0);
    }
    return r;
}

/* To the owners of the roots of `node`. */
static void report_size_to_roots(struct block_node *node)
{
    struct block_edge *edge;

    LIST_FOREACH (edge, &node->parents, in_node) {
        struct block_root *root = edge->root;

        if (root && root->ops && root->ops->resized) {
            root->ops->resized(root->ops_arg, block_node_size(node));
        }
    }
}

/* Bitmaps that can't follow for lack of memory are of no use any more: they would lack writes. */
static void follow_size(struct block_node *node, uint64_t size)
{
    ERROR_AUTO(err);

    block_node_set_size(node, size);
    if (block_bitmaps_resize(node, size, &err) < 0) {
        struct block_bitmap *b;

        log_error("%s", error_message(&err));
        LIST_FOREACH (b, &node->bitmaps, link) {
            block_bitmap_lose(b, "there was no memory to resize the bitmap");
        }
    }
}

void block_report_size(struct block_node *node)
{
    struct block_edge *edge;

    report_size_to_roots(node);
    LIST_FOREACH (edge, &node->parents, in_node) {
        if (edge->parent && block_node_has_size_of(edge->parent, edge)) {
            follow_size(edge->parent, block_node_size(node));
            block_report_size(edge->parent);
        }
    }
}

/* Whether the node has no size of its own: only a driver like raw, or a filter. */
static bool shows_size_of_child(const struct block_node *node, const struct block_edge *child)
{
    return block_node_has_size_of(node, child) ||
           (node->driver->exchanges_file && node->driver->file_head == 0);
}

/*
 * `unused`: nobody reads or writes through the node. Its file is not locked then, and another
 * program may have written it.
 */
static int co_renew_size(struct block_node *node, bool unused, struct error *err)
{
    struct block_edge *child = node->filtered ?: node->file;
    uint64_t was = block_node_size(node);
    int r = 0;

    if (child) {
        r = co_renew_size(child->node,
                          unused && shows_size_of_child(node, child) &&
                              child->node->parents.next->next == &child->node->parents,
                          err);
    }
    if (r < 0) {
        return r;
    }
    if (child && block_node_has_size_of(node, child)) {
        block_node_set_size(node, block_node_size(child->node));
    } else if (child && shows_size_of_child(node, child) && node->driver->co_reload) {
        r = node->driver->co_reload(node, err); /* it has no more of its own than a size */
    } else if (!child && unused && node->driver->co_renew_size) {
        r = node->driver->co_renew_size(node, err);
    }
    if (r == 0 && block_node_size(node) != was) {
        follow_size(node, block_node_size(node));
        block_report_size(node);
    }
    return r;
}

int block_co_renew_size(struct block_node *node, struct error *err)
{
    return co_renew_size(node, list_is_empty(&node->parents), err);
}

int block_check_size_max(uint64_t size, struct error *err)
{
    return size <= BLOCK_SIZE_MAX
               ? 0
               : error_set(err, EFBIG, "offset(%" PRIu64 ") exceeds maximum(%" PRIu64 ")", size,
                           BLOCK_SIZE_MAX);
}

int block_co_truncate(struct block_edge *edge, uint64_t size, enum block_prealloc prealloc,
                      struct error *err)
{
    struct block_node *node = edge->node;
    int r;

    if (!(edge->perm & BLOCK_PERM_RESIZE)) {
        return error_set(err, EPERM, "'%s' may not be resized here: it was not opened for that",
                         block_node_display_name(node));
    }
    if (!node->driver->co_truncate) {
        return error_set(err, ENOTSUP, "Image format driver does not support resize");
    }
    r = block_check_size_max(size, err);
    if (r < 0) {
        return r;
    }
    trace_block_truncate_begin(node->name, size);
    co_mutex_lock(&node->resizing);
    block_co_drain_begin(node);
    r = node->driver->co_truncate(node, size, prealloc, err);
    if (r == 0 && !list_is_empty(&node->bitmaps)) {
        r = block_bitmaps_resize(node, size, err);
    }
    atomic_fetch_add(&node->write_generation, 1);
    block_report_size(node);
    block_drain_end(node);
    co_mutex_unlock(&node->resizing);
    trace_block_truncate_end(node->name, size, r);
    return r;
}
