/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a command touches (block/control_lock.h): nodes, exports and jobs that its arguments name,
 * and what is joined with them. So a command for one disk goes on while one for another disk waits
 * for a disk that hangs.
 */
#ifndef TIDEMARK_QMP_SCOPE_H
#define TIDEMARK_QMP_SCOPE_H

#include <json-c/json.h>
#include <stdbool.h>

#include "block/control_lock.h"

struct qmp_scope {
    struct block_control_scope scope;
    struct json_object *args; /* borrowed */
    bool begun;
};

/*
 * The running coroutine executes the request, which is valid until the end. A command that may
 * touch anything has no scope. Does not yield.
 */
void qmp_begin_scope(struct qmp_scope *s, struct json_object *request);
void qmp_end_scope(struct qmp_scope *s);

#endif
