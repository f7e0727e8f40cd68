/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The job "commit" of an image in use: a mirror to an image below it in its backing chain, which
 * gets its users when the job is completed (job/mirror.h), and its bitmaps.
 *
 * Main reactor. `co_` functions run in a coroutine and yield.
 */
#ifndef TIDEMARK_JOB_COMMIT_ACTIVE_H
#define TIDEMARK_JOB_COMMIT_ACTIVE_H

#include "job/commit.h"

/*
 * Start the job. The control lock is held. `params` has no `backing_file`. Errors of
 * mirror_co_start(); -EACCES.
 */
int commit_active_co_start(const struct commit_params *params, const struct job_config *config,
                           struct error *err);

#endif
