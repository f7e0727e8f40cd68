/* SPDX-License-Identifier: Apache-2.0 */
#include "block/stats.h"

#include "base/checked.h"
#include "block/internal.h"
#include "block/op.h"
#include "loop/loop.h"

/*
 * Reading the clock twice takes 50 ns, which is 3% of a read of 4 KiB from the page cache and
 * nothing compared with one that waits for a disk. So short operations are sampled. Whether one is
 * timed depends on those before it, not on its own duration; the sum is right on average.
 */
#define SHORT_NS 20000
#define PERIOD 16

#define ROW(type, figure, name, help, unit)                                                        \
    [BLOCK_STAT(type, figure)] = {name, help, STAT_COUNTER, unit}
#define TYPE_ROWS(type, name, what)                                                                \
    ROW(type, BLOCK_OP_DONE, name "_operations", "Number of " what " that succeeded", STAT_COUNT), \
        ROW(type, BLOCK_OP_BYTES, name "_bytes", "Bytes of " what " that succeeded", STAT_BYTES),  \
        ROW(type, BLOCK_OP_FAILED, name "_failed", "Number of " what " that the driver failed",    \
            STAT_COUNT),                                                                           \
        ROW(type, BLOCK_OP_INVALID, name "_invalid",                                               \
            "Number of " what " that were refused: bounds or permissions", STAT_COUNT),            \
        ROW(type, BLOCK_OP_TIME, name "_time", "Time that " what " took; short ones are sampled",  \
            STAT_NANOSECONDS)

const struct stat_desc block_node_stats[] = {
    TYPE_ROWS(BLOCK_OP_READ, "read", "reads"),
    TYPE_ROWS(BLOCK_OP_WRITE, "write", "writes"),
    TYPE_ROWS(BLOCK_OP_ZEROES, "zeroes", "writes of zeroes"),
    TYPE_ROWS(BLOCK_OP_DISCARD, "discard", "discards"),
    TYPE_ROWS(BLOCK_OP_FLUSH, "flush", "flushes"),
    [BLOCK_STAT_BEGUN] = {"operations_begun", "Operations that have begun", STAT_COUNTER,
                          STAT_COUNT},
    [BLOCK_STAT_IN_FLIGHT] = {"in_flight", "Operations in flight", STAT_GAUGE, STAT_COUNT},
    [BLOCK_STAT_SPLIT] = {"split", "Additional requests, where limits of the driver split one",
                          STAT_COUNTER, STAT_COUNT},
    [BLOCK_STAT_WRITE_HIGHEST] = {"write_highest_offset", "End of the write that reached furthest",
                                  STAT_PEAK, STAT_BYTES},
    [BLOCK_STATS] = {.name = NULL},
};

/* Kinds of histograms; LATENCY_KINDS: in none. */
static const enum latency_kind latency_kinds[BLOCK_OP_TYPES] = {
    [BLOCK_OP_READ] = LATENCY_READ,    [BLOCK_OP_WRITE] = LATENCY_WRITE,
    [BLOCK_OP_ZEROES] = LATENCY_WRITE, [BLOCK_OP_DISCARD] = LATENCY_KINDS,
    [BLOCK_OP_FLUSH] = LATENCY_FLUSH,
};

struct block_op_clock block_op_start_clock(struct block_node *node, struct block_node_shard *shard)
{
    uint64_t begun = counter_read(&shard->values[BLOCK_STAT_BEGUN]);
    struct block_op_clock clock = {.begin_ns = loop_now_ns(), .weight = begun - shard->timed};

    shard->timed = begun;
    atomic_store(&shard->next_timed, begun + PERIOD);
    shard->latencies = NULL;
    /* After the store above, in one order for all: block_node_latencies_changed() stores later. */
    if (atomic_load(&node->latencies.is_used)) {
        shard->latencies = &node->latencies;
        atomic_store(&shard->next_timed, 0);
    }
    return clock;
}

void block_op_stop_clock(struct block_node_shard *shard, struct block_op_clock clock,
                         enum block_op_type type)
{
    int64_t ns = loop_now_ns() - clock.begin_ns;

