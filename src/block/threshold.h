/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A report, once, when writes pass an offset of a node: storage that is allocated as it is needed
 * can be extended in time (QAPI schema of QEMU: block-set-write-threshold).
 */
#ifndef TIDEMARK_BLOCK_THRESHOLD_H
#define TIDEMARK_BLOCK_THRESHOLD_H

#include <stdint.h>

struct block_node;

struct block_threshold_report {
    const char *node_name;
    uint64_t threshold; /* bytes */
    uint64_t exceeded;  /* by that many bytes */
};

/*
 * Report the next write of data or zeroes that ends beyond `offset` bytes; 0: no report. It takes
 * the place of the one before. Any thread; does not yield.
 */
void block_node_set_write_threshold(struct block_node *node, uint64_t offset);
/* The one that is waited for; 0: none. */
uint64_t block_node_write_threshold(const struct block_node *node);
/*
 * Set the function that gets the reports; NULL: none. Once, at start. It is called on the reactor
 * that writes, borrows its argument, and must not yield.
 */
void block_set_threshold_fn(void (*fn)(const struct block_threshold_report *r));

#endif
