/* SPDX-License-Identifier: Apache-2.0 */
/* Edges: attaching children to nodes and roots to the graph, and pointing them at other nodes. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/log.h"
#include "block/internal.h"
#include "trace/events.h"

/* --- children ------------------------------------------------------------------------------ */

int block_co_attach_child(struct block_node *node, struct block_node *child, const char *name,
                          unsigned role, struct block_edge **ret_edge, struct error *err)
{
    struct block_edge *edge;
    int r;

    if (block_node_reaches(child, node)) {
        return error_set(err, EINVAL, "Making '%s' a %s child of '%s' would create a cycle",
                         child->name, name, node->name);
    }
    edge = calloc(1, sizeof(*edge));
    if (!edge || !(edge->name = strdup(name))) {
        free(edge);
        return error_out_of_memory(err);
    }
    edge->parent = node;
    edge->role = role;
    edge->shared = edge->next_shared = BLOCK_PERM_ALL;
    list_init(&edge->moved);
    block_co_change_begin();
    block_child_link(edge, child);
    r = block_co_settle_at(node, err);
    if (r < 0) {
        child = block_child_unlink(edge);
        (void)block_co_settle_at(node, NULL);
    }
    block_co_change_end();
    if (r < 0) {
        block_edge_free(edge);
        block_co_unref(child);
        return r;
    }
    if (ret_edge) {
        *ret_edge = edge;
    }
    return 0;
}

void block_co_detach_child(struct block_edge *edge)
{
    struct block_node *origin, *child = block_co_take_child(edge, &origin);

    block_co_unref(origin);
    block_co_unref(child);
}

/* --- moving an edge to another node ----------------------------------------------------------- */

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
    block_move_passed(edge);
    list_remove(&edge->in_node);
    edge->node = node;
    list_append(&node->parents, &edge->in_node);
    if (edge->parent) {
        block_update_detour(edge->parent);
    }
    block_perm_touch(from);
    block_perm_touch(node);
    block_change_note_move(edge, from);
}

/*
 * A backing node that was opened with the images above it, which are gone, belongs to the image
 * that has it now: that is reopened with its options.
 */
static void inherit_by_descent(struct block_edge *edge)
{
    struct block_node *node = edge->node, *above = node->inherits_from;

    if (!edge->parent || !(edge->role & BLOCK_ROLE_BACKING)) {
        return;
    }
    while (above && above != edge->parent) {
        above = above->inherits_from;
    }
    if (above && node->inherits_from != above) {
        block_note_heir(above, node, BLOCK_ROLE_BACKING, node->explicit_use);
    }
}

int block_co_edge_point(struct block_edge *edge, struct block_node *node, struct error *err)
{
    struct block_node *from = edge->node;
    int r;

    if (node == from) {
        return 0;
    }
    if (edge->parent && block_node_reaches(node, edge->parent)) {
        return error_set(err, EINVAL, "Making '%s' a %s child of '%s' would create a cycle",
                         node->name, edge->name, edge->parent->name);
    }
    block_co_change_begin();
    point(edge, block_node_ref(node));
    r = block_co_change_settle(err);
    if (r >= 0) {
        inherit_by_descent(edge);
    } else {
        point(edge, from);
        if (block_co_change_settle(NULL) < 0) {
            log_error("node '%s': permissions of before the change can't be had again", from->name);
        }
    }
    block_co_change_end();
    block_co_unref(r < 0 ? node : from);
    return r;
}

int block_co_edge_move(struct block_edge *edge, struct block_node *node, struct error *err)
{
    int r = check_sizes(edge, node, err);

    return r < 0 ? r : block_co_edge_point(edge, node, err);
}

/* --- roots ----------------------------------------------------------------------------------- */

static void root_free(struct block_root *root)
{
    pthread_mutex_destroy(&root->guard);
    free(root->edge.name);
    free(root);
}

/* Within a graph change. The caller gets the reference that the edge had. */
static struct block_node *root_unlink(struct block_root *root)
{
    trace_block_root_detach(root->edge.name, root->edge.node->name);
    list_remove(&root->quiet);
    return block_edge_unlink(&root->edge);
}

