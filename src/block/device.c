/* SPDX-License-Identifier: Apache-2.0 */
#include "block/device.h"

#include <errno.h>
#include <string.h>

#include "block/internal.h"

static struct list devices = LIST_INIT(devices);

int block_device_add(struct block_device *device, struct error *err)
{
    if (block_device_find(device->name)) {
        return error_set(err, EEXIST, "Device with id '%s' already exists", device->name);
    }
    if (block_node_find(device->name)) {
        return error_set(err, EEXIST, "Device name '%s' conflicts with an existing node name",
                         device->name);
    }
    list_append(&devices, &device->link);
    return 0;
}

void block_device_remove(struct block_device *device)
{
    list_remove(&device->link);
}

struct block_device *block_device_find(const char *name)
{
    struct block_device *d;

    LIST_FOREACH (d, &devices, link) {
        if (strcmp(d->name, name) == 0) {
            return d;
        }
    }
    return NULL;
}

const char *block_node_device_name(const struct block_node *node)
{
    struct block_device *d;

    LIST_FOREACH (d, &devices, link) {
        if (d->root && d->root->edge.node == node) {
            return d->name;
        }
    }
    return "";
}

const char *block_node_device_or_name(const struct block_node *node)
{
    const char *device = block_node_device_name(node);

    return *device ? device : node->name;
}

/* --- nodes by name ---------------------------------------------------------------------------- */

/* Public ones that stay, and hidden ones that this coroutine has opened. */
static bool can_be_found(const struct block_node *node)
{
    return node->opener ? node->is_open && node->opener == co_task() : !node->is_leaving;
}

struct block_node *block_node_find(const char *name)
{
    const struct block_device *device = block_device_find(name);
    struct name_entry *entry = name_index_find(&block_node_names, name);

    if (device) {
        return device->root ? device->root->edge.node : NULL;
    }
    for (; entry; entry = name_index_find_next(entry)) {
        struct block_node *node = container_of(entry, struct block_node, by_name);

        if (can_be_found(node)) {
            return node;
        }
    }
    return NULL;
}

struct block_node *block_node_lookup(const char *name, struct error *err)
{
    struct block_node *node = block_node_find(name);

    if (!node && block_device_find(name)) {
        error_set(err, ENOMEDIUM, "Device '%s' has no medium", name);
    } else if (!node) {
        error_set(err, ENOENT, "Cannot find device='%s' nor node-name='%s'", name, name);
    }
    return node;
}
