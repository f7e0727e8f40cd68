/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/machine/call.h"

#include <errno.h>

#include "qmp/commands.h"
#include "qmp/events.h"
#include "qmp/table.h"

int machine_co_qmp(const char *name, struct json_object *args, struct json_object **ret_value,
                   struct error *err)
{
    const struct qmp_command *command = qmp_find_command(name);
    struct qmp_call call = {.negotiated = true, .passed_fd = -1};
    struct json_object *value = NULL;
    int r = command ? schema_check(command->args, args, 0, err)
                    : error_set_class(err, ERROR_CLASS_COMMAND_NOT_FOUND, EINVAL,
                                      "The command %s has not been found", name);

    UNLESS_FAILED(r, command->co_run(&call, args, &value, err));
    json_object_put(args);
    if (r >= 0 && ret_value) {
        *ret_value = value;
    } else {
        json_object_put(value);
    }
    return r;
}

void machine_emit_shutdown(const char *reason)
{
    struct json_object *data = json_object_new_object();

    qmp_put_bool(data, "guest", false);
    qmp_put_str(data, "reason", reason);
    qmp_emit("SHUTDOWN", data);
}
