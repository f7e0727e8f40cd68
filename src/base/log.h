/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Log lines on standard error. Never called on the hot path of a request. A line is written with
 * one write(), so lines of several threads don't mix. None of these functions yields.
 *
 *   level    the message is about                      examples
 *   error    a failure of a request, or of something   an image accepts no more writes;
 *            that other programs rely on               a client can't be served
 *   warning  an unexpected state; work continues       a bitmap is inconsistent;
 *                                                      a server broke the protocol
 *   notice   a rare event in normal operation          a connection is lost and comes back;
 *                                                      an image is repaired
 *   info     what an administrator follows             a client connects or disconnects;
 *                                                      an export is deleted
 *   debug    what a developer follows                  why io_uring is not used;
 *                                                      the text of a server's error
 *
 * Standard error may be the journal of systemd ($JOURNAL_STREAM names its device and inode): a line
 * then begins with the priority of its level, as in sd-daemon(3): <3>, <4>, <5>, <6>, <7>.
 */
#ifndef TIDEMARK_BASE_LOG_H
#define TIDEMARK_BASE_LOG_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>

enum log_level {
    LOG_LEVEL_ERROR,
    LOG_LEVEL_WARNING,
    LOG_LEVEL_NOTICE,
    LOG_LEVEL_INFO,
    LOG_LEVEL_DEBUG,
};

/* The least important level that is printed; starts at LOG_LEVEL_WARNING. */
void log_set_level(enum log_level level);

/* Whether the process serves others. From the main thread, before others start; off at first. */
void log_set_server(bool server);

/* "error", "warning", "info" or "debug". False: `name` is none of them. */
bool log_level_parse(const char *name, enum log_level *ret_level);

/*
 * Put before each line, as "tidemark: "; `name` is borrowed for the life of the process. Finds out
 * whether standard error is the journal, too: from the main thread, before others start.
 */
void log_set_program(const char *name);

/*
 * A line at a level, if that is printed: "PROGRAM: MESSAGE"; "PROGRAM: warning: MESSAGE";
 * "PROGRAM: debug: MESSAGE". Control characters but line ends and tabs are shown as question marks.
 */
void log_print(enum log_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void log_vprint(enum log_level level, const char *fmt, va_list ap)
    __attribute__((format(printf, 2, 0)));

/*
 * A message without the program and the word before it: what a tool reports of its work ("Leaked
 * cluster 5 ..."), in words that others compare.
 */
void log_report(enum log_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void log_vreport(enum log_level level, const char *fmt, va_list ap)
    __attribute__((format(printf, 2, 0)));

/* Write whole lines as they are, whatever level is printed. Async-signal-safe. */
void log_write(enum log_level level, const char *lines, size_t size);

/*
 * A failure that a tool reports at its end anyway, but that only the log of a server reports: an
 * error in a server, a notice in a tool.
 */
void log_server_error(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

#define log_error(...) log_print(LOG_LEVEL_ERROR, __VA_ARGS__)
#define log_warning(...) log_print(LOG_LEVEL_WARNING, __VA_ARGS__)
#define log_notice(...) log_print(LOG_LEVEL_NOTICE, __VA_ARGS__)
#define log_info(...) log_print(LOG_LEVEL_INFO, __VA_ARGS__)
#define log_debug(...) log_print(LOG_LEVEL_DEBUG, __VA_ARGS__)

#endif
