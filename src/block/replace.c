/* SPDX-License-Identifier: Apache-2.0 */
/* Pointing edges at other nodes, one or all of a node, within a graph change. */
#include <errno.h>

#include "base/log.h"
#include "block/internal.h"
#include "trace/events.h"

/* A backing node may have any size: where it has nothing, zeroes are read. */
static int check_sizes(const struct block_edge *edge, const struct block_node *to,
                       struct error *err)
{
    const struct block_node *from = edge->node;

    if (!(edge->role & BLOCK_ROLE_BACKING) && block_node_size(from) != block_node_size(to)) {
        return error_set(err, EINVAL,
                         "Cannot replace node '%s' (%llu bytes) by '%s' (%llu bytes): the sizes "
                         "differ",
                         from->name, (unsigned long long)block_node_size(from), to->name,
                         (unsigned long long)block_node_size(to));
    }
    return 0;
}

static void point(struct block_edge *edge, struct block_node *node)
{
    struct block_node *from = edge->node;

    trace_block_edge_move(edge->name, from->name, node->name);
    list_remove(&edge->in_node);
    edge->node = node;
    list_append(&node->parents, &edge->in_node);
    from->perm_touched = node->perm_touched = true;
    block_change_note_move(edge, from);
}

int block_co_edge_move(struct block_edge *edge, struct block_node *node, struct error *err)
{
    struct block_node *from = edge->node;
    int r = check_sizes(edge, node, err);

    if (r < 0 || node == from) {
        return r;
    }
    if (edge->parent && block_node_reaches(node, edge->parent)) {
        return error_set(err, EINVAL, "Making '%s' a child of '%s' would create a cycle",
                         node->name, edge->parent->name);
    }
    block_co_change_begin();
    point(edge, block_node_ref(node));
    r = block_co_change_settle(err);
    if (r < 0) {
        point(edge, from);
        if (block_co_change_settle(NULL) < 0) {
            log_error("node '%s': permissions of before the change can't be had again", from->name);
        }
    }
    block_co_change_end();
    block_co_unref(r < 0 ? node : from);
    return r;
}

/* An edge to `from` that has to point to `to`: not one by which `to` reaches `from`. */
static struct block_edge *next_to_move(struct block_node *from, struct block_node *to)
{
    struct block_edge *edge;

    LIST_FOREACH (edge, &from->parents, in_node) {
        if (!edge->parent || !block_node_reaches(to, edge->parent)) {
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
    int r;

    if (from == to) {
        return 0;
    }
    block_node_ref(from);
    block_co_drain_begin(from);
    block_co_drain_begin(to);
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
