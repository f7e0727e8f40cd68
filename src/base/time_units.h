/* SPDX-License-Identifier: Apache-2.0 */
/* Times and durations are int64_t counts of nanoseconds in the whole tree. None of these yields. */
#ifndef TIDEMARK_BASE_TIME_UNITS_H
#define TIDEMARK_BASE_TIME_UNITS_H

#include <stdint.h>
#include <time.h>

#define NS_PER_MS INT64_C(1000000)
#define NS_PER_SECOND INT64_C(1000000000)

/* The same time as the C library writes it. `ns` is not negative. */
static inline struct timespec ns_to_timespec(int64_t ns)
{
    return (struct timespec){.tv_sec = ns / NS_PER_SECOND, .tv_nsec = ns % NS_PER_SECOND};
}

/* The reverse. */
static inline int64_t ns_from_timespec(struct timespec ts)
{
    return ts.tv_sec * NS_PER_SECOND + ts.tv_nsec;
}

#endif
