/* SPDX-License-Identifier: Apache-2.0 */
/* Images that are found to break their format's rules while they are in use: whom to tell. */
#ifndef TIDEMARK_BLOCK_CORRUPTION_H
#define TIDEMARK_BLOCK_CORRUPTION_H

#include <stdbool.h>

#include "block/block.h"

struct block_corruption {
    const char *node_name;
    const char *what; /* "L2 table offset 0x40200 unaligned (L1 index: 0)" */
    bool fatal;       /* the image was marked and takes no more writes */
};

/*
 * Who hears of it, on the reactor where it was found; borrows what it is given and must not yield.
 * NULL: nobody. At start.
 */
void block_set_corruption_fn(void (*fn)(const struct block_corruption *c));

/* Called by drivers. Does not yield. */
void block_report_corruption(const struct block_node *node, const char *what, bool fatal);

#endif
