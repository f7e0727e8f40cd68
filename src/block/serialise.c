/* SPDX-License-Identifier: Apache-2.0 */
/* Which nodes serialise: their reads exclude changes of the disk below them. */
#include "block/internal.h"

/* Of how many nodes reads may exclude changes. Main reactor. */
static unsigned serial_nodes;

/* Nodes that stay as they are need not be drained: nothing of them is written. */
static void update_serialising(struct block_node *node)
{
    bool on = node->serial_disk && block_node_reaches(node, node->serial_disk);

    if (on == node->serialises) {
        return;
    }
    if (on) {
        range_lock_init(&node->serial);
    } else {
        range_lock_destroy(&node->serial);
    }
    node->serialises = on;
    block_update_detour(node);
}

void block_node_set_serialising(struct block_node *node, const struct block_node *disk)
{
    serial_nodes += disk && !node->serial_disk;
    serial_nodes -= !disk && node->serial_disk;
    node->serial_disk = disk;
    update_serialising(node);
}

void block_update_serialising(void)
{
    struct block_node *node;

    if (serial_nodes == 0) {
        return;
    }
    LIST_FOREACH (node, &block_all_nodes, link) {
        update_serialising(node);
    }
}
