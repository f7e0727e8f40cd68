/* SPDX-License-Identifier: Apache-2.0 */
/* Types of jobs: QEMU's qapi/job.json, and the jobs of qapi/block-core.json. */
#include "qmp/define.h"
#include "qmp/types.h"

const struct qmp_type qmp_type_job_type =
    ENUM_INIT("JobType", "commit", "stream", "mirror", "backup", "create", "amend", "snapshot-load",
              "snapshot-save", "snapshot-delete");
ENUM(status, "JobStatus", "undefined", "created", "running", "paused", "ready", "standby",
     "waiting", "pending", "aborting", "concluded", "null");
const struct qmp_type qmp_type_io_status =
    ENUM_INIT("BlockDeviceIoStatus", "ok", "failed", "nospace");
const struct qmp_type qmp_type_io_operation = ENUM_INIT("IoOperationType", "read", "write");
const struct qmp_type qmp_type_error_action =
    ENUM_INIT("BlockErrorAction", "ignore", "report", "stop");
const struct qmp_type qmp_type_on_error =
    ENUM_INIT("BlockdevOnError", "report", "ignore", "enospc", "stop", "auto");
const struct qmp_type qmp_type_sync_mode =
    ENUM_INIT("MirrorSyncMode", "top", "full", "none", "incremental", "bitmap");
const struct qmp_type qmp_type_bitmap_mode =
    ENUM_INIT("BitmapSyncMode", "on-success", "never", "always");
const struct qmp_type qmp_type_new_image_mode =
    ENUM_INIT("NewImageMode", "existing", "absolute-paths");

OBJECT(job_info, "JobInfo", REQ("id", qmp_str), REQ("type", qmp_type_job_type),
       REQ("status", status), REQ("current-progress", qmp_int), REQ("total-progress", qmp_int),
       OPT("error", qmp_str));
const struct qmp_type qmp_type_job_infos = ARRAY_INIT("JobInfoList", job_info);

OBJECT(mirror_info, "BlockJobInfoMirror", REQ("actively-synced", qmp_bool));
static const struct qmp_type block_job_info = {
    .kind = QMP_OBJECT,
    .name = "BlockJobInfo",
    .members =
        MEMBERS(REQ("type", qmp_type_job_type), REQ("device", qmp_str), REQ("len", qmp_int),
                REQ("offset", qmp_int), REQ("busy", qmp_bool), REQ("paused", qmp_bool),
                REQ("speed", qmp_int), REQ("io-status", qmp_type_io_status), REQ("ready", qmp_bool),
                REQ("status", status), REQ("auto-finalize", qmp_bool),
                REQ("auto-dismiss", qmp_bool), OPT("error", qmp_str)),
    .tag = "type",
    .variants = (const struct qmp_variant[]){{"mirror", &mirror_info}, {NULL, NULL}},
};
const struct qmp_type qmp_type_block_job_infos = ARRAY_INIT("BlockJobInfoList", block_job_info);

/* --- verbs ------------------------------------------------------------------------------------ */

const struct qmp_type qmp_type_job = OBJECT_INIT("q_obj_job-arg", REQ("id", qmp_str));
const struct qmp_type qmp_type_block_job =
    OBJECT_INIT("q_obj_block-job-arg", REQ("device", qmp_str));
const struct qmp_type qmp_type_block_job_cancel =
    OBJECT_INIT("q_obj_block-job-cancel-arg", REQ("device", qmp_str), OPT("force", qmp_bool));
const struct qmp_type qmp_type_block_job_speed =
    OBJECT_INIT("q_obj_block-job-set-speed-arg", REQ("device", qmp_str), REQ("speed", qmp_int));

/* --- events ----------------------------------------------------------------------------------- */

const struct qmp_type qmp_type_block_job_event =
    OBJECT_INIT("q_obj_BLOCK_JOB_READY-arg", REQ("type", qmp_type_job_type), REQ("device", qmp_str),
                REQ("len", qmp_int), REQ("offset", qmp_int), REQ("speed", qmp_int));
const struct qmp_type qmp_type_block_job_completed = OBJECT_INIT(
    "q_obj_BLOCK_JOB_COMPLETED-arg", REQ("type", qmp_type_job_type), REQ("device", qmp_str),
    REQ("len", qmp_int), REQ("offset", qmp_int), REQ("speed", qmp_int), OPT("error", qmp_str));
const struct qmp_type qmp_type_block_job_error =
    OBJECT_INIT("q_obj_BLOCK_JOB_ERROR-arg", REQ("device", qmp_str),
                REQ("operation", qmp_type_io_operation), REQ("action", qmp_type_error_action));
const struct qmp_type qmp_type_block_job_pending =
    OBJECT_INIT("q_obj_BLOCK_JOB_PENDING-arg", REQ("type", qmp_type_job_type), REQ("id", qmp_str));
const struct qmp_type qmp_type_job_status_change =
    OBJECT_INIT("q_obj_JOB_STATUS_CHANGE-arg", REQ("id", qmp_str), REQ("status", status));
