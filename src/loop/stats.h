/* SPDX-License-Identifier: Apache-2.0 */
/* What each reactor counts about itself. Nothing here yields. */
#ifndef TIDEMARK_LOOP_STATS_H
#define TIDEMARK_LOOP_STATS_H

#include "base/counters.h"
#include "loop/loop.h"

enum reactor_stat {
    REACTOR_STAT_TURNS,
    REACTOR_STAT_SLEEPS,
    REACTOR_STAT_COROUTINES,
    REACTOR_STAT_LIVE,
    REACTOR_STAT_OFFLOADED,
    REACTOR_STAT_SUBMITTED,
    REACTOR_STAT_STALLS,
    REACTOR_STAT_HANGS,
    REACTOR_STATS
};

extern const struct stat_desc reactor_stats[];

/* Fill REACTOR_STATS values. Main reactor, where reactors come and go. */
void reactor_read_stats(const struct reactor *reactor, uint64_t *ret_values);
/* "main", or the name that it was created with. */
const char *reactor_name(const struct reactor *reactor);

#endif
