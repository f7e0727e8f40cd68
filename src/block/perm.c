/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Permissions. Each edge says what its parent does to the child and what it lets others do there. A node's parents
 * must agree: what one does, all the others share. What a node does to its children
 * follows from what its parents do to it (driver.child_perm).
 *
 * An update is worked out in the edges' next_ fields from the changed node down, checked, told to the drivers that
 * take image locks, and only then put in force.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "block/internal.h"

#define GRAPH_DEPTH_MAX 256

void block_node_cumulative_perm(const struct block_node *node, unsigned *ret_perm,
                                unsigned *ret_shared)
{
    const struct block_edge *edge;

    *ret_perm = 0;
    *ret_shared = BLOCK_PERM_ALL;
    LIST_FOREACH (edge, &node->parents, in_node) {
        *ret_perm |= edge->next_perm;
        *ret_shared &= edge->next_shared;
    }
}

void block_default_child_perm(struct block_node *node, struct block_edge *edge,
                              unsigned parents_perm, unsigned parents_shared, unsigned *ret_perm,
                              unsigned *ret_shared)
{
    unsigned perm, shared;

    if (edge->role & BLOCK_ROLE_TARGET) {
        perm = BLOCK_PERM_CONSISTENT_READ | BLOCK_PERM_WRITE;
        shared = 0;
    } else if (edge->role & BLOCK_ROLE_BACKING) {
        perm = parents_perm & BLOCK_PERM_CONSISTENT_READ;
        shared = BLOCK_PERM_CONSISTENT_READ | BLOCK_PERM_WRITE_UNCHANGED;
    } else if (edge->role & BLOCK_ROLE_METADATA) {
        /* The format's caches must be the only way to the file, in both directions. */
        perm = BLOCK_PERM_CONSISTENT_READ;
        if (!node->read_only) {
            perm |= BLOCK_PERM_WRITE | BLOCK_PERM_RESIZE;
        }
        shared = BLOCK_PERM_CONSISTENT_READ | BLOCK_PERM_WRITE_UNCHANGED;
    } else {
        perm = parents_perm;
        shared = parents_shared;
    }
    if (node->force_share) {
        perm &= BLOCK_PERM_CONSISTENT_READ;
        shared = BLOCK_PERM_ALL;
    }
    *ret_perm = perm;
    *ret_shared = shared;
}

static void describe(const struct block_edge *edge, char *buf, size_t size)
{
    if (edge->root) {
        snprintf(buf, size, "%s", edge->name);
    } else {
        snprintf(buf, size, "node '%s' (as '%s')", edge->parent->name, edge->name);
    }
}

static int check_conflicts(struct block_node *node, struct error *err)
{
    struct block_edge *a, *b;

    LIST_FOREACH (a, &node->parents, in_node) {
        if ((a->next_perm & (BLOCK_PERM_WRITE | BLOCK_PERM_RESIZE)) && node->read_only) {
            return error_set(err, EACCES, "Block node is read-only");
        }
        LIST_FOREACH (b, &node->parents, in_node) {
            unsigned conflict = a->next_perm & ~b->next_shared;

            if (a != b && conflict) {
                char user_a[128], user_b[128], names[64];

                describe(a, user_a, sizeof(user_a));
                describe(b, user_b, sizeof(user_b));
                return error_set(err, EPERM,
                                 "Permission conflict on node '%s': permissions '%s' are both "
                                 "required by %s and unshared by %s",
                                 node->name, block_perm_names(conflict, names, sizeof(names)),
                                 user_a, user_b);
            }
        }
    }
    return 0;
}

/* Nodes of one update, each once, parents before children where the walk meets them so. */
struct update {
    struct block_node *nodes[GRAPH_DEPTH_MAX];
    size_t count;
};

static int remember(struct update *u, struct block_node *node, struct error *err)
{
    for (size_t i = 0; i < u->count; i++) {
        if (u->nodes[i] == node) {
            return 0;
        }
    }
    if (u->count == GRAPH_DEPTH_MAX) {
        return error_set(err, E2BIG, "The graph below node '%s' has more than %d nodes", node->name,
                         GRAPH_DEPTH_MAX);
    }
    u->nodes[u->count++] = node;
    return 0;
}

static int work_out(struct update *u, struct block_node *node, struct error *err)
{
    unsigned perm, shared;
    struct block_edge *edge;
    int ret;

    ret = remember(u, node, err);
    if (ret < 0) {
        return ret;
    }
    ret = check_conflicts(node, err);
    if (ret < 0) {
        return ret;
    }
    block_node_cumulative_perm(node, &perm, &shared);
    LIST_FOREACH (edge, &node->children, sibling) {
        if (node->driver->child_perm) {
            node->driver->child_perm(node, edge, perm, shared, &edge->next_perm,
                                     &edge->next_shared);
        } else {
            block_default_child_perm(node, edge, perm, shared, &edge->next_perm,
                                     &edge->next_shared);
        }
        ret = work_out(u, edge->node, err);
        if (ret < 0) {
            return ret;
        }
    }
    return 0;
}

static int co_tell_driver(struct block_node *node, unsigned perm, unsigned shared,
                          struct error *err)
{
    if (node->driver->co_set_perm && !node->closed) {
        return node->driver->co_set_perm(node, perm, shared, err);
    }
    return 0;
}

/* Edges of the node's parents that are not in force: put back what is. */
static void roll_back(struct update *u, size_t told)
{
    for (size_t i = 0; i < u->count; i++) {
        struct block_edge *edge;

        LIST_FOREACH (edge, &u->nodes[i]->parents, in_node) {
            edge->next_perm = edge->perm;
            edge->next_shared = edge->shared;
        }
    }
    while (told-- > 0) {
        struct block_node *node = u->nodes[told];

        co_tell_driver(node, node->perm_in_force, node->shared_in_force, NULL);
    }
}

int block_co_perm_update(struct block_node *node, struct error *err)
{
    struct update u = {.count = 0};
    unsigned perm, shared;
    int ret = work_out(&u, node, err);
    size_t i;

    for (i = 0; i < u.count && ret == 0; i++) {
        block_node_cumulative_perm(u.nodes[i], &perm, &shared);
        ret = co_tell_driver(u.nodes[i], perm, shared, err);
        if (ret < 0) {
            break;
        }
    }
    if (ret < 0) {
        roll_back(&u, i);
        return ret;
    }
    for (i = 0; i < u.count; i++) {
        struct block_edge *edge;

        LIST_FOREACH (edge, &u.nodes[i]->parents, in_node) {
            edge->perm = edge->next_perm;
            edge->shared = edge->next_shared;
        }
        block_node_cumulative_perm(u.nodes[i], &u.nodes[i]->perm_in_force,
                                   &u.nodes[i]->shared_in_force);
    }
    return 0;
}
