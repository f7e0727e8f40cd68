/* SPDX-License-Identifier: Apache-2.0 */
/* The verbs of jobs under both names (job-*, block-job-*), and their queries. */
#include <errno.h>

#include "job/job.h"
#include "qmp/commands.h"
#include "qmp/jobs.h"

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

/*
 * Verbs that a pending job accepts come too late for one that takes effect: the answer is that of
 * after its end, if that comes soon.
 */
static void co_await_effect(struct json_object *args, const char *key)
{
    struct job *job = job_find(qmp_get_str(args, key));

    if (job) {
        job_co_await_effect(job);
    }
}

static struct job *co_lookup_job(struct json_object *args, struct error *err)
{
    co_await_effect(args, "id");
    return lookup_job(args, err);
}

static struct job *co_lookup_block_job(struct json_object *args, const char *key, struct error *err)
{
    co_await_effect(args, key);
    return lookup_block_job(args, key, err);
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
    struct job *job = co_lookup_job(args, err);

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
    struct job *job = co_lookup_job(args, err);

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
    struct job *job = co_lookup_block_job(args, "device", err);
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
    struct job *job = co_lookup_block_job(args, "id", err);

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
    for (struct job *job = job_previous(NULL); job; job = job_previous(job)) {
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

int qmp_co_query_block_jobs(struct qmp_call *call, struct json_object *args,
                            struct json_object **ret_value, struct error *err)
{
    static const char *const io_status[] = {"ok", "failed", "nospace"};

    *ret_value = json_object_new_array();
    for (struct job *job = job_previous(NULL); job; job = job_previous(job)) {
        struct job_info info = job_get_info(job);
        struct json_object *o;

        if (!info.block_job) {
            continue;
        }
        o = qmp_block_job_json(&info);
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
