/* SPDX-License-Identifier: Apache-2.0 */
/* The verbs of jobs under both names (job-*, block-job-*), their queries and events. */
#include <errno.h>
#include <string.h>

#include "block/device.h"
#include "block/node.h"
#include "job/job.h"
#include "qmp/commands.h"
#include "qmp/jobs.h"
#include "qmp/monitor.h"

/* --- arguments -------------------------------------------------------------------------------- */

static struct job *lookup_job(struct json_object *args, struct error *err)
{
    struct job *job = job_find(qmp_get_str(args, "id"));

    if (!job) {
        error_set(err, ENOENT, "Job not found");
    }
    return job;
}

/* Of the older commands, which know block jobs only. `key` names the argument. */
static struct job *lookup_block_job(struct json_object *args, const char *key, struct error *err)
{
    const char *id = qmp_get_str(args, key);
    struct job *job = job_find(id);

    if (!job || !job_get_info(job).block_job) {
        error_set_class(err, ERROR_CLASS_DEVICE_NOT_ACTIVE, ENOENT, "Block job '%s' not found", id);
        return NULL;
    }
    return job;
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
    *ret_config = JOB_CONFIG_INIT;
    ret_config->id = qmp_get_str(args, "job-id") ?: default_job_id(args);
    ret_config->auto_finalize = qmp_get_bool(args, "auto-finalize", true);
    ret_config->auto_dismiss = qmp_get_bool(args, "auto-dismiss", true);
    ret_config->txn = qmp_transaction_jobs();
    return qmp_get_speed(args, &ret_config->speed, err);
}

/* --- verbs ------------------------------------------------------------------------------------ */

int qmp_co_job_pause(struct qmp_call *call, struct json_object *args,
                     struct json_object **ret_value, struct error *err)
{
    struct job *job = lookup_job(args, err);

    return job ? job_pause(job, err) : -ENOENT;
}

int qmp_co_job_resume(struct qmp_call *call, struct json_object *args,
                      struct json_object **ret_value, struct error *err)
{
    struct job *job = lookup_job(args, err);

    return job ? job_resume(job, err) : -ENOENT;
}

int qmp_co_job_cancel(struct qmp_call *call, struct json_object *args,
                      struct json_object **ret_value, struct error *err)
{
    struct job *job = lookup_job(args, err);

    return job ? job_co_cancel(job, true, err) : -ENOENT;
}

int qmp_co_job_complete(struct qmp_call *call, struct json_object *args,
                        struct json_object **ret_value, struct error *err)
{
    struct job *job = lookup_job(args, err);

    return job ? job_complete(job, err) : -ENOENT;
}

int qmp_co_job_finalize(struct qmp_call *call, struct json_object *args,
                        struct json_object **ret_value, struct error *err)
{
    struct job *job = lookup_job(args, err);

    return job ? job_co_finalize(job, err) : -ENOENT;
}

int qmp_co_job_dismiss(struct qmp_call *call, struct json_object *args,
                       struct json_object **ret_value, struct error *err)
{
    struct job *job = lookup_job(args, err);

    return job ? job_dismiss(job, err) : -ENOENT;
}

int qmp_co_block_job_pause(struct qmp_call *call, struct json_object *args,
                           struct json_object **ret_value, struct error *err)
{
    struct job *job = lookup_block_job(args, "device", err);

    return job ? job_pause(job, err) : -ENOENT;
}

int qmp_co_block_job_resume(struct qmp_call *call, struct json_object *args,
                            struct json_object **ret_value, struct error *err)
{
    struct job *job = lookup_block_job(args, "device", err);

    return job ? job_resume(job, err) : -ENOENT;
}

int qmp_co_block_job_cancel(struct qmp_call *call, struct json_object *args,
                            struct json_object **ret_value, struct error *err)
{
    struct job *job = lookup_block_job(args, "device", err);
    bool force = qmp_get_bool(args, "force", false);

    if (!job) {
        return -ENOENT;
    }
    if (job_is_user_paused(job) && !force) {
        return error_set(err, EBUSY, "The block job for device '%s' is currently paused",
                         job_id(job));
    }
    return job_co_cancel(job, force, err);
}

int qmp_co_block_job_complete(struct qmp_call *call, struct json_object *args,
                              struct json_object **ret_value, struct error *err)
{
    struct job *job = lookup_block_job(args, "device", err);

    return job ? job_complete(job, err) : -ENOENT;
}

int qmp_co_block_job_finalize(struct qmp_call *call, struct json_object *args,
                              struct json_object **ret_value, struct error *err)
{
    struct job *job = lookup_block_job(args, "id", err);

    return job ? job_co_finalize(job, err) : -ENOENT;
}

int qmp_co_block_job_dismiss(struct qmp_call *call, struct json_object *args,
                             struct json_object **ret_value, struct error *err)
{
    struct job *job = lookup_block_job(args, "id", err);

