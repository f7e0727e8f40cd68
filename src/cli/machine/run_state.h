/* SPDX-License-Identifier: Apache-2.0 */
/* Whether a guest would run: -S, stop, cont and query-status. Main reactor only. */
#ifndef TIDEMARK_CLI_MACHINE_RUN_STATE_H
#define TIDEMARK_CLI_MACHINE_RUN_STATE_H

#include <stdbool.h>

/* -S: no guest runs in the beginning. Does not yield. */
void machine_start_stopped(void);
/* Whether -S was given. Does not yield. */
bool machine_starts_stopped(void);
/* Whether a guest would run now. Does not yield. */
bool machine_is_running(void);
/*
 * Change the state, one of QEMU's RunState, a literal. An event tells if the machine begins or
 * ceases to run. Does not yield.
 */
void machine_set_run_state(const char *state);

#endif
