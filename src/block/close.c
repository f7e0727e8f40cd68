/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The end of a node. When its last reference goes
 *
 *   retire     nobody finds it by name any more, at once, before anything else happens
 *   complete   what was written through it is flushed, bitmaps are stored, marks that say "in use" cleared
 *   close      the driver lets go of what it has
 *   detach     its children lose a reference each, and may be next
 *
 * Nothing refuses: a node that can't be completed is closed all the same, and the error told.
 */
#include <assert.h>

#include "base/log.h"
#include "block/internal.h"

/* Whether something was written through the node itself that no flush of it has followed. */
static bool has_unflushed(const struct block_node *node)
{
    uint64_t written = atomic_load(&node->write_generation);

    return written > BLOCK_NOTHING_WRITTEN && atomic_load(&node->flushed_generation) < written;
}

/* What a filter has passed on is for the node below to make stable, when that is closed. */
static int co_complete(struct block_node *node, struct error *err)
{
    int r = 0;

    if (node->closed || node->read_only) {
        return 0;
    }
    if (node->driver->co_inactivate) {
        r = node->driver->co_inactivate(node, err);
    }
    if (r == 0 && !node->driver->is_filter && has_unflushed(node)) {
        r = block_co_flush_node(node);
        if (r < 0) {
            error_set_errno(err, -r, "Could not flush '%s'", block_node_display_name(node));
        }
    }
    node->close_reported = node->close_reported || (r < 0 && err);
    return r;
}

int block_co_inactivate(struct block_node *node, struct error *err)
{
    int r;

    block_co_drain_begin(node);
    r = co_complete(node, err);
    block_co_drain_end(node);
    return r;
}

/* Nodes without references, which are to be closed. Each has one again, lest what closing brings about closes it twice. */
static void retire(struct block_node *node, struct list *dead)
{
    struct block_node *other;

    assert(list_is_empty(&node->parents));
    LIST_FOREACH (other, &block_all_nodes, link) {
        if (other->published_with == node) {
            other->published_with = NULL;
        }
    }
    node->refcount = 1;
    list_remove(&node->link);
    list_append(dead, &node->link);
}

/* `told`: what goes wrong in the children follows from what was told of the node. */
static void co_release_children(struct block_node *node, bool told, struct list *dead)
{
    while (!list_is_empty(&node->children)) {
        struct block_node *child =
            block_co_take_child(LIST_FIRST(&node->children, struct block_edge, sibling));

        if (--child->refcount == 0) {
            child->close_reported = child->close_reported || told;
            retire(child, dead);
        }
    }
}

static int co_close_one(struct block_node *node, struct list *dead, struct error *err)
{
    bool told = node->close_reported;
    ERROR_AUTO(own);
    int r = co_complete(node, &own);

    if (r < 0 && err && !error_is_set(err)) {
        error_set(err, -r, "%s", error_message(&own));
    } else if (r < 0 && !err && !told) {
        log_error("closing '%s': %s", block_node_display_name(node), error_message(&own));
    }
    told = told || r < 0;
    block_bitmaps_release(node);
    if (node->driver->co_close) {
        node->driver->co_close(node);
    }
    node->closed = true;
    co_release_children(node, told, dead);
    block_node_free(node);
    return r;
}

int block_co_close(struct block_node *node, struct error *err)
{
    struct list dead = LIST_INIT(dead);
    int r = 0;

    if (!node || --node->refcount > 0) {
        return 0;
    }
    retire(node, &dead);
    while (!list_is_empty(&dead)) {
        int this = co_close_one(LIST_FIRST(&dead, struct block_node, link), &dead, err);

        r = r < 0 ? r : this;
    }
    return r;
}

void block_co_unref(struct block_node *node)
{
    (void)block_co_close(node, NULL);
}
