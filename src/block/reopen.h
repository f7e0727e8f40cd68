/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reopening: other options for nodes that are open, several nodes at once, all or nothing (QAPI
 * schema of QEMU: blockdev-reopen).
 *
 *   plan      block_co_reopen_add(), for each node: nothing changes yet. Nodes that were opened for
 *             a node of the plan, as its children, are part of the plan
 *   prepare   within a graph change, whose caller has drained the nodes of the plan, and those
 *             that become children. Images that become read-only are completed, new options and
 *             children are set
 *   settle    of the graph change: permissions
 *   finish    what may fail, and needs the new permissions: files are opened for writing, images
 *             are made ready for that
 *   end       commit, or abort, which undoes all
 *
 * Main reactor. The `co_` functions run in a coroutine and yield; the others do not.
 */
#ifndef TIDEMARK_BLOCK_REOPEN_H
#define TIDEMARK_BLOCK_REOPEN_H

#include <stdbool.h>

#include "base/error.h"
#include "block/node.h"
#include "block/options.h"

struct block_reopen;

/* An empty plan; NULL: no memory. */
struct block_reopen *block_reopen_new(void);
/*
 * NULL is fine. The plan was ended, or never prepared, and so is the graph change. Ends the drains
 * of prepare, and gives references back, which may close nodes.
 */
void block_co_reopen_free(struct block_reopen *plan);

/*
 * Add a node with its options (consumed), as for blockdev-add: those that are not given get their
 * default values. A child is the name of a node, the options of the child (if it was opened for
 * this node), or null. -EINVAL: an option that can't change; -ENOENT: no such child; -ENOTSUP: the
 * driver can't be reopened.
 */
int block_co_reopen_add(struct block_reopen *plan, struct block_node *node, struct options *opts,
                        struct error *err);
/* Likewise, with the options that the node has, but for read-only. */
int block_reopen_add_read_only(struct block_reopen *plan, struct block_node *node, bool read_only,
                               struct error *err);

/* The last part of the plan: nodes that follow those that were added. Errors as above. */
int block_reopen_expand(struct block_reopen *plan, struct error *err);

/* Nodes of the plan, and those that will become their children: *index begins with 0; NULL ends. */
struct block_node *block_reopen_next_node(const struct block_reopen *plan, size_t *index);
/* Whether the node was opened for `parent`, as its child, and follows it when that is reopened. */
bool block_node_follows(const struct block_node *node, const struct block_node *parent);
/* Whether the node gets another child "backing" or "file" by the plan. */
bool block_reopen_changes_links(const struct block_reopen *plan, const struct block_node *node);

/*
 * All steps: drain, graph change, end. After a failure nothing has changed. The drains last until
 * block_co_reopen_free(). Not for a caller that is in a graph change, or reopens in a transaction.
 */
int block_co_reopen_carry_out(struct block_reopen *plan, struct error *err);
/* The steps by themselves: see above. Errors are those of opening, of permissions, and of I/O. */
int block_co_reopen_prepare(struct block_reopen *plan, struct error *err);
int block_co_reopen_finish(struct block_reopen *plan, struct error *err);
void block_co_reopen_commit(struct block_reopen *plan);
/* Also after a failure of prepare or finish. The caller settles the graph change again. */
void block_co_reopen_abort(struct block_reopen *plan);

/*
 * All of this, to make a node read-only, or writable, with the nodes that were opened for it. The
 * nodes are drained meanwhile. An image that becomes read-only is completed first. On failure
 * nothing has changed.
 */
int block_co_set_read_only(struct block_node *node, bool read_only, struct error *err);
/*
 * The part of block_co_set_read_only(node, true) that waits for the disk: completes an image that
 * has no writers, and waits for requests in flight. For a caller who works apart
 * (block/control_lock.h): without a graph change here. Errors are those of I/O. Yields.
 */
int block_co_await_read_only(struct block_node *node, struct error *err);

#endif
