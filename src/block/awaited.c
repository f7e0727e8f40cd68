/* SPDX-License-Identifier: Apache-2.0 */
/* Whether a drain, or the end of a user, waits for requests of a node. */
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
