/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Figures of nodes: what the gate counts for each node, and what a driver adds for its own.
 *
 * Read on the main reactor, where nodes come and go. Nothing here yields.
 */
#ifndef TIDEMARK_BLOCK_STATS_H
#define TIDEMARK_BLOCK_STATS_H

#include "base/counters.h"
#include "block/block.h"

/* Kinds of operations that the gate counts. */
enum block_op_type {
    /* Reads, of a point in time as well, and read-ahead. */
    BLOCK_OP_READ,
    /* Writes of data, and copies that the system makes. */
    BLOCK_OP_WRITE,
    BLOCK_OP_ZEROES,
    BLOCK_OP_DISCARD,
    BLOCK_OP_FLUSH,
    BLOCK_OP_TYPES
};

/* Figures of each kind. */
enum block_op_figure {
    /* Operations that succeeded, and their bytes (of a flush: 0). */
    BLOCK_OP_DONE,
    BLOCK_OP_BYTES,
    /* Operations that failed in the driver or below. */
    BLOCK_OP_FAILED,
    /* Operations that the gate refused: bounds, permissions. */
    BLOCK_OP_INVALID,
    /*
     * Nanoseconds that operations took, failed ones too. An estimate where they are short: of
     * operations that follow one of less than 20 us, one in 16 is timed and counts for all of them.
     */
    BLOCK_OP_TIME,
    BLOCK_OP_FIGURES
};

/* Index of a figure in the values of block_node_stats. */
#define BLOCK_STAT(type, figure) ((type)*BLOCK_OP_FIGURES + (figure))

enum block_stat {
    /* Operations that have begun. */
    BLOCK_STAT_BEGUN = BLOCK_STAT(BLOCK_OP_TYPES, 0),
    /* Of those, operations that have not ended; worked out by the reader. */
    BLOCK_STAT_IN_FLIGHT,
    /* Requests to the driver beyond one for each read and write, where limits split them. */
    BLOCK_STAT_SPLIT,
    /* End of the write or write of zeroes that reached furthest, in bytes. */
    BLOCK_STAT_WRITE_HIGHEST,
    BLOCK_STATS
};

extern const struct stat_desc block_node_stats[];

/* Fill BLOCK_STATS values. */
void block_node_read_stats(struct block_node *node, uint64_t *ret_values);

/*
 * Histograms of the node's operations with a user's boundaries (base/latency.h): reads, writes with
 * those of zeroes, and flushes, refused and failed ones too. While there are any, each operation is
 * timed. None at first. They live as long as the node. Main reactor.
 */
struct latency_set *block_node_latencies(struct block_node *node);
/* To be called after they were made, so that operations are timed from now on. */
void block_node_latencies_changed(struct block_node *node);

/* Most rows of the table of a driver. */
#define BLOCK_DRIVER_STATS_MAX 32

/* The table of the figures that a driver counts; NULL: none. */
const struct stat_desc *block_driver_stats(const struct block_driver *driver);
/* The same of the node's driver; NULL also for a node that is not open. */
const struct stat_desc *block_node_driver_stats(const struct block_node *node);
/* Fill a value for each row of that table. */
void block_node_read_driver_stats(struct block_node *node, uint64_t *ret_values);

#endif
