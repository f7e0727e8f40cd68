/* SPDX-License-Identifier: Apache-2.0 */
/*
 * x-blockdev-change: a child joins a node that can have any number of them, or leaves it. It runs
 * as an action of a transaction, so that a child that hangs delays no other command, but is none.
 */
#include <errno.h>
#include <string.h>

#include "base/log.h"
#include "block/control.h"
#include "qmp/commands.h"
#include "qmp/lookup.h"
#include "qmp/transaction.h"

struct change_state {
    struct block_node *parent, *child; /* referenced, from prepare on */
};

/* The name of the edge to a child; NULL: it is none. */
static const char *edge_to(struct block_node *parent, const struct block_node *child)
{
    struct block_edge *edge = NULL;

    while ((edge = block_node_next_child(parent, edge))) {
        if (block_edge_node(edge) == child) {
            return block_edge_name(edge);
        }
    }
    return NULL;
}

static void change_concerns(void *state, struct json_object *data, struct qmp_concern *concern)
{
    qmp_concern_add(concern, block_node_lookup(qmp_get_str(data, "parent"), NULL));
}

/* -EINVAL unless there is one of `child` and `node`; -ENOENT. */
static int find_nodes(struct json_object *data, struct block_node **ret_parent,
                      struct block_node **ret_child, struct error *err)
{
    const char *child = qmp_get_str(data, "child"), *node = qmp_get_str(data, "node");
    struct block_node *parent = block_node_lookup(qmp_get_str(data, "parent"), err);

    if (!parent) {
        return -ENOENT;
    }
    if (!child == !node) {
        return child ? error_set(err, EINVAL, "The parameters child and node are in conflict")
                     : error_set(err, EINVAL, "Either child or node must be specified");
    }
    *ret_parent = parent;
    *ret_child = child ? block_node_child(parent, child) : block_node_find(node);
    if (!*ret_child) {
        return child ? error_set(err, ENOENT, "Node '%s' does not have child '%s'",
                                 block_node_name(parent), child)
                     : error_set(err, ENOENT, "Node '%s' not found", node);
    }
    return 0;
}

static int co_change_prepare(void *state, struct json_object *data, struct error *err)
{
    const char *name = qmp_get_str(data, "child");
    struct change_state *s = state;
    struct block_node *parent = NULL, *child = NULL;
    int r = find_nodes(data, &parent, &child, err);

    if (r < 0) {
        return r;
    }
    s->parent = block_node_ref(parent);
    s->child = block_node_ref(child);
    return name ? block_co_del_child(parent, name, err) : block_co_add_child(parent, child, err);
}

/* The child that has joined leaves again, or the other way round. */
static void co_change_abort(void *state)
{
    struct change_state *s = state;
    const char *name = edge_to(s->parent, s->child);
    ERROR_AUTO(err);
    int r = name ? block_co_del_child(s->parent, name, &err)
                 : block_co_add_child(s->parent, s->child, &err);

    if (r < 0) {
        log_error("the children of node '%s' can't be put back: %s", block_node_name(s->parent),
                  error_message(&err));
    }
}

static void co_change_clean(void *state)
{
    struct change_state *s = state;

    block_co_unref(s->child);
    block_co_unref(s->parent);
}

static const struct qmp_action change_action = {
    .name = "x-blockdev-change",
    .state_size = sizeof(struct change_state),
    .concerns = change_concerns,
    .co_prepare = co_change_prepare,
    .co_abort = co_change_abort,
    .co_clean = co_change_clean,
};

int qmp_co_x_blockdev_change(struct qmp_call *call, struct json_object *args,
                             struct json_object **ret_value, struct error *err)
{
    return qmp_co_run_action(&change_action, args, err);
}
