/* SPDX-License-Identifier: Apache-2.0 */
#include "monitor.h"

#include <errno.h>
#include <json-c/json.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/time_units.h"
#include "block/control_lock.h"
#include "co/co.h"
#include "job/job.h"
#include "loop/loop.h"
#include "qmp/dispatch.h"

#define REQUEST_MAX_BYTES 3072
#define TURNS_BEFORE_SLEEP 512u

static char job_error[256];

static void note_event(const struct job_event *event)
{
    if (event->kind == JOB_EVENT_COMPLETED) {
        snprintf(job_error, sizeof(job_error), "%s", event->info.error ? event->info.error : "");
    }
}

void monitor_init(void)
{
    job_set_event_fn(note_event);
}

int monitor_co_run(struct error *err, const char *command, const char *format, ...)
{
    struct qmp_call call = {.negotiated = true};
    struct json_object *request, *answer, *error;
    char arguments[REQUEST_MAX_BYTES], text[REQUEST_MAX_BYTES + 96];
    va_list args;
    int r = 0;

    va_start(args, format);
    vsnprintf(arguments, sizeof(arguments), format, args);
    va_end(args);
    snprintf(text, sizeof(text), "{\"execute\":\"%.64s\",\"arguments\":{%s}}", command, arguments);
    request = json_tokener_parse(text);
    if (!request) {
        return error_set(err, EINVAL, "not JSON: %s", text);
    }
    block_co_control_lock();
    answer = qmp_co_dispatch(&call, request);
    block_control_unlock();
    if (json_object_object_get_ex(answer, "error", &error)) {
        r = error_set(err, EIO, "%s: %s", text, json_object_get_string(error));
    }
    json_object_put(answer);
    json_object_put(request);
    return r;
}

/* A job that waits for something does so by a timer: then there is no need to turn in circles. */
bool monitor_co_wait_job(unsigned turns, bool until_ready)
{
    for (unsigned i = 0; i < turns; i++) {
        struct job *job = job_find(MONITOR_JOB);

        if (!job || (until_ready && job_get_info(job).status == JOB_READY)) {
            return job != NULL;
        }
        if (i % TURNS_BEFORE_SLEEP == TURNS_BEFORE_SLEEP - 1) {
            loop_co_sleep(NS_PER_MS);
        } else {
            co_reschedule();
        }
    }
    return job_find(MONITOR_JOB) != NULL;
}

int monitor_job_result(struct error *err)
{
    if (job_error[0]) {
        error_set(err, EIO, "the job failed: %s", job_error);
        job_error[0] = '\0';
        return -EIO;
    }
    return 0;
}
