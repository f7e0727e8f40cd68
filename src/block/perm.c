/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Permissions. Each edge has the permissions that its parent uses on the child, and those that the
 * parent shares with others. The parents of a node must agree: all others share what one of them
 * uses. The permissions that a node uses on its children follow from those that its parents use on
 * the node (block_driver.child_perm).
 *
 * They are worked out for a whole graph change at once (graph.c), under the graph lock, in two
 * steps:
 *
 *   settle     for all nodes at and below those touched, parents first, compute next_perm and
 *              next_shared of the edges; look for conflicts; call co_set_perm of drivers that take
 *              image locks with the union of old and new permissions; put the new ones in force. If
 *              a part fails, everything is as before, and the caller puts the edges back
 *   release    at the end of the change: call co_set_perm with the permissions in force, which
 *              gives up locks. So no lock is given up and taken again within one change
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "block/device.h"
#include "block/internal.h"

/* Nodes at and below which permissions have to be worked out, by `touched`. */
static struct list touched_nodes = LIST_INIT(touched_nodes);
/* Nodes whose drivers may have been called with more than is in force, by `over_set`. */
static struct list over_set_nodes = LIST_INIT(over_set_nodes);

static void note_over_set(struct block_node *node)
{
    if (list_is_empty(&node->over_set)) {
        list_append(&over_set_nodes, &node->over_set);
    }
}

void block_perm_touch(struct block_node *node)
{
    if (!node->retired) {
        list_remove(&node->touched);
        list_append(&touched_nodes, &node->touched);
        note_over_set(node);
    }
}

void block_perm_forget(struct block_node *node)
{
    node->retired = true;
    list_remove(&node->touched);
    list_remove(&node->over_set);
}

/*
 * The union of what the parents will use, and the intersection of what they will share; with
 * BLOCK_SHARE_CHAIN if all parents share it; without parents, if they have left for below.
 */
static void cumulative_next(const struct block_node *node, unsigned *ret_perm, unsigned *ret_shared)
{
    const struct block_edge *edge;

    *ret_perm = 0;
    *ret_shared = BLOCK_PERM_ALL;
    if (!list_is_empty(&node->parents) || node->left_for_below) {
        *ret_shared |= BLOCK_SHARE_CHAIN;
    }
    LIST_FOREACH (edge, &node->parents, in_node) {
        *ret_perm |= edge->next_perm;
        *ret_shared &= edge->next_shared;
    }
}

/* As cumulative_next(), of the permissions in force. */
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

/*
 * An overlay that somebody writes needs its backing file as it is. One that is only read, by users
 * who can deal with contents that change, does not: it may be the target of a job that keeps there
 * what the backing file had at one moment. Nor does one that a guest device writes which is asked
 * to share its disk with other writers.
 */
static bool has_writing_user(const struct block_node *node)
{
    const struct block_edge *edge;

    LIST_FOREACH (edge, &node->parents, in_node) {
        bool is_sharing =
            edge->root && edge->root->of_device && (edge->next_shared & BLOCK_PERM_WRITE);

        if ((edge->next_perm & BLOCK_PERM_WRITE) && !(edge->role & BLOCK_ROLE_TARGET) &&
            !is_sharing) {
            return true;
        }
    }
    return false;
}

