/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ordering bugs planted into the log of a record disk, as if the program had made them. The explorer has to find each.
 *
 *   drop-flush    every third flush is answered without doing anything
 *   inner-flush   only flushes that end a guest's flush or a session count: the barriers between metadata writes are missing
 *   hoist         metadata writes are sent before the flush that they had to wait for
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
