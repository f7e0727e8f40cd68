/* SPDX-License-Identifier: Apache-2.0 */
#include "co/stall.h"

#include "base/time_units.h"
#include "co/internal.h"
#include "trace/events.h"

/* Where the program is in memory; the linker defines these. */
extern const char __executable_start[];

int64_t co_stall_clock(void)
{
    return co_stall_now(co_running());
}

void co_stall_check(int64_t since, const char *kind, const void *object, const void *caller)
{
    int64_t ms = (co_stall_clock() - since) / NS_PER_MS;

    if (ms >= CO_STALL_MS) {
        trace_co_stall(kind, object, (uintptr_t)caller - (uintptr_t)__executable_start,
                       (uint64_t)ms);
    }
}
