/* SPDX-License-Identifier: Apache-2.0 */
#include "qcow2/stats.h"

#include "qcow2/image.h"

const struct stat_desc qcow2_stats[] = {
    [QCOW2_STAT_L2_HITS] = {"l2_cache_hits", "Look-ups of L2 tables that the cache had",
                            STAT_COUNTER, STAT_COUNT},
    [QCOW2_STAT_L2_MISSES] = {"l2_cache_misses", "Look-ups of L2 tables that read the file",
                              STAT_COUNTER, STAT_COUNT},
    [QCOW2_STAT_REFCOUNT_HITS] = {"refcount_cache_hits",
                                  "Look-ups of refcount blocks that the cache had", STAT_COUNTER,
                                  STAT_COUNT},
    [QCOW2_STAT_REFCOUNT_MISSES] = {"refcount_cache_misses",
                                    "Look-ups of refcount blocks that read the file", STAT_COUNTER,
                                    STAT_COUNT},
    [QCOW2_STAT_COMMITS] = {"commits", "Commits of metadata to the file", STAT_COUNTER, STAT_COUNT},
    [QCOW2_STAT_SYNCS] = {"syncs", "Syncs of guest data and metadata", STAT_COUNTER, STAT_COUNT},
    [QCOW2_STAT_ALLOCATED] = {"clusters_allocated", "Clusters that were allocated", STAT_COUNTER,
                              STAT_COUNT},
    [QCOW2_STAT_FREED] = {"clusters_freed", "Clusters that were freed", STAT_COUNTER, STAT_COUNT},
    [QCOW2_STAT_BITMAP_STORES] = {"bitmap_stores", "Times that dirty bitmaps were stored",
                                  STAT_COUNTER, STAT_COUNT},
    [QCOW2_STATS] = {.name = NULL},
};

void qcow2_read_stats(struct block_node *node, uint64_t *ret_values)
{
    struct qcow2 *q = qcow2_state(node);

    counters_read(&q->counters, qcow2_stats, ret_values);
    cache_read_stats(&q->caches.l2, &ret_values[QCOW2_STAT_L2_HITS],
                     &ret_values[QCOW2_STAT_L2_MISSES]);
    cache_read_stats(&q->caches.refcounts, &ret_values[QCOW2_STAT_REFCOUNT_HITS],
                     &ret_values[QCOW2_STAT_REFCOUNT_MISSES]);
}
