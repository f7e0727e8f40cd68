/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ordering bugs planted into the log of the record disks, as if the program had made them. The explorer has to find each.
 *
 *   drop-flush    every third flush is answered without doing anything
 *   inner-flush   only flushes that end a guest's flush or a session count: the barriers between metadata writes are missing
 *   hoist         metadata writes are sent before the flush that they had to wait for
 *   data-flush    the external data file is never flushed
 *   base-flush    the backing file is never flushed, so an image is emptied before what it held is stable there
 *   second-flush  nothing is flushed any more once an image is opened after a crash
 *   late-mark     nobody waits for writes of the header: the next flush does not cover them
 */
#ifndef TIDEMARK_TESTS_PLANTED_H
#define TIDEMARK_TESTS_PLANTED_H

#include <stdbool.h>

#include "workload.h"

/* False if there is no bug of that name. */
bool planted_apply(struct workload *w, const char *name);
/* Names, ending with NULL. */
extern const char *const planted_names[];

#endif
