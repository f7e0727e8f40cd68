/* SPDX-License-Identifier: Apache-2.0 */
/* What is below a node, what is joined with it, and chains that have to stay as they are. */
#include "block/internal.h"

/* A walk through the graph; the nodes that it has found follow each other by `reach_next`. */
struct walk {
    unsigned mark;
    struct block_node **end;
};

static void walk_to(struct walk *w, struct block_node *node)
{
    if (node->reach_mark != w->mark) {
        node->reach_mark = w->mark;
        node->reach_next = NULL;
        *w->end = node;
        w->end = &node->reach_next;
    }
}

/*
 * Find the nodes at and below one, each once, and with `up` those above them, too; as far as `to`,
 * which may be NULL.
 */
static bool walk_graph(struct block_node *from, const struct block_node *to, bool up)
{
    static unsigned mark;
    struct block_node *node = NULL;
    struct walk w = {.end = &node};
    struct block_edge *edge;

    w.mark = ++mark;
    walk_to(&w, from);
    for (; node; node = node->reach_next) {
        if (node == to) {
            return true;
        }
        LIST_FOREACH (edge, &node->children, sibling) {
            walk_to(&w, edge->node);
        }
        LIST_FOREACH (edge, &node->parents, in_node) {
            if (up && edge->parent) {
                walk_to(&w, edge->parent);
            }
        }
    }
    return false;
}

bool block_node_reaches(struct block_node *from, const struct block_node *to)
{
    return walk_graph(from, to, false);
}

bool block_node_is_joined(struct block_node *a, const struct block_node *b)
{
    return walk_graph(a, b, true);
}

void block_node_foreach_below(struct block_node *from, block_node_fn *fn, void *arg)
{
    (void)walk_graph(from, NULL, false);
    for (struct block_node *node = from, *next; node; node = next) {
        next = node->reach_next;
        if (!node->opener) {
            fn(node, arg);
        }
    }
}

static bool chain_has(const struct block_node *from, const struct block_node *node)
{
    while (from && from != node) {
        from = block_node_filter_or_backing(from);
    }
    return from != NULL;
}

const struct block_node *block_node_needs_chain_to(const struct block_node *node)
{
    return node->driver->needs_chain_to ? node->driver->needs_chain_to(node) : NULL;
}

bool block_node_is_link_needed(const struct block_node *node, const struct block_node *but)
{
    const struct block_node *below = block_node_filter_or_backing(node), *n, *end;

    LIST_FOREACH (n, &block_all_nodes, link) {
        end = n == but ? NULL : block_node_needs_chain_to(n);
        if (end && chain_has(below, end) && chain_has(n, node)) {
            return true;
        }
    }
    return false;
}
