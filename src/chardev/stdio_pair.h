/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Standard input and output as a socket. They may be a file, or a terminal shared with other
 * programs, which cannot be made non-blocking; so two threads copy the bytes from and to one end of
 * a socket pair.
 */
#ifndef TIDEMARK_CHARDEV_STDIO_PAIR_H
#define TIDEMARK_CHARDEV_STDIO_PAIR_H

#include "base/error.h"

/*
 * The other end, non-blocking, owned by the caller; or -errno. Once per process (-EBUSY). Does not
 * yield.
 */
int chardev_stdio_open(struct error *err);

/*
 * Wait until standard output has taken what was sent by that end, for at most a second: before
 * something else is printed there. Yields.
 */
void chardev_co_stdio_settle(void);

/*
 * After that end was closed: wait, for at most a second, until standard output has taken
 * everything. Yields.
 */
void chardev_co_stdio_flush(void);

#endif