static int co_root_new(struct block_node *node, const char *user, unsigned perm, unsigned shared,
                       bool exempt, struct block_root **ret_root, struct error *err)
{
    struct block_root *root = NULL;
    int r;

    if (posix_memalign((void **)&root, CACHE_LINE, sizeof(*root)) != 0) {
        return error_out_of_memory(err);
    }
    memset(root, 0, sizeof(*root));
    root->edge.name = strdup(user);
    if (!root->edge.name) {
        free(root);
        return error_out_of_memory(err);
    }
    pthread_mutex_init(&root->guard, NULL);
    co_queue_init(&root->blocked);
    list_init(&root->edge.sibling);
    list_init(&root->edge.moved);
    list_init(&root->quiet);
    root->exempt = exempt;
    root->edge.root = root;
    root->edge.shared = root->edge.next_shared = BLOCK_PERM_ALL;
    root->edge.want_perm = perm;
    root->edge.want_shared = shared;
    block_co_change_begin();
    trace_block_root_attach(user, node->name);
    block_edge_link(&root->edge, node);
    block_drain_update();
    r = block_co_settle_at(node, err);
    if (r < 0) {
        /* Before another change begins, which would settle the failed edge. */
        root_unlink(root);
        (void)block_co_settle_at(node, NULL);
    }
    block_co_change_end();
    if (r < 0) {
        root_free(root);
        block_co_unref(node);
        return r;
    }
    *ret_root = root;
    return 0;
}

int block_co_root_new(struct block_node *node, const char *user, unsigned perm, unsigned shared,
                      struct block_root **ret_root, struct error *err)
{
    return co_root_new(node, user, perm, shared, false, ret_root, err);
}

int block_co_root_new_exempt(struct block_node *node, const char *user, unsigned perm,
                             unsigned shared, struct block_root **ret_root, struct error *err)
{
    return co_root_new(node, user, perm, shared, true, ret_root, err);
}

void block_co_root_release(struct block_root *root)
{
    struct block_node *node, *origin;

    if (!root) {
        return;
    }
    block_co_root_settle(root);
    block_co_change_begin();
    node = root_unlink(root);
    origin = block_edge_forget_move(&root->edge);
    (void)block_co_settle_at(node, NULL);
    block_co_change_end();
    block_co_unref(origin);
    block_co_unref(node);
    block_drain_forget_root(root);
    root_free(root);
}

void block_root_set_ops(struct block_root *root, const struct block_root_ops *ops, void *arg)
{
    root->ops = ops;
    root->ops_arg = arg;
    if (ops && ops->drain_begin && atomic_load(&root->quiesced)) {
        ops->drain_begin(arg);
    }
}

void block_root_stay(struct block_root *root)
{
    root->stays = true;
}

void block_root_belongs_to_device(struct block_root *root)
{
    root->of_device = true;
}

struct block_edge *block_root_edge(struct block_root *root)
{
    return &root->edge;
}

struct block_node *block_root_node(const struct block_root *root)
{
    return root->edge.node;
}

int block_co_root_set_perm(struct block_root *root, unsigned perm, unsigned shared,
                           struct error *err)
{
    unsigned old_perm = root->edge.want_perm, old_shared = root->edge.want_shared;
    int r;

    block_co_change_begin();
    root->edge.want_perm = perm;
    root->edge.want_shared = shared;
    r = block_co_settle_at(root->edge.node, err);
    if (r < 0) {
        root->edge.want_perm = old_perm;
        root->edge.want_shared = old_shared;
        (void)block_co_settle_at(root->edge.node, NULL);
    }
    block_co_change_end();
    return r;
}

int block_co_root_replace(struct block_root *root, struct block_node *node, struct error *err)
{
    struct block_node *old = block_node_ref(root->edge.node);
    struct block_node *nodes[] = {old, node};
    int r;

    block_co_drain_begin_many(nodes, ARRAY_SIZE(nodes));
    r = block_co_edge_move(&root->edge, node, err);
    block_drain_end(node);
    block_drain_end(old);
    block_co_unref(old);
    return r;
}
