/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ordering bugs planted into the log of the record disks, as if the program had made them. The
 * explorer has to find each.
 *
 *   drop-flush    every third flush returns success without any effect
 *   inner-flush   only flushes that end a guest's flush or a session have an effect: the barriers
 *                 between metadata writes are missing
 *   hoist         metadata writes are sent before the flush that they have to wait for
 *   data-flush    the external data file is never flushed
 *   base-flush    the backing file is never flushed: an image is emptied before its contents are on
 *                 stable storage there
 *   other-flush   of a chain, only the image that users have is flushed: jobs end, and images
 *                 get overlays, before what they wrote is on stable storage
 *   second-flush  no flush has an effect once an image is opened after a crash
 *   late-mark     writes of the header are not waited for: the next flush does not cover them
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
