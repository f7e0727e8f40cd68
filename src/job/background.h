/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where jobs read and write: on reactors of their own, which give way to those of guests. So a job
 * takes the processor time that guests leave, and a tenth of it if they leave none, and commands do
 * not wait for its copies. The rest of a job stays on the main reactor.
 *
 * What takes a lock of guests' requests takes it there: it is not held while the work waits for its
 * turn.
 */
#ifndef TIDEMARK_JOB_BACKGROUND_H
#define TIDEMARK_JOB_BACKGROUND_H

#include "co/co.h"

/*
 * Run `entry(arg)` in the calling coroutine, on one of these reactors, and return on the main one.
 * In programs that serve nobody else, and without descriptors for another reactor: on the main one.
 * On the main reactor. Yields.
 */
void job_co_in_background(co_entry *entry, void *arg);

#endif
