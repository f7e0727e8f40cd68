/* SPDX-License-Identifier: Apache-2.0 */
/* What is below a node. */
#include "block/internal.h"

/* The nodes at and below one, by `reach_next`, each once; as far as `to`, which may be NULL. */
static bool walk_below(struct block_node *from, const struct block_node *to)
{
    static unsigned mark;
    struct block_node *node, **end = &from->reach_next;
    struct block_edge *edge;

    mark++;
    from->reach_mark = mark;
    from->reach_next = NULL;
    for (node = from; node; node = node->reach_next) {
        if (node == to) {
            return true;
        }
        LIST_FOREACH (edge, &node->children, sibling) {
            if (edge->node->reach_mark != mark) {
                edge->node->reach_mark = mark;
                edge->node->reach_next = NULL;
                *end = edge->node;
                end = &edge->node->reach_next;
            }
        }
    }
    return false;
}

bool block_node_reaches(struct block_node *from, const struct block_node *to)
{
    return walk_below(from, to);
}

void block_node_foreach_below(struct block_node *from, block_node_fn *fn, void *arg)
{
    (void)walk_below(from, NULL);
    for (struct block_node *node = from, *next; node; node = next) {
        next = node->reach_next;
        if (!node->opener) {
            fn(node, arg);
        }
    }
}
