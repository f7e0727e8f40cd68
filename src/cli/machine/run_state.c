/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/machine/run_state.h"

#include <string.h>

#include "cli/machine/commands.h"
#include "cli/machine/disk.h"
#include "qmp/events.h"
#include "qmp/set_active.h"
#include "qmp/types.h"

static const char *run_state = "running";
static bool starts_stopped;

void machine_start_stopped(void)
{
    starts_stopped = true;
    if (strcmp(run_state, "inmigrate") != 0) {
        run_state = "prelaunch";
    }
}

bool machine_starts_stopped(void)
{
    return starts_stopped;
}

void machine_set_run_state(const char *state)
{
    bool ran = machine_is_running();

    run_state = state;
    if (ran != machine_is_running()) {
        qmp_emit(ran ? "STOP" : "RESUME", NULL);
    }
}

bool machine_is_running(void)
{
    return strcmp(run_state, "running") == 0;
}

int machine_co_stop(struct qmp_call *call, struct json_object *args, struct json_object **ret_value,
                    struct error *err)
{
    if (machine_is_running()) {
        machine_set_run_state("paused");
    }
    return 0;
}

int machine_co_cont(struct qmp_call *call, struct json_object *args, struct json_object **ret_value,
                    struct error *err)
{
    int r = qmp_co_set_active(NULL, true, err);

    UNLESS_FAILED(r, machine_disks_co_start(err));
    if (r >= 0) {
        machine_set_run_state("running");
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
