/* SPDX-License-Identifier: Apache-2.0 */
/* The table of the machine's commands, and those about the machine as a whole. */
#include "cli/machine/commands.h"

#include <errno.h>
#include <string.h>

#include "cli/machine/call.h"
#include "cli/machine/device.h"
#include "cli/machine/hmp.h"
#include "cli/machine/migrate.h"
#include "qmp/define.h"
#include "qmp/events.h"
#include "qmp/types.h"

/* --- the machine as a whole ------------------------------------------------------------------- */

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

OBJECT(name_info, "NameInfo", OPT("name", schema_str));
OBJECT(status_info, "StatusInfo", REQ("running", schema_bool), REQ("status", schema_str));
OBJECT(blockstats_args, "q_obj_query-blockstats-arg", OPT("query-nodes", schema_bool));
ARRAY(anything, schema_any);
static const struct schema_type device_add = {
    .kind = SCHEMA_OBJECT,
    .name = "q_obj_device_add-arg",
    .members = MEMBERS(REQ("driver", schema_str), OPT("bus", schema_str), OPT("id", schema_str)),
    .open = true,
};
OBJECT(device_del, "q_obj_device_del-arg", REQ("id", schema_str));
OBJECT(human_command, "q_obj_human-monitor-command-arg", REQ("command-line", schema_str),
       OPT("cpu-index", schema_int));
OBJECT(eject, "q_obj_eject-arg", OPT("device", schema_str), OPT("id", schema_str),
       OPT("force", schema_bool));
OBJECT(tray, "q_obj_blockdev-open-tray-arg", OPT("device", schema_str), OPT("id", schema_str),
       OPT("force", schema_bool));
OBJECT(medium, "q_obj_blockdev-remove-medium-arg", REQ("id", schema_str));
OBJECT(insert_medium, "q_obj_blockdev-insert-medium-arg", REQ("id", schema_str),
       REQ("node-name", schema_str));
ENUM(read_only_mode, "BlockdevChangeReadOnlyMode", "retain", "read-only", "read-write");
OBJECT(change_medium, "q_obj_blockdev-change-medium-arg", OPT("device", schema_str),
       OPT("id", schema_str), REQ("filename", schema_str), OPT("format", schema_str),
       OPT("force", schema_bool), OPT("read-only-mode", read_only_mode));
/* A limit: its mean, the rate of a burst, and how long a burst may last. */
#define LIMIT(name)                                                                                \
    REQ(name, schema_int), OPT(name "_max", schema_int), OPT(name "_max_length", schema_int)
OBJECT(io_throttle, "BlockIOThrottle", OPT("device", schema_str), OPT("id", schema_str),
       LIMIT("bps"), LIMIT("bps_rd"), LIMIT("bps_wr"), LIMIT("iops"), LIMIT("iops_rd"),
       LIMIT("iops_wr"), OPT("iops_size", schema_int), OPT("group", schema_str));
OBJECT(nbd_server_add, "NbdServerAddOptions", REQ("device", schema_str), OPT("name", schema_str),
       OPT("description", schema_str), OPT("writable", schema_bool), OPT("bitmap", schema_str));

OBJECT(reset_event, "q_obj_RESET-arg", REQ("guest", schema_bool), REQ("reason", schema_str));
OBJECT(shutdown_event, "q_obj_SHUTDOWN-arg", REQ("guest", schema_bool), REQ("reason", schema_str));
OBJECT(device_deleted, "q_obj_DEVICE_DELETED-arg", OPT("device", schema_str),
       REQ("path", schema_str));
OBJECT(tray_moved, "q_obj_DEVICE_TRAY_MOVED-arg", REQ("device", schema_str), REQ("id", schema_str),
       REQ("tray-open", schema_bool));

static const struct qmp_command commands[] = {
    {"block-latency-histogram-set", &qmp_type_latency_set, &schema_empty,
     machine_co_latency_histogram_set},
    {"block_set_io_throttle", &io_throttle, &schema_empty, machine_co_set_io_throttle},
    {"blockdev-change-medium", &change_medium, &schema_empty, machine_co_change_medium},
    {"blockdev-close-tray", &tray, &schema_empty, machine_co_close_tray},
    {"blockdev-insert-medium", &insert_medium, &schema_empty, machine_co_insert_medium},
    {"blockdev-open-tray", &tray, &schema_empty, machine_co_open_tray},
    {"blockdev-remove-medium", &medium, &schema_empty, machine_co_remove_medium},
    {"cont", &schema_empty, &schema_empty, machine_co_cont},
    {"device_add", &device_add, &schema_empty, co_device_add},
    {"device_del", &device_del, &schema_empty, co_device_del},
    {"eject", &eject, &schema_empty, machine_co_eject},
    {"human-monitor-command", &human_command, &schema_str, machine_co_human_monitor_command},
    {"migrate", &machine_migrate_type, &schema_empty, machine_co_migrate},
    {"migrate-continue", &machine_migrate_continue_type, &schema_empty,
     machine_co_migrate_continue},
    {"migrate-incoming", &machine_migrate_incoming_type, &schema_empty,
     machine_co_migrate_incoming},
    {"migrate-set-capabilities", &machine_migrate_capabilities_type, &schema_empty,
     machine_co_migrate_set_capabilities},
    {"migrate-set-parameters", &machine_migrate_parameters_type, &schema_empty,
     machine_co_migrate_set_parameters},
    {"migrate-start-postcopy", &schema_empty, &schema_empty, machine_co_migrate_start_postcopy},
    {"nbd-server-add", &nbd_server_add, &schema_empty, machine_co_nbd_server_add},
    {"qom-get", &qmp_type_qom_get, &schema_any, machine_co_qom_get},
    {"qom-set", &qmp_type_qom_set, &schema_empty, machine_co_qom_set},
    {"query-block", &schema_empty, &qmp_type_block_infos, machine_co_query_block},
    {"query-blockstats", &blockstats_args, &anything, machine_co_query_blockstats},
    {"query-migrate", &schema_empty, &machine_migrate_info_type, machine_co_query_migrate},
    {"query-migrate-capabilities", &schema_empty, &machine_migrate_capability_list,
     machine_co_query_migrate_capabilities},
    {"query-name", &schema_empty, &name_info, co_query_name},
    {"query-status", &schema_empty, &status_info, machine_co_query_status},
    {"query-tpm", &schema_empty, &anything, co_query_tpm},
    {"quit", &schema_empty, &schema_empty, co_quit},
    {"stop", &schema_empty, &schema_empty, machine_co_stop},
    {"system_reset", &schema_empty, &schema_empty, co_system_reset},
    {NULL, NULL, NULL, NULL},
};

static const struct qmp_event events[] = {
    {"DEVICE_DELETED", &device_deleted},
    {"DEVICE_TRAY_MOVED", &tray_moved},
    {"MIGRATION", &machine_migrate_event},
    {"RESET", &reset_event},
    {"RESUME", &schema_empty},
    {"SHUTDOWN", &shutdown_event},
    {"STOP", &schema_empty},
    {NULL, NULL},
};

const struct qmp_addition machine_qmp = {commands, events};
