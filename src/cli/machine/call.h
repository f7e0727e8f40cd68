/* SPDX-License-Identifier: Apache-2.0 */
/* Commands of QMP that the machine runs itself, and the event of its end. Main reactor only. */
#ifndef TIDEMARK_CLI_MACHINE_CALL_H
#define TIDEMARK_CLI_MACHINE_CALL_H

#include <json-c/json.h>

#include "base/error.h"

/*
 * Run a command as a client of QMP would, with the control lock held. `args` is consumed.
 * *ret_value (may be NULL: nobody wants it) gets the result. Yields.
 */
int machine_co_qmp(const char *name, struct json_object *args, struct json_object **ret_value,
                   struct error *err);

/* Why the machine ends: the event SHUTDOWN. `reason` is QEMU's ShutdownCause. Does not yield. */
void machine_emit_shutdown(const char *reason);

#endif
