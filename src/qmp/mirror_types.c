/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Types of the commands that start and change mirrors: QEMU's qapi/block-core.json, and the members
 * `bitmap`, `bitmap-mode` and `x-restart`, which are Tidemark's own.
 */
#include "qmp/define.h"
#include "qmp/types.h"

ENUM(mirror_copy_mode, "MirrorCopyMode", "background", "write-blocking");

OBJECT(mirror_restart, "TidemarkMirrorRestart", REQ("bitmap", schema_str),
       OPT("target-changes", schema_str));

/* What both commands have. */
#define COMMON                                                                                     \
    OPT("job-id", schema_str), REQ("device", schema_str), REQ("target", schema_str),               \
        OPT("replaces", schema_str), REQ("sync", qmp_type_sync_mode), OPT("speed", schema_int),    \
        OPT("granularity", schema_uint32), OPT("buf-size", schema_int),                            \
        OPT("on-source-error", qmp_type_on_error), OPT("on-target-error", qmp_type_on_error),      \
        OPT("copy-mode", mirror_copy_mode), OPT("auto-finalize", schema_bool),                     \
        OPT("auto-dismiss", schema_bool), OPT("bitmap", schema_str),                               \
        OPT("bitmap-mode", qmp_type_bitmap_mode)

const struct schema_type qmp_type_blockdev_mirror =
    OBJECT_INIT("q_obj_blockdev-mirror-arg", COMMON, OPT("filter-node-name", schema_str),
                OPT("target-is-zero", schema_bool), OPT("x-restart", mirror_restart));
const struct schema_type qmp_type_drive_mirror =
    OBJECT_INIT("DriveMirror", COMMON, OPT("format", schema_str), OPT("node-name", schema_str),
                OPT("mode", qmp_type_new_image_mode), OPT("unmap", schema_bool));

OBJECT(mirror_change, "BlockJobChangeOptionsMirror", REQ("copy-mode", mirror_copy_mode));
const struct schema_type qmp_type_block_job_change = {
    .kind = SCHEMA_OBJECT,
    .name = "BlockJobChangeOptions",
    .members = MEMBERS(REQ("id", schema_str), REQ("type", qmp_type_job_type)),
    .tag = "type",
    .variants = (const struct schema_variant[]){{"mirror", &mirror_change}, {NULL, NULL}},
};
