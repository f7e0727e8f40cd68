/* SPDX-License-Identifier: Apache-2.0 */
/* What the start of the program, and monitors, need from this layer: its block driver. */
#ifndef TIDEMARK_NBD_NBD_H
#define TIDEMARK_NBD_NBD_H

#include <stdbool.h>

struct block_node;

/* Add the block driver "nbd" to the table. Once, at start. Does not yield. */
void nbd_register_driver(void);

/* Whether the node is a client of an NBD server. Does not yield. */
bool nbd_node_is_client(const struct block_node *node);
/*
 * Cut the connections of such a node, for good: requests in flight fail, and so do later ones. The
 * caller keeps the node. Main reactor; yields.
 */
void nbd_node_co_cut(struct block_node *node);

#endif
