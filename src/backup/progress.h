/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A progress bar on standard error: share done, bytes, rate, time left. On a terminal it is redrawn in place, else (when
 * asked for all the same) a line is printed now and then. One thread; nothing yields.
 */
#ifndef TIDEMARK_BACKUP_PROGRESS_H
#define TIDEMARK_BACKUP_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

struct progress {
    const char *what;     /* borrowed: "backup", "restore" */
    uint64_t total, done; /* bytes */
    int64_t started_ns, drawn_ns;
    bool enabled, terminal;
    int decile; /* last printed, where it is no terminal */
};

/* `forced`: also where standard error is no terminal. */
void progress_begin(struct progress *p, const char *what, uint64_t total, bool forced);
void progress_add(struct progress *p, uint64_t bytes);
/* Draw the last state and end the line. */
void progress_end(struct progress *p, bool complete);

#endif
