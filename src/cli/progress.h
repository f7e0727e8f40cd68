/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Progress of a long command on standard output: qemu-img's "(12.34/100%)" lines, or a bar with rate and time left when
 * run under our own name on a terminal. Where that is not wanted, SIGUSR1 asks for such a line on standard error. Does not yield.
 */
#ifndef TIDEMARK_CLI_PROGRESS_H
#define TIDEMARK_CLI_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

struct cli_progress {
    bool enabled;
    bool bar;
    uint64_t total, done; /* bytes */
    double shown;         /* per cent at the last line; negative: none yet */
    int64_t begin_ns, drawn_ns;
};

/* From now on SIGUSR1 asks for a line, and does not end the process. */
void cli_progress_listen(void);
/* Begin at 0; with `wanted` false a line is printed only when a signal asks for it. */
void cli_progress_begin(struct cli_progress *p, bool wanted, uint64_t total);
/* So many bytes more are done. */
void cli_progress_add(struct cli_progress *p, uint64_t bytes);
/* So much of so much is done. */
void cli_progress_set(struct cli_progress *p, uint64_t done, uint64_t total);
/* End the line; `complete` shows 100% first. */
void cli_progress_end(struct cli_progress *p, bool complete);

#endif
