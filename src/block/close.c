/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The end of a node. When its last reference is given back:
 *
 *   retire     at once: no lookup finds the node any more
 *   complete   writes are flushed, bitmaps are stored, marks that say "in use" are cleared
 *   close      the driver releases what it has
 *   detach     each child loses a reference, and may be the next node to end
 *
 * No step can refuse: a node that can't be completed is closed, and the error is returned or
 * logged.
 */
#include <assert.h>

#include "base/log.h"
#include "block/internal.h"
#include "trace/events.h"

/* Whether a write through the node itself was followed by no flush. */
static bool has_unflushed(const struct block_node *node)
{
    uint64_t written = atomic_load(&node->write_generation);

    return written > BLOCK_NOTHING_WRITTEN && atomic_load(&node->flushed_generation) < written;
}

/* A filter is not flushed: the node below is, when that is closed. */
int block_co_complete(struct block_node *node, struct error *err)
{
    int r = 0;

    if (node->closed || node->read_only || node->handed_over) {
        return 0;
    }
    block_bitmaps_fold_successors(node);
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

bool block_node_keeps_writes(const struct block_node *node)
{
    return (node->driver->co_inactivate || !node->driver->is_filter) && has_unflushed(node);
}

bool block_node_has_to_complete(const struct block_node *node)
{
    return node->driver->co_inactivate || has_unflushed(node) || !list_is_empty(&node->bitmaps);
}

int block_co_inactivate_but(struct block_node *node, const struct block_root *reader,
                            struct error *err)
{
    struct block_drain drain = {0};
    int r;

    block_co_drain_begin_writers(&drain, node, reader);
    r = block_co_complete(node, err);
    block_drain_end_but(&drain);
    return r;
}

int block_co_inactivate(struct block_node *node, struct error *err)
{
    int r;

    block_co_drain_begin(node);
    r = block_co_complete(node, err);
    block_drain_end(node);
    return r;
}

/*
 * Add a node without references to the nodes to close. It gets a reference back, so that closing
 * can't begin twice.
 */
static void retire(struct block_node *node, struct list *dead)
{
    assert(list_is_empty(&node->parents));
    while (!list_is_empty(&node->published)) {
        struct block_node *other = LIST_FIRST(&node->published, struct block_node, publication);

        list_remove(&other->publication);
        other->published_with = NULL;
    }
    node->refcount = 1;
    block_node_set_serialising(node, NULL);
    block_perm_forget(node);
    name_index_remove(&block_node_names, &node->by_name);
    list_remove(&node->link);
    list_append(dead, &node->link);
}

/* `reported`: the node's own error was reported; errors of the children follow from it. */
static void co_release_children(struct block_node *node, bool reported, struct list *dead)
{
    while (!list_is_empty(&node->children)) {
        struct block_edge *edge = LIST_FIRST(&node->children, struct block_edge, sibling);
        struct block_node *origin, *child = block_co_take_child(edge, &origin);

        block_co_unref(origin);
        if (--child->refcount == 0) {
            child->close_reported = child->close_reported || reported;
            retire(child, dead);
        }
    }
}

static int co_close_one(struct block_node *node, struct list *dead, struct error *err)
{
    bool reported = node->close_reported;
    ERROR_AUTO(own);
    int r;

    trace_block_close_begin(node->name);
    r = block_co_complete(node, &own);

    if (r < 0 && err && !error_is_set(err)) {
        error_set(err, -r, "%s", error_message(&own));
    } else if (r < 0 && !err && !reported) {
        log_error("closing '%s': %s", block_node_display_name(node), error_message(&own));
    }
    reported = reported || r < 0;
    block_bitmaps_release(node);
    if (node->driver->co_close) {
        node->driver->co_close(node);
    }
    node->closed = true;
    co_release_children(node, reported, dead);
    trace_block_close_end(node->name, r);
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

        r = error_first(r, this);
    }
    return r;
}

void block_co_unref(struct block_node *node)
{
    (void)block_co_close(node, NULL);
}

void block_co_change_end(void)
{
    struct list unused = LIST_INIT(unused);

    block_co_change_finish(&unused);
    while (!list_is_empty(&unused)) {
        struct block_node *node = LIST_FIRST(&unused, struct block_node, left);

        list_remove(&node->left);
        block_co_unref(node);
    }
}
