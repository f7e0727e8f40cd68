/* SPDX-License-Identifier: Apache-2.0 */
/* Linking edges to nodes and taking them off: what ends no node. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "block/internal.h"
#include "trace/events.h"

void block_edge_link(struct block_edge *edge, struct block_node *node)
{
    edge->node = block_node_ref(node);
    list_append(&node->parents, &edge->in_node);
    if (edge->parent) {
        block_update_detour(edge->parent);
    }
}

struct block_node *block_edge_unlink(struct block_edge *edge)
{
    block_move_passed(edge);
    list_remove(&edge->in_node);
    return edge->node;
}

void block_edge_free(struct block_edge *edge)
{
    free(edge->name);
    free(edge);
}

struct block_node *block_child_unlink(struct block_edge *edge)
{
    struct block_node *parent = edge->parent, *child;

    trace_block_child_detach(parent->name, edge->name, edge->node->name);
    child = block_edge_unlink(edge);
    list_remove(&edge->sibling);
    if (parent->file == edge) {
        parent->file = NULL;
    }
    if (parent->backing == edge) {
        parent->backing = NULL;
    }
    if (parent->filtered == edge) {
        parent->filtered = NULL;
        block_update_detour(parent);
    }
    return child;
}

void block_child_link(struct block_edge *edge, struct block_node *child)
{
    struct block_node *parent = edge->parent;

    trace_block_child_attach(parent->name, edge->name, child->name);
    block_edge_link(edge, child);
    list_append(&parent->children, &edge->sibling);
    if (strcmp(edge->name, "file") == 0) {
        parent->file = edge;
    } else if (strcmp(edge->name, "backing") == 0) {
        parent->backing = edge;
    }
    if ((edge->role & BLOCK_ROLE_FILTERED) && !parent->filtered) {
        parent->filtered = edge;
        block_update_detour(parent);
    }
}

struct block_node *block_co_take_child(struct block_edge *edge, struct block_node **ret_origin)
{
    struct list unused = LIST_INIT(unused);
    struct block_node *child;

    block_co_change_begin();
    child = block_child_unlink(edge);
    *ret_origin = block_edge_forget_move(edge);
    (void)block_co_settle_at(child, NULL); /* giving permissions up cannot conflict */
    block_co_change_finish(&unused);
    assert(list_is_empty(&unused)); /* this change has moved no edges */
    block_edge_free(edge);
    return child;
}
