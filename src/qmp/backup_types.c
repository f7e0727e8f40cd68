/* SPDX-License-Identifier: Apache-2.0 */
/* Types of backup jobs: QEMU's BackupCommon and what is made of it. */
#include "qmp/define.h"
#include "qmp/types.h"

OBJECT(backup_perf, "BackupPerf", OPT("use-copy-range", schema_bool),
       OPT("max-workers", schema_int), OPT("max-chunk", schema_int),
       OPT("min-cluster-size", schema_size));

#define BACKUP_COMMON                                                                              \
    REQ("device", schema_str), REQ("sync", qmp_type_sync_mode), OPT("job-id", schema_str),         \
        OPT("speed", schema_int), OPT("bitmap", schema_str),                                       \
        OPT("bitmap-mode", qmp_type_bitmap_mode), OPT("compress", schema_bool),                    \
        OPT("on-source-error", qmp_type_on_error), OPT("on-target-error", qmp_type_on_error),      \
        OPT("auto-finalize", schema_bool), OPT("auto-dismiss", schema_bool),                       \
        OPT("filter-node-name", schema_str), OPT("discard-source", schema_bool),                   \
        OPT("x-perf", backup_perf, UNSTABLE), REQ("target", schema_str)

const struct schema_type qmp_type_blockdev_backup = OBJECT_INIT("BlockdevBackup", BACKUP_COMMON);
const struct schema_type qmp_type_drive_backup = OBJECT_INIT(
    "DriveBackup", BACKUP_COMMON, OPT("format", schema_str), OPT("mode", qmp_type_new_image_mode));
const struct schema_type qmp_type_blockdev_backup_wrapper =
    OBJECT_INIT("BlockdevBackupWrapper", REQ("data", qmp_type_blockdev_backup));
const struct schema_type qmp_type_drive_backup_wrapper =
    OBJECT_INIT("DriveBackupWrapper", REQ("data", qmp_type_drive_backup));
