/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/machine/run_state.h"

#include <string.h>

#include "cli/machine/commands.h"
#include "cli/machine/disk.h"
#include "qmp/events.h"
#include "qmp/set_active.h"
#include "qmp/types.h"

static const char *run_state = "running";

void machine_start_stopped(void)
{
    run_state = "prelaunch";
}

bool machine_is_running(void)
{
    return strcmp(run_state, "running") == 0;
}

int machine_co_stop(struct qmp_call *call, struct json_object *args, struct json_object **ret_value,
                    struct error *err)
{
    if (machine_is_running()) {
        run_state = "paused";
        qmp_emit("STOP", NULL);
    }
    return 0;
}

int machine_co_cont(struct qmp_call *call, struct json_object *args, struct json_object **ret_value,
                    struct error *err)
{
    int r = qmp_co_set_active(NULL, true, err);

    UNLESS_FAILED(r, machine_disks_co_start(err));
    if (r >= 0 && !machine_is_running()) {
        run_state = "running";
        qmp_emit("RESUME", NULL);
    }
    return r;
}

int machine_co_query_status(struct qmp_call *call, struct json_object *args,
                            struct json_object **ret_value, struct error *err)
{
    *ret_value = json_object_new_object();
    qmp_put_str(*ret_value, "status", run_state);
    qmp_put_bool(*ret_value, "running", machine_is_running());
    return 0;
}
