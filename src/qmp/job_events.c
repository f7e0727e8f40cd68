/* SPDX-License-Identifier: Apache-2.0 */
/* Events of jobs, sent to clients. */
#include "job/job.h"
#include "qmp/answer.h"
#include "qmp/jobs.h"
#include "qmp/events.h"

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
        qmp_emit("BLOCK_JOB_READY", qmp_block_job_json(&event->info));
        break;
    case JOB_EVENT_CANCELLED:
        qmp_emit("BLOCK_JOB_CANCELLED", qmp_block_job_json(&event->info));
        break;
    case JOB_EVENT_COMPLETED:
        data = qmp_block_job_json(&event->info);
        qmp_put_str(data, "error", event->info.error);
        qmp_emit("BLOCK_JOB_COMPLETED", data);
        break;
    }
}

void qmp_subscribe_jobs(void)
{
    job_set_event_fn(on_job_event);
}
