/* SPDX-License-Identifier: Apache-2.0 */
#include "block/threshold.h"

#include "block/internal.h"

static void (*listener)(const struct block_threshold_report *r);

void block_set_threshold_fn(void (*fn)(const struct block_threshold_report *r))
{
    listener = fn;
}

void block_node_set_write_threshold(struct block_node *node, uint64_t offset)
{
    atomic_store(&node->write_threshold, offset);
}

uint64_t block_node_write_threshold(const struct block_node *node)
{
    return atomic_load(&node->write_threshold);
}

void block_check_write_threshold(struct block_node *node, uint64_t end)
{
    uint64_t threshold = atomic_load(&node->write_threshold);
    struct block_threshold_report report = {node->name, threshold, end - threshold};

    /* One of several writers reports. */
    if (threshold > 0 && end > threshold &&
        atomic_compare_exchange_strong(&node->write_threshold, &threshold, 0) && listener) {
        listener(&report);
    }
}
