/* SPDX-License-Identifier: Apache-2.0 */
/* Reports of images that break the rules of their format while they are in use. */
#ifndef TIDEMARK_BLOCK_CORRUPTION_H
#define TIDEMARK_BLOCK_CORRUPTION_H

#include <stdbool.h>

#include "block/block.h"

struct block_corruption {
    const char *node_name;
    const char *what; /* "L2 table offset 0x40200 unaligned (L1 index: 0)" */
    bool fatal;       /* the image is marked corrupt, and takes no more writes */
};

/*
 * Set the function that gets the reports; NULL: none. Once, at start. It is called on the reactor
 * that found the corruption, borrows its argument, and must not yield.
 */
void block_set_corruption_fn(void (*fn)(const struct block_corruption *c));

/* Report; for drivers. Does not yield. */
void block_report_corruption(const struct block_node *node, const char *what, bool fatal);

#endif
