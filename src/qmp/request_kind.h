/* SPDX-License-Identifier: Apache-2.0 */
/* What can be said of a request before it is dispatched. Any thread. */
#ifndef TIDEMARK_QMP_REQUEST_KIND_H
#define TIDEMARK_QMP_REQUEST_KIND_H

#include <stdbool.h>

struct json_object;
struct qmp_call;

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

#endif
