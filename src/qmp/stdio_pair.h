/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Standard input and output as a socket. They can be anything, also a file or a terminal shared with others, which
 * can't be made non-blocking; so two threads carry the bytes to and from one end of a socket pair.
 */
#ifndef TIDEMARK_QMP_STDIO_PAIR_H
#define TIDEMARK_QMP_STDIO_PAIR_H

#include "base/error.h"

/* The other end, non-blocking, owned by the caller; or -errno. Once per process (-EBUSY). Does not yield. */
int qmp_stdio_open(struct error *err);

/* After that end was closed: wait until standard output has all, for a second at most. Yields. */
void qmp_co_stdio_flush(void);

#endif
