/* SPDX-License-Identifier: Apache-2.0 */
/* Commands of the human monitor about the NBD server, limits, internal snapshots and objects. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "block/user_object.h"
#include "cli/machine/call.h"
#include "cli/machine/disk.h"
#include "cli/machine/hmp.h"
#include "cli/machine/migrate.h"
#include "cli/machine/vm_snapshot.h"

/* --- the NBD server --------------------------------------------------------------------------- */

/* "unix:PATH", "tcp:HOST:PORT" or "HOST:PORT" as a SocketAddress; NULL: none of them. */
static struct json_object *socket_address(const char *text)
{
    struct json_object *address = json_object_new_object(), *data = json_object_new_object();
    bool is_path = strncmp(text, "unix:", 5) == 0;
    const char *host = strncmp(text, "tcp:", 4) == 0 ? text + 4 : text;
    const char *colon = strrchr(host, ':');

    if (!is_path && !colon) {
        json_object_put(address);
        json_object_put(data);
        return NULL;
    }
    qmp_put_str(address, "type", is_path ? "unix" : "inet");
    if (is_path) {
        qmp_put_str(data, "path", text + 5);
    } else {
        json_object_object_add(data, "host", json_object_new_string_len(host, (int)(colon - host)));
        qmp_put_str(data, "port", colon + 1);
    }
    json_object_object_add(address, "data", data);
    return address;
}

static int co_export_device(const char *device, const char *name, bool writable, struct error *err)
{
    struct json_object *args = json_object_new_object();

    qmp_put_str(args, "device", device);
    if (name) {
        qmp_put_str(args, "name", name);
    }
    qmp_put_bool(args, "writable", writable);
    return machine_co_qmp("nbd-server-add", args, NULL, err);
}

/* Export all disks that have a medium, by their names. */
static int co_export_all(bool writable, struct error *err)
{
    struct machine_disk *disk = NULL;
    int r = 0;

    while (r >= 0 && (disk = machine_disk_next(disk))) {
        if (disk->name && machine_disk_node(disk)) {
            r = co_export_device(disk->name, NULL, writable, err);
        }
    }
    return r;
}

static int co_run_server_stop(struct hmp *hmp, int argc, char **argv, struct error *err)
{
    return machine_co_qmp("nbd-server-stop", json_object_new_object(), NULL, err);
}

static int co_run_server_start(struct hmp *hmp, int argc, char **argv, struct error *err)
{
    unsigned flags = hmp_take_flags(&argc, &argv, "aw");
    bool all = flags & 1, writable = flags & 2;
    struct json_object *args, *address;
    int r;

    if (argc != 1) {
        return error_set(err, EINVAL, "Parameter 'uri' is missing");
    }
    if (writable && !all) {
        return error_set(err, EINVAL, "-w only valid together with -a");
    }
    address = socket_address(argv[0]);
    if (!address) {
        return error_set(err, EINVAL, "error parsing address '%s'", argv[0]);
    }
    args = json_object_new_object();
    json_object_object_add(args, "addr", address);
    r = machine_co_qmp("nbd-server-start", args, NULL, err);
    if (r < 0 || !all) {
        return r;
    }
    r = co_export_all(writable, err);
    if (r < 0) {
        ERROR_AUTO(ignored);

        (void)co_run_server_stop(hmp, 0, NULL, &ignored);
    }
    return r;
}

static int co_run_server_add(struct hmp *hmp, int argc, char **argv, struct error *err)
{
    bool writable = hmp_take_flags(&argc, &argv, "w");

    if (argc == 0) {
        return error_set(err, EINVAL, "Parameter 'device' is missing");
    }
    return co_export_device(argv[0], argc > 1 ? argv[1] : NULL, writable, err);
}

static int co_run_server_remove(struct hmp *hmp, int argc, char **argv, struct error *err)
{
    bool force = hmp_take_flags(&argc, &argv, "f");
    struct json_object *args;

    if (argc == 0) {
        return error_set(err, EINVAL, "Parameter 'name' is missing");
    }
    args = json_object_new_object();
    qmp_put_str(args, "name", argv[0]);
    qmp_put_str(args, "mode", force ? "hard" : "safe");
    return machine_co_qmp("nbd-server-remove", args, NULL, err);
}

/* --- limits ----------------------------------------------------------------------------------- */

static int co_run_set_speed(struct hmp *hmp, int argc, char **argv, struct error *err)
{
    uint64_t speed = 0;
    int r = hmp_size(hmp, "block_job_set_speed", argv[1], &speed, err);
    struct json_object *args;

    if (r < 0) {
        return r;
    }
    args = json_object_new_object();
    qmp_put_str(args, "device", argv[0]);
    qmp_put_uint(args, "speed", speed);
    return machine_co_qmp("block-job-set-speed", args, NULL, err);
}

static int co_run_io_throttle(struct hmp *hmp, int argc, char **argv, struct error *err)
{
    static const char *const names[] = {"bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"};
    struct json_object *args = json_object_new_object();
    int r = 0;

    qmp_put_str(args, "device", argv[0]);
    for (size_t i = 0; i < ARRAY_SIZE(names) && r >= 0; i++) {
        int64_t limit = 0;

        r = hmp_number(hmp, "block_set_io_throttle", argv[1 + i], &limit, err);
        json_object_object_add(args, names[i], json_object_new_int64(limit));
    }
    if (r < 0) {
        json_object_put(args);
        return r;
    }
    return machine_co_qmp("block_set_io_throttle", args, NULL, err);
}

/* --- internal snapshots ----------------------------------------------------------------------- */

