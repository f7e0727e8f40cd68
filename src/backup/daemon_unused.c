/* SPDX-License-Identifier: Apache-2.0 */
/* Nodes that a backup of all disks of a machine leaves out, and that may be disks all the same. */
#include <string.h>

#include "backup/daemon_disk.h"
#include "base/log.h"

/* The number that a graph gives a node; -1: it has none of that name. */
static int64_t number_of_node(struct json_object *graph, const char *name)
{
    struct json_object *nodes, *id;

    if (!json_object_object_get_ex(graph, "nodes", &nodes)) {
        return -1;
    }
    for (size_t i = 0; i < source_length(nodes); i++) {
        struct json_object *n = json_object_array_get_idx(nodes, i);

        if (strcmp(source_string(n, "name"), name) == 0 &&
            strcmp(source_string(n, "type"), "block-driver") == 0) {
            return json_object_object_get_ex(n, "id", &id) ? json_object_get_int64(id) : -1;
        }
    }
    return -1;
}

/* Whether a device, an export, a job or another node has the node. */
static bool is_used(struct json_object *graph, int64_t number)
{
    struct json_object *edges, *child;

    if (!json_object_object_get_ex(graph, "edges", &edges)) {
        return true;
    }
    for (size_t i = 0; i < source_length(edges); i++) {
        if (json_object_object_get_ex(json_object_array_get_idx(edges, i), "child", &child) &&
            json_object_get_int64(child) == number) {
            return true;
        }
    }
    return false;
}

/* Names that the daemon has made begin with '#'. */
static bool can_be_disk(struct json_object *node, const char *name)
{
    struct json_object *ro;
    char ignored[REPOSITORY_ID_SIZE];

    return name[0] != '#' && name[0] && !source_name_repository(name, ignored) &&
           json_object_object_get_ex(node, "ro", &ro) && !json_object_get_boolean(ro);
}

void daemon_co_warn_of_unused(struct qmp_client *qmp)
{
    struct json_object *graph = NULL, *nodes = NULL;

    if (qmp_client_co_execute(qmp, "x-debug-query-block-graph", NULL, &graph, NULL) == 0) {
        (void)qmp_client_co_execute(qmp, "query-named-block-nodes", NULL, &nodes, NULL);
    }
    for (size_t i = 0; i < source_length(nodes); i++) {
        struct json_object *node = json_object_array_get_idx(nodes, i);
        const char *name = source_string(node, "node-name");
        int64_t number = number_of_node(graph, name);

        if (can_be_disk(node, name) && number >= 0 && !is_used(graph, number)) {
            log_warning("Node '%s' is left out: no device and no export has it. --node takes it, "
                        "and then names all disks",
                        name);
        }
    }
    json_object_put(graph);
    json_object_put(nodes);
}
