/* SPDX-License-Identifier: Apache-2.0 */
/* The line of an event, and where it goes. */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/log.h"
#include "trace/internal.h"
#include "trace/trace.h"

/* "2026-11-28T22:33:09" */
#define SECOND_LENGTH 19

/* -1: lines go to standard error. Set once, before other threads start. */
static int file = -1;

int trace_open_file(const char *path, struct error *err)
{
    /* A pipe loses lines when it is full, rather than hold up what is traced. */
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NONBLOCK, 0644);

    if (fd < 0 && errno == ENXIO) {
        return error_set(err, ENXIO,
                         "Could not open trace file '%s': it is a pipe without a reader, "
                         "or a socket",
                         path);
    }
    if (fd < 0) {
        return error_set_errno(err, errno, "Could not open trace file '%s'", path);
    }
    if (file >= 0) {
        close(file);
    }
    file = fd;
    return 0;
}

void trace_write_to_file(const char *line, size_t size)
{
    if (file >= 0 && write(file, line, size) < 0) {
        return; /* a trace that can't be written must not disturb what is traced */
    }
}

/*
 * The start of a line, up to the fraction of the second. gmtime_r() takes a lock: threads remember
 * the latest second.
 */
static void put_second(char *to, time_t second)
{
    static __thread char text[SECOND_LENGTH + 1];
    static __thread time_t known;

    if (second != known) {
        struct tm tm;

        gmtime_r(&second, &tm);
        strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%S", &tm);
        known = second;
    }
    memcpy(to, text, SECOND_LENGTH);
}

/* "2026-11-28T22:33:09.123456Z THREAD EVENT". Returns its length. */
static size_t put_head(char *line, const struct timespec *now, const char *event)
{
    long us = now->tv_nsec / 1000;
    size_t size = SECOND_LENGTH;
    char *end;

    put_second(line, now->tv_sec);
    line[size] = '.';
    for (size_t digit = 6; digit > 0; digit--, us /= 10) {
        line[size + digit] = (char)('0' + us % 10);
    }
    /* Names are short: there is room for them. */
    end = stpcpy(line + size + 7, "Z ");
    end = stpcpy(stpcpy(stpcpy(end, trace_thread_name()), " "), event);
    return (size_t)(end - line);
}

void trace_emit(const struct trace_event *event, const char *format, ...)
{
    uint8_t sinks = atomic_load_explicit(&event->point->sinks, memory_order_relaxed);
    char line[TRACE_LINE_MAX];
    const size_t room = sizeof(line) - 1; /* for the newline */
    int saved_errno = errno;
    struct timespec now;
    size_t size;
    va_list ap;
    int n;

    if (!sinks) {
        return; /* only the USDT probe is looked at */
    }
    clock_gettime(CLOCK_REALTIME, &now);
    size = put_head(line, &now, event->name);
    va_start(ap, format);
    n = vsnprintf(line + size, room - size, format, ap);
    va_end(ap);
    size += n < 0 ? 0 : MIN((size_t)n, room - size - 1);
    line[size++] = '\n';
    trace_ring_add((uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000, line, size);
    if (sinks & TRACE_SINK_OUTPUT && file >= 0) {
        trace_write_to_file(line, size);
    } else if (sinks & TRACE_SINK_OUTPUT) {
        log_write(LOG_LEVEL_DEBUG, line, size);
    }
    errno = saved_errno;
}
