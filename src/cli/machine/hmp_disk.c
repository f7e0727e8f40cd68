/* SPDX-License-Identifier: Apache-2.0 */
/* Commands of the human monitor about disks. Most are those of QMP in another form. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "block/option_types.h"
#include "cli/machine/call.h"
#include "cli/machine/device.h"
#include "cli/machine/disk.h"
#include "cli/machine/drive.h"
#include "cli/machine/hmp.h"

static const char *arg(int argc, char **argv, int i)
{
    return i < argc ? argv[i] : NULL;
}

static int co_run_eject(struct hmp *hmp, int argc, char **argv, struct error *err)
{
    struct json_object *args = json_object_new_object();
    bool force = hmp_take_flags(&argc, &argv, "f");

    qmp_put_str(args, "device", arg(argc, argv, 0) ?: "");
    qmp_put_bool(args, "force", force);
    return machine_co_qmp("eject", args, NULL, err);
}

static int co_run_change(struct hmp *hmp, int argc, char **argv, struct error *err)
{
    struct json_object *args = json_object_new_object();

    qmp_put_str(args, "device", argv[0]);
    qmp_put_str(args, "filename", argv[1]);
    qmp_put_str(args, "format", arg(argc, argv, 2));
    qmp_put_str(args, "read-only-mode", arg(argc, argv, 3));
    return machine_co_qmp("blockdev-change-medium", args, NULL, err);
}

static int co_run_block_resize(struct hmp *hmp, int argc, char **argv, struct error *err)
{
    struct json_object *args = json_object_new_object();
    uint64_t bytes = 0;
    int r = hmp_size(hmp, "block_resize", argv[1], &bytes, err);

    if (r < 0) {
        json_object_put(args);
        return r;
    }
    qmp_put_str(args, "device", argv[0]);
    qmp_put_uint(args, "size", bytes);
    return machine_co_qmp("block_resize", args, NULL, err);
}

static int co_run_snapshot_blkdev(struct hmp *hmp, int argc, char **argv, struct error *err)
{
    struct json_object *args = json_object_new_object();
    bool reuse = hmp_take_flags(&argc, &argv, "n");

    if (!arg(argc, argv, 1)) {
        json_object_put(args);
        return error_set(err, EINVAL, "Parameter 'snapshot-file' is missing");
    }
    qmp_put_str(args, "device", argv[0]);
    qmp_put_str(args, "snapshot-file", argv[1]);
    qmp_put_str(args, "format", arg(argc, argv, 2));
    qmp_put_str(args, "mode", reuse ? "existing" : "absolute-paths");
    return machine_co_qmp("blockdev-snapshot-sync", args, NULL, err);
}

/* drive_mirror and drive_backup: flags, device, target, format. */
static int co_copy_drive(const char *command, unsigned flags, int argc, char **argv,
                         struct error *err)
{
    struct json_object *args = json_object_new_object();

    if (!arg(argc, argv, 1)) {
        json_object_put(args);
        return error_set(err, EINVAL, "Parameter 'target' is missing");
    }
    qmp_put_str(args, "device", argv[0]);
    qmp_put_str(args, "target", argv[1]);
    qmp_put_str(args, "format", arg(argc, argv, 2));
    qmp_put_str(args, "mode", flags & 1 ? "existing" : "absolute-paths");
    qmp_put_str(args, "sync", flags & 2 ? "full" : "top");
    if (flags & 4) {
        qmp_put_bool(args, "compress", true);
    }
    return machine_co_qmp(command, args, NULL, err);
}

static int co_run_drive_mirror(struct hmp *hmp, int argc, char **argv, struct error *err)
{
    unsigned flags = hmp_take_flags(&argc, &argv, "nf");

    return co_copy_drive("drive-mirror", flags, argc, argv, err);
}

static int co_run_drive_backup(struct hmp *hmp, int argc, char **argv, struct error *err)
{
    unsigned flags = hmp_take_flags(&argc, &argv, "nfc");

    return co_copy_drive("drive-backup", flags, argc, argv, err);
}

/* --- jobs ------------------------------------------------------------------------------------- */

static int co_job_verb(const char *command, const char *device, struct error *err)
{
    struct json_object *args = json_object_new_object();

    qmp_put_str(args, "device", device);
    return machine_co_qmp(command, args, NULL, err);
}

static int co_run_job_cancel(struct hmp *hmp, int argc, char **argv, struct error *err)
{
    bool force = hmp_take_flags(&argc, &argv, "f");
    struct json_object *args = json_object_new_object();

    qmp_put_str(args, "device", arg(argc, argv, 0) ?: "");
    qmp_put_bool(args, "force", force);
    return machine_co_qmp("block-job-cancel", args, NULL, err);
}

static int co_run_job_complete(struct hmp *hmp, int argc, char **argv, struct error *err)
{
    return co_job_verb("block-job-complete", argv[0], err);
}

static int co_run_job_pause(struct hmp *hmp, int argc, char **argv, struct error *err)
{
    return co_job_verb("block-job-pause", argv[0], err);
}

