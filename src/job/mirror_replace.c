/* SPDX-License-Identifier: Apache-2.0 */
/* Which nodes the target of a mirror job may take the place of. */
#include <string.h>

#include "block/block.h"
#include "job/mirror_internal.h"

/* Whether a node from `node` down to `end`, or to the first one that is no filter, is shared. */
static bool has_other_parents(struct block_node *node, const struct block_node *end)
{
    bool shared = block_node_next_parent(node, block_node_next_parent(node, NULL));

    while (!shared && node != end && block_node_is_filter(node)) {
        node = block_node_filter_or_backing(node);
        shared = block_node_next_parent(node, block_node_next_parent(node, NULL));
    }
    return shared;
}

bool mirror_may_replace(struct block_node *from, const struct block_node *replaces)
{
    struct block_edge *edge = NULL;

    if (from == replaces) {
        return true;
    }
    if (strcmp(block_node_format(from), "quorum") != 0) {
        struct block_node *below = block_node_filter_or_backing(from);

        return block_node_is_filter(from) && below && mirror_may_replace(below, replaces);
    }
    while ((edge = block_node_next_child(from, edge))) {
        struct block_node *child = block_edge_node(edge);

        /* The quorum sees no change if one child changes; other parents of the child would. */
        if (mirror_may_replace(child, replaces)) {
            return !has_other_parents(child, replaces);
        }
    }
    return false;
}
