/* SPDX-License-Identifier: Apache-2.0 */
/* Which events are on. */
#include "trace/trace.h"

#include <string.h>

#include "base/wildcard.h"
#include "trace/internal.h"

bool trace_is_pattern(const char *pattern)
{
    return strchr(pattern, '*') || strchr(pattern, '?');
}

const struct trace_event *trace_next_event(const char *pattern, const struct trace_event *event)
{
    const struct trace_event *const *at = trace_events;

    while (event && *at && strcmp((*at)->name, event->name) <= 0) {
        at++;
    }
    while (*at && !wildcard_matches(pattern, (*at)->name)) {
        at++;
    }
    return *at;
}

const char *trace_event_name(const struct trace_event *event)
{
    return event->name;
}

bool trace_event_is_enabled(const struct trace_event *event)
{
    return atomic_load(&event->point->sinks) & TRACE_SINK_OUTPUT;
}

void trace_event_enable(const struct trace_event *event, bool enable)
{
    if (enable) {
        atomic_fetch_or(&event->point->sinks, TRACE_SINK_OUTPUT);
    } else {
        atomic_fetch_and(&event->point->sinks, (uint8_t)~TRACE_SINK_OUTPUT);
    }
}

bool trace_apply(const char *pattern)
{
    bool enable = pattern[0] != '-';
    const struct trace_event *event;
    bool found = false;

    if (!enable) {
        pattern++;
    }
    for (event = NULL; (event = trace_next_event(pattern, event));) {
        trace_event_enable(event, enable);
        found = true;
    }
    return found || trace_is_pattern(pattern);
}
