/* SPDX-License-Identifier: Apache-2.0 */
/* What `--object help` and the like print. */
#ifndef TIDEMARK_CLI_DAEMON_HELP_H
#define TIDEMARK_CLI_DAEMON_HELP_H

#include <stdbool.h>

/*
 * Whether the value of `--option` asks for help ("help" among its parts). Then that has been printed, and *ret_status is the exit
 * status of the program, 1 where there is none. The types of objects have to be registered.
 */
bool daemon_help(const char *option, const char *value, int *ret_status);

#endif
