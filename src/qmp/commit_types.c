/* SPDX-License-Identifier: Apache-2.0 */
/* Arguments of the jobs that shorten backing chains, of QEMU's qapi/block-core.json. */
#include "qmp/define.h"
#include "qmp/types.h"

const struct qmp_type qmp_type_block_commit = OBJECT_INIT(
    "q_obj_block-commit-arg", OPT("job-id", qmp_str), REQ("device", qmp_str),
    OPT("base-node", qmp_str), OPT("base", qmp_str, DEPRECATED), OPT("top-node", qmp_str),
    OPT("top", qmp_str, DEPRECATED), OPT("backing-file", qmp_str),
    OPT("backing-mask-protocol", qmp_bool), OPT("speed", qmp_int),
    OPT("on-error", qmp_type_on_error), OPT("filter-node-name", qmp_str),
    OPT("auto-finalize", qmp_bool), OPT("auto-dismiss", qmp_bool));
const struct qmp_type qmp_type_block_stream = OBJECT_INIT(
    "q_obj_block-stream-arg", OPT("job-id", qmp_str), REQ("device", qmp_str), OPT("base", qmp_str),
    OPT("base-node", qmp_str), OPT("backing-file", qmp_str), OPT("backing-mask-protocol", qmp_bool),
    OPT("bottom", qmp_str), OPT("speed", qmp_int), OPT("on-error", qmp_type_on_error),
    OPT("filter-node-name", qmp_str), OPT("auto-finalize", qmp_bool),
    OPT("auto-dismiss", qmp_bool));
