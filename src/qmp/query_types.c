/* SPDX-License-Identifier: Apache-2.0 */
/* Arguments and results of commands that ask about disks, nodes and bitmaps. */
#include "qmp/define.h"
#include "qmp/table.h"
#include "qmp/types.h"

OBJECT(block_info, "BlockInfo", REQ("device", qmp_str), OPT("qdev", qmp_str), REQ("type", qmp_str),
       REQ("removable", qmp_bool), REQ("locked", qmp_bool), OPT("inserted", qmp_type_device_info),
       OPT("tray_open", qmp_bool), OPT("io-status", qmp_type_io_status));
const struct qmp_type qmp_type_block_infos = ARRAY_INIT("block_infos", block_info);

const struct qmp_type qmp_type_bitmap_sha256 =
    OBJECT_INIT("BlockDirtyBitmapSha256", REQ("sha256", qmp_str));
