/* SPDX-License-Identifier: Apache-2.0 */
/* Edges: attaching children to nodes and roots to the graph, and pointing a live root elsewhere. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "block/internal.h"

static void edge_link(struct block_edge *edge, struct block_node *node)
{
    edge->node = block_node_ref(node);
    list_append(&node->parents, &edge->in_node);
}

/* Takes the edge off its node; the caller owns the reference that the edge had. */
static struct block_node *edge_unlink(struct block_edge *edge)
{
    list_remove(&edge->in_node);
    return edge->node;
}

/* --- children ------------------------------------------------------------------------------ */

static bool reaches(const struct block_node *from, const struct block_node *to)
{
    const struct block_edge *edge;

    if (from == to) {
        return true;
    }
    LIST_FOREACH (edge, &from->children, sibling) {
        if (reaches(edge->node, to)) {
            return true;
        }
    }
    return false;
}

int block_co_attach_child(struct block_node *node, struct block_node *child, const char *name,
                          unsigned role, struct block_edge **ret, struct error *err)
{
    struct block_edge *edge;
    int r;

    if (reaches(child, node)) {
        return error_set(err, EINVAL, "Making '%s' a child of '%s' would create a cycle",
                         child->name, node->name);
    }
    edge = calloc(1, sizeof(*edge));
    if (!edge || !(edge->name = strdup(name))) {
        free(edge);
        return error_set(err, ENOMEM, "Out of memory");
    }
    edge->parent = node;
    edge->role = role;
    edge->shared = edge->next_shared = BLOCK_PERM_ALL;
    edge_link(edge, child);
    list_append(&node->children, &edge->sibling);
    r = block_co_perm_update(node, err);
    if (r < 0) {
        block_co_detach_child(edge);
        return r;
    }
    if (strcmp(name, "file") == 0) {
        node->file = edge;
    } else if (strcmp(name, "backing") == 0) {
        node->backing = edge;
    }
    if (ret) {
        *ret = edge;
    }
    return 0;
}

void block_co_detach_child(struct block_edge *edge)
{
    struct block_node *parent = edge->parent, *child;

    list_remove(&edge->sibling);
    child = edge_unlink(edge);
    if (parent->file == edge) {
        parent->file = NULL;
    }
    if (parent->backing == edge) {
        parent->backing = NULL;
    }
    /* Giving permissions up cannot conflict. */
    block_co_perm_update(child, NULL);
    block_co_unref(child);
    free(edge->name);
    free(edge);
}

/* --- roots ----------------------------------------------------------------------------------- */

static int co_root_new(struct block_node *node, const char *user, unsigned perm, unsigned shared,
                       bool exempt, struct block_root **ret, struct error *err)
{
    struct block_root *root = NULL;
    int r;

    if (posix_memalign((void **)&root, CACHE_LINE, sizeof(*root)) != 0) {
        return error_set(err, ENOMEM, "Out of memory");
    }
    memset(root, 0, sizeof(*root));
    root->edge.name = strdup(user);
    if (!root->edge.name) {
        free(root);
        return error_set(err, ENOMEM, "Out of memory");
    }
    pthread_mutex_init(&root->guard, NULL);
    co_queue_init(&root->blocked);
    list_init(&root->edge.sibling);
    root->exempt = exempt;
    root->edge.root = root;
    root->edge.shared = BLOCK_PERM_ALL;
    root->edge.next_perm = perm;
    root->edge.next_shared = shared;
    edge_link(&root->edge, node);
    list_append(&block_all_roots, &root->link);
    r = block_co_perm_update(node, err);
    if (r < 0) {
        block_co_root_release(root);
        return r;
    }
    block_co_drain_update();
    *ret = root;
    return 0;
}

int block_co_root_new(struct block_node *node, const char *user, unsigned perm, unsigned shared,
                      struct block_root **ret, struct error *err)
{
    return co_root_new(node, user, perm, shared, false, ret, err);
}

int block_co_root_new_exempt(struct block_node *node, const char *user, unsigned perm,
                             unsigned shared, struct block_root **ret, struct error *err)
{
    return co_root_new(node, user, perm, shared, true, ret, err);
}

void block_co_root_release(struct block_root *root)
{
    struct block_node *node;

    if (!root) {
        return;
    }
    list_remove(&root->link);
    block_co_root_settle(root);
    node = edge_unlink(&root->edge);
    block_co_perm_update(node, NULL);
    block_co_unref(node);
    pthread_mutex_destroy(&root->guard);
    free(root->edge.name);
    free(root);
}

struct block_edge *block_root_edge(struct block_root *root)
{
    return &root->edge;
}

struct block_node *block_root_node(const struct block_root *root)
{
    return root->edge.node;
}

const char *block_root_user(const struct block_root *root)
{
    return root->edge.name;
}

int block_co_root_set_perm(struct block_root *root, unsigned perm, unsigned shared,
                           struct error *err)
{
    root->edge.next_perm = perm;
    root->edge.next_shared = shared;
    return block_co_perm_update(root->edge.node, err);
}

int block_co_root_replace(struct block_root *root, struct block_node *node, struct error *err)
{
    struct block_node *old = root->edge.node;
    int r = 0;

    if (block_node_size(node) != block_node_size(old)) {
        return error_set(err, EINVAL,
                         "Cannot replace node '%s' (%llu bytes) by '%s' (%llu bytes): the sizes "
                         "differ",
                         old->name, (unsigned long long)block_node_size(old), node->name,
                         (unsigned long long)block_node_size(node));
    }
    block_node_ref(old);
    block_co_drain_begin(old);
    block_co_unref(edge_unlink(&root->edge));
    edge_link(&root->edge, node);
    root->edge.next_perm = root->edge.perm;
    root->edge.next_shared = root->edge.shared;
    block_co_perm_update(old, NULL);
    r = block_co_perm_update(node, err);
    if (r < 0) {
        block_co_unref(edge_unlink(&root->edge));
        edge_link(&root->edge, old);
        block_co_perm_update(node, NULL);
        block_co_perm_update(old, NULL);
    }
    block_co_drain_end(old);
    block_co_unref(old);
    return r;
}