/* A command about the snapshot of a device: the words are device, name, and maybe id. */
static int co_about_snapshot(const char *command, int argc, char **argv, struct error *err)
{
    struct json_object *args = json_object_new_object();

    qmp_put_str(args, "device", argv[0]);
    qmp_put_str(args, "name", argv[1]);
    if (argc > 2) {
        qmp_put_str(args, "id", argv[2]);
    }
    return machine_co_qmp(command, args, NULL, err);
}

static int co_run_snapshot_internal(struct hmp *hmp, int argc, char **argv, struct error *err)
{
    return co_about_snapshot("blockdev-snapshot-internal-sync", argc, argv, err);
}

static int co_run_delete_internal(struct hmp *hmp, int argc, char **argv, struct error *err)
{
    return co_about_snapshot("blockdev-snapshot-delete-internal-sync", argc, argv, err);
}

/* --- snapshots of the machine ----------------------------------------------------------------- */

static int co_run_savevm(struct hmp *hmp, int argc, char **argv, struct error *err)
{
    return machine_co_save_vm(argc > 0 ? argv[0] : NULL, err);
}

static int co_run_loadvm(struct hmp *hmp, int argc, char **argv, struct error *err)
{
    return machine_co_load_vm(argv[0], err);
}

static int co_run_delvm(struct hmp *hmp, int argc, char **argv, struct error *err)
{
    return machine_co_delete_vm(argv[0], err);
}

/* --- objects ---------------------------------------------------------------------------------- */

static int co_run_object_add(struct hmp *hmp, int argc, char **argv, struct error *err)
{
    struct options *opts;
    int r = options_parse(argv[0], "qom-type", &opts, err);

    return r < 0 ? r : user_object_co_add(opts, err);
}

static int co_run_object_del(struct hmp *hmp, int argc, char **argv, struct error *err)
{
    struct json_object *args = json_object_new_object();

    qmp_put_str(args, "id", argv[0]);
    return machine_co_qmp("object-del", args, NULL, err);
}

/* The command does not wait for the end, with -d or without. */
static int co_run_migrate(struct hmp *hmp, int argc, char **argv, struct error *err)
{
    (void)hmp_take_flags(&argc, &argv, "dbir");
    return argc == 1 ? machine_co_migrate_to(argv[0], err)
                     : error_set(err, EINVAL, "migrate: extraneous characters at the end of line");
}

static int co_run_set_capability(struct hmp *hmp, int argc, char **argv, struct error *err)
{
    if (strcmp(argv[1], "on") != 0 && strcmp(argv[1], "off") != 0) {
        return error_set(err, EINVAL, "Parameter 'state' expects 'on' or 'off'");
    }
    return machine_set_migration_capability(argv[0], strcmp(argv[1], "on") == 0, err);
}

/* Of the copy of a guest's memory. */
static int co_run_set_parameter(struct hmp *hmp, int argc, char **argv, struct error *err)
{
    return 0;
}

static int co_run_start_postcopy(struct hmp *hmp, int argc, char **argv, struct error *err)
{
    return machine_co_qmp("migrate-start-postcopy", json_object_new_object(), NULL, err);
}

const struct hmp_command hmp_server_commands[] = {
    {"block_job_set_speed", NULL, 2, 2, "device speed",
     "set maximum speed for a background block operation", co_run_set_speed},
    {"block_set_io_throttle", NULL, 7, 7, "device bps bps_rd bps_wr iops iops_rd iops_wr",
     "change I/O throttle limits for a block drive", co_run_io_throttle},
    {"delvm", NULL, 1, 1, "tag", "delete a VM snapshot from its tag", co_run_delvm},
    {"loadvm", NULL, 1, 1, "tag", "restore a VM snapshot from its tag", co_run_loadvm},
    {"migrate", NULL, 1, 4, "[-d] [-b] [-i] uri", "migrate to URI", co_run_migrate},
    {"migrate_set_capability", NULL, 2, 2, "capability state",
     "Enable/Disable the usage of a capability for migration", co_run_set_capability},
    {"migrate_set_parameter", NULL, 2, 2, "parameter value", "Set the parameter for migration",
     co_run_set_parameter},
    {"migrate_start_postcopy", NULL, 0, 0, "",
     "Followup to a migration command to switch the migration to postcopy mode.",
     co_run_start_postcopy},
    {"nbd_server_add", NULL, 1, 3, "[-w] device [name]", "export a block device via NBD",
     co_run_server_add},
    {"nbd_server_remove", NULL, 1, 2, "[-f] name", "remove an export previously exposed via NBD",
     co_run_server_remove},
    {"nbd_server_start", NULL, 1, 3, "[-a] [-w] host:port",
     "serve block devices on the given host and port", co_run_server_start},
    {"nbd_server_stop", NULL, 0, 0, "", "stop serving block devices using the NBD protocol",
     co_run_server_stop},
    {"object_add", NULL, 1, 1, "[qom-type=]type,id=str[,prop=value][,...]", "create QOM object",
     co_run_object_add},
    {"object_del", NULL, 1, 1, "id", "destroy QOM object", co_run_object_del},
    {"savevm", NULL, 0, 1, "[tag]", "save a VM snapshot", co_run_savevm},
    {"snapshot_blkdev_internal", NULL, 2, 2, "device name", "take an internal snapshot of device",
     co_run_snapshot_internal},
    {"snapshot_delete_blkdev_internal", NULL, 2, 3, "device name [id]",
     "delete an internal snapshot of device", co_run_delete_internal},
    {0},
};
