/* SPDX-License-Identifier: Apache-2.0 */
/* The clock of the machine, and qtest, by which a test moves it. Main reactor only. */
#ifndef TIDEMARK_CLI_MACHINE_CLOCK_H
#define TIDEMARK_CLI_MACHINE_CLOCK_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

struct chardev;

/* -accel qtest: the clock stands at 0 until a test moves it. Once, at start. Does not yield. */
void machine_clock_use_steps(void);
/* Whether it does. Does not yield. */
bool machine_clock_is_stepped(void);
/* Nanoseconds. Does not yield. */
int64_t machine_clock_ns(void);
/* The machine runs from now on; and for how long it has run, in nanoseconds. Neither yields. */
void machine_clock_start(void);
int64_t machine_clock_uptime_ns(void);

/*
 * Around a command of a monitor that returns when its I/O has ended. If that waits for a limit on a
 * stepped clock, whoever steps the clock may wait for the answer: so the clock moves with the time
 * meanwhile. Neither yields.
 */
void machine_clock_command_begins(void);
void machine_clock_command_ends(void);

/*
 * Serve qtest on a connected, non-blocking socket `fd`, which is consumed also on failure. A line
 * is a command: clock_step, clock_set; others have no hardware to act on, and are refused. -EAGAIN
 * and -ENOMEM of co_spawn(). Does not yield.
 */
int machine_qtest_start(int fd, struct chardev *chardev, struct error *err);

/* The machine ends. Does not yield. */
void machine_qtest_end(void);

#endif
