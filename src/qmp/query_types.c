/* SPDX-License-Identifier: Apache-2.0 */
/* Arguments and results of commands that ask about disks, nodes, bitmaps and objects. */
#include "qmp/define.h"
#include "qmp/table.h"
#include "qmp/types.h"

OBJECT(block_info, "BlockInfo", REQ("device", qmp_str), OPT("qdev", qmp_str), REQ("type", qmp_str),
       REQ("removable", qmp_bool), REQ("locked", qmp_bool), OPT("inserted", qmp_type_device_info),
       OPT("tray_open", qmp_bool), OPT("io-status", qmp_type_io_status));
const struct qmp_type qmp_type_block_infos = ARRAY_INIT("block_infos", block_info);

ARRAY(boundaries, schema_uint64);
const struct qmp_type qmp_type_latency_set = OBJECT_INIT(
    "q_obj_block-latency-histogram-set-arg", REQ("id", qmp_str), OPT("boundaries", boundaries),
    OPT("boundaries-read", boundaries), OPT("boundaries-write", boundaries),
    OPT("boundaries-zap", boundaries), OPT("boundaries-flush", boundaries));

const struct qmp_type qmp_type_io_error =
    OBJECT_INIT("q_obj_BLOCK_IO_ERROR-arg", REQ("qom-path", qmp_str), REQ("device", qmp_str),
                OPT("node-name", qmp_str), REQ("operation", qmp_type_io_operation),
                REQ("action", qmp_type_error_action), OPT("nospace", qmp_bool),
                REQ("reason", qmp_str), REQ("x-request", qmp_str), REQ("x-offset", qmp_int),
                REQ("x-length", qmp_int), REQ("x-errno", qmp_int), REQ("x-count", qmp_int));

static const struct qmp_type str_or_null = {
    .kind = QMP_ALTERNATE,
    .name = "StrOrNull",
    .choice = (const struct qmp_type *const[]){&schema_str, &schema_null, NULL},
};
const struct qmp_type qmp_type_set_iothread =
    OBJECT_INIT("q_obj_x-blockdev-set-iothread-arg", REQ("node-name", qmp_str),
                REQ("iothread", str_or_null), OPT("force", qmp_bool));

const struct qmp_type qmp_type_change_children =
    OBJECT_INIT("q_obj_x-blockdev-change-arg", REQ("parent", qmp_str), OPT("child", qmp_str),
                OPT("node", qmp_str));

const struct qmp_type qmp_type_qom_path = OBJECT_INIT("q_obj_qom-list-arg", REQ("path", qmp_str));
const struct qmp_type qmp_type_qom_get =
    OBJECT_INIT("q_obj_qom-get-arg", REQ("path", qmp_str), REQ("property", qmp_str));
const struct qmp_type qmp_type_qom_set = OBJECT_INIT(
    "q_obj_qom-set-arg", REQ("path", qmp_str), REQ("property", qmp_str), REQ("value", qmp_any));
const struct qmp_type qmp_type_qom_list_types =
    OBJECT_INIT("q_obj_qom-list-types-arg", OPT("implements", qmp_str), OPT("abstract", qmp_bool));
const struct qmp_type qmp_type_qom_list_properties =
    OBJECT_INIT("q_obj_qom-list-properties-arg", REQ("typename", qmp_str));
OBJECT(property_info, "ObjectPropertyInfo", REQ("name", qmp_str), REQ("type", qmp_str),
       OPT("description", qmp_str), OPT("default-value", qmp_any));
const struct qmp_type qmp_type_property_infos = ARRAY_INIT("property_infos", property_info);
OBJECT(type_info, "ObjectTypeInfo", REQ("name", qmp_str), OPT("abstract", qmp_bool),
       OPT("parent", qmp_str));
const struct qmp_type qmp_type_type_infos = ARRAY_INIT("type_infos", type_info);

const struct qmp_type qmp_type_bitmap_sha256 =
    OBJECT_INIT("BlockDirtyBitmapSha256", REQ("sha256", qmp_str));
