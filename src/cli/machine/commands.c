/* SPDX-License-Identifier: Apache-2.0 */
/* The table of the machine's commands, and those about the machine as a whole. */
#include "cli/machine/commands.h"

#include <errno.h>
#include <string.h>

#include "cli/machine/call.h"
#include "cli/machine/device.h"
#include "cli/machine/hmp.h"
#include "qmp/define.h"
#include "qmp/events.h"
#include "qmp/set_active.h"
#include "qmp/types.h"

/* --- the state of the machine ----------------------------------------------------------------- */

static const char *run_state = "running";

void machine_start_stopped(void)
{
    run_state = "prelaunch";
}

static bool is_running(void)
{
    return strcmp(run_state, "running") == 0;
}

static int co_stop(struct qmp_call *call, struct json_object *args, struct json_object **ret_value,
                   struct error *err)
{
    if (is_running()) {
        run_state = "paused";
        qmp_emit("STOP", NULL);
    }
    return 0;
}

static int co_cont(struct qmp_call *call, struct json_object *args, struct json_object **ret_value,
                   struct error *err)
{
    int r = qmp_co_set_active(NULL, true, err);

    if (r >= 0 && !is_running()) {
        run_state = "running";
        qmp_emit("RESUME", NULL);
    }
    return r;
}

static int co_query_status(struct qmp_call *call, struct json_object *args,
                           struct json_object **ret_value, struct error *err)
{
    *ret_value = json_object_new_object();
    qmp_put_str(*ret_value, "status", run_state);
    qmp_put_bool(*ret_value, "running", is_running());
    return 0;
}

static const char *machine_name; /* borrowed, not ended by NUL */
static int machine_name_length;  /* 0: the machine has no name */

void machine_set_name(const char *option)
{
    const char *guest = strncmp(option, "guest=", 6) == 0 ? option + 6 : option;

    machine_name = guest;
    machine_name_length = (int)strcspn(guest, ",");
}

static int co_query_name(struct qmp_call *call, struct json_object *args,
                         struct json_object **ret_value, struct error *err)
{
    *ret_value = json_object_new_object();
    if (machine_name_length > 0) {
        json_object_object_add(*ret_value, "name",
                               json_object_new_string_len(machine_name, machine_name_length));
    }
    return 0;
}

/* There is no kind of TPM among the devices. */
static int co_query_tpm(struct qmp_call *call, struct json_object *args,
                        struct json_object **ret_value, struct error *err)
{
    *ret_value = json_object_new_array();
    return 0;
}

static int co_system_reset(struct qmp_call *call, struct json_object *args,
                           struct json_object **ret_value, struct error *err)
{
    struct json_object *data = json_object_new_object();

    machine_co_reset_devices();
    qmp_put_bool(data, "guest", false);
    qmp_put_str(data, "reason", "host-qmp-system-reset");
    qmp_emit("RESET", data);
    return 0;
}

static int co_quit(struct qmp_call *call, struct json_object *args, struct json_object **ret_value,
                   struct error *err)
{
    machine_emit_shutdown("host-qmp-quit");
    return qmp_co_quit(call, args, ret_value, err);
}

/* --- devices ---------------------------------------------------------------------------------- */

static int co_device_add(struct qmp_call *call, struct json_object *args,
                         struct json_object **ret_value, struct error *err)
{
    struct options *opts;
    int r = options_from_json(args, &opts, err);

    return r < 0 ? r : machine_co_add_device(opts, err);
}

static int co_device_del(struct qmp_call *call, struct json_object *args,
                         struct json_object **ret_value, struct error *err)
{
    return machine_co_del_device(qmp_get_str(args, "id"), err);
}

/* --- types ------------------------------------------------------------------------------------ */

OBJECT(name_info, "NameInfo", OPT("name", qmp_str));
OBJECT(status_info, "StatusInfo", REQ("running", qmp_bool), REQ("status", qmp_str));
OBJECT(blockstats_args, "q_obj_query-blockstats-arg", OPT("query-nodes", qmp_bool));
ARRAY(anything, qmp_any);
static const struct qmp_type device_add = {
    .kind = QMP_OBJECT,
    .name = "q_obj_device_add-arg",
    .members = MEMBERS(REQ("driver", qmp_str), OPT("bus", qmp_str), OPT("id", qmp_str)),
    .open = true,
};
OBJECT(device_del, "q_obj_device_del-arg", REQ("id", qmp_str));
OBJECT(human_command, "q_obj_human-monitor-command-arg", REQ("command-line", qmp_str),
       OPT("cpu-index", qmp_int));
