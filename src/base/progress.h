/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Progress of a long command, in one of several forms. Where none is shown, SIGUSR1 can ask for a
 * line. The caller guards the object; nothing yields.
 */
#ifndef TIDEMARK_BASE_PROGRESS_H
#define TIDEMARK_BASE_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

enum progress_form {
    /* Nothing is shown, except for a line on standard error that a signal asks for. */
    PROGRESS_NONE,
    /* "    (12.34/100%)" in place, for each percent: as qemu-img. */
    PROGRESS_PERCENT,
    /* "restore  [####....]  12.3%  1 MiB of 8 MiB  2 MiB/s  0:04 left" in place: for terminals. */
    PROGRESS_BAR,
    /* The same as a line at the half and at the end: for files. */
    PROGRESS_LINES,
    /*
     * {"progress": {"what": "restore", "done-bytes": 1, "total-bytes": 2}}, about every second and
     * at the end.
     */
    PROGRESS_JSON,
};

struct progress {
    enum progress_form form;
    FILE *stream;     /* borrowed */
    const char *what; /* name of the activity, without special characters; borrowed, may be NULL */
    uint64_t total;   /* bytes */
    uint64_t done;    /* bytes, at most `total` */
    int64_t begin_ns;
    int64_t drawn_ns; /* when it was shown last; 0: not yet */
    double shown;     /* percentage that was shown last */
};

/* From now on SIGUSR1 asks for a line, where none is shown, and does not end the process. */
void progress_listen(void);
/* Begin at 0 bytes of `total`. */
void progress_begin(struct progress *p, FILE *stream, enum progress_form form, const char *what,
                    uint64_t total);
/*
 * `bytes` more are done. What exceeds the total is not counted: compressed data may be larger than
 * estimated.
 */
void progress_add(struct progress *p, uint64_t bytes);
/* `done` bytes of `total` are done; both replace what was known. */
void progress_set(struct progress *p, uint64_t done, uint64_t total);
/* Show the last state (100%, if `complete`) and end the line. Does nothing the second time. */
void progress_end(struct progress *p, bool complete);

#endif
