/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Types of the commands that start and change mirrors: QEMU's qapi/block-core.json, and the members
 * `bitmap`, `bitmap-mode` and `x-restart`, which are Tidemark's own.
 */
#include "qmp/define.h"
#include "qmp/types.h"

ENUM(mirror_copy_mode, "MirrorCopyMode", "background", "write-blocking");

OBJECT(mirror_restart, "TidemarkMirrorRestart", REQ("bitmap", qmp_str),
       OPT("target-changes", qmp_str));

/* What both commands have. */
#define COMMON                                                                                     \
    OPT("job-id", qmp_str), REQ("device", qmp_str), REQ("target", qmp_str),                        \
        OPT("replaces", qmp_str), REQ("sync", qmp_type_sync_mode), OPT("speed", qmp_int),          \
        OPT("granularity", qmp_uint32), OPT("buf-size", qmp_int),                                  \
        OPT("on-source-error", qmp_type_on_error), OPT("on-target-error", qmp_type_on_error),      \
        OPT("copy-mode", mirror_copy_mode), OPT("auto-finalize", qmp_bool),                        \
        OPT("auto-dismiss", qmp_bool), OPT("bitmap", qmp_str),                                     \
        OPT("bitmap-mode", qmp_type_bitmap_mode)

const struct qmp_type qmp_type_blockdev_mirror =
    OBJECT_INIT("q_obj_blockdev-mirror-arg", COMMON, OPT("filter-node-name", qmp_str),
                OPT("target-is-zero", qmp_bool), OPT("x-restart", mirror_restart));
const struct qmp_type qmp_type_drive_mirror =
    OBJECT_INIT("DriveMirror", COMMON, OPT("format", qmp_str), OPT("node-name", qmp_str),
                OPT("mode", qmp_type_new_image_mode), OPT("unmap", qmp_bool));

OBJECT(mirror_change, "BlockJobChangeOptionsMirror", REQ("copy-mode", mirror_copy_mode));
const struct qmp_type qmp_type_block_job_change = {
    .kind = QMP_OBJECT,
    .name = "BlockJobChangeOptions",
    .members = MEMBERS(REQ("id", qmp_str), REQ("type", qmp_type_job_type)),
    .tag = "type",
    .variants = (const struct qmp_variant[]){{"mirror", &mirror_change}, {NULL, NULL}},
};