OBJECT(eject, "q_obj_eject-arg", OPT("device", qmp_str), OPT("id", qmp_str),
       OPT("force", qmp_bool));
OBJECT(tray, "q_obj_blockdev-open-tray-arg", OPT("device", qmp_str), OPT("id", qmp_str),
       OPT("force", qmp_bool));
OBJECT(medium, "q_obj_blockdev-remove-medium-arg", REQ("id", qmp_str));
OBJECT(insert_medium, "q_obj_blockdev-insert-medium-arg", REQ("id", qmp_str),
       REQ("node-name", qmp_str));
ENUM(read_only_mode, "BlockdevChangeReadOnlyMode", "retain", "read-only", "read-write");
OBJECT(change_medium, "q_obj_blockdev-change-medium-arg", OPT("device", qmp_str),
       OPT("id", qmp_str), REQ("filename", qmp_str), OPT("format", qmp_str), OPT("force", qmp_bool),
       OPT("read-only-mode", read_only_mode));
OBJECT(nbd_server_add, "NbdServerAddOptions", REQ("device", qmp_str), OPT("name", qmp_str),
       OPT("description", qmp_str), OPT("writable", qmp_bool), OPT("bitmap", qmp_str));

OBJECT(reset_event, "q_obj_RESET-arg", REQ("guest", qmp_bool), REQ("reason", qmp_str));
OBJECT(shutdown_event, "q_obj_SHUTDOWN-arg", REQ("guest", qmp_bool), REQ("reason", qmp_str));
OBJECT(device_deleted, "q_obj_DEVICE_DELETED-arg", OPT("device", qmp_str), REQ("path", qmp_str));
OBJECT(tray_moved, "q_obj_DEVICE_TRAY_MOVED-arg", REQ("device", qmp_str), REQ("id", qmp_str),
       REQ("tray-open", qmp_bool));

static const struct qmp_command commands[] = {
    {"block-latency-histogram-set", &qmp_type_latency_set, &qmp_empty,
     machine_co_latency_histogram_set},
    {"blockdev-change-medium", &change_medium, &qmp_empty, machine_co_change_medium},
    {"blockdev-close-tray", &tray, &qmp_empty, machine_co_close_tray},
    {"blockdev-insert-medium", &insert_medium, &qmp_empty, machine_co_insert_medium},
    {"blockdev-open-tray", &tray, &qmp_empty, machine_co_open_tray},
    {"blockdev-remove-medium", &medium, &qmp_empty, machine_co_remove_medium},
    {"cont", &qmp_empty, &qmp_empty, co_cont},
    {"device_add", &device_add, &qmp_empty, co_device_add},
    {"device_del", &device_del, &qmp_empty, co_device_del},
    {"eject", &eject, &qmp_empty, machine_co_eject},
    {"human-monitor-command", &human_command, &qmp_str, machine_co_human_monitor_command},
    {"nbd-server-add", &nbd_server_add, &qmp_empty, machine_co_nbd_server_add},
    {"qom-set", &qmp_type_qom_set, &qmp_empty, machine_co_qom_set},
    {"query-block", &qmp_empty, &qmp_type_block_infos, machine_co_query_block},
    {"query-blockstats", &blockstats_args, &anything, machine_co_query_blockstats},
    {"query-name", &qmp_empty, &name_info, co_query_name},
    {"query-status", &qmp_empty, &status_info, co_query_status},
    {"query-tpm", &qmp_empty, &anything, co_query_tpm},
    {"quit", &qmp_empty, &qmp_empty, co_quit},
    {"stop", &qmp_empty, &qmp_empty, co_stop},
    {"system_reset", &qmp_empty, &qmp_empty, co_system_reset},
    {NULL, NULL, NULL, NULL},
};

static const struct qmp_event events[] = {
    {"DEVICE_DELETED", &device_deleted},
    {"DEVICE_TRAY_MOVED", &tray_moved},
    {"RESET", &reset_event},
    {"RESUME", &qmp_empty},
    {"SHUTDOWN", &shutdown_event},
    {"STOP", &qmp_empty},
    {NULL, NULL},
};

const struct qmp_addition machine_qmp = {commands, events};
