/* SPDX-License-Identifier: Apache-2.0 */
#include "loop/stats.h"

#include "loop/internal.h"

const struct stat_desc reactor_stats[] = {
    [REACTOR_STAT_TURNS] = {"turns", "Turns of the event loop", STAT_COUNTER, STAT_COUNT},
    [REACTOR_STAT_SLEEPS] = {"wakeups", "Times that the reactor slept and was woken", STAT_COUNTER,
                             STAT_COUNT},
    [REACTOR_STAT_POLLED] = {"polled", "Times that the reactor found work before it slept",
                             STAT_COUNTER, STAT_COUNT},
    [REACTOR_STAT_COROUTINES] = {"coroutines_started", "Coroutines started on the reactor",
                                 STAT_COUNTER, STAT_COUNT},
    [REACTOR_STAT_LIVE] = {"coroutines", "Coroutines that have not ended", STAT_GAUGE, STAT_COUNT},
    [REACTOR_STAT_OFFLOADED] = {"offloaded", "Jobs given to the thread pool", STAT_COUNTER,
                                STAT_COUNT},
    [REACTOR_STAT_SUBMITTED] = {"submitted",
                                "File operations submitted to io_uring or to threads, rather than "
                                "made on the spot",
                                STAT_COUNTER, STAT_COUNT},
    [REACTOR_STAT_STALLS] = {"stalls", "Writes to the page cache that stalled the reactor",
                             STAT_COUNTER, STAT_COUNT},
    [REACTOR_STAT_HANGS] = {"hangs", "Writes that hung and cost the reactor its thread",
                            STAT_COUNTER, STAT_COUNT},
    [REACTOR_STATS] = {.name = NULL},
};

void reactor_read_stats(const struct reactor *reactor, uint64_t *ret_values)
{
    const struct co_home *home = &reactor->home;
    uint64_t ended = counter_read(&home->ended);
    uint64_t started = atomic_load(&home->spawned) + counter_read(&home->run);

    for (unsigned i = 0; i < REACTOR_STATS; i++) {
        ret_values[i] = counter_read(&reactor->stats[i]);
    }
    ret_values[REACTOR_STAT_COROUTINES] = started;
    ret_values[REACTOR_STAT_LIVE] = started > ended ? started - ended : 0;
}

const char *reactor_name(const struct reactor *reactor)
{
    return reactor->index == 0 ? "main" : reactor->name;
}
