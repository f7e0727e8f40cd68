/* SPDX-License-Identifier: Apache-2.0 */
/* Types of the commands that change images and the graph: a part of QEMU's qapi/block-core.json. */
#include "qmp/define.h"
#include "qmp/types.h"

/* --- images ----------------------------------------------------------------------------------- */

const struct schema_type qmp_type_block_resize =
    OBJECT_INIT("q_obj_block_resize-arg", OPT("device", schema_str), OPT("node-name", schema_str),
                REQ("size", schema_int));
const struct schema_type qmp_type_change_backing =
    OBJECT_INIT("q_obj_change-backing-file-arg", REQ("device", schema_str),
                REQ("image-node-name", schema_str), REQ("backing-file", schema_str));

const struct schema_type qmp_type_set_write_threshold =
    OBJECT_INIT("q_obj_block-set-write-threshold-arg", REQ("node-name", schema_str),
                REQ("write-threshold", schema_int));
const struct schema_type qmp_type_write_threshold =
    OBJECT_INIT("q_obj_BLOCK_WRITE_THRESHOLD-arg", REQ("node-name", schema_str),
                REQ("amount-exceeded", schema_int), REQ("write-threshold", schema_int));

const struct schema_type qmp_type_set_active = OBJECT_INIT(
    "q_obj_blockdev-set-active-arg", OPT("node-name", schema_str), REQ("active", schema_bool));

/* --- overlays --------------------------------------------------------------------------------- */

const struct schema_type qmp_type_snapshot =
    OBJECT_INIT("BlockdevSnapshot", REQ("node", schema_str), REQ("overlay", schema_str));
const struct schema_type qmp_type_snapshot_wrapper =
    OBJECT_INIT("BlockdevSnapshotWrapper", REQ("data", qmp_type_snapshot));
const struct schema_type qmp_type_snapshot_sync =
    OBJECT_INIT("BlockdevSnapshotSync", OPT("device", schema_str), OPT("node-name", schema_str),
                REQ("snapshot-file", schema_str), OPT("snapshot-node-name", schema_str),
                OPT("format", schema_str), OPT("mode", qmp_type_new_image_mode));
const struct schema_type qmp_type_snapshot_sync_wrapper =
    OBJECT_INIT("BlockdevSnapshotSyncWrapper", REQ("data", qmp_type_snapshot_sync));

/* --- internal snapshots ----------------------------------------------------------------------- */

const struct schema_type qmp_type_snapshot_internal =
    OBJECT_INIT("BlockdevSnapshotInternal", REQ("device", schema_str), REQ("name", schema_str));
const struct schema_type qmp_type_snapshot_internal_wrapper =
    OBJECT_INIT("BlockdevSnapshotInternalWrapper", REQ("data", qmp_type_snapshot_internal));
const struct schema_type qmp_type_snapshot_delete_internal =
    OBJECT_INIT("q_obj_blockdev-snapshot-delete-internal-sync-arg", REQ("device", schema_str),
                OPT("id", schema_str), OPT("name", schema_str));
const struct schema_type qmp_type_lease =
    OBJECT_INIT("q_obj_x-tidemark-lease-arg", REQ("node-name", schema_str));
const struct schema_type qmp_type_snapshot_apply =
    OBJECT_INIT("q_obj_x-tidemark-snapshot-apply-arg", REQ("device", schema_str),
                OPT("id", schema_str), OPT("name", schema_str));
const struct schema_type qmp_type_snapshot_info = OBJECT_INIT(
    "SnapshotInfo", REQ("id", schema_str), REQ("name", schema_str),
    REQ("vm-state-size", schema_int), REQ("date-sec", schema_int), REQ("date-nsec", schema_int),
    REQ("vm-clock-sec", schema_int), REQ("vm-clock-nsec", schema_int), OPT("icount", schema_int));
