/* SPDX-License-Identifier: Apache-2.0 */
/* Commands and events, and their types, as JSON. Nothing here yields. */
#ifndef TIDEMARK_QMP_INTROSPECT_H
#define TIDEMARK_QMP_INTROSPECT_H

#include "qmp/table.h"

/* Iterate: NULL begins, NULL ends. */
typedef const struct qmp_command *qmp_next_command_fn(const struct qmp_command *command);
typedef const struct qmp_event *qmp_next_event_fn(const struct qmp_event *event);

/*
 * An array of QEMU's SchemaInfo, a new reference. `texts`: with what qmp_introspect_with_texts()
 * has.
 */
struct json_object *qmp_describe(qmp_next_command_fn *next_command, qmp_next_event_fn *next_event,
                                 bool texts);

#endif
