/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The control lock. A coroutine holds it while it uses nodes, bitmaps and exports that it has
 * looked up by name, and while it may give back the last reference to one of them. So nothing
 * vanishes during a command. It is the outermost lock: taken before drains and the graph lock.
 *
 * Steps that can take long (opening, closing, waiting for clients) pause the lock; a coroutine then
 * keeps references to what it uses afterwards, or looks it up again. Main reactor, in a coroutine.
 * Programs with one flow, such as `img`, need not take it.
 */
#ifndef TIDEMARK_BLOCK_CONTROL_LOCK_H
#define TIDEMARK_BLOCK_CONTROL_LOCK_H

#include <stdbool.h>

#include "co/co.h"

/* Take the lock. Not recursive. Yields. */
void block_co_control_lock(void);
/* Does not yield. */
void block_control_unlock(void);

/* Whether any coroutine has the lock. Does not yield. */
bool block_control_is_locked(void);

/* Unlock if this coroutine has the lock; returns whether it had. Does not yield. */
bool block_control_pause(void);
/*
 * Run `entry(arg)` in a coroutine of its own, which takes the lock over from the calling one:
 * nobody else has it in between. Returns when `entry` yields or has returned; the calling coroutine
 * does not have the lock any more. -errno of co_run(): nothing has happened.
 */
int block_control_hand_over(co_entry *entry, void *arg);

/* Take the lock again if `held`, which block_control_pause() returned. Yields. */
void block_co_control_resume(bool held);

#endif
