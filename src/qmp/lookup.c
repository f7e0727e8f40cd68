/* SPDX-License-Identifier: Apache-2.0 */
#include "qmp/lookup.h"

#include <errno.h>
#include <string.h>

#include "block/bitmaps.h"
#include "block/device.h"
#include "block/node.h"
#include "job/job.h"
#include "qmp/schema.h"

struct block_node *qmp_find_device_or_node(const char *device, const char *node_name,
                                           struct error *err)
{
    struct block_node *node = NULL;

    if (device && block_device_find(device)) {
        return block_node_lookup(device, err);
    }
    if (node_name && !block_device_find(node_name)) {
        node = block_node_find(node_name);
    }
    if (!node) {
        error_set(err, ENOENT, "Cannot find device='%s' nor node-name='%s'", device ? device : "",
                  node_name ? node_name : "");
    }
    return node;
}

struct block_bitmap *qmp_find_bitmap(struct json_object *args, const char *key, struct error *err)
{
    const char *name = qmp_get_str(args, "node");
    struct block_node *node;

    if (!block_node_find(name)) {
        error_set(err, ENOENT, "Node '%s' not found", name);
        return NULL;
    }
    return block_bitmap_lookup(name, qmp_get_str(args, key), &node, err);
}

struct block_node *qmp_find_root_node(const char *name, struct error *err)
{
    struct block_node *node = block_node_lookup(name, err);
    struct block_edge *edge = NULL;

    while (node && (edge = block_node_next_parent(node, edge))) {
        if (block_edge_parent(edge)) {
            error_set(err, EINVAL, "Need a root block node");
            return NULL;
        }
    }
    return node;
}

int qmp_check_not_busy(const struct block_node *node, struct error *err)
{
    const struct block_node *overlay = NULL;
    struct block_edge *edge = NULL;
    int r = job_check_node(node, err);

    /* The one that came last, as in QEMU. */
    while (r == 0 && (edge = block_node_next_parent(node, edge))) {
        if (block_edge_parent(edge) && strcmp(block_edge_name(edge), "backing") == 0) {
            overlay = block_edge_parent(edge);
        }
    }
    return overlay ? error_set(err, EBUSY, "Node '%s' is busy: node is used as backing hd of '%s'",
                               block_node_device_or_name(node), block_node_device_or_name(overlay))
                   : r;
}
