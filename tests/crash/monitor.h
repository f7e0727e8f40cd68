/* SPDX-License-Identifier: Apache-2.0 */
/* Commands of the monitor, within the process, and waiting for jobs. */
#ifndef TIDEMARK_TESTS_MONITOR_H
#define TIDEMARK_TESTS_MONITOR_H

#include <stdbool.h>

#include "base/error.h"

/* Notice how jobs end. Once, at start. */
void monitor_init(void);

/*
 * Run a command; its arguments are JSON without the outer braces. An error is an error of the test.
 * Takes the control lock. Main reactor, in a coroutine; yields.
 */
int monitor_co_run(struct error *err, const char *command, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* The job of that name: all commands of tests use this one. */
#define MONITOR_JOB "job"
/*
 * Let others run `turns` times, or as long as it takes until the job is gone, or ready. Whether it
 * is there still. Yields.
 */
bool monitor_co_wait_job(unsigned turns, bool until_ready);
/* 0, or the error of the last job that ended; a cancel is none. */
int monitor_job_result(struct error *err);

#endif
