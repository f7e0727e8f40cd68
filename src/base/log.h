/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Log lines on standard error, for daemons. Never called on the hot path of a request. A line is
 * written with one write(), so lines of several threads don't mix. Does not yield.
 */
#ifndef TIDEMARK_BASE_LOG_H
#define TIDEMARK_BASE_LOG_H

enum log_level { LOG_LEVEL_ERROR, LOG_LEVEL_WARNING, LOG_LEVEL_INFO, LOG_LEVEL_DEBUG };

/* The least important level that is printed; starts at LOG_LEVEL_WARNING. */
void log_set_level(enum log_level level);

/* Put before each line, as "tidemark: "; `name` is borrowed for the life of the process. */
void log_set_program(const char *name);

void log_print(enum log_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#define log_error(...) log_print(LOG_LEVEL_ERROR, __VA_ARGS__)
#define log_warning(...) log_print(LOG_LEVEL_WARNING, __VA_ARGS__)
#define log_info(...) log_print(LOG_LEVEL_INFO, __VA_ARGS__)
#define log_debug(...) log_print(LOG_LEVEL_DEBUG, __VA_ARGS__)

#endif
