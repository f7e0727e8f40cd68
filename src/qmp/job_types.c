/* SPDX-License-Identifier: Apache-2.0 */
/* Types of jobs: QEMU's qapi/job.json, and the jobs of qapi/block-core.json. */
#include "qmp/define.h"
#include "qmp/types.h"

const struct schema_type qmp_type_job_type =
    ENUM_INIT("JobType", "commit", "stream", "mirror", "backup", "create", "amend", "snapshot-load",
              "snapshot-save", "snapshot-delete");
ENUM(status, "JobStatus", "undefined", "created", "running", "paused", "ready", "standby",
     "waiting", "pending", "aborting", "concluded", "null");
const struct schema_type qmp_type_io_status =
    ENUM_INIT("BlockDeviceIoStatus", "ok", "failed", "nospace");
const struct schema_type qmp_type_io_operation = ENUM_INIT("IoOperationType", "read", "write");
const struct schema_type qmp_type_error_action =
    ENUM_INIT("BlockErrorAction", "ignore", "report", "stop");
const struct schema_type qmp_type_on_error =
    ENUM_INIT("BlockdevOnError", "report", "ignore", "enospc", "stop", "auto");
const struct schema_type qmp_type_sync_mode =
    ENUM_INIT("MirrorSyncMode", "top", "full", "none", "incremental", "bitmap");
const struct schema_type qmp_type_bitmap_mode =
    ENUM_INIT("BitmapSyncMode", "on-success", "never", "always");
const struct schema_type qmp_type_new_image_mode =
    ENUM_INIT("NewImageMode", "existing", "absolute-paths");

OBJECT(job_info, "JobInfo", REQ("id", schema_str), REQ("type", qmp_type_job_type),
       REQ("status", status), REQ("current-progress", schema_int),
       REQ("total-progress", schema_int), OPT("error", schema_str));
const struct schema_type qmp_type_job_infos = ARRAY_INIT("JobInfoList", job_info);

OBJECT(mirror_info, "BlockJobInfoMirror", REQ("actively-synced", schema_bool));
static const struct schema_type block_job_info = {
    .kind = SCHEMA_OBJECT,
    .name = "BlockJobInfo",
    .members =
        MEMBERS(REQ("type", qmp_type_job_type), REQ("device", schema_str), REQ("len", schema_int),
                REQ("offset", schema_int), REQ("busy", schema_bool), REQ("paused", schema_bool),
                REQ("speed", schema_int), REQ("io-status", qmp_type_io_status),
                REQ("ready", schema_bool), REQ("status", status), REQ("auto-finalize", schema_bool),
                REQ("auto-dismiss", schema_bool), OPT("error", schema_str)),
    .tag = "type",
    .variants = (const struct schema_variant[]){{"mirror", &mirror_info}, {NULL, NULL}},
};
const struct schema_type qmp_type_block_job_infos = ARRAY_INIT("BlockJobInfoList", block_job_info);

/* --- verbs ------------------------------------------------------------------------------------ */

const struct schema_type qmp_type_job = OBJECT_INIT("q_obj_job-arg", REQ("id", schema_str));
const struct schema_type qmp_type_block_job =
    OBJECT_INIT("q_obj_block-job-arg", REQ("device", schema_str));
const struct schema_type qmp_type_block_job_cancel =
    OBJECT_INIT("q_obj_block-job-cancel-arg", REQ("device", schema_str), OPT("force", schema_bool));
const struct schema_type qmp_type_block_job_speed = OBJECT_INIT(
    "q_obj_block-job-set-speed-arg", REQ("device", schema_str), REQ("speed", schema_int));

/* --- events ----------------------------------------------------------------------------------- */

const struct schema_type qmp_type_block_job_event = OBJECT_INIT(
    "q_obj_BLOCK_JOB_READY-arg", REQ("type", qmp_type_job_type), REQ("device", schema_str),
    REQ("len", schema_int), REQ("offset", schema_int), REQ("speed", schema_int));
const struct schema_type qmp_type_block_job_completed =
    OBJECT_INIT("q_obj_BLOCK_JOB_COMPLETED-arg", REQ("type", qmp_type_job_type),
                REQ("device", schema_str), REQ("len", schema_int), REQ("offset", schema_int),
                REQ("speed", schema_int), OPT("error", schema_str));
const struct schema_type qmp_type_block_job_error =
    OBJECT_INIT("q_obj_BLOCK_JOB_ERROR-arg", REQ("device", schema_str),
                REQ("operation", qmp_type_io_operation), REQ("action", qmp_type_error_action));
const struct schema_type qmp_type_block_job_pending = OBJECT_INIT(
    "q_obj_BLOCK_JOB_PENDING-arg", REQ("type", qmp_type_job_type), REQ("id", schema_str));
const struct schema_type qmp_type_job_status_change =
    OBJECT_INIT("q_obj_JOB_STATUS_CHANGE-arg", REQ("id", schema_str), REQ("status", status));
