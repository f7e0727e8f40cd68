/* SPDX-License-Identifier: Apache-2.0 */
/*
 * yank, query-yank: cut connections that hang. Both run out of band, and without the control lock,
 * so nothing here yields.
 */
#include <errno.h>
#include <string.h>

#include "base/checked.h"
#include "block/block.h"
#include "block/control_lock.h"
#include "chardev/chardev.h"
#include "loop/loop.h"
#include "nbd/nbd.h"
#include "qmp/commands.h"
#include "qmp/define.h"
#include "qmp/types.h"

/* --- types ------------------------------------------------------------------------------------ */

ENUM(yank_type, "YankInstanceType", "block-node", "chardev");
OBJECT(yank_node, "YankInstanceBlockNode", REQ("node-name", schema_str));
OBJECT(yank_chardev, "YankInstanceChardev", REQ("id", schema_str));
static const struct schema_type yank_instance = {
    .kind = SCHEMA_OBJECT,
    .name = "YankInstance",
    .members = MEMBERS(REQ("type", yank_type)),
    .tag = "type",
    .variants = (const struct schema_variant[]){{"block-node", &yank_node},
                                                {"chardev", &yank_chardev},
                                                {NULL, NULL}},
};
const struct schema_type qmp_type_yank_instances =
    ARRAY_INIT("qmp_type_yank_instances", yank_instance);
const struct schema_type qmp_type_yank =
    OBJECT_INIT("q_obj_yank-arg", REQ("instances", qmp_type_yank_instances));

/* --- what there is to cut --------------------------------------------------------------------- */

struct instance {
    /* One of the two; borrowed. */
    struct block_node *node;
    struct chardev *chardev;
};

static int find_instance(struct json_object *o, struct instance *ret_instance, struct error *err)
{
    struct instance i = {0};

    if (strcmp(qmp_get_str(o, "type"), "chardev") == 0) {
        i.chardev = chardev_find(qmp_get_str(o, "id"));
    } else {
        i.node = block_node_find(qmp_get_str(o, "node-name"));
    }
    if (!(i.chardev && chardev_can_be_cut(i.chardev)) && !(i.node && nbd_node_is_client(i.node))) {
        return error_set_class(err, ERROR_CLASS_DEVICE_NOT_FOUND, ENOENT, "Instance not found");
    }
    *ret_instance = i;
    return 0;
}

static void co_cut_node(void *arg)
{
    struct block_node *node = arg;

    nbd_node_co_cut(node);
    block_co_unref(node);
}

static int co_cut_instance(const struct instance *i, struct error *err)
{
    int r;

    if (i->chardev) {
        chardev_cut(i->chardev);
        return 0;
    }
    /* Its connections may be those of other reactors. */
    r = reactor_spawn(reactor_main(), co_cut_node, block_node_ref(i->node));
    if (r < 0) {
        block_co_unref(i->node); /* it has other users: this does not yield */
        return error_out_of_memory(err);
    }
    return 0;
}

/* --- commands --------------------------------------------------------------------------------- */

int qmp_co_yank(struct qmp_call *call, struct json_object *args, struct json_object **ret_value,
                struct error *err)
{
    struct json_object *list = qmp_get(args, "instances");
    size_t count = json_object_array_length(list);
    struct instance instance;
    int r = 0;

    /* All or none. */
    for (size_t i = 0; r == 0 && i < count; i++) {
        r = find_instance(json_object_array_get_idx(list, i), &instance, err);
    }
    for (size_t i = 0; r == 0 && i < count; i++) {
        r = find_instance(json_object_array_get_idx(list, i), &instance, err);
        UNLESS_FAILED(r, co_cut_instance(&instance, err));
    }
    return r;
}

static void add_instance(struct json_object *list, const char *type, const char *key,
                         const char *value)
{
    struct json_object *o = json_object_new_object();

    qmp_put_str(o, "type", type);
    qmp_put_str(o, key, value);
    json_object_array_add(list, o);
}

int qmp_co_query_yank(struct qmp_call *call, struct json_object *args,
                      struct json_object **ret_value, struct error *err)
{
    struct block_node *node = NULL;
    struct chardev *c = NULL;

    *ret_value = json_object_new_array();
    while ((node = block_node_next(node))) {
        if (nbd_node_is_client(node)) {
            add_instance(*ret_value, "block-node", "node-name", block_node_name(node));
        }
    }
    while ((c = chardev_next(c))) {
        if (chardev_can_be_cut(c)) {
            add_instance(*ret_value, "chardev", "id", chardev_id(c));
        }
    }
    return 0;
}
