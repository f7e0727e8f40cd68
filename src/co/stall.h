/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reports waits of coroutines that take longer than they should: each is traced as co_stall when it
 * ends. In a coroutine. None of these yields.
 *
 * Time is that of the scheduler (co_home.turn_ns), which costs nothing to read and is as exact as
 * turns are short: a call that blocks the thread for long is part of the waits around it.
 *
 *      int64_t since = co_stall_clock();
 *      ...wait...
 *      co_stall_check(since, "mutex", m, __builtin_return_address(0));
 */
#ifndef TIDEMARK_CO_STALL_H
#define TIDEMARK_CO_STALL_H

#include <stdint.h>

/* A wait of at least this many milliseconds is a stall. */
#define CO_STALL_MS 100

/* When the present turn began, in nanoseconds. */
int64_t co_stall_clock(void);

/*
 * The wait that began at `since` for an `object` of a `kind` has ended; `caller` is the address of
 * the code that waited.
 */
void co_stall_check(int64_t since, const char *kind, const void *object, const void *caller);

#endif
