/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An operation of the gate while it runs, for the counters of its node.
 *
 *      block_op_begin(&op, node, counters_index());
 *      ...
 *      block_op_end(&op, BLOCK_OP_READ, offset, length, r);
 *
 * Between them the coroutine may yield, and stays with its reactor; the node stays as well, since
 * the operation counts as a request of a root. Costs some 30 instructions without a clock.
 */
#ifndef TIDEMARK_BLOCK_OP_H
#define TIDEMARK_BLOCK_OP_H

#include "block/driver.h"
#include "block/stats.h"

/* The counters of a node on one reactor. */
struct block_node_shard {
    struct counter values[BLOCK_STATS];
    /* Operations begun: when the latest was timed, and when the next will be (0: at once). */
    uint64_t timed;
    _Atomic uint64_t next_timed; /* any thread may set it to 0 */
    /* Where those that are timed are counted; NULL: nowhere. */
    struct latency_set *latencies;
};

/* How an operation is timed. */
struct block_op_clock {
    /* When it began; 0: it is not timed. */
    int64_t begin_ns;
    /* Operations that it is timed for, those before it that were not, and itself. */
    uint64_t weight;
};

struct block_op {
    struct block_node_shard *shard;
    struct block_op_clock clock;
    /* The gate has refused it. */
    bool invalid;
};

/* stats.c: the rare parts. */
struct block_op_clock block_op_start_clock(struct block_node *node, struct block_node_shard *shard);
void block_op_stop_clock(struct block_node_shard *shard, struct block_op_clock clock,
                         enum block_op_type type);

/* An operation on `node` begins, which counts there. */
static inline void block_op_begin_at(struct block_op *op, struct block_node *node,
                                     struct block_node_shard *shard)
{
    struct counter *begun = &shard->values[BLOCK_STAT_BEGUN];

    op->shard = shard;
    op->invalid = false;
    op->clock = (struct block_op_clock){0};
    counter_add(begun, 1);
    if (__builtin_expect(counter_read(begun) >=
                             atomic_load_explicit(&shard->next_timed, memory_order_relaxed),
                         0)) {
        op->clock = block_op_start_clock(node, shard);
    }
}

/* An operation on `node` begins, on the reactor `index`. */
static inline void block_op_begin(struct block_op *op, struct block_node *node, unsigned index)
{
    block_op_begin_at(op, node, counters_shard_at(&node->counters, index));
}

/* It has ended with the result `r`, 0 or -errno. */
static inline void block_op_end(struct block_op *op, enum block_op_type type, uint64_t offset,
                                uint64_t length, int r)
{
    struct counter *values = op->shard->values;

    if (__builtin_expect(op->clock.begin_ns != 0, 0)) {
        block_op_stop_clock(op->shard, op->clock, type);
    }
    if (__builtin_expect(r < 0, 0)) {
        counter_add(&values[BLOCK_STAT(type, op->invalid ? BLOCK_OP_INVALID : BLOCK_OP_FAILED)], 1);
        return;
    }
    counter_add(&values[BLOCK_STAT(type, BLOCK_OP_DONE)], 1);
    counter_add(&values[BLOCK_STAT(type, BLOCK_OP_BYTES)], length);
    if (type == BLOCK_OP_WRITE || type == BLOCK_OP_ZEROES) {
        counter_raise(&values[BLOCK_STAT_WRITE_HIGHEST], offset + length);
    }
}

#endif
