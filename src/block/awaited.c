/* SPDX-License-Identifier: Apache-2.0 */
/* Whether a drain, or the end of a user, waits for requests of a node; requests given up. */
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "block/block.h"
#include "block/control_lock.h"
#include "block/internal.h"

void block_root_begin_end(struct block_root *root)
{
    root->ending = true;
}

static bool is_awaited(const struct block_root *root)
{
    return root->ending || atomic_load(&root->quiesced);
}

bool block_node_is_awaited(const struct block_node *node)
{
    struct block_edge *edge;

    LIST_FOREACH (edge, &node->parents, in_node) {
        if (edge->root ? is_awaited(edge->root) : block_node_is_awaited(edge->parent)) {
            return true;
        }
    }
    return false;
}

/* The first child that has the data of the node, after `edge`; NULL: there is none. */
static struct block_edge *next_storage(const struct block_node *node, struct block_edge *edge)
{
    do {
        edge = block_node_next_child(node, edge);
    } while (edge && strcmp(block_edge_name(edge), "backing") == 0);
    return edge;
}

void block_co_give_up(struct block_node *node)
{
    AUTO_FREE struct block_node **children = NULL;
    struct block_edge *edge = NULL;
    size_t count = 0;

    while ((edge = next_storage(node, edge))) {
        count++;
    }
    children = calloc(count + 1, sizeof(struct block_node *));
    if (!children) {
        return; /* the next call may do it */
    }
    /* The graph may change while a driver waits. */
    count = 0;
    while ((edge = next_storage(node, edge))) {
        children[count++] = block_node_ref(block_edge_node(edge));
    }
    if (node->driver->co_give_up && node->is_open && !node->closed) {
        node->driver->co_give_up(node);
    }
    for (size_t i = 0; i < count; i++) {
        block_co_give_up(children[i]);
    }
    block_co_control_lock();
    for (size_t i = 0; i < count; i++) {
        block_co_unref(children[i]);
    }
    block_control_unlock();
}
