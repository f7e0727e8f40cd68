/* SPDX-License-Identifier: Apache-2.0 */
/* Types of the commands that change images and the graph: a part of QEMU's qapi/block-core.json. */
#include "qmp/define.h"
#include "qmp/types.h"

/* --- images ----------------------------------------------------------------------------------- */

const struct qmp_type qmp_type_block_resize =
    OBJECT_INIT("q_obj_block_resize-arg", OPT("device", qmp_str), OPT("node-name", qmp_str),
                REQ("size", qmp_int));
const struct qmp_type qmp_type_change_backing =
    OBJECT_INIT("q_obj_change-backing-file-arg", REQ("device", qmp_str),
                REQ("image-node-name", qmp_str), REQ("backing-file", qmp_str));

const struct qmp_type qmp_type_set_write_threshold =
    OBJECT_INIT("q_obj_block-set-write-threshold-arg", REQ("node-name", qmp_str),
                REQ("write-threshold", qmp_int));
const struct qmp_type qmp_type_write_threshold =
    OBJECT_INIT("q_obj_BLOCK_WRITE_THRESHOLD-arg", REQ("node-name", qmp_str),
                REQ("amount-exceeded", qmp_int), REQ("write-threshold", qmp_int));

const struct qmp_type qmp_type_set_active = OBJECT_INIT(
    "q_obj_blockdev-set-active-arg", OPT("node-name", qmp_str), REQ("active", qmp_bool));

/* --- overlays --------------------------------------------------------------------------------- */

const struct qmp_type qmp_type_snapshot =
    OBJECT_INIT("BlockdevSnapshot", REQ("node", qmp_str), REQ("overlay", qmp_str));
const struct qmp_type qmp_type_snapshot_wrapper =
    OBJECT_INIT("BlockdevSnapshotWrapper", REQ("data", qmp_type_snapshot));
const struct qmp_type qmp_type_snapshot_sync =
    OBJECT_INIT("BlockdevSnapshotSync", OPT("device", qmp_str), OPT("node-name", qmp_str),
                REQ("snapshot-file", qmp_str), OPT("snapshot-node-name", qmp_str),
                OPT("format", qmp_str), OPT("mode", qmp_type_new_image_mode));
const struct qmp_type qmp_type_snapshot_sync_wrapper =
    OBJECT_INIT("BlockdevSnapshotSyncWrapper", REQ("data", qmp_type_snapshot_sync));

/* --- internal snapshots ----------------------------------------------------------------------- */

const struct qmp_type qmp_type_snapshot_internal =
    OBJECT_INIT("BlockdevSnapshotInternal", REQ("device", qmp_str), REQ("name", qmp_str));
const struct qmp_type qmp_type_snapshot_internal_wrapper =
    OBJECT_INIT("BlockdevSnapshotInternalWrapper", REQ("data", qmp_type_snapshot_internal));
const struct qmp_type qmp_type_snapshot_delete_internal =
    OBJECT_INIT("q_obj_blockdev-snapshot-delete-internal-sync-arg", REQ("device", qmp_str),
                OPT("id", qmp_str), OPT("name", qmp_str));
const struct qmp_type qmp_type_snapshot_info = OBJECT_INIT(
    "SnapshotInfo", REQ("id", qmp_str), REQ("name", qmp_str), REQ("vm-state-size", qmp_int),
    REQ("date-sec", qmp_int), REQ("date-nsec", qmp_int), REQ("vm-clock-sec", qmp_int),
    REQ("vm-clock-nsec", qmp_int), OPT("icount", qmp_int));
