/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The control lock: held by whoever works with nodes, bitmaps and exports that were looked up by
 * name, from the look-up to the last use, and by whoever may give the last reference to such a
 * thing back. So nothing vanishes under a command. The outermost lock: before drains and the graph
 * lock.
 *
 * What can take long (opening, closing, waiting for clients) pauses it; what is to be used
 * afterwards is referenced, or looked up again. Main reactor, in a coroutine. Programs of one flow,
 * such as `img`, need not take it.
 */
#ifndef TIDEMARK_BLOCK_CONTROL_LOCK_H
#define TIDEMARK_BLOCK_CONTROL_LOCK_H

#include <stdbool.h>

/* Yields. Not recursive. */
void block_co_control_lock(void);
/* Doesn't yield. */
void block_control_unlock(void);

/* Unlock if this coroutine has it; to be handed to the resume. Doesn't yield. */
bool block_control_pause(void);
/* Yields. */
void block_co_control_resume(bool held);

#endif