unsigned block_node_used_perm(const struct block_node *node)
{
    unsigned perm, shared;

    cumulative_in_force(node, &perm, &shared);
    return perm;
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
        shared = parents_shared & BLOCK_SHARE_CHAIN
                     ? BLOCK_PERM_ALL | BLOCK_SHARE_CHAIN
                     : BLOCK_PERM_CONSISTENT_READ | BLOCK_PERM_WRITE_UNCHANGED;
        if ((parents_shared & BLOCK_PERM_WRITE) && !has_writing_user(node)) {
            shared |= BLOCK_PERM_WRITE | BLOCK_PERM_RESIZE;
        }
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

void block_node_leave_for_below(struct block_node *node)
{
    node->left_for_below = true;
    block_perm_touch(node);
}

/* Bytes for the name of a user in a sentence. */
#define USER_TEXT 160

static bool uses_qemu_names;

void block_use_qemu_names(bool use)
{
    uses_qemu_names = use;
}

bool block_uses_qemu_names(void)
{
    return uses_qemu_names;
}

/* --- conflicts ------------------------------------------------------------------------------- */

static bool is_export(const char *user)
{
    return strstr(user, " export '");
}

/* A user that is no node. QEMU names devices and jobs only. */
static void describe_root(const struct block_edge *edge, char *buf, size_t size)
{
    if (edge->root->of_device || block_device_find(edge->name) || edge->name[0] == '/') {
        snprintf(buf, size, "block device '%s'", edge->name);
    } else {
        snprintf(buf, size, "%s",
                 uses_qemu_names && is_export(edge->name) ? "an unnamed block device" : edge->name);
    }
}

static void describe(const struct block_edge *edge, char *buf, size_t size)
{
    if (edge->root) {
        char user[USER_TEXT];

        describe_root(edge, user, sizeof(user));
        snprintf(buf, size, "%s (uses node '%s' as 'root' child)", user, edge->node->name);
    } else {
        snprintf(buf, size, "node '%s' (uses node '%s' as '%s' child)", edge->parent->name,
                 edge->node->name, edge->name);
    }
}

static int conflict(const struct block_node *node, const struct block_edge *a,
                    const struct block_edge *b, struct error *err)
{
    char user_a[2 * USER_TEXT], user_b[2 * USER_TEXT], names[64];

    describe(a, user_a, sizeof(user_a));
    describe(b, user_b, sizeof(user_b));
    return error_set(
        err, EPERM,
        "Permission conflict on node '%s': permissions '%s' are both required by %s and "
        "unshared by %s.",
        node->name, block_perm_names(a->next_perm & ~b->next_shared, names, sizeof(names)), user_a,
        user_b);
}

/* A node that is handed over has no active node above, and nobody writes. */
static int check_handed_over(const struct block_node *node, unsigned perm, struct error *err)
{
    static const unsigned in_turn[] = {BLOCK_PERM_WRITE, BLOCK_PERM_WRITE_UNCHANGED,
                                       BLOCK_PERM_RESIZE};
    const struct block_edge *edge;
    char name[64];

    LIST_FOREACH (edge, &node->parents, in_node) {
        if (edge->parent && !edge->parent->handed_over) {
            return error_set(err, EPERM, "Inactive '%s' can't be a %s child of active '%s'",
                             node->name, edge->name, edge->parent->name);
        }
    }
    for (size_t i = 0; i < ARRAY_SIZE(in_turn); i++) {
        if (perm & in_turn[i]) {
            return error_set(err, EPERM, "Permission '%s' unavailable on inactive node",
                             block_perm_names(in_turn[i], name, sizeof(name)));
        }
    }
    return 0;
}

static int check_conflicts(struct block_node *node, struct error *err)
{
    unsigned perm, shared;
    struct block_edge *a, *b;
    int r;

    cumulative_next(node, &perm, &shared);
    r = node->handed_over ? check_handed_over(node, perm, err) : 0;
    if (r < 0) {
        return r;
    }
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

int block_perm_check_edge(const struct block_edge *edge, struct error *err)
{
    const struct block_edge *other;

    LIST_FOREACH (other, &edge->node->parents, in_node) {
        if (other != edge && (other->next_perm & ~edge->next_shared)) {
            return conflict(edge->node, other, edge, err);
        }
        if (other != edge && (edge->next_perm & ~other->next_shared)) {
            return conflict(edge->node, edge, other, err);
        }
    }
    return 0;
}

/* --- the nodes of one update ------------------------------------------------------------------ */

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

/* All nodes that the touched nodes reach, each once, parents before their children. */
static struct block_node *collect(void)
{
    static unsigned mark;
    struct block_node *node, *next;
    struct block_edge *edge;
    struct chain reached, ready;

    mark++;
    chain_init(&reached);
    LIST_FOREACH (node, &touched_nodes, touched) {
        add_once(&reached, node, mark);
    }
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

/* --- working out ------------------------------------------------------------------------------ */

/*
 * A hidden node claims nothing on public nodes, except where its driver needs a permission to open:
 * it must not stand in the way of guests before the change is made for which it was opened.
 */
static bool claims_nothing_yet(const struct block_edge *edge)
{
    return edge->parent->opener && !edge->node->opener &&
           (edge->role & (BLOCK_ROLE_BACKING | BLOCK_ROLE_FILTERED | BLOCK_ROLE_TARGET));
}

static void work_out_children(struct block_node *node)
{
    struct block_edge *edge;
    unsigned perm, shared;

    cumulative_next(node, &perm, &shared);
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
        if (node->handed_over) {
            edge->next_perm &= BLOCK_PERM_CONSISTENT_READ;
            edge->next_shared = BLOCK_PERM_ALL;
        }
    }
}

/* What a driver that takes locks gets to know of what is shared. */
static unsigned shared_of_locks(const struct block_node *node, unsigned shared)
{
    return (shared & BLOCK_PERM_ALL) | (node->handed_over ? BLOCK_SHARE_HAND_OVER : 0);
}

/* What a root asks for, or what is left of that while its node is handed over. */
static void root_next(struct block_edge *edge)
{
    bool waits = edge->node->handed_over && (edge->want_shared & BLOCK_SHARE_HAND_OVER);

    edge->next_perm = waits ? edge->want_perm & BLOCK_PERM_CONSISTENT_READ : edge->want_perm;
    edge->next_shared = waits ? BLOCK_PERM_ALL : edge->want_shared;
}

static int work_out(struct block_node *first, struct error *err)
{
    struct block_edge *edge;

    for (struct block_node *node = first; node; node = node->perm_next) {
        int r;

        LIST_FOREACH (edge, &node->parents, in_node) {
            if (edge->root) {
                root_next(edge);
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

static int co_driver_set_perm(struct block_node *node, unsigned perm, unsigned shared,
                              struct error *err)
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

/*
 * Take all locks that are needed before or after the change. block_co_perm_release() gives the
 * superfluous ones back.
 */
static int co_take_locks(struct block_node *first, struct error *err)
{
    unsigned perm, shared;
    int r = 0;

    for (struct block_node *node = first; node && r == 0; node = node->perm_next) {
        cumulative_next(node, &perm, &shared);
        shared = shared_of_locks(node, shared);
        r = co_driver_set_perm(node, perm | node->set_perm, shared & node->set_shared, err);
    }
    return r;
}

/* Put the new permissions in force, or (not ok) reset them to those in force. */
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
        if (ok) {
            list_remove(&node->touched);
        }
        note_over_set(node);
    }
}

int block_co_perm_settle(struct error *err)
{
    struct block_node *first = collect();
    int r = work_out(first, err);

    UNLESS_FAILED(r, co_take_locks(first, err));
    apply(first, r == 0);
    return r;
}

void block_co_perm_release(void)
{
    while (!list_is_empty(&over_set_nodes)) {
        struct block_node *node = LIST_FIRST(&over_set_nodes, struct block_node, over_set);
        unsigned perm, shared;

        list_remove(&node->over_set);
        cumulative_in_force(node, &perm, &shared);
        shared = shared_of_locks(node, shared);
        /* Giving up should not fail; the result is not looked at. */
        co_driver_set_perm(node, perm, shared, NULL);
        node->set_perm = perm;
        node->set_shared = shared;
    }
}