    return job ? job_dismiss(job, err) : -ENOENT;
}

int qmp_co_block_job_set_speed(struct qmp_call *call, struct json_object *args,
                               struct json_object **ret_value, struct error *err)
{
    struct job *job = lookup_block_job(args, "device", err);
    uint64_t speed;
    int r = job ? qmp_get_speed(args, &speed, err) : -ENOENT;

    return r < 0 ? r : job_set_speed(job, speed, err);
}

/* --- queries ---------------------------------------------------------------------------------- */

int qmp_co_query_jobs(struct qmp_call *call, struct json_object *args,
                      struct json_object **ret_value, struct error *err)
{
    *ret_value = json_object_new_array();
    for (struct job *job = job_next(NULL); job; job = job_next(job)) {
        struct json_object *o = json_object_new_object();
        struct job_info info = job_get_info(job);

        qmp_put_str(o, "id", info.id);
        qmp_put_str(o, "type", info.type);
        qmp_put_str(o, "status", job_status_name(info.status));
        qmp_put_uint(o, "current-progress", info.current);
        qmp_put_uint(o, "total-progress", info.total);
        qmp_put_str(o, "error", info.error);
        json_object_array_add(*ret_value, o);
    }
    return 0;
}

/* What the answer to a query and the events have in common. */
static struct json_object *block_job_json(const struct job_info *info)
{
    struct json_object *o = json_object_new_object();

    qmp_put_str(o, "type", info->type);
    qmp_put_str(o, "device", info->id);
    qmp_put_uint(o, "len", info->total);
    qmp_put_uint(o, "offset", info->current);
    qmp_put_uint(o, "speed", info->speed);
    return o;
}

int qmp_co_query_block_jobs(struct qmp_call *call, struct json_object *args,
                            struct json_object **ret_value, struct error *err)
{
    static const char *const io_status[] = {"ok", "failed", "nospace"};

    *ret_value = json_object_new_array();
    for (struct job *job = job_next(NULL); job; job = job_next(job)) {
        struct job_info info = job_get_info(job);
        struct json_object *o;

        if (!info.block_job) {
            continue;
        }
        o = block_job_json(&info);
        qmp_put_bool(o, "busy", info.busy);
        qmp_put_bool(o, "paused", info.paused);
        qmp_put_str(o, "io-status", io_status[info.io_status]);
        qmp_put_bool(o, "ready", info.ready);
        qmp_put_str(o, "status", job_status_name(info.status));
        qmp_put_bool(o, "auto-finalize", info.auto_finalize);
        qmp_put_bool(o, "auto-dismiss", info.auto_dismiss);
        qmp_put_str(o, "error", info.error);
        if (info.has_synced) {
            qmp_put_bool(o, "actively-synced", info.synced);
        }
        json_object_array_add(*ret_value, o);
    }
    return 0;
}

/* --- events ----------------------------------------------------------------------------------- */

static void emit_status(const struct job_info *info)
{
    struct json_object *data = json_object_new_object();

    qmp_put_str(data, "status", job_status_name(info->status));
    qmp_put_str(data, "id", info->id);
    qmp_emit("JOB_STATUS_CHANGE", data);
}

static void emit_pending(const struct job_info *info)
{
    struct json_object *data = json_object_new_object();

    qmp_put_str(data, "type", info->type);
    qmp_put_str(data, "id", info->id);
    qmp_emit("BLOCK_JOB_PENDING", data);
}

static void emit_error(const struct job_event *event)
{
    struct json_object *data = json_object_new_object();

    qmp_put_str(data, "device", event->info.id);
    qmp_put_str(data, "operation", event->reading ? "read" : "write");
    qmp_put_str(data, "action", event->action);
    qmp_emit("BLOCK_JOB_ERROR", data);
}

static void on_job_event(const struct job_event *event)
{
    struct json_object *data;

    switch (event->kind) {
    case JOB_EVENT_STATUS:
        emit_status(&event->info);
        break;
    case JOB_EVENT_PENDING:
        emit_pending(&event->info);
        break;
    case JOB_EVENT_ERROR:
        emit_error(event);
        break;
    case JOB_EVENT_READY:
        qmp_emit("BLOCK_JOB_READY", block_job_json(&event->info));
        break;
    case JOB_EVENT_CANCELLED:
        qmp_emit("BLOCK_JOB_CANCELLED", block_job_json(&event->info));
        break;
    case JOB_EVENT_COMPLETED:
        data = block_job_json(&event->info);
        qmp_put_str(data, "error", event->info.error);
        qmp_emit("BLOCK_JOB_COMPLETED", data);
        break;
    }
}

void qmp_subscribe_jobs(void)
{
    job_set_event_fn(on_job_event);
}
