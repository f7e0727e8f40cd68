/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The full name of an image whose plain filename would open something else: json: with the options
 * of all its nodes.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/json_write.h"
#include "block/internal.h"

/*
 * Most nodes in a full name. A bound is needed because a node that is used twice is listed twice.
 */
#define NODES_MAX 64u
/* Groups below one another in the options of a node. */
#define DEPTH_MAX 8u

/* Options that say how an image is used, not which image. */
static bool is_of_use(const char *key)
{
    static const char *const keys[] = {"node-name", "read-only", "auto-read-only", "force-share",
                                       "cache",     "discard",   "detect-zeroes",  "driver",
                                       "backing",   NULL};
    const char *const *k = keys;

    while (*k && strcmp(*k, key) != 0) {
        k++;
    }
    return *k;
}

static bool is_child(const struct block_node *node, const char *key)
{
    const struct block_edge *edge;
    size_t length = strlen(key);

    LIST_FOREACH (edge, &node->children, sibling) {
        /* The edges of a list are named LIST.INDEX. */
        if (strncmp(edge->name, key, length) == 0 &&
            (edge->name[length] == '\0' || edge->name[length] == '.')) {
            return true;
        }
    }
    return false;
}

static struct json_object *node_json(const struct block_node *node, unsigned *nodes);

static void add_child(struct json_object *to, const struct block_edge *edge, unsigned *nodes)
{
    const char *dot = strchr(edge->name, '.');
    AUTO_FREE char *list_name = dot ? strndup(edge->name, (size_t)(dot - edge->name)) : NULL;
    struct json_object *list = NULL;

    if (!list_name) {
        json_object_object_add(to, edge->name, node_json(edge->node, nodes));
        return;
    }
    if (!json_object_object_get_ex(to, list_name, &list)) {
        list = json_object_new_array();
        json_object_object_add(to, list_name, list);
    }
    json_object_array_add(list, node_json(edge->node, nodes));
}

/* Groups and lists are written as dotted keys, which is how QEMU has them in file names. */
static void add_flat(struct json_object *to, const char *key, struct json_object *value,
                     unsigned depth)
{
    bool is_list = json_object_is_type(value, json_type_array);
    size_t count = is_list ? json_object_array_length(value) : 0;

    if (depth == 0 || (!is_list && !json_object_is_type(value, json_type_object))) {
        json_object_object_add(to, key, json_object_get(value));
        return;
    }
    for (size_t i = 0; i < count; i++) {
        AUTO_FREE char *longer = NULL;

        if (asprintf(&longer, "%s.%zu", key, i) >= 0) {
            add_flat(to, longer, json_object_array_get_idx(value, i), depth - 1);
        }
    }
    if (is_list) {
        return;
    }
    json_object_object_foreach(value, name, member)
    {
        AUTO_FREE char *longer = NULL;

        if (asprintf(&longer, "%s.%s", key, name) >= 0) {
            add_flat(to, longer, member, depth - 1);
        }
    }
}

static void add_options(struct json_object *to, const struct block_node *node)
{
    if (!node->options) {
        return;
    }
    json_object_object_foreach(node->options, key, value)
    {
        if (!is_of_use(key) && !is_child(node, key)) {
            add_flat(to, key, value, DEPTH_MAX);
        }
    }
}

/* Counts nodes in *nodes; leaves out those beyond NODES_MAX. */
static struct json_object *node_json(const struct block_node *node, unsigned *nodes)
{
    struct json_object *o = json_object_new_object();
    const struct block_edge *edge;

    json_object_object_add(o, "driver", json_object_new_string(node->driver->name));
    add_options(o, node);
    LIST_FOREACH (edge, &node->children, sibling) {
        if (edge != node->backing && ++*nodes <= NODES_MAX) {
            add_child(o, edge, nodes);
        }
    }
    return o;
}

char *block_node_full_filename(const struct block_node *node)
{
    unsigned nodes = 1;
    struct json_object *o;
    char *name = NULL;

    if (!node->beyond_filename) {
        return strdup(block_node_filename(node));
    }
    o = node_json(node, &nodes);
    if (nodes > NODES_MAX) {
        name = strdup(block_node_filename(node));
    } else {
        struct strbuf text = STRBUF_INIT;

        strbuf_puts(&text, "json:");
        json_write(&text, o, false);
        name = strbuf_take(&text);
    }
    json_object_put(o);
    return name;
}

char *block_node_resolve_backing(const struct block_node *node, const char *name)
{
    return !node->filename && node->beyond_filename && block_is_relative(name)
               ? NULL
               : block_resolve_relative(block_node_filename(node), name);
}
