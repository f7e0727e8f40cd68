/* SPDX-License-Identifier: Apache-2.0 */
/* Types of backup jobs: QEMU's BackupCommon and what is made of it. */
#include "qmp/define.h"
#include "qmp/types.h"

OBJECT(backup_perf, "BackupPerf", OPT("use-copy-range", qmp_bool), OPT("max-workers", qmp_int),
       OPT("max-chunk", qmp_int), OPT("min-cluster-size", qmp_size));

#define BACKUP_COMMON                                                                              \
    REQ("device", qmp_str), REQ("sync", qmp_type_sync_mode), OPT("job-id", qmp_str),               \
        OPT("speed", qmp_int), OPT("bitmap", qmp_str), OPT("bitmap-mode", qmp_type_bitmap_mode),   \
        OPT("compress", qmp_bool), OPT("on-source-error", qmp_type_on_error),                      \
        OPT("on-target-error", qmp_type_on_error), OPT("auto-finalize", qmp_bool),                 \
        OPT("auto-dismiss", qmp_bool), OPT("filter-node-name", qmp_str),                           \
        OPT("discard-source", qmp_bool), OPT("x-perf", backup_perf, UNSTABLE),                     \
        REQ("target", qmp_str)

const struct qmp_type qmp_type_blockdev_backup = OBJECT_INIT("BlockdevBackup", BACKUP_COMMON);
const struct qmp_type qmp_type_drive_backup = OBJECT_INIT(
    "DriveBackup", BACKUP_COMMON, OPT("format", qmp_str), OPT("mode", qmp_type_new_image_mode));
const struct qmp_type qmp_type_blockdev_backup_wrapper =
    OBJECT_INIT("BlockdevBackupWrapper", REQ("data", qmp_type_blockdev_backup));
const struct qmp_type qmp_type_drive_backup_wrapper =
    OBJECT_INIT("DriveBackupWrapper", REQ("data", qmp_type_drive_backup));
