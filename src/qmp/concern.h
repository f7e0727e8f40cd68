/* SPDX-License-Identifier: Apache-2.0 */
/* The nodes that a transaction concerns. transaction.h has what actions call. */
#ifndef TIDEMARK_QMP_CONCERN_H
#define TIDEMARK_QMP_CONCERN_H

#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"

struct block_node;

/* Starts as zeroes. */
struct qmp_concern {
    /* each referenced */
    struct block_node **nodes;
    size_t count, capacity;
    /* how many of them, the first ones, are drained */
    size_t drained;
    /* out of memory */
    bool failed;
};

/*
 * Whether all nodes of `now` are nodes of `c`; `now` is released. -EBUSY: one is not; -ENOMEM: one
 * could not be added to `now`. Does not yield if others have references to the nodes.
 */
int qmp_co_concern_check(struct qmp_concern *now, const struct qmp_concern *c, struct error *err);

/* Whether one of the nodes is in qmp_co_complete(). Does not yield. */
bool qmp_concern_completes(const struct qmp_concern *c);

/* End the drains. Does not yield. */
void qmp_concern_undrain(struct qmp_concern *c);

/*
 * Release the nodes, some of which may have lost all other users. The control lock is held, and
 * released meanwhile. Yields.
 */
void qmp_co_concern_clear(struct qmp_concern *c);

#endif
