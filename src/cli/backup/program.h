/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Other programs: checkers of file systems, readers of them, an emulator. They are started without
 * a shell, and wait for nothing on standard input. Nothing here yields; everything may block.
 */
#ifndef TIDEMARK_CLI_BACKUP_PROGRAM_H
#define TIDEMARK_CLI_BACKUP_PROGRAM_H

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"

/*
 * The path of a program: `name` itself if it has a slash, else in $PATH, /usr/sbin or /sbin.
 * malloc'ed; NULL: it is not installed.
 */
char *program_find(const char *name);

/*
 * Start a program; argv[0] is its path. Its standard output and error go to `out_fd`. *ret_child is
 * to be waited for. 0 or -errno.
 */
int program_start(char *const *argv, int out_fd, pid_t *ret_child, struct error *err);

/*
 * Run a program to its end. *ret_output, malloc'ed, is what it printed, up to 1 MiB; may be NULL.
 * Returns its exit status, or -errno: it could not be started, was killed by a signal (-EIO), or
 * `stop` (may be NULL) became true (-EINTR), and it was ended.
 */
int program_run(char *const *argv, char **ret_output, volatile sig_atomic_t *stop,
                struct error *err);

#endif
