/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What makes the gate leave the short way: nodes that serialise, and filters that let requests
 * pass.
 *
 * A request that passes a filter is one operation of the gate instead of two: at the filtered
 * child, within the same entry of the root. That is the same as a call of the filter, since
 *
 *   drains        count requests at roots
 *   graph         the filtered edge changes only while the filter is drained
 *   checks        bounds and permissions are checked at both nodes
 *   filter        if it has something to do there (bitmaps that record, an activity log, zeroes to
 *                 detect, an alignment, events, histograms), no request passes; all that changes
 *                 while it is drained, but for histograms, which count from the next request on
 *   limits        a filter that may hold up requests is asked for each one (lets_pass)
 *   counters      those of the filter that have passed count for the child, too; when the two
 *                 part, both keep the sum (stats.c)
 */
#include <errno.h>
#include <stdlib.h>

#include "block/internal.h"
#include "block/op.h"

int block_detour_init(struct block_node *node)
{
    const struct block_driver *driver = node->driver;

    if (!driver->passes_reads && !driver->passes_writes && !driver->lets_pass) {
        return 0;
    }
    node->passed = malloc(sizeof(*node->passed));
    if (!node->passed) {
        return -ENOMEM;
    }
    counters_init(node->passed, sizeof(struct block_node_shard));
    return 0;
}

void block_detour_release(struct block_node *node)
{
    if (node->passed) {
        counters_release(node->passed);
        free(node->passed);
    }
}

static bool has_histograms(const struct block_node *node)
{
    return atomic_load(&node->latencies.is_used);
}

/* The bits of a filter that may let requests pass. */
static unsigned find_passing(const struct block_node *node)
{
    const struct block_driver *driver = node->driver;
    const struct block_driver *below = node->filtered->node->driver;
    unsigned bits = 0;

    if (node->limits.request_alignment > 1 || node->limits.max_transfer || node->serialises ||
        has_histograms(node) || has_histograms(node->filtered->node)) {
        return 0;
    }
    if ((driver->passes_reads || driver->lets_pass) && below->co_preadv) {
        bits |= BLOCK_DETOUR_PASSES_READS;
    }
    if ((driver->passes_writes || driver->lets_pass) && below->co_pwritev && !node->activity &&
        node->recorders == 0 && node->detect_zeroes == BLOCK_DETECT_ZEROES_OFF && !node->events) {
        bits |= BLOCK_DETOUR_PASSES_WRITES;
    }
    return bits;
}

void block_update_detour(struct block_node *node)
{
    unsigned bits = node->serialises ? BLOCK_DETOUR_SERIALISES : 0;

    if (node->passed && node->filtered) {
        bits |= find_passing(node);
    }
    atomic_store(&node->detour, (uint8_t)bits);
}
