/* SPDX-License-Identifier: Apache-2.0 */
/*
 * x-debug-query-block-graph: all nodes, their users, and the edges between them with permissions
 * in force. Newest first, as QEMU lists them.
 */
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "block/block.h"
#include "block/device.h"
#include "job/job.h"
#include "qmp/commands.h"

/* What has got an id: nodes by their address, and users by that of their edge. */
struct graph {
    struct json_object *nodes, *edges; /* oldest first */
    const void **things;               /* owned */
    size_t count, room;
    bool failed;
};

static unsigned id_of(const struct graph *g, const void *thing)
{
    for (size_t i = 0; i < g->count; i++) {
        if (g->things[i] == thing) {
            return (unsigned)i + 1;
        }
    }
    return 0;
}

static void add_thing(struct graph *g, const void *thing, const char *type, const char *name)
{
    struct json_object *o;

    if (g->count == g->room) {
        size_t room = g->room ? 2 * g->room : 64;
        const void **things = realloc(g->things, room * sizeof(void *));

        if (!things) {
            g->failed = true;
            return;
        }
        g->things = things;
        g->room = room;
    }
    g->things[g->count++] = thing;
    o = json_object_new_object();
    qmp_put_uint(o, "id", g->count);
    qmp_put_str(o, "type", type);
    qmp_put_str(o, "name", name);
    json_object_array_add(g->nodes, o);
}

static struct json_object *perms_json(unsigned perms)
{
    static const struct {
        unsigned perm;
        const char *name;
    } names[] = {{BLOCK_PERM_RESIZE, "resize"},
                 {BLOCK_PERM_WRITE_UNCHANGED, "write-unchanged"},
                 {BLOCK_PERM_WRITE, "write"},
                 {BLOCK_PERM_CONSISTENT_READ, "consistent-read"}};
    struct json_object *list = json_object_new_array();

    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        if (perms & names[i].perm) {
            json_object_array_add(list, json_object_new_string(names[i].name));
        }
    }
    return list;
}

static void add_edge(struct graph *g, const void *parent, const struct block_edge *edge,
                     const char *name)
{
    struct json_object *o = json_object_new_object();

    qmp_put_uint(o, "parent", id_of(g, parent));
    qmp_put_uint(o, "child", id_of(g, block_edge_node(edge)));
    qmp_put_str(o, "name", name);
    json_object_object_add(o, "perm", perms_json(block_edge_perm(edge)));
    json_object_object_add(o, "shared-perm", perms_json(block_edge_shared(edge)));
    json_object_array_add(g->edges, o);
}

/* The users of a node. Those of jobs are known by what they are called. */
static void add_users(struct graph *g, const struct block_node *node, bool edges)
{
    static const char job_prefix[] = "block job";
    struct block_edge *edge = NULL;

    while ((edge = block_node_next_parent(node, edge))) {
        bool is_job = strncmp(block_edge_name(edge), job_prefix, sizeof(job_prefix) - 1) == 0;

        if (block_edge_parent(edge)) {
            continue;
        }
        if (edges) {
            add_edge(g, edge, edge, "root");
        } else {
            add_thing(g, edge, is_job ? "block-job" : "block-backend", block_edge_name(edge));
        }
    }
}

/* The edges to the children of a node, latest first. */
static void add_children(struct graph *g, const struct block_node *node)
{
    struct block_edge *edge = NULL, *latest = NULL, *before = NULL;

    for (;;) {
        for (edge = NULL; (edge = block_node_next_child(node, edge)) && edge != before;) {
            latest = edge;
        }
        if (!latest) {
            return;
        }
        add_edge(g, node, latest, block_edge_name(latest));
        before = latest;
        latest = NULL;
    }
}

static struct json_object *reversed(struct json_object *list)
{
    struct json_object *result = json_object_new_array();

    for (size_t i = json_object_array_length(list); i > 0; i--) {
        json_object_array_add(result, json_object_get(json_object_array_get_idx(list, i - 1)));
    }
    json_object_put(list);
    return result;
}

int qmp_co_x_debug_query_block_graph(struct qmp_call *call, struct json_object *args,
                                     struct json_object **ret_value, struct error *err)
{
    struct graph g = {.nodes = json_object_new_array(), .edges = json_object_new_array()};
    struct block_node *node = NULL;

    while ((node = block_node_next(node))) {
        add_users(&g, node, false);
    }
    while ((node = block_node_next(node))) {
        add_thing(&g, node, "block-driver", block_node_name(node));
    }
    while ((node = block_node_next(node))) {
        add_users(&g, node, true);
    }
    while ((node = block_node_next(node))) {
        add_children(&g, node);
    }
    free(g.things);
    if (g.failed) {
        json_object_put(g.nodes);
        json_object_put(g.edges);
        return error_out_of_memory(err);
    }
    *ret_value = json_object_new_object();
    json_object_object_add(*ret_value, "nodes", reversed(g.nodes));
    json_object_object_add(*ret_value, "edges", reversed(g.edges));
    return 0;
}
