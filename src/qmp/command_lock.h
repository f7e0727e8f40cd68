/* SPDX-License-Identifier: Apache-2.0 */
/*
 * When commands may run: one at a time, with the control lock (block/control_lock.h), after the
 * start of the daemon and before its end. For coroutines of the main reactor.
 */
#ifndef TIDEMARK_QMP_COMMAND_LOCK_H
#define TIDEMARK_QMP_COMMAND_LOCK_H

#include <stdbool.h>

#include "base/error.h"

struct block_node;
struct block_root;

/*
 * Wait until a command may run, and take the control lock, which is held on return in any case.
 * -ESHUTDOWN: the daemon has begun to end. Yields.
 */
int qmp_co_lock_command(struct error *err);
/*
 * Likewise, for a command of a monitor: on failure the lock is not held. -EBUSY: for 10 s others
 * have kept the lock, or a change of the graph of block nodes has been under way, whose storage
 * does not answer.
 */
int qmp_co_begin_command(struct error *err);

/*
 * Likewise for a command that only looks at what exists, without yielding. Another command may hold
 * the control lock for as long as a disk hangs; after a second the caller goes on without the lock
 * (the next ones at once, while that command has it), and may see what that command has begun.
 * *ret_look is to be passed to qmp_end_look(), in any case. Yields.
 */
struct qmp_look;
int qmp_co_begin_look(struct qmp_look **ret_look, struct error *err);
/* The command has ended. NULL is fine. Does not yield. */
void qmp_end_look(struct qmp_look *look);

/*
 * Make commands wait, and let them run again: around the start of the daemon, whose monitors may
 * have clients before its nodes are open. The first function yields until the running command has
 * ended; the second does not yield. `failed`: the daemon will not be up, and commands that have
 * waited are refused.
 */
void qmp_co_hold_commands(void);
void qmp_release_commands(bool failed);

/*
 * Take the control lock again, in a command that has released it. The lock is held on return in any
 * case. -ESHUTDOWN: the daemon has begun to end, and the command has to give up. Yields.
 */
int qmp_co_lock_again(struct error *err);

/*
 * Drain a node, without the control lock meanwhile: requests of a disk that hangs do not end, and
 * other commands go on. So what the command found before may be no longer true. The node is
 * referenced by the command. It is drained on return in any case; as above otherwise.
 */
int qmp_co_drain_unlocked(struct block_node *node, struct error *err);

/*
 * Wait, without the control lock, until requests in flight at two nodes have ended: for a command
 * that drains them soon, with the lock, and looks its nodes up again first. New requests are held
 * up meanwhile. The lock is held on return in any case; errors as above. Yields.
 */
int qmp_co_await_requests(struct block_node *a, struct block_node *b, struct error *err);

/*
 * Change an image: `fn`, through a root with the permissions `perm` that shares all. The caller has
 * drained the node, and references it. The control lock is released meanwhile, as a work apart
 * (block/control_lock.h); the drain ends here. Yields.
 */
typedef int qmp_co_image_change(struct block_root *root, void *arg, struct error *err);
int qmp_co_change_image(struct block_node *node, const char *user, unsigned perm,
                        qmp_co_image_change *fn, void *arg, struct error *err);

/*
 * Make a node, which the caller references, read-only: block_co_set_read_only(). The control lock
 * is held, and released meanwhile, as works apart: one that waits for the disk, and changes no
 * edge, then the graph change. Yields.
 */
int qmp_co_make_read_only(struct block_node *node, struct error *err);

/*
 * Let no command begin from now on, and wait for the running one. A command that has released the
 * control lock, because its work takes long, gives up when it takes the lock again. Yields.
 */
void qmp_co_stop_commands(void);

#endif
