/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Graph changes: a list of edge changes that take effect together.
 *
 *   begin    there is one change at a time; waiting for it delays no requests
 *   ...      edges are attached, detached and moved; no check yet, no permission changes
 *   settle   works out the permissions of the result. Flushes the node that a writing edge has
 *            left, unless flushes of the edge's new node reach the old one. On failure the old
 *            permissions are in force: the caller takes its edge changes back and settles again,
 *            which can't fail
 *   end      gives up image locks that nobody needs any more
 *
 * The caller drains the nodes concerned, from before the begin until after the end. Opening and
 * closing images, which may take long, are not parts of a change.
 */
#include <errno.h>
#include <string.h>

#include "base/log.h"
#include "block/internal.h"
#include "trace/events.h"

/* Guards edges, and the members of block_node and block_edge that say so. Main reactor. */
static struct {
    struct co_mutex lock;
    bool ready;
    struct co *owner; /* the coroutine in a change; NULL: none */
    unsigned depth;
    struct list moved;      /* edges that the change has moved; each has its origin */
    bool flushed_elsewhere; /* see block_change_excuse_flushes() */
} graph;

void block_co_change_begin(void)
{
    if (!graph.ready) {
        co_mutex_init(&graph.lock);
        list_init(&graph.moved);
        graph.ready = true;
    }
    if (graph.owner != co_task()) {
        co_mutex_lock(&graph.lock);
        graph.owner = co_task();
    }
    graph.depth++;
}

/*
 * Whether a flush of one reaches the other: both are filters on the same node, or one filters the
 * other.
 */
static bool flush_is_shared(struct block_node *a, struct block_node *b)
{
    a = block_node_skip_filters(a);
    return a && a == block_node_skip_filters(b);
}

/* Whether a flush of the edge's node flushes the origin, too: overlays were put on the origin. */
static bool flushes_origin(const struct block_edge *edge)
{
    const struct block_node *origin = block_node_skip_filters(edge->origin);
    struct block_node *node = block_node_skip_filters(edge->node);

    while (node && node != origin && node->backing && atomic_load(&node->backing_unflushed)) {
        node = block_node_skip_filters(node->backing->node);
    }
    return node == origin;
}

static int co_flush_origin(struct block_node *origin, struct error *err)
{
    const char *name = block_node_name(block_node_skip_filters(origin) ?: origin);
    int r = block_co_flush_node(origin);

    if (r < 0 && graph.flushed_elsewhere) {
        log_warning("node '%s' could not be flushed before it was left: %s", name, strerror(-r));
        r = 0;
    } else if (r < 0) {
        error_set_errno(err, -r, "Could not flush node '%s' before it is left", name);
    }
    return r;
}

static int co_flush_left(struct error *err)
{
    struct block_edge *edge;
    int r = 0;

    LIST_FOREACH (edge, &graph.moved, moved) {
        if (r == 0 && (edge->perm & BLOCK_PERM_WRITE) &&
            !flush_is_shared(edge->origin, edge->node) && !flushes_origin(edge)) {
            r = co_flush_origin(edge->origin, err);
        }
    }
    return r;
}

void block_change_excuse_flushes(void)
{
    graph.flushed_elsewhere = true;
}

int block_co_change_settle(struct error *err)
{
    int r;

    if (graph.depth > 1) {
        return 0;
    }
    r = co_flush_left(err);
    UNLESS_FAILED(r, block_co_perm_settle(err));
    block_update_serialising();
    trace_block_graph_settle(r);
    return r;
}

struct block_node *block_edge_forget_move(struct block_edge *edge)
{
    struct block_node *origin = edge->origin;

    edge->origin = NULL;
    list_remove(&edge->moved);
    return origin;
}

/*
 * Give the references to origins back. Nodes without references go to *ret_unused, to be closed
 * after the change.
 */
static void forget_moves(struct list *ret_unused)
{
    while (!list_is_empty(&graph.moved)) {
        struct block_node *origin =
            block_edge_forget_move(LIST_FIRST(&graph.moved, struct block_edge, moved));

        if (origin->refcount > 1) {
            origin->refcount--;
        } else {
            list_append(ret_unused, &origin->left);
        }
    }
}

void block_co_change_finish(struct list *ret_unused)
{
    if (graph.depth > 1) {
        graph.depth--;
        return;
    }
    block_co_perm_release();
    forget_moves(ret_unused);
    graph.flushed_elsewhere = false;
    graph.depth = 0;
    graph.owner = NULL;
    co_mutex_unlock(&graph.lock);
}

void block_change_note_move(struct block_edge *edge, struct block_node *from)
{
    if (!edge->origin) {
        edge->origin = block_node_ref(from);
        list_append(&graph.moved, &edge->moved);
    }
}

struct list *block_change_moves(void)
{
    return &graph.moved;
}

int block_co_settle_at(struct block_node *node, struct error *err)
{
    block_perm_touch(node);
    return block_co_change_settle(err);
}
