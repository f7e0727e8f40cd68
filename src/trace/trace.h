/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tracing: which events are on, where their lines go, and the ring of the latest events.
 *
 *      trace_NAME(args)  --off-->  one branch
 *            | on
 *      USDT probe tidemark:NAME
 *            |
 *      a line  ---> ring of the thread ---> standard error, when a server crashes
 *            '----> trace file or standard error, for events that are enabled
 *
 * Events that are enabled go to the ring as well. In a process that called trace_crash_init(),
 * those that events.list marks `always` (connections, commands, changes of the graph: rare ones) go
 * there whether or not they are enabled. A line is
 *
 *      2026-11-28T22:33:09.123456Z THREAD EVENT ARGUMENT=VALUE ...
 *
 * Any thread; nothing here yields.
 */
#ifndef TIDEMARK_TRACE_TRACE_H
#define TIDEMARK_TRACE_TRACE_H

#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"

struct trace_event;

/* --- which events are on */

/* Whether `pattern` has a wildcard, and may so match any number of events, or none. */
bool trace_is_pattern(const char *pattern);

/*
 * The next event, by name, that matches `pattern`, after `event` (NULL: the first one). NULL: no
 * more.
 */
const struct trace_event *trace_next_event(const char *pattern, const struct trace_event *event);
const char *trace_event_name(const struct trace_event *event);
bool trace_event_is_enabled(const struct trace_event *event);
void trace_event_enable(const struct trace_event *event, bool enable);

/*
 * Enable the events that match, or disable them if the pattern begins with '-'. False: it names an
 * event that does not exist. A pattern with a wildcard may match nothing.
 */
bool trace_apply(const char *pattern);

/* --- where the lines go */

/*
 * Append the lines of enabled events to a file, which is made if it is absent, instead of standard
 * error. A named pipe loses lines when it is full. -errno; -ENXIO: nobody reads the pipe.
 */
int trace_open_file(const char *path, struct error *err);

/* --- threads */

/* Name the calling thread in its lines ("main", "io-1"). Cut to 15 characters. */
void trace_thread_begin(const char *name);

/*
 * For servers. Record from now on the events that are marked `always`, and write the rings to
 * standard error, and to the trace file if there is one, when a signal that says that the process
 * is broken (SIGABRT, SIGSEGV, SIGBUS, SIGFPE, SIGILL) ends it. From the main thread, before others
 * start. In a thread that called trace_thread_begin() afterwards this works even if its stack has
 * overflowed.
 */
void trace_crash_init(void);

#endif
