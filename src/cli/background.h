/* SPDX-License-Identifier: Apache-2.0 */
/*
 * --fork and --pid-file of the faces that serve something: the process that the user started ends
 * when what it serves can be used, and another one goes on. Nothing here yields.
 */
#ifndef TIDEMARK_CLI_BACKGROUND_H
#define TIDEMARK_CLI_BACKGROUND_H

#include <stdbool.h>

#include "base/error.h"

/*
 * Go on in a child. Returns in the child alone, with a descriptor for cli_announce_serving(); the
 * parent waits for that, and ends: with 0 or, if the child ends before, with its status. Before
 * there are threads. -errno: there is no child.
 */
int cli_go_to_background(int *ret_ready_fd, struct error *err);
/*
 * Let the process that the user started end, and give up its terminal; standard error stays if
 * `keep_errors`. `ready_fd` < 0: nothing is to be done.
 */
void cli_announce_serving(int ready_fd, bool keep_errors);
/*
 * The file is locked as long as this process lives: -EAGAIN if another one lives that has written
 * it. It stays when the server ends, as that of qemu-nbd: the user removes it, maybe at this
 * moment.
 */
int cli_write_pid_file(const char *path, struct error *err);

#endif
