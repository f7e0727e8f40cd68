/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the control lock (block/control_lock.h) and those who work apart keep busy: which nodes, and
 * the error for the user. Main reactor, in a coroutine. Nothing here yields.
 */
#ifndef TIDEMARK_BLOCK_CONTROL_BUSY_H
#define TIDEMARK_BLOCK_CONTROL_BUSY_H

#include <stdbool.h>

#include "base/error.h"
#include "block/control_lock.h"

struct block_node;

/* Whether a command works on what is joined with the node. */
bool block_control_is_worked_on(struct block_node *node);

/*
 * Whether somebody works on what is joined with the node, or has the lock and a scope that meets
 * the node.
 */
bool block_control_is_busy_with(struct block_node *node);

/*
 * The error for who could not get the lock, since it is kept by `holder`: the command, the node and
 * the storage that it waits for. Returns -EBUSY; -ENOMEM.
 */
int block_control_set_busy(const struct block_control_holder *holder, struct error *err);

#endif
