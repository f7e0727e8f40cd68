/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A progress bar on standard error: share done, bytes, rate, time left. On a terminal it is redrawn in place, else (when
 * asked for all the same) a line is printed now and then. For programs it is an object a line, about every second, and at
 * the end: {"progress": {"what": "restore", "done-bytes": 1, "total-bytes": 2}}. One thread; nothing yields.
 */
#ifndef TIDEMARK_BACKUP_PROGRESS_H
#define TIDEMARK_BACKUP_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

enum progress_mode {
    PROGRESS_AUTO,  /* where standard error is a terminal */
    PROGRESS_SHOWN, /* in any case */
    PROGRESS_JSON,
};

struct progress {
    const char *what;     /* borrowed: "backup", "restore" */
    uint64_t total, done; /* bytes */
    int64_t started_ns, drawn_ns;
    bool enabled, terminal, json;
    int decile; /* last printed, where it is no terminal */
};

void progress_begin(struct progress *p, const char *what, uint64_t total, enum progress_mode mode);
void progress_add(struct progress *p, uint64_t bytes);
/* Draw the last state and end the line. */
void progress_end(struct progress *p, bool complete);

#endif
