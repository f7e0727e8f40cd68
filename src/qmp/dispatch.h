/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From a request of a QMP session to its answer (QEMU's docs/interop/qmp-spec, "Issuing Commands").
 */
#ifndef TIDEMARK_QMP_DISPATCH_H
#define TIDEMARK_QMP_DISPATCH_H

#include "qmp/table.h"

/*
 * Check and run `request` (an object). Returns the whole answer, with the request's id: a new
 * reference. Yields.
 */
struct json_object *qmp_co_dispatch(struct qmp_call *call, struct json_object *request);

/*
 * Whether a request (any JSON) asks for execution out of band, and is to be dispatched at once,
 * also while another one is executed. Such a dispatch does not yield: commands that cannot run out
 * of band are refused. Does not yield.
 */
bool qmp_is_oob(const struct qmp_call *call, struct json_object *request);
/* Whether the command of this name can run out of band, and without the control lock. */
bool qmp_allows_oob(const char *name);

/*
 * Whether a request (any JSON) is a command that only looks at what exists, without yielding: see
 * qmp_co_begin_look(). Does not yield.
 */
bool qmp_only_looks(struct json_object *request);

/* The answer to a message that is no request: a new reference. Does not yield. */
struct json_object *qmp_error_answer(const struct error *err);

/* {"QMP": {...}}, with which a session begins: a new reference. Does not yield. */
struct json_object *qmp_greeting(void);

#endif
