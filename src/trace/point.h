/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The switch of one trace point. Code includes the generated "trace/events.h" instead, which has an
 * inline function trace_NAME() for each event of events.list.
 *
 *      byte  0         1         2       3
 *          [ semaphore         | sinks | 0 ]     one word: one comparison finds that nobody looks
 *
 * The kernel counts in `semaphore` who is attached to the event's USDT probe. A program that has
 * the probes therefore keeps its trace points in a section that comes from the file.
 */
#ifndef TIDEMARK_TRACE_POINT_H
#define TIDEMARK_TRACE_POINT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/* Where the lines of an event go. */
enum trace_sinks {
    /* To the ring of the thread. */
    TRACE_SINK_RING = 1 << 0,
    /* To the trace file, or standard error, and to the ring. */
    TRACE_SINK_OUTPUT = 1 << 1,
};

/* The table of a program's own symbols need not be asked where a trace point is. */
#define TRACE_POINT_VISIBILITY __attribute__((visibility("hidden")))

union trace_point {
    _Atomic uint32_t word;
    /* For readers. A plain load is one instruction with the comparison, an atomic one is three. */
    uint32_t word_now;
    struct {
        volatile uint16_t semaphore;
        _Atomic uint8_t sinks;
    };
};

/* The points of X_begin and X_end, side by side, for code that asks for both at once. */
union trace_pair {
    _Atomic uint64_t word;
    uint64_t word_now;
    union trace_point of[2];
};

/* Whether somebody looks at an event. Any thread; does not yield. */
static inline bool trace_point_is_on(union trace_point *point)
{
#ifdef __SANITIZE_THREAD__
    return __builtin_expect(atomic_load_explicit(&point->word, memory_order_relaxed) != 0, false);
#else
    return __builtin_expect(point->word_now != 0, false);
#endif
}

/* Whether somebody looks at one of two events. */
static inline bool trace_pair_is_on(union trace_pair *pair)
{
#ifdef __SANITIZE_THREAD__
    return __builtin_expect(atomic_load_explicit(&pair->word, memory_order_relaxed) != 0, false);
#else
    return __builtin_expect(pair->word_now != 0, false);
#endif
}

#endif
