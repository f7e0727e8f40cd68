/* SPDX-License-Identifier: Apache-2.0 */
/* Arguments and results of commands that ask about disks, nodes, bitmaps and objects. */
#include "block/option_types.h"
#include "qmp/define.h"
#include "qmp/table.h"
#include "qmp/types.h"

OBJECT(cache_info, "BlockdevCacheInfo", REQ("writeback", schema_bool), REQ("direct", schema_bool),
       REQ("no-flush", schema_bool));
ENUM(bitmap_state_kind, "TidemarkBitmapStateKind", "exact", "superset", "lost");
OBJECT(bitmap_state, "TidemarkBitmapState", REQ("kind", bitmap_state_kind),
       OPT("reason", schema_str), OPT("excess", schema_int), OPT("since", schema_int));
OBJECT(dirty_info, "BlockDirtyInfo", OPT("name", schema_str), REQ("count", schema_int),
       REQ("granularity", schema_uint32), REQ("recording", schema_bool), REQ("busy", schema_bool),
       REQ("persistent", schema_bool), OPT("inconsistent", schema_bool),
       OPT("x-tidemark-state", bitmap_state));
ARRAY(dirty_infos, dirty_info);
ARRAY(snapshot_infos, qmp_type_snapshot_info);
static const struct schema_type image_info;
static const struct schema_type image_info = OBJECT_INIT(
    "ImageInfo", REQ("filename", schema_str), REQ("format", schema_str),
    OPT("dirty-flag", schema_bool), OPT("actual-size", schema_int), REQ("virtual-size", schema_int),
    OPT("cluster-size", schema_int), OPT("encrypted", schema_bool), OPT("compressed", schema_bool),
    OPT("backing-filename", schema_str), OPT("full-backing-filename", schema_str),
    OPT("backing-filename-format", schema_str), OPT("snapshots", snapshot_infos),
    OPT("backing-image", image_info), OPT("format-specific", block_specific_info_type));
const struct schema_type qmp_type_device_info =
    OBJECT_INIT("BlockDeviceInfo", REQ("file", schema_str), OPT("node-name", schema_str),
                REQ("ro", schema_bool), REQ("drv", schema_str), OPT("backing_file", schema_str),
                REQ("backing_file_depth", schema_int), REQ("encrypted", schema_bool),
                REQ("detect_zeroes", block_detect_zeroes_type), REQ("bps", schema_int),
                REQ("bps_rd", schema_int), REQ("bps_wr", schema_int), REQ("iops", schema_int),
                REQ("iops_rd", schema_int), REQ("iops_wr", schema_int), REQ("image", image_info),
                REQ("cache", cache_info), REQ("write_threshold", schema_int),
                OPT("dirty-bitmaps", dirty_infos), REQ("active", schema_bool));

OBJECT(block_info, "BlockInfo", REQ("device", schema_str), OPT("qdev", schema_str),
       REQ("type", schema_str), REQ("removable", schema_bool), REQ("locked", schema_bool),
       OPT("inserted", qmp_type_device_info), OPT("tray_open", schema_bool),
       OPT("io-status", qmp_type_io_status));
const struct schema_type qmp_type_block_infos = ARRAY_INIT("block_infos", block_info);

ARRAY(boundaries, schema_uint64);
const struct schema_type qmp_type_latency_set = OBJECT_INIT(
    "q_obj_block-latency-histogram-set-arg", REQ("id", schema_str), OPT("boundaries", boundaries),
    OPT("boundaries-read", boundaries), OPT("boundaries-write", boundaries),
    OPT("boundaries-zap", boundaries), OPT("boundaries-flush", boundaries));

const struct schema_type qmp_type_io_error = OBJECT_INIT(
    "q_obj_BLOCK_IO_ERROR-arg", REQ("qom-path", schema_str), REQ("device", schema_str),
    OPT("node-name", schema_str), REQ("operation", qmp_type_io_operation),
    REQ("action", qmp_type_error_action), OPT("nospace", schema_bool), REQ("reason", schema_str),
    REQ("x-request", schema_str), REQ("x-offset", schema_int), REQ("x-length", schema_int),
    REQ("x-errno", schema_int), REQ("x-count", schema_int));

static const struct schema_type str_or_null = {
    .kind = SCHEMA_ALTERNATE,
    .name = "StrOrNull",
    .choice = (const struct schema_type *const[]){&schema_str, &schema_null, NULL},
};
const struct schema_type qmp_type_set_iothread =
    OBJECT_INIT("q_obj_x-blockdev-set-iothread-arg", REQ("node-name", schema_str),
                REQ("iothread", str_or_null), OPT("force", schema_bool));

const struct schema_type qmp_type_change_children =
    OBJECT_INIT("q_obj_x-blockdev-change-arg", REQ("parent", schema_str), OPT("child", schema_str),
                OPT("node", schema_str));

const struct schema_type qmp_type_qom_path =
    OBJECT_INIT("q_obj_qom-list-arg", REQ("path", schema_str));
const struct schema_type qmp_type_qom_get =
    OBJECT_INIT("q_obj_qom-get-arg", REQ("path", schema_str), REQ("property", schema_str));
const struct schema_type qmp_type_qom_set =
    OBJECT_INIT("q_obj_qom-set-arg", REQ("path", schema_str), REQ("property", schema_str),
                REQ("value", schema_any));
const struct schema_type qmp_type_qom_list_types = OBJECT_INIT(
    "q_obj_qom-list-types-arg", OPT("implements", schema_str), OPT("abstract", schema_bool));
const struct schema_type qmp_type_qom_list_properties =
    OBJECT_INIT("q_obj_qom-list-properties-arg", REQ("typename", schema_str));
OBJECT(property_info, "ObjectPropertyInfo", REQ("name", schema_str), REQ("type", schema_str),
       OPT("description", schema_str), OPT("default-value", schema_any));
const struct schema_type qmp_type_property_infos = ARRAY_INIT("property_infos", property_info);
OBJECT(type_info, "ObjectTypeInfo", REQ("name", schema_str), OPT("abstract", schema_bool),
       OPT("parent", schema_str));
const struct schema_type qmp_type_type_infos = ARRAY_INIT("type_infos", type_info);

const struct schema_type qmp_type_bitmap_sha256 =
    OBJECT_INIT("BlockDirtyBitmapSha256", REQ("sha256", schema_str));
