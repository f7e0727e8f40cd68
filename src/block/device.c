/* SPDX-License-Identifier: Apache-2.0 */
#include "block/device.h"

#include <errno.h>
#include <string.h>

#include "block/block.h"

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
        if (d->root && block_root_node(d->root) == node) {
            return d->name;
        }
    }
    return "";
}
