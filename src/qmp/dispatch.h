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

/* The answer to a message that is no request: a new reference. Does not yield. */
struct json_object *qmp_error_answer(const struct error *err);

/* The answer to a request that is not executed, with its id: likewise. */
struct json_object *qmp_refusal(struct json_object *request, const struct error *err);

/* {"QMP": {...}}, with which a session begins: a new reference. Does not yield. */
struct json_object *qmp_greeting(void);

#endif
