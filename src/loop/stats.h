/* SPDX-License-Identifier: Apache-2.0 */
/* Counters that each reactor keeps about itself. None of these functions yields. */
#ifndef TIDEMARK_LOOP_STATS_H
#define TIDEMARK_LOOP_STATS_H

#include "base/counters.h"
#include "loop/loop.h"

enum reactor_stat {
    REACTOR_STAT_TURNS,
    REACTOR_STAT_SLEEPS,
    REACTOR_STAT_POLLED,
    REACTOR_STAT_COROUTINES,
    REACTOR_STAT_LIVE,
    REACTOR_STAT_OFFLOADED,
    REACTOR_STAT_SUBMITTED,
    REACTOR_STAT_STALLS,
    REACTOR_STAT_HANGS,
    REACTOR_STATS
};

/* The descriptions of the counters, in the order of enum reactor_stat. */
extern const struct stat_desc reactor_stats[];

/* Fill REACTOR_STATS values. On the main reactor, where reactors are created and destroyed. */
void reactor_read_stats(const struct reactor *reactor, uint64_t *ret_values);

/* "main", or the name given to reactor_create(). */
const char *reactor_name(const struct reactor *reactor);

#endif
