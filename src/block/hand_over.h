/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Handing nodes over: another process may write their images from now on, such as the daemon of
 * another host to which a virtual machine moves; and taking them over again. QMP calls a node that
 * is handed over inactive (QAPI schema of QEMU: blockdev-set-active, active, allow-inactive).
 *
 * A node that is handed over is complete in its file, holds no image lock that keeps others from
 * writing, and takes no writes. It can be read, which may show contents of before. A node that is
 * not handed over has no child that is. Users of a node that is handed over have to allow that
 * (BLOCK_SHARE_HAND_OVER). When the node is taken over, what the image has by then is read again.
 * Bitmaps that are not stored in the image could not record what others wrote: those that record
 * are dirty as a whole from then on.
 *
 *   plan      which nodes change together: nothing changes yet. The caller drains them
 *   prepare   within a graph change. Images that are handed over are completed
 *   settle    of the graph change: permissions, image locks
 *   finish    what may fail: images that are taken over are read again
 *   end       commit, or abort, which undoes all
 *
 * Main reactor. The `co_` functions run in a coroutine with the control lock held, and yield; the
 * others do not.
 */
#ifndef TIDEMARK_BLOCK_HAND_OVER_H
#define TIDEMARK_BLOCK_HAND_OVER_H

#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"

struct block_node;
struct block_hand_over;

/* Whether the node is handed over. */
bool block_node_is_handed_over(const struct block_node *node);

/*
 * A plan to hand a node over, with the nodes below it that no other node uses; or (`take`) to take
 * it over, with all nodes below. `node` NULL: all nodes. A plan without nodes if it is so already.
 * NULL, with an error: a node above stays; no memory.
 */
struct block_hand_over *block_hand_over_plan(struct block_node *node, bool take, struct error *err);
/* The nodes of the plan: *index begins with 0; NULL ends. */
struct block_node *block_hand_over_next_node(const struct block_hand_over *plan, size_t *index);
/* Free a plan that was made since the caller last yielded. NULL is fine. Does not yield. */
void block_hand_over_discard(struct block_hand_over *plan);
/* NULL is fine. Gives references back, which may close nodes. */
void block_co_hand_over_free(struct block_hand_over *plan);

/*
 * -EBUSY: a node above is active; a bitmap that the image stores is in use. -EPERM: a user of one
 * of the nodes does not allow it. Errors of completing. On failure nothing has changed.
 */
int block_co_hand_over_prepare(struct block_hand_over *plan, struct error *err);
/* Errors of reading the images; abort follows. */
int block_co_hand_over_finish(struct block_hand_over *plan, struct error *err);
void block_hand_over_commit(struct block_hand_over *plan);
/* After a success of prepare. The caller settles the graph change again. */
void block_hand_over_abort(struct block_hand_over *plan);

#endif
