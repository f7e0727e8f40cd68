/* SPDX-License-Identifier: Apache-2.0 */
#include "base/log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <unistd.h>

#include "base/checked.h"

static _Atomic enum log_level log_threshold = LOG_LEVEL_WARNING;
static const char *_Atomic log_program = "tidemark";

void log_set_level(enum log_level level)
{
    atomic_store(&log_threshold, level);
}

void log_set_program(const char *name)
{
    atomic_store(&log_program, name);
}

void log_print(enum log_level level, const char *fmt, ...)
{
    static const char *const prefix[] = {"", "warning: ", "", "debug: "};
    char line[2048];
    va_list ap;
    int n, m;

    if (level > atomic_load(&log_threshold)) {
        return;
    }
    n = snprintf(line, sizeof(line), "%s: %s", atomic_load(&log_program), prefix[level]);
    va_start(ap, fmt);
    m = vsnprintf(line + n, sizeof(line) - (size_t)n - 1, fmt, ap);
    va_end(ap);
    if (m < 0) {
        return;
    }
    n = MIN(n + m, (int)sizeof(line) - 2);
    line[n++] = '\n';
    if (write(STDERR_FILENO, line, (size_t)n) < 0) {
        return; /* there is no other place to report it */
    }
}
