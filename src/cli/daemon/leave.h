/* SPDX-License-Identifier: Apache-2.0 */
/* The last step of a daemon of whose storage something hangs. */
#ifndef TIDEMARK_CLI_DAEMON_LEAVE_H
#define TIDEMARK_CLI_DAEMON_LEAVE_H

/*
 * Exit with the status, though coroutines and threads are left that will not end. The kernel closes
 * the files of a process one after another, and waits for a file system that hangs: monitors and
 * clients see the end before that, and images that do not hang are closed, so that another process
 * can open them. That takes as long as closing them takes, and a second at most for what hangs.
 */
_Noreturn void daemon_leave(int status);

#endif
