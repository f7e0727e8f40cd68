/* SPDX-License-Identifier: Apache-2.0 */
/*
 * When commands may run: one at a time, with the control lock (block/control_lock.h), after the
 * start of the daemon and before its end. For coroutines of the main reactor.
 */
#ifndef TIDEMARK_QMP_COMMAND_LOCK_H
#define TIDEMARK_QMP_COMMAND_LOCK_H

#include "base/error.h"

/*
 * Wait until a command may run, and take the control lock, which is held on return in any case.
 * -ESHUTDOWN: the daemon has begun to end. Yields.
 */
int qmp_co_lock_command(struct error *err);

/*
 * Make commands wait, and let them run again: around the start of the daemon, whose monitors may
 * have clients before its nodes are open. The first function yields until the running command has
 * ended; the second does not yield.
 */
void qmp_co_hold_commands(void);
void qmp_release_commands(void);

/*
 * Take the control lock again, in a command that has released it. The lock is held on return in any
 * case. -ESHUTDOWN: the daemon has begun to end, and the command has to give up. Yields.
 */
int qmp_co_lock_again(struct error *err);

/*
 * Let no command begin from now on, and wait for the running one. A command that has released the
 * control lock, because its work takes long, gives up when it takes the lock again. Yields.
 */
void qmp_co_stop_commands(void);

#endif
