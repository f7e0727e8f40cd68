/* SPDX-License-Identifier: Apache-2.0 */
/* What others have to know of x-blockdev-checksums. Main reactor; nothing here yields. */
#ifndef TIDEMARK_QMP_CHECKSUMS_H
#define TIDEMARK_QMP_CHECKSUMS_H

#include <stdbool.h>

struct block_node;

/*
 * Whether a work uses the node: that of a command that has given up goes on until the disk answers,
 * and then gives the node back.
 */
bool qmp_checksums_use(const struct block_node *node);

#endif
