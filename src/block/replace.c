/* SPDX-License-Identifier: Apache-2.0 */
/* Replacing a node by another for all its users, putting overlays on nodes, backing nodes. */
#include <errno.h>
#include <string.h>
#include <stdlib.h>

#include "base/checked.h"
#include "base/log.h"
#include "block/control.h"
#include "block/internal.h"

/* An edge to `from` that has to move: `to` does not reach `from` by it, and it does not stay. */
static struct block_edge *next_to_move(struct block_node *from, struct block_node *to)
{
    struct block_edge *edge;

    LIST_FOREACH (edge, &from->parents, in_node) {
        if (edge->parent ? !block_node_reaches(to, edge->parent) : !edge->root->stays) {
            return edge;
        }
    }
    return NULL;
}

static int co_move_all(struct block_node *from, struct block_node *to, struct error *err)
{
    struct block_edge *edge;
    int r = 0;

    while (r == 0 && (edge = next_to_move(from, to))) {
        r = block_co_edge_move(edge, to, err);
    }
    return r;
}

/* Move the edges back that this change has moved from `from` to `to`. */
static void co_move_back(struct block_node *from, struct block_node *to)
{
    struct block_edge *edge;

    LIST_FOREACH (edge, block_change_moves(), moved) {
        if (edge->origin == from && edge->node == to) {
            (void)block_co_edge_move(edge, from, NULL);
        }
    }
}

int block_co_node_replace(struct block_node *from, struct block_node *to, struct error *err)
{
    struct block_node *nodes[] = {from, to};
    int r;

    if (from == to) {
        return 0;
    }
    block_node_ref(from);
    block_co_drain_begin_many(nodes, ARRAY_SIZE(nodes));
    block_co_change_begin();
    r = co_move_all(from, to, err);
    UNLESS_FAILED(r, block_co_change_settle(err));
    if (r < 0) {
        co_move_back(from, to);
        if (block_co_change_settle(NULL) < 0) {
            log_error("node '%s': permissions of before the change can't be had again", from->name);
        }
    }
    block_co_change_end();
    block_drain_end(to);
    block_drain_end(from);
    block_co_unref(from);
    return r;
}

/* --- overlays --------------------------------------------------------------------------------- */

struct block_append {
    struct block_node *overlay, *node; /* referenced */
    /* That pointed to `node`. They live until the change has ended. */
    struct block_edge **moved;
    size_t count, capacity;
    bool was_unflushed;
};

static void append_free(struct block_append *a)
{
    /* Others have references, too: the graph, and the owner of the change. */
    a->overlay->refcount--;
    a->node->refcount--;
    free(a->moved);
    free(a);
}

static int note_moved(struct block_append *a, struct block_edge *edge, struct error *err)
{
    if (a->count == a->capacity) {
        size_t capacity = a->capacity ? 2 * a->capacity : 4;
        struct block_edge **moved = realloc(a->moved, capacity * sizeof(struct block_edge *));

        if (!moved) {
            return error_out_of_memory(err);
        }
        a->moved = moved;
        a->capacity = capacity;
    }
    a->moved[a->count++] = edge;
    return 0;
}

static int co_append(struct block_append *a, struct error *err)
{
    struct block_edge *edge;
    int r = 0;

    if (block_node_size(a->overlay) != block_node_size(a->node)) {
        r = block_node_check_resize(a->node, err);
    }
    UNLESS_FAILED(r, block_node_check_growth(a->node, a->overlay, err));
    UNLESS_FAILED(
        r, block_co_attach_child(a->overlay, a->node, "backing", BLOCK_ROLE_BACKING, NULL, err));
    a->was_unflushed = atomic_load(&a->overlay->backing_unflushed);
    atomic_store(&a->overlay->backing_unflushed, !a->node->read_only);
    while (r == 0 && (edge = next_to_move(a->node, a->overlay))) {
        r = note_moved(a, edge, err);
        UNLESS_FAILED(r, block_co_edge_point(edge, a->overlay, err));
    }
    return r;
}

int block_co_append(struct block_node *overlay, struct block_node *node,
                    struct block_append **ret_append, struct error *err)
{
    struct block_append *a = calloc(1, sizeof(*a));
    int r;

    if (!a) {
        return error_out_of_memory(err);
    }
    a->overlay = block_node_ref(overlay);
    a->node = block_node_ref(node);
    r = co_append(a, err);
    if (r < 0) {
        block_co_append_undo(a);
    } else {
        *ret_append = a;
    }
    return r;
}

void block_co_append_undo(struct block_append *a)
{
    for (size_t i = a->count; i > 0; i--) {
        if (a->moved[i - 1]->node == a->overlay) {
            (void)block_co_edge_point(a->moved[i - 1], a->node, NULL);
        }
    }
    atomic_store(&a->overlay->backing_unflushed, a->was_unflushed);
    if (a->overlay->backing && a->overlay->backing->node == a->node) {
        block_co_detach_child(a->overlay->backing);
    }
    append_free(a);
}

void block_append_end(struct block_append *a)
{
    if (block_node_size(a->overlay) != block_node_size(a->node)) {
        block_report_size(a->overlay);
    }
    append_free(a);
}

int block_co_set_backing_node(struct block_node *node, struct block_node *backing,
                              struct error *err)
{
    int r = 0;

    block_co_drain_begin(node);
    if (node->backing && backing) {
        r = block_co_edge_move(node->backing, backing, err);
    } else if (node->backing) {
        block_co_detach_child(node->backing);
    } else if (backing) {
        r = block_co_attach_child(node, backing, "backing", BLOCK_ROLE_BACKING, NULL, err);
    }
    block_drain_end(node);
    return r;
}

int block_co_add_child(struct block_node *parent, struct block_node *child, struct error *err)
{
    int r;

    if (!parent->driver->co_add_child) {
        return error_set(err, ENOTSUP, "The node %s does not support adding a child", parent->name);
    }
    if (!list_is_empty(&child->parents)) {
        return error_set(err, EINVAL, "The node %s already has a parent", child->name);
    }
    block_co_drain_begin(parent);
    r = parent->driver->co_add_child(parent, child, err);
    block_drain_end(parent);
    return r;
}

int block_co_del_child(struct block_node *parent, const char *name, struct error *err)
{
    struct block_edge *edge, *found = NULL;
    int r;

    LIST_FOREACH (edge, &parent->children, sibling) {
        found = strcmp(edge->name, name) == 0 ? edge : found;
    }
    if (!found) {
        return error_set(err, ENOENT, "Node '%s' does not have child '%s'", parent->name, name);
    }
    if (!parent->driver->co_del_child) {
        return error_set(err, ENOTSUP, "The node %s does not support removing a child",
                         parent->name);
    }
    block_co_drain_begin(parent);
    r = parent->driver->co_del_child(parent, found, err);
    block_drain_end(parent);
    return r;
}
