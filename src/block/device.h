/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Devices: users of nodes that have names of their own. A disk of a machine keeps its name,
 * whatever node snapshots and jobs put below it. Where a command takes the name of a node, it takes
 * that of a device as well, and means the node that the device uses at that moment. The daemon has
 * none.
 *
 * Main reactor only. None of these functions yields.
 */
#ifndef TIDEMARK_BLOCK_DEVICE_H
#define TIDEMARK_BLOCK_DEVICE_H

#include "base/error.h"
#include "base/list.h"

struct block_node;
struct block_root;

/* The owner's memory; the owner sets all members but the link. */
struct block_device {
    struct list link;        /* in the list of devices */
    const char *name;        /* unique among devices and nodes; lives as long as this */
    struct block_root *root; /* by which it uses its node; NULL: no medium */
};

/* Make it known by its name. -EEXIST: a device or a node has that name. */
int block_device_add(struct block_device *device, struct error *err);
void block_device_remove(struct block_device *device);

/* By name; NULL: there is none. */
struct block_device *block_device_find(const char *name);
/* The name of the device that uses the node: the first one if there are several; "": none. */
const char *block_node_device_name(const struct block_node *node);
/* That, or the name of the node if no device uses it. */
const char *block_node_device_or_name(const struct block_node *node);

#endif
