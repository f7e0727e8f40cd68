/* SPDX-License-Identifier: Apache-2.0 */
#include "co/stall.h"

#include <time.h>

#include "trace/events.h"

/* Where the program is in memory; the linker defines these. */
extern const char __executable_start[];

int64_t co_stall_clock(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

void co_stall_check(int64_t since, const char *kind, const void *object, const void *caller)
{
    int64_t ms = co_stall_clock() - since;

    if (ms >= CO_STALL_MS) {
        trace_co_stall(kind, object, (uintptr_t)caller - (uintptr_t)__executable_start,
                       (uint64_t)ms);
    }
}
