/* SPDX-License-Identifier: Apache-2.0 */
/* What the commands that start jobs share. Nothing here yields. */
#ifndef TIDEMARK_QMP_JOBS_H
#define TIDEMARK_QMP_JOBS_H

#include <json-c/json.h>
#include <stdint.h>

#include "base/error.h"
#include "job/job.h"

struct block_node;

/*
 * The arguments that all of them have: job-id (by default the name of the device that uses the
 * node `device`), speed, auto-finalize, auto-dismiss; and the transaction that runs. Strings are
 * borrowed from `args`. A negative speed is left to job_new().
 */
int qmp_get_job_config(struct json_object *args, struct job_config *ret_config, struct error *err);
/*
 * -EPERM if `node`, on which the job's filter is to be put, is handed over to another process. The
 * filter has the name filter-node-name, and calls its child `child`.
 */
int qmp_check_job_node_active(const struct block_node *node, const char *child,
                              struct json_object *args, struct error *err);
/* The member `speed`, 0 if there is none. -EINVAL: negative. */
int qmp_get_speed(struct json_object *args, uint64_t *ret_speed, struct error *err);
/* A member that is a BlockdevOnError; "report" if there is none. */
enum job_on_error qmp_get_on_error(struct json_object *args, const char *name);

/*
 * Jobs that the running action makes end together with these; NULL: alone. Borrowed; in the step
 * co_prepare of an action.
 */
struct job_txn *qmp_transaction_jobs(void);
/* Set that, for the time in which actions are prepared: one transaction at a time does so. */
void qmp_set_transaction_jobs(struct job_txn *jobs);

/* Members that query-block-jobs and the events have in common: a new reference. */
struct json_object *qmp_block_job_json(const struct job_info *info);

/* Send the events of jobs to clients. Once, at start. */
void qmp_subscribe_jobs(void);

#endif
