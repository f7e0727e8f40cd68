/* SPDX-License-Identifier: Apache-2.0 */
/* Arguments of the jobs that shorten backing chains, of QEMU's qapi/block-core.json. */
#include "qmp/define.h"
#include "qmp/types.h"

const struct schema_type qmp_type_block_commit = OBJECT_INIT(
    "q_obj_block-commit-arg", OPT("job-id", schema_str), REQ("device", schema_str),
    OPT("base-node", schema_str), OPT("base", schema_str, DEPRECATED), OPT("top-node", schema_str),
    OPT("top", schema_str, DEPRECATED), OPT("backing-file", schema_str),
    OPT("backing-mask-protocol", schema_bool), OPT("speed", schema_int),
    OPT("on-error", qmp_type_on_error), OPT("filter-node-name", schema_str),
    OPT("auto-finalize", schema_bool), OPT("auto-dismiss", schema_bool));
const struct schema_type qmp_type_block_stream = OBJECT_INIT(
    "q_obj_block-stream-arg", OPT("job-id", schema_str), REQ("device", schema_str),
    OPT("base", schema_str), OPT("base-node", schema_str), OPT("backing-file", schema_str),
    OPT("backing-mask-protocol", schema_bool), OPT("bottom", schema_str), OPT("speed", schema_int),
    OPT("on-error", qmp_type_on_error), OPT("filter-node-name", schema_str),
    OPT("auto-finalize", schema_bool), OPT("auto-dismiss", schema_bool));
