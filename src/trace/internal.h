/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of the layer and the generated events.c share. None of this yields. */
#ifndef TIDEMARK_TRACE_INTERNAL_H
#define TIDEMARK_TRACE_INTERNAL_H

#include <stddef.h>

#include "trace/point.h"

#ifdef TRACE_HAS_SDT
#define _SDT_HAS_SEMAPHORES 1
#include <sys/sdt.h>
#define TRACE_POINT_SECTION __attribute__((section(".probes")))
#define TRACE_PROBE0(event) STAP_PROBE(tidemark, event)
#define TRACE_PROBE1(event, ...) STAP_PROBE1(tidemark, event, __VA_ARGS__)
#define TRACE_PROBE2(event, ...) STAP_PROBE2(tidemark, event, __VA_ARGS__)
#define TRACE_PROBE3(event, ...) STAP_PROBE3(tidemark, event, __VA_ARGS__)
#define TRACE_PROBE4(event, ...) STAP_PROBE4(tidemark, event, __VA_ARGS__)
#define TRACE_PROBE5(event, ...) STAP_PROBE5(tidemark, event, __VA_ARGS__)
#define TRACE_PROBE6(event, ...) STAP_PROBE6(tidemark, event, __VA_ARGS__)
#define TRACE_PROBE7(event, ...) STAP_PROBE7(tidemark, event, __VA_ARGS__)
#define TRACE_PROBE8(event, ...) STAP_PROBE8(tidemark, event, __VA_ARGS__)
#else
#define TRACE_POINT_SECTION
#define TRACE_PROBE0(event)
#define TRACE_PROBE1(event, ...)
#define TRACE_PROBE2(event, ...)
#define TRACE_PROBE3(event, ...)
#define TRACE_PROBE4(event, ...)
#define TRACE_PROBE5(event, ...)
#define TRACE_PROBE6(event, ...)
#define TRACE_PROBE7(event, ...)
#define TRACE_PROBE8(event, ...)
#endif

/* The trace points of X_begin and X_end, as symbols of their own: USDT probes name them. */
#define TRACE_PAIR(x)                                                                              \
    union trace_pair tidemark_##x##_pair TRACE_POINT_SECTION = {0};                                \
    __asm__(".globl tidemark_" #x "_begin_semaphore\n"                                             \
            ".hidden tidemark_" #x "_begin_semaphore\n"                                            \
            ".set tidemark_" #x "_begin_semaphore, tidemark_" #x "_pair\n"                         \
            ".globl tidemark_" #x "_end_semaphore\n"                                               \
            ".hidden tidemark_" #x "_end_semaphore\n"                                              \
            ".set tidemark_" #x "_end_semaphore, tidemark_" #x "_pair + 4")

struct trace_event {
    const char *name;
    union trace_point *point;
    bool always; /* recorded in a process that writes its rings when it crashes */
};

/* Generated: all events by name; NULL ends the array. */
extern const struct trace_event *const trace_events[];

/* Longest line of an event with its newline, in bytes; a longer one is cut. */
#define TRACE_LINE_MAX 1024

/* --- ring.c --- */

/*
 * Keep a line, with its newline, in the ring of the calling thread; `now_us` orders it. Long ones
 * are cut.
 */
void trace_ring_add(uint64_t now_us, const char *line, size_t size);

/* Call `fn` with the lines of all rings, oldest first. Async-signal-safe if `fn` is. */
void trace_ring_each(void (*fn)(const char *line, size_t size));

/* The name that trace_thread_begin() gave to the calling thread. */
const char *trace_thread_name(void);

/* --- output.c --- */

/* A line for an event, to its sinks. `format` begins with the space after the name. Keeps errno. */
void trace_emit(const struct trace_event *event, const char *format, ...)
    __attribute__((format(printf, 2, 3), cold));

/* Write lines to the trace file, if there is one. Async-signal-safe. */
void trace_write_to_file(const char *line, size_t size);

#endif
