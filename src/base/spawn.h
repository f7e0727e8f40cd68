/* SPDX-License-Identifier: Apache-2.0 */
/* Start other programs. Nothing here yields. */
#ifndef TIDEMARK_BASE_SPAWN_H
#define TIDEMARK_BASE_SPAWN_H

#include <spawn.h>
#include <sys/types.h>

/*
 * Start a program; argv[0] is its path. No signal is blocked there, and SIGPIPE ends the program,
 * whatever holds here. Borrowed: all but *ret_child, which is to be waited for. 0 or -errno.
 */
int spawn_program(char *const *argv, char *const *environment,
                  const posix_spawn_file_actions_t *actions, pid_t *ret_child);

#endif
