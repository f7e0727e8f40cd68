/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TIDEMARK_QCOW2_MAKE_EMPTY_H
#define TIDEMARK_QCOW2_MAKE_EMPTY_H

#include "block/driver.h"

/* block_driver.co_make_empty: remove all mappings of the disk. The node is drained. Yields. */
int qcow2_co_make_empty(struct block_node *node, struct error *err);

#endif
