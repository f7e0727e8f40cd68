/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Permissions. Each edge says what its parent does to the child and what it lets others do there. A node's parents
 * must agree: what one does, all the others share. What a node does to its children
 * follows from what its parents do to it (driver.child_perm).
 *
 * They are worked out for a whole graph change at once (graph.c), under the graph lock, in three steps:
 *
 *   settle     everything at and below the nodes touched, parents first, into the edges' next_ fields; conflicts are looked for;
 *              drivers that take image locks are told the union of what is in force and what is to be
 *              -> in force. When a step fails, all is as before, and the caller puts the edges back
 *   release    drivers are told what is left: locks that nobody needs any more go, at the end of the change, so that no
 *              lock is given up and taken again within one
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "block/internal.h"

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

/* Likewise, of the permissions in force. */
static void cumulative_in_force(const struct block_node *node, unsigned *ret_perm,
                                unsigned *ret_shared)
{
    const struct block_edge *edge;

    *ret_perm = 0;
    *ret_shared = BLOCK_PERM_ALL;
    LIST_FOREACH (edge, &node->parents, in_node) {
        *ret_perm |= edge->perm;
        *ret_shared &= edge->shared;
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

/* --- conflicts ------------------------------------------------------------------------------- */

static void describe(const struct block_edge *edge, char *buf, size_t size)
{
    if (edge->root) {
        snprintf(buf, size, "%s", edge->name);
    } else {
        snprintf(buf, size, "node '%s' (uses node '%s' as '%s' child)", edge->parent->name,
                 edge->node->name, edge->name);
    }
}

static int conflict(const struct block_node *node, const struct block_edge *a,
                    const struct block_edge *b, struct error *err)
{
    char user_a[160], user_b[160], names[64];

    describe(a, user_a, sizeof(user_a));
    describe(b, user_b, sizeof(user_b));
    return error_set(
        err, EPERM,
        "Permission conflict on node '%s': permissions '%s' are both required by %s and "
        "unshared by %s",
        node->name, block_perm_names(a->next_perm & ~b->next_shared, names, sizeof(names)), user_a,
        user_b);
}

static int check_conflicts(struct block_node *node, struct error *err)
{
    unsigned perm, shared;
    struct block_edge *a, *b;

    block_node_cumulative_perm(node, &perm, &shared);
    if ((perm & (BLOCK_PERM_WRITE | BLOCK_PERM_RESIZE)) && node->read_only) {
        return error_set(err, EACCES, "Block node is read-only");
    }
    if (!(perm & ~shared)) {
        return 0;
    }
    LIST_FOREACH (a, &node->parents, in_node) {
        LIST_FOREACH (b, &node->parents, in_node) {
            if (a != b && (a->next_perm & ~b->next_shared)) {
                return conflict(node, a, b, err);
            }
        }
    }
    return 0;
}

/* --- the nodes of one update ------------------------------------------------------------------- */

/* Nodes linked by perm_next. */
struct chain {
    struct block_node *first, **end;
};

static void chain_init(struct chain *c)
{
    c->first = NULL;
    c->end = &c->first;
}

static void chain_add(struct chain *c, struct block_node *node)
{
    node->perm_next = NULL;
    *c->end = node;
    c->end = &node->perm_next;
}

static void add_once(struct chain *c, struct block_node *node, unsigned mark)
{
    if (node->perm_mark != mark) {
        node->perm_mark = mark;
        node->perm_waits = 0;
        chain_add(c, node);
    }
}

static void add_touched(struct chain *c, struct list *nodes, unsigned mark)
{
    struct block_node *node;

    LIST_FOREACH (node, nodes, link) {
        if (node->perm_touched) {
            add_once(c, node, mark);
        }
    }
}

/* What the touched nodes reach, each once, parents before their children. */
static struct block_node *collect(void)
{
    static unsigned mark;
    struct block_node *node, *next;
    struct block_edge *edge;
    struct chain reached, ready;

    mark++;
    chain_init(&reached);
    add_touched(&reached, &block_all_nodes, mark);
    add_touched(&reached, &block_hidden_nodes, mark);
    for (node = reached.first; node; node = node->perm_next) {
        LIST_FOREACH (edge, &node->children, sibling) {
            add_once(&reached, edge->node, mark);
            edge->node->perm_waits++;
        }
    }
    chain_init(&ready);
    for (node = reached.first; node; node = next) {
        next = node->perm_next;
        if (node->perm_waits == 0) {
            chain_add(&ready, node);
        }
    }
    for (node = ready.first; node; node = node->perm_next) {
        LIST_FOREACH (edge, &node->children, sibling) {
            if (--edge->node->perm_waits == 0) {
                chain_add(&ready, edge->node);
            }
        }
    }
    return ready.first;
}

/* --- working out ------------------------------------------------------------------------------- */

/*
 * A node that is not public yet makes no claims on nodes that are, but for those that its driver needs to open it: it must not
 * stand in the way of guests before the change is made that it is for.
 */
static bool claims_nothing_yet(const struct block_edge *edge)
{
    return edge->parent->opener && !edge->node->opener &&
           (edge->role & (BLOCK_ROLE_BACKING | BLOCK_ROLE_FILTERED));
}

static void work_out_children(struct block_node *node)
{
    struct block_edge *edge;
    unsigned perm, shared;

    block_node_cumulative_perm(node, &perm, &shared);
    LIST_FOREACH (edge, &node->children, sibling) {
        if (claims_nothing_yet(edge)) {
            edge->next_perm = 0;
            edge->next_shared = BLOCK_PERM_ALL;
        } else if (node->driver->child_perm) {
            node->driver->child_perm(node, edge, perm, shared, &edge->next_perm,
                                     &edge->next_shared);
        } else {
            block_default_child_perm(node, edge, perm, shared, &edge->next_perm,
                                     &edge->next_shared);
        }
    }
}

static int work_out(struct block_node *first, struct error *err)
{
    struct block_edge *edge;

    for (struct block_node *node = first; node; node = node->perm_next) {
        int r;

        LIST_FOREACH (edge, &node->parents, in_node) {
            if (edge->root) {
                edge->next_perm = edge->want_perm;
                edge->next_shared = edge->want_shared;
            }
        }
        r = check_conflicts(node, err);
        if (r < 0) {
            return r;
        }
        work_out_children(node);
    }
    return 0;
}

static int co_tell(struct block_node *node, unsigned perm, unsigned shared, struct error *err)
{
    int r = 0;

    if (perm == node->set_perm && shared == node->set_shared) {
        return 0;
    }
    if (node->driver->co_set_perm && !node->closed) {
        r = node->driver->co_set_perm(node, perm, shared, err);
    }
    if (r == 0) {
        node->set_perm = perm;
        node->set_shared = shared;
    }
    return r;
}

/* All locks that are needed before or after the change. Those taken in vain are given back by block_co_perm_release(). */
static int co_take_locks(struct block_node *first, struct error *err)
{
    unsigned perm, shared;
    int r = 0;

    for (struct block_node *node = first; node && r == 0; node = node->perm_next) {
        block_node_cumulative_perm(node, &perm, &shared);
        r = co_tell(node, perm | node->set_perm, shared & node->set_shared, err);
    }
    return r;
}

/* Into force, or back to what is. */
static void apply(struct block_node *first, bool ok)
{
    struct block_edge *edge;

    for (struct block_node *node = first; node; node = node->perm_next) {
        LIST_FOREACH (edge, &node->parents, in_node) {
            if (ok) {
                edge->perm = edge->next_perm;
                edge->shared = edge->next_shared;
            } else {
                edge->next_perm = edge->perm;
                edge->next_shared = edge->shared;
            }
        }
        node->perm_touched = node->perm_touched && !ok;
    }
}

int block_co_perm_settle(struct error *err)
{
    struct block_node *first = collect();
    int r = work_out(first, err);

    r = r < 0 ? r : co_take_locks(first, err);
    apply(first, r == 0);
    return r;
}

/* The next node that was told of more than is in force. */
static struct block_node *find_overtold(struct list *nodes, unsigned *ret_perm,
                                        unsigned *ret_shared)
{
    struct block_node *node;

    LIST_FOREACH (node, nodes, link) {
        cumulative_in_force(node, ret_perm, ret_shared);
        if (*ret_perm != node->set_perm || *ret_shared != node->set_shared) {
            return node;
        }
    }
    return NULL;
}

void block_co_perm_release(void)
{
    struct block_node *node;
    unsigned perm, shared;

    while ((node = find_overtold(&block_all_nodes, &perm, &shared)) ||
           (node = find_overtold(&block_hidden_nodes, &perm, &shared))) {
        /* Giving up can't fail; should it, it is not tried for ever. */
        co_tell(node, perm, shared, NULL);
        node->set_perm = perm;
        node->set_shared = shared;
    }
}
