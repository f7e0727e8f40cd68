/* SPDX-License-Identifier: Apache-2.0 */
/* What the commands that start jobs share: arguments, the transaction, parts of answers. */
#include <errno.h>
#include <string.h>

#include "base/cleanup.h"
#include "block/device.h"
#include "block/hand_over.h"
#include "block/node.h"
#include "qmp/answer.h"
#include "qmp/jobs.h"
#include "qmp/schema.h"

static struct job_txn *jobs_now;

void qmp_set_transaction_jobs(struct job_txn *jobs)
{
    jobs_now = jobs;
}

struct job_txn *qmp_transaction_jobs(void)
{
    return jobs_now;
}

int qmp_get_speed(struct json_object *args, uint64_t *ret_speed, struct error *err)
{
    struct json_object *value = qmp_get(args, "speed");
    int64_t speed = value ? json_object_get_int64(value) : 0;

    if (speed < 0) {
        return error_set(err, EINVAL, "Parameter 'speed' expects a non-negative value");
    }
    *ret_speed = (uint64_t)speed;
    return 0;
}

enum job_on_error qmp_get_on_error(struct json_object *args, const char *name)
{
    const char *value = qmp_get_str(args, name);

    return !value                         ? JOB_ON_ERROR_REPORT
           : strcmp(value, "ignore") == 0 ? JOB_ON_ERROR_IGNORE
           : strcmp(value, "enospc") == 0 ? JOB_ON_ERROR_ENOSPC
           : strcmp(value, "stop") == 0   ? JOB_ON_ERROR_STOP
                                          : JOB_ON_ERROR_REPORT;
}

/* The device whose node the job works on lends the job its name. NULL: there is none. */
static const char *default_job_id(struct json_object *args)
{
    const char *name = qmp_get_str(args, "device");
    const struct block_node *node = name ? block_node_find(name) : NULL;
    const char *device = node ? block_node_device_name(node) : "";

    return *device ? device : NULL;
}

int qmp_get_job_config(struct json_object *args, struct job_config *ret_config, struct error *err)
{
    struct json_object *speed = qmp_get(args, "speed");

    *ret_config = JOB_CONFIG_INIT;
    ret_config->id = qmp_get_str(args, "job-id") ?: default_job_id(args);
    ret_config->auto_finalize = qmp_get_bool(args, "auto-finalize", true);
    ret_config->auto_dismiss = qmp_get_bool(args, "auto-dismiss", true);
    ret_config->txn = qmp_transaction_jobs();
    /* A negative one is refused when the job is made. */
    ret_config->speed = speed ? (uint64_t)json_object_get_int64(speed) : 0;
    return 0;
}

int qmp_check_job_node_active(const struct block_node *node, const char *child,
                              struct json_object *args, struct error *err)
{
    AUTO_FREE char *generated = NULL;
    const char *filter = qmp_get_str(args, "filter-node-name");

    if (!block_node_is_handed_over(node)) {
        return 0;
    }
    if (!filter) {
        generated = block_generated_node_name();
        filter = generated;
    }
    return error_set(err, EPERM, "Inactive '%s' can't be a %s child of active '%s'",
                     block_node_name(node), child, filter ?: "");
}

struct json_object *qmp_block_job_json(const struct job_info *info)
{
    struct json_object *o = json_object_new_object();

    qmp_put_str(o, "type", info->type);
    qmp_put_str(o, "device", info->id);
    qmp_put_uint(o, "len", info->total);
    qmp_put_uint(o, "offset", info->current);
    qmp_put_uint(o, "speed", info->speed);
    return o;
}