static int co_run_job_resume(struct hmp *hmp, int argc, char **argv, struct error *err)
{
    return co_job_verb("block-job-resume", argv[0], err);
}

static int co_run_stream(struct hmp *hmp, int argc, char **argv, struct error *err)
{
    struct json_object *args = json_object_new_object();
    uint64_t speed = 0;
    int r = 0;

    qmp_put_str(args, "device", argv[0]);
    qmp_put_str(args, "job-id", argv[0]);
    qmp_put_str(args, "base", arg(argc, argv, 2));
    if (argc > 1) {
        r = hmp_size(hmp, "block_stream", argv[1], &speed, err);
        qmp_put_uint(args, "speed", speed);
    }
    if (r < 0) {
        json_object_put(args);
        return r;
    }
    return machine_co_qmp("block-stream", args, NULL, err);
}

/* --- drives and devices ----------------------------------------------------------------------- */

/* drive_add [-n] ADDRESS OPTIONS: the address says where a guest would see it. */
static int co_run_drive_add(struct hmp *hmp, int argc, char **argv, struct error *err)
{
    struct machine_drive *drive;
    bool is_node = hmp_take_flags(&argc, &argv, "n");
    int r;

    if (argc < 2) {
        return error_set(err, EINVAL, "drive_add: an address and options expected");
    }
    if (is_node) {
        struct json_object *args;
        struct options *opts;

        r = options_parse(argv[1], NULL, &opts, err);
        if (r < 0) {
            return r;
        }
        r = qmp_args_of_options(&block_options_type, opts, &args, err);
        options_free(opts);
        return r < 0 ? r : machine_co_qmp("blockdev-add", args, NULL, err);
    }
    hmp->plain_error = true;
    r = machine_co_add_drive(argv[1], "none", &drive, err);
    UNLESS_FAILED(r, machine_co_connect_drive(drive, err));
    if (r >= 0) {
        hmp_printf(hmp, "OK\n");
    }
    return r;
}

static int co_run_drive_del(struct hmp *hmp, int argc, char **argv, struct error *err)
{
    struct machine_disk *disk = machine_disk_find(argv[0]);

    if (!disk && block_node_find(argv[0])) {
        struct json_object *args = json_object_new_object();

        qmp_put_str(args, "node-name", argv[0]);
        return machine_co_qmp("blockdev-del", args, NULL, err);
    }
    if (!disk) {
        hmp->plain_error = true;
        return error_set(err, ENOENT, "Device '%s' not found", argv[0]);
    }
    machine_disk_co_remove(disk);
    if (disk->user) {
        machine_disk_forget_name(disk);
    } else {
        machine_disk_co_free(disk);
    }
    return 0;
}

static int co_run_device_add(struct hmp *hmp, int argc, char **argv, struct error *err)
{
    struct options *opts;
    int r = options_parse(argv[0], "driver", &opts, err);

    return r < 0 ? r : machine_co_add_device(opts, err);
}

static int co_run_device_del(struct hmp *hmp, int argc, char **argv, struct error *err)
{
    return machine_co_del_device(argv[0], err);
}

const struct hmp_command hmp_disk_commands[] = {
    {"block_job_cancel", NULL, 1, 2, "[-f] device", "stop an active block operation",
     co_run_job_cancel},
    {"block_job_complete", NULL, 1, 1, "device", "stop an active background block operation",
     co_run_job_complete},
    {"block_job_pause", NULL, 1, 1, "device", "pause an active background block operation",
     co_run_job_pause},
    {"block_job_resume", NULL, 1, 1, "device", "resume a paused background block operation",
     co_run_job_resume},
    {"block_resize", NULL, 2, 2, "device size", "resize a block image", co_run_block_resize},
    {"block_stream", NULL, 1, 3, "device [speed [base]]",
     "copy data from a backing file into a block device", co_run_stream},
    {"change", NULL, 2, 4, "device filename [format [read-only-mode]]", "change a removable medium",
     co_run_change},
    {"commit", NULL, 1, 1, "device|all",
     "commit changes to the disk images (if -snapshot is used) or backing files",
     hmp_co_run_commit},
    {"device_add", NULL, 1, 1, "driver[,prop=value][,...]", "add device", co_run_device_add},
    {"device_del", NULL, 1, 1, "device", "remove device", co_run_device_del},
    {"drive_add", NULL, 2, 3, "[-n] [[<domain>:]<bus>:]<slot> [file=file][,if=type]...",
     "add drive", co_run_drive_add},
    {"drive_backup", NULL, 2, 6, "[-n] [-f] [-c] device target [format]",
     "initiates a point-in-time copy for a device", co_run_drive_backup},
    {"drive_del", NULL, 1, 1, "device", "remove host block device", co_run_drive_del},
    {"drive_mirror", NULL, 2, 5, "[-n] [-f] device target [format]",
     "initiates live storage migration for a device", co_run_drive_mirror},
    {"eject", NULL, 1, 2, "[-f] device", "eject a removable medium", co_run_eject},
    {"snapshot_blkdev", NULL, 1, 4, "[-n] device [new-image-file] [format]",
     "initiates a live snapshot of device", co_run_snapshot_blkdev},
    {0},
};
