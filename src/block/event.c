/* SPDX-License-Identifier: Apache-2.0 */
#include "block/event.h"

#include <string.h>

#include "block/driver.h"

static const char *const names[BLOCK_EVENT_COUNT + 1] = {
    [BLOCK_EVENT_NONE] = "none",
    [BLOCK_EVENT_L1_UPDATE] = "l1_update",
    [BLOCK_EVENT_L1_GROW_ALLOC_TABLE] = "l1_grow_alloc_table",
    [BLOCK_EVENT_L1_GROW_WRITE_TABLE] = "l1_grow_write_table",
    [BLOCK_EVENT_L1_GROW_ACTIVATE_TABLE] = "l1_grow_activate_table",
    [BLOCK_EVENT_L2_LOAD] = "l2_load",
    [BLOCK_EVENT_L2_UPDATE] = "l2_update",
    [BLOCK_EVENT_L2_UPDATE_COMPRESSED] = "l2_update_compressed",
    [BLOCK_EVENT_L2_ALLOC_COW_READ] = "l2_alloc_cow_read",
    [BLOCK_EVENT_L2_ALLOC_WRITE] = "l2_alloc_write",
    [BLOCK_EVENT_READ_AIO] = "read_aio",
    [BLOCK_EVENT_READ_BACKING_AIO] = "read_backing_aio",
    [BLOCK_EVENT_READ_COMPRESSED] = "read_compressed",
    [BLOCK_EVENT_WRITE_AIO] = "write_aio",
    [BLOCK_EVENT_WRITE_COMPRESSED] = "write_compressed",
    [BLOCK_EVENT_VMSTATE_LOAD] = "vmstate_load",
    [BLOCK_EVENT_VMSTATE_SAVE] = "vmstate_save",
    [BLOCK_EVENT_COW_READ] = "cow_read",
    [BLOCK_EVENT_COW_WRITE] = "cow_write",
    [BLOCK_EVENT_REFTABLE_LOAD] = "reftable_load",
    [BLOCK_EVENT_REFTABLE_GROW] = "reftable_grow",
    [BLOCK_EVENT_REFTABLE_UPDATE] = "reftable_update",
    [BLOCK_EVENT_REFBLOCK_LOAD] = "refblock_load",
    [BLOCK_EVENT_REFBLOCK_UPDATE] = "refblock_update",
    [BLOCK_EVENT_REFBLOCK_UPDATE_PART] = "refblock_update_part",
    [BLOCK_EVENT_REFBLOCK_ALLOC] = "refblock_alloc",
    [BLOCK_EVENT_REFBLOCK_ALLOC_HOOKUP] = "refblock_alloc_hookup",
    [BLOCK_EVENT_REFBLOCK_ALLOC_WRITE] = "refblock_alloc_write",
    [BLOCK_EVENT_REFBLOCK_ALLOC_WRITE_BLOCKS] = "refblock_alloc_write_blocks",
    [BLOCK_EVENT_REFBLOCK_ALLOC_WRITE_TABLE] = "refblock_alloc_write_table",
    [BLOCK_EVENT_REFBLOCK_ALLOC_SWITCH_TABLE] = "refblock_alloc_switch_table",
    [BLOCK_EVENT_CLUSTER_ALLOC] = "cluster_alloc",
    [BLOCK_EVENT_CLUSTER_ALLOC_BYTES] = "cluster_alloc_bytes",
    [BLOCK_EVENT_CLUSTER_FREE] = "cluster_free",
    [BLOCK_EVENT_FLUSH_TO_OS] = "flush_to_os",
    [BLOCK_EVENT_FLUSH_TO_DISK] = "flush_to_disk",
    [BLOCK_EVENT_PWRITEV_RMW_HEAD] = "pwritev_rmw_head",
    [BLOCK_EVENT_PWRITEV_RMW_AFTER_HEAD] = "pwritev_rmw_after_head",
    [BLOCK_EVENT_PWRITEV_RMW_TAIL] = "pwritev_rmw_tail",
    [BLOCK_EVENT_PWRITEV_RMW_AFTER_TAIL] = "pwritev_rmw_after_tail",
    [BLOCK_EVENT_PWRITEV] = "pwritev",
    [BLOCK_EVENT_PWRITEV_ZERO] = "pwritev_zero",
    [BLOCK_EVENT_PWRITEV_DONE] = "pwritev_done",
    [BLOCK_EVENT_EMPTY_IMAGE_PREPARE] = "empty_image_prepare",
    [BLOCK_EVENT_L1_SHRINK_WRITE_TABLE] = "l1_shrink_write_table",
    [BLOCK_EVENT_L1_SHRINK_FREE_L2_CLUSTERS] = "l1_shrink_free_l2_clusters",
    [BLOCK_EVENT_COR_WRITE] = "cor_write",
    [BLOCK_EVENT_CLUSTER_ALLOC_SPACE] = "cluster_alloc_space",
};

const struct schema_type block_event_type = {
    .kind = SCHEMA_ENUM, .name = "BlkdebugEvent", .values = names};

int block_event_find(const char *name)
{
    for (int i = 0; i < BLOCK_EVENT_COUNT; i++) {
        if (strcmp(names[i], name) == 0) {
            return i;
        }
    }
    return -1;
}

void block_co_event_at(struct block_node *node, enum block_event event)
{
    while (node && node->events && !node->driver->co_event) {
        node = node->file ? node->file->node : block_node_filter_or_backing(node);
    }
    if (node && node->events) {
        node->driver->co_event(node, event);
    }
}
