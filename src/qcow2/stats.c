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
    [QCOW2_STAT_ACTIVITY_HOT] = {"activity_hot_bytes",
                                 "What would be dirty in excess after a crash, at most", STAT_GAUGE,
                                 STAT_BYTES},
    [QCOW2_STAT_ACTIVITY_LIMIT] = {"activity_limit_bytes",
                                   "The limit of that (durable-bitmaps-size)", STAT_GAUGE,
                                   STAT_BYTES},
    [QCOW2_STAT_ACTIVITY_HEATED] = {"activity_regions_heated",
                                    "Times that a region became hot in the activity log",
                                    STAT_COUNTER, STAT_COUNT},
    [QCOW2_STAT_ACTIVITY_COOLED] = {"activity_regions_cooled", "Times that a region became cold",
                                    STAT_COUNTER, STAT_COUNT},
    [QCOW2_STAT_ACTIVITY_BATCHES] = {"activity_batches",
                                     "Writes of the activity log that requests waited for",
                                     STAT_COUNTER, STAT_COUNT},
    [QCOW2_STAT_ACTIVITY_GIVEN_UP] = {"activity_given_up",
                                      "1: there is no room for the activity log, and bitmaps will "
                                      "be inconsistent after a crash",
                                      STAT_GAUGE, STAT_COUNT},
    [QCOW2_STATS] = {.name = NULL},
};

static void read_activity(const struct qcow2 *q, uint64_t *ret_values)
{
    struct block_activity_figures f = {0};

    if (q->activity.log) {
        block_activity_read_figures(q->activity.log, &f);
    }
    ret_values[QCOW2_STAT_ACTIVITY_HOT] = f.hot;
    ret_values[QCOW2_STAT_ACTIVITY_LIMIT] = f.limit;
    ret_values[QCOW2_STAT_ACTIVITY_HEATED] = f.heated;
    ret_values[QCOW2_STAT_ACTIVITY_COOLED] = f.cooled;
    ret_values[QCOW2_STAT_ACTIVITY_BATCHES] = f.batches;
    ret_values[QCOW2_STAT_ACTIVITY_GIVEN_UP] = f.given_up;
}

void qcow2_read_stats(struct block_node *node, uint64_t *ret_values)
{
    struct qcow2 *q = qcow2_state(node);

    counters_read(&q->counters, qcow2_stats, ret_values);
    cache_read_stats(&q->caches.l2, &ret_values[QCOW2_STAT_L2_HITS],
                     &ret_values[QCOW2_STAT_L2_MISSES]);
    cache_read_stats(&q->caches.refcounts, &ret_values[QCOW2_STAT_REFCOUNT_HITS],
                     &ret_values[QCOW2_STAT_REFCOUNT_MISSES]);
    read_activity(q, ret_values);
}
