/* SPDX-License-Identifier: Apache-2.0 */
/* What the driver counts for an image. Nothing here yields. */
#ifndef TIDEMARK_QCOW2_STATS_H
#define TIDEMARK_QCOW2_STATS_H

#include "base/counters.h"

enum qcow2_stat {
    /* Look-ups of slices of L2 tables and of refcount blocks, as the caches count them. */
    QCOW2_STAT_L2_HITS,
    QCOW2_STAT_L2_MISSES,
    QCOW2_STAT_REFCOUNT_HITS,
    QCOW2_STAT_REFCOUNT_MISSES,
    QCOW2_STAT_COMMITS,
    QCOW2_STAT_SYNCS,
    QCOW2_STAT_ALLOCATED,
    QCOW2_STAT_FREED,
    QCOW2_STAT_BITMAP_STORES,
    /* Of the activity log; 0 without one. */
    QCOW2_STAT_ACTIVITY_HOT,
    QCOW2_STAT_ACTIVITY_LIMIT,
    QCOW2_STAT_ACTIVITY_HEATED,
    QCOW2_STAT_ACTIVITY_COOLED,
    QCOW2_STAT_ACTIVITY_BATCHES,
    QCOW2_STAT_ACTIVITY_GIVEN_UP,
    QCOW2_STATS
};

extern const struct stat_desc qcow2_stats[];

struct block_node;
/* Fill QCOW2_STATS values. Main reactor. */
void qcow2_read_stats(struct block_node *node, uint64_t *ret_values);

#endif
