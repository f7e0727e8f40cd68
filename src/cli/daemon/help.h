/* SPDX-License-Identifier: Apache-2.0 */
/* The help that `--object help` and the like print. None of this yields. */
#ifndef TIDEMARK_CLI_DAEMON_HELP_H
#define TIDEMARK_CLI_DAEMON_HELP_H

#include <stdbool.h>

#include "base/error.h"

/*
 * Whether the value of `--option` asks for help ("help" among its parts). Then the help has been
 * printed and *ret_result is 0, or there is none and *ret_result is -EINVAL, with an error. The
 * types of objects have to be registered before.
 */
bool daemon_help(const char *option, const char *value, int *ret_result, struct error *err);

#endif
