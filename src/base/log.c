/* SPDX-License-Identifier: Apache-2.0 */
#include "base/log.h"

#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/cleanup.h"

/* Longer messages take memory from the heap. */
#define LINE_MAX_ON_STACK 1024

static const struct {
    const char *name;
    const char *priority; /* for the journal */
    const char *word;     /* before the message */
} levels[] = {
    [LOG_LEVEL_ERROR] = {"error", "<3>", ""},
    [LOG_LEVEL_WARNING] = {"warning", "<4>", "warning: "},
    [LOG_LEVEL_NOTICE] = {"notice", "<5>", ""},
    [LOG_LEVEL_INFO] = {"info", "<6>", ""},
    [LOG_LEVEL_DEBUG] = {"debug", "<7>", "debug: "},
};

static _Atomic enum log_level log_threshold = LOG_LEVEL_WARNING;
static const char *_Atomic log_program = "tidemark";
static atomic_bool to_journal;
static atomic_bool is_server;

void log_set_level(enum log_level level)
{
    atomic_store(&log_threshold, level);
}

void log_set_server(bool server)
{
    atomic_store(&is_server, server);
}

static bool is_printed(enum log_level level)
{
    return level <= atomic_load(&log_threshold);
}

bool log_level_parse(const char *name, enum log_level *ret_level)
{
    for (size_t i = 0; i < ARRAY_SIZE(levels); i++) {
        if (strcmp(levels[i].name, name) == 0) {
            *ret_level = (enum log_level)i;
            return true;
        }
    }
    return false;
}

static bool stderr_is_journal(void)
{
    const char *stream = getenv("JOURNAL_STREAM");
    char own[48];
    struct stat st;

    if (!stream || fstat(STDERR_FILENO, &st) < 0) {
        return false;
    }
    snprintf(own, sizeof(own), "%ju:%ju", (uintmax_t)st.st_dev, (uintmax_t)st.st_ino);
    return strcmp(stream, own) == 0;
}

void log_set_program(const char *name)
{
    atomic_store(&log_program, name);
    atomic_store(&to_journal, stderr_is_journal());
}

void log_write(enum log_level level, const char *lines, size_t size)
{
    struct iovec parts[] = {
        {.iov_base = (char *)(uintptr_t)levels[level].priority, .iov_len = 3},
        {.iov_base = (char *)(uintptr_t)lines, .iov_len = size},
    };
    ssize_t written = atomic_load(&to_journal) ? writev(STDERR_FILENO, parts, 2)
                                               : write(STDERR_FILENO, lines, size);

    if (written < 0) {
        return; /* there is no other place to report that to */
    }
}

/*
 * Names in messages come from images and servers, and could command a terminal: control characters
 * become question marks, those of Unicode (C2 80 to C2 9F), too. Messages have lines and tabs.
 */
static void hide_controls(char *text, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        unsigned char c = (unsigned char)text[i];

        if ((c < 0x20 && c != '\n' && c != '\t') || c == 0x7f) {
            text[i] = '?';
        } else if (c == 0xc2 && i + 1 < size && (unsigned char)text[i + 1] >= 0x80 &&
                   (unsigned char)text[i + 1] < 0xa0) {
            text[i] = text[i + 1] = '?';
        }
    }
}

/* A line with `head`, of at most LINE_MAX_ON_STACK / 2 bytes, before the message. */
__attribute__((format(printf, 3, 0))) static void print_line(enum log_level level, const char *head,
                                                             const char *fmt, va_list ap)
{
    char on_stack[LINE_MAX_ON_STACK], *line = on_stack;
    AUTO_FREE char *on_heap = NULL;
    size_t room = sizeof(on_stack), head_size = strlen(head);
    va_list again;
    int body;

    va_copy(again, ap);
    memcpy(line, head, head_size);
    body = vsnprintf(line + head_size, room - head_size, fmt, ap);
    if (body >= 0 && head_size + (size_t)body + 1 >= room) {
        /* Without memory it is cut. */
        on_heap = malloc(head_size + (size_t)body + 2);
        if (on_heap) {
            room = head_size + (size_t)body + 2;
            line = on_heap;
            memcpy(line, head, head_size);
            vsnprintf(line + head_size, room - head_size, fmt, again);
        }
    }
    va_end(again);
    if (body >= 0) {
        size_t size = MIN(head_size + (size_t)body, room - 2);

        hide_controls(line, size);
        line[size++] = '\n';
        log_write(level, line, size);
    }
}

void log_vprint(enum log_level level, const char *fmt, va_list ap)
{
    char head[LINE_MAX_ON_STACK / 2];

    if (is_printed(level)) {
        snprintf(head, sizeof(head), "%s: %s", atomic_load(&log_program), levels[level].word);
        print_line(level, head, fmt, ap);
    }
}

void log_print(enum log_level level, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    log_vprint(level, fmt, ap);
    va_end(ap);
}

void log_server_error(const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    log_vprint(atomic_load(&is_server) ? LOG_LEVEL_ERROR : LOG_LEVEL_NOTICE, fmt, ap);
    va_end(ap);
}

void log_vreport(enum log_level level, const char *fmt, va_list ap)
{
    if (is_printed(level)) {
        print_line(level, "", fmt, ap);
    }
}

void log_report(enum log_level level, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    log_vreport(level, fmt, ap);
    va_end(ap);
}
