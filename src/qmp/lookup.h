/* SPDX-License-Identifier: Apache-2.0 */
/* Finding the node that a command names, with QEMU's errors. Nothing here yields. */
#ifndef TIDEMARK_QMP_LOOKUP_H
#define TIDEMARK_QMP_LOOKUP_H

#include "base/error.h"

struct json_object;
struct block_bitmap;
struct block_node;

/*
 * The node that the device of the name `device` uses, or else the node `node_name`; either may be
 * NULL. NULL: "Cannot find device='x' nor node-name='y'", or the device has no medium.
 */
struct block_node *qmp_find_device_or_node(const char *device, const char *node_name,
                                           struct error *err);
/*
 * The bitmap of the node that the member `node` names, with its name in the member `key`. NULL:
 * there is no such node, or bitmap.
 */
struct block_bitmap *qmp_find_bitmap(struct json_object *args, const char *key, struct error *err);
/* The node of that name, or of the device of that name, which no node is above. */
struct block_node *qmp_find_root_node(const char *name, struct error *err);

/*
 * -EBUSY if the node can't be changed by a command: a job uses it, or it is the backing node of
 * another.
 */
int qmp_check_not_busy(const struct block_node *node, struct error *err);

#endif
