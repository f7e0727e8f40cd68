/* SPDX-License-Identifier: Apache-2.0 */
/*
 * x-blockdev-set-iothread: the thread that serves the exports of a node which are made from now on,
 * unless they name another. A node here is used from any thread; so what QEMU sets for the node is
 * a default for its users.
 */
#include <errno.h>

#include "block/block.h"
#include "block/user_object.h"
#include "qmp/commands.h"
#include "qmp/objects.h"

static bool has_user(const struct block_node *node)
{
    struct block_edge *edge = NULL;

    while ((edge = block_node_next_parent(node, edge))) {
        if (!block_edge_parent(edge)) {
            return true;
        }
    }
    return false;
}

/* *ret_object gets a reference, or NULL for null. */
static int find_thread(struct json_object *value, struct user_object **ret_object,
                       struct error *err)
{
    *ret_object = NULL;
    if (json_object_is_type(value, json_type_null)) {
        return 0;
    }
    return qmp_find_iothread(json_object_get_string(value), ret_object)
               ? 0
               : error_set(err, ENOENT, "Cannot find iothread %s", json_object_get_string(value));
}

static void set_thread(struct block_node *node, void *object)
{
    block_node_set_iothread(node, object);
}

static void note_first_thread(struct block_node *node, void *arg)
{
    struct user_object **found = arg;

    *found = *found ? *found : block_node_iothread(node);
}

int qmp_co_x_blockdev_set_iothread(struct qmp_call *call, struct json_object *args,
                                   struct json_object **ret_value, struct error *err)
{
    const char *name = qmp_get_str(args, "node-name");
    struct block_node *node = block_node_find(name);
    struct user_object *object;
    int r;

    if (!node) {
        return error_set(err, ENOENT, "Failed to find node with node-name='%s'", name);
    }
    if (!qmp_get_bool(args, "force", false) && has_user(node)) {
        return error_set(err, EBUSY,
                         "Node %s is associated with a BlockBackend and could be in use (use "
                         "force=true to override this check)",
                         name);
    }
    r = find_thread(qmp_get(args, "iothread"), &object, err);
    if (r < 0) {
        return r;
    }
    block_node_foreach_below(node, set_thread, object);
    user_object_unref(object);
    return 0;
}

struct user_object *qmp_iothread_of_node(struct block_node *node)
{
    struct user_object *object = NULL;

    block_node_foreach_below(node, note_first_thread, &object);
    return object;
}