    if (ns >= SHORT_NS) {
        atomic_store(&shard->next_timed, 0);
    }
    if (shard->latencies && latency_kinds[type] < LATENCY_KINDS) {
        latency_set_add(shard->latencies, latency_kinds[type], ns);
    }
    counter_add(&shard->values[BLOCK_STAT(type, BLOCK_OP_TIME)], (uint64_t)ns * clock.weight);
}

struct latency_set *block_node_latencies(struct block_node *node)
{
    return &node->latencies;
}

void block_node_latencies_changed(struct block_node *node)
{
    struct block_edge *edge;

    for (unsigned i = 0; i < COUNTERS_SHARDS; i++) {
        struct block_node_shard *shard = atomic_load(&node->counters.shards[i]);

        if (shard) {
            atomic_store(&shard->next_timed, 0);
        }
    }
    block_update_detour(node);
    LIST_FOREACH (edge, &node->parents, in_node) {
        if (edge->parent) {
            block_update_detour(edge->parent);
        }
    }
}

/* --- requests that passed a filter (detour.c) ------------------------------------------------- */

static void add_values(uint64_t *sum, const uint64_t *values)
{
    for (int i = 0; i < BLOCK_STATS; i++) {
        if (i == BLOCK_STAT_WRITE_HIGHEST) {
            sum[i] = MAX(sum[i], values[i]);
        } else {
            sum[i] += values[i];
        }
    }
}

/* No request is in flight: nobody else writes the counters. */
static void reset_passed(struct counters *passed)
{
    for (unsigned i = 0; i < COUNTERS_SHARDS; i++) {
        struct block_node_shard *shard = atomic_load(&passed->shards[i]);

        if (shard) {
            for (int k = 0; k < BLOCK_STATS; k++) {
                counter_set(&shard->values[k], 0);
            }
            shard->timed = 0;
            atomic_store(&shard->next_timed, 0);
        }
    }
}

void block_move_passed(struct block_edge *edge)
{
    struct block_node *parent = edge->parent;
    uint64_t values[BLOCK_STATS];

    if (parent && parent->passed && parent->filtered == edge) {
        counters_read(parent->passed, block_node_stats, values);
        add_values(parent->passed_before, values);
        add_values(edge->node->passed_before, values);
        reset_passed(parent->passed);
    }
}

/* Add to the values of the node's own operations those that passed filters. */
static void add_passed(struct block_node *node, uint64_t *values)
{
    const struct block_edge *edge;
    uint64_t passed[BLOCK_STATS];

    add_values(values, node->passed_before);
    if (node->passed) {
        counters_read(node->passed, block_node_stats, passed);
        add_values(values, passed);
    }
    LIST_FOREACH (edge, &node->parents, in_node) {
        if (edge->parent && edge->parent->passed && edge->parent->filtered == edge) {
            counters_read(edge->parent->passed, block_node_stats, passed);
            add_values(values, passed);
        }
    }
}

/* --- reading ---------------------------------------------------------------------------------- */

/* Those that have begun and are not counted as ended. A shard may be read between the two. */
static uint64_t count_in_flight(const uint64_t *values)
{
    uint64_t ended = 0;

    for (int type = 0; type < BLOCK_OP_TYPES; type++) {
        ended += values[BLOCK_STAT(type, BLOCK_OP_DONE)] +
                 values[BLOCK_STAT(type, BLOCK_OP_FAILED)] +
                 values[BLOCK_STAT(type, BLOCK_OP_INVALID)];
    }
    return ended < values[BLOCK_STAT_BEGUN] ? values[BLOCK_STAT_BEGUN] - ended : 0;
}

void block_node_read_stats(struct block_node *node, uint64_t *ret_values)
{
    counters_read(&node->counters, block_node_stats, ret_values);
    add_passed(node, ret_values);
    ret_values[BLOCK_STAT_IN_FLIGHT] = count_in_flight(ret_values);
}

const struct stat_desc *block_driver_stats(const struct block_driver *driver)
{
    return driver->stats;
}

const struct stat_desc *block_node_driver_stats(const struct block_node *node)
{
    return node->is_open && !node->closed ? node->driver->stats : NULL;
}

void block_node_read_driver_stats(struct block_node *node, uint64_t *ret_values)
{
    node->driver->read_stats(node, ret_values);
}
