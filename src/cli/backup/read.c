/* SPDX-License-Identifier: Apache-2.0 */
/* The faces that only read a repository: backups, restore and verify. */
#include <stdio.h>
#include <string.h>

#include "backup/backup.h"
#include "cli/args.h"
#include "cli/backup/faces.h"
#include "cli/cli.h"
#include "cli/observe.h"

/* Warn of a damaged description: backups can be read without it, but no new one can be made. */
static void warn_about_description(const struct repository *r)
{
    if (r->problem) {
        cli_warn("%s; 'tidemark repair %s' makes it again", r->problem, r->path);
    }
}

/* --- backups ---------------------------------------------------------------------------------- */

static const struct cli_usage backups_usage = {
    .synopsis = "DIR",
    .about = "Lists the backups in a directory, oldest first, with their contents and costs.",
    .examples = "@/backups/disk\n"
                "@--output=json /backups/disk\n"
                "        all details of each backup",
};

static void print_table(const struct repository *r)
{
    printf("%-20s  %-11s  %10s  %10s  %10s  %10s  %8s\n", "ID", "KIND", "DISK", "CHANGED", "MOVED",
           "STORED", "TIME");
    for (size_t i = 0; i < r->count; i++) {
        const struct repository_entry *e = &r->entries[i];
        const struct manifest *m = &e->manifest;
        char disk[16], changed[16], moved[16], stored[16];

        if (e->problem) {
            printf("%-20s  damaged: %s\n", e->id, e->problem);
            continue;
        }
        printf("%-20s  %-11s  %10s  %10s  %10s  %10s  %6.1f s\n", e->id,
               manifest_is_full(m) ? "full" : "incremental", backup_size(m->virtual_size, disk),
               backup_size(m->changed, changed), backup_size(m->moved, moved),
               backup_size(m->stored, stored), (double)m->duration_ms / 1000);
    }
}

static int print_list_json(const struct repository *r)
{
    struct json_object *list = json_object_new_array();

    for (size_t i = 0; i < r->count; i++) {
        struct json_object *o;

        if (r->entries[i].problem) {
            o = json_object_new_object();
            json_object_object_add(o, "id", json_object_new_string(r->entries[i].id));
            json_object_object_add(o, "problem", json_object_new_string(r->entries[i].problem));
        } else {
            o = manifest_to_json(&r->entries[i].manifest);
        }
        json_object_array_add(list, o);
    }
    return backup_print_json(list);
}

int cli_backups_main(int argc, char **argv)
{
    REPOSITORY_AUTO(repository);
    CLI_OBSERVE_AUTO(observe);
    const char *output = NULL;
    bool json;
    int status;
    ERROR_AUTO(err);
    const struct cli_arg args[] = {
        {"output", 0, CLI_VALUE, &output, "FORMAT", "'human' or 'json'"},
        CLI_OBSERVE_ARGS(observe),
        CLI_ARG_END,
    };
    int first = cli_args_parse(args, &backups_usage, argc, argv);

    if (first < 0) {
        return cli_exit_status(first, &err);
    }
    if (first != argc - 1) {
        cli_usage_error(&err, &backups_usage, "expecting one directory");
        return cli_report(&err);
    }
    if (!cli_observe(&observe, &status)) {
        return status;
    }
    if (cli_parse_output(output, &json, &err) < 0) {
        return cli_report(&err);
    }
    if (repository_open(argv[first], &repository, &err) < 0) {
        return backup_fail(&err, json);
    }
    warn_about_description(&repository);
    if (json) {
        return print_list_json(&repository);
    }
    if (repository.count == 0) {
        printf("There are no backups in '%s' yet.\n", repository.path);
    } else {
        print_table(&repository);
    }
    return 0;
}

/* --- restore ---------------------------------------------------------------------------------- */

static const struct cli_usage restore_usage = {
    .synopsis = "DIR TARGET",
    .about = "Writes the disk as it was at the time of a backup: to a new file, in which areas of "
             "zeroes take\n"
             "no space, to a block device, or to an export of an NBD server. All data is compared "
             "with its\n"
             "checksum first. A file gets its name when it is complete. With --force it replaces "
             "an existing\n"
             "file, and takes over its owner, mode and labels. Files in use, mounted devices and "
             "symbolic links\n"
             "to files are never replaced.",
    .examples = "@/backups/disk disk.raw\n"
                "        the newest backup\n"
                "@/backups/disk --at 20261120T0930 -f qcow2 disk.qcow2\n"
                "        the backup of 20 November 2026, 09:30 (UTC)",
};

static int print_restore_json(const struct restore_options *options,
                              const struct restore_result *result)
{
    struct json_object *o = json_object_new_object();

    json_object_object_add(o, "id", json_object_new_string(result->id));
    json_object_object_add(o, "target", json_object_new_string(options->target));
    json_object_object_add(o, "virtual-size", json_object_new_uint64(result->virtual_size));
    json_object_object_add(o, "written-bytes", json_object_new_uint64(result->written));
    json_object_object_add(o, "duration-ms", json_object_new_uint64(result->duration_ms));
    return backup_print_json(o);
}

static void print_restore(const struct restore_options *options,
                          const struct restore_result *result)
{
    char size[16], written[16];

    printf("Backup %s is restored to '%s': disk %s, data %s, verified, in %.1f s\n", result->id,
           options->target, backup_size(result->virtual_size, size),
           backup_size(result->written, written), (double)result->duration_ms / 1000);
}

static int restore_co_main(int argc, char **argv, struct error *err)
{
    struct restore_options options = {.format = "raw", .stop = &backup_stop};
    const char *output = NULL, *progress = NULL;
    CLI_OBSERVE_AUTO(observe);
    struct restore_result result;
    bool json, shown = false;
    int first, status, r;
    const struct cli_arg args[] = {
        {"at", 0, CLI_VALUE, &options.at, "ID",
         "the backup, or an unambiguous beginning of its ID\n"
         "(default: the newest)"},
        {"format", 'f', CLI_VALUE, &options.format, "FORMAT", "'raw' (default) or 'qcow2'"},
        {"force", 0, CLI_FLAG, &options.force, NULL,
         "overwrite an existing file, a device or an export"},
        BACKUP_PROGRESS_ARGS(shown, progress),
        {"output", 0, CLI_VALUE, &output, "FORMAT", "'human' or 'json'"},
        CLI_OBSERVE_ARGS(observe),
        CLI_ARG_END,
    };

    first = cli_args_parse(args, &restore_usage, argc, argv);
    if (first < 0) {
        return first;
    }
    if (first != argc - 2) {
        return cli_usage_error(err, &restore_usage, "expecting a directory and a target");
    }
    if (strcmp(options.format, "raw") != 0 && strcmp(options.format, "qcow2") != 0) {
        return cli_usage_error(err, &restore_usage, "--format needs 'raw' or 'qcow2', not '%s'",
                               options.format);
    }
    if (!cli_observe(&observe, &status)) {
        return status;
    }
    r = cli_parse_output(output, &json, err);
    UNLESS_FAILED(r, backup_progress(shown, progress, &options.progress, err));
    if (r < 0) {
        return r;
    }
    options.dir = argv[first];
    options.target = argv[first + 1];
    backup_catch_signals();
    if (restore_co_run(&options, &result, err) < 0) {
        return backup_fail(err, json);
    }
    if (json) {
        return print_restore_json(&options, &result);
    }
    print_restore(&options, &result);
    return 0;
}

int cli_restore_main(int argc, char **argv)
{
    return cli_run(restore_co_main, argc, argv);
}

/* --- verify ----------------------------------------------------------------------------------- */

static const struct cli_usage verify_usage = {
    .synopsis = "DIR",
    .about =
        "Checks that backups can be restored: reads each one completely, and checks manifests, "
        "links\n"
        "to the backups that it builds on, files, qcow2 structures and the checksum of every "
        "cluster.\n"
        "The exit status is 0 if all are intact, 2 if one is damaged, 1 if that could not be "
        "checked,\n"
        "4 if it was stopped.",
    .examples = "@/backups/disk\n"
                "@/backups/disk --at 20261120T093000Z\n"
                "        that backup and those that it builds on",
};

static void print_report(const struct verify_report *report, void *arg)
{
    struct json_object *list = arg;
    char size[16];

    if (list) {
        struct json_object *o = json_object_new_object();

        json_object_object_add(o, "id", json_object_new_string(report->id));
        json_object_object_add(o, "sound", json_object_new_boolean(!report->problem));
        json_object_object_add(o, "compared-bytes", json_object_new_uint64(report->bytes));
        if (report->problem) {
            json_object_object_add(o, "problem", json_object_new_string(report->problem));
        }
        json_object_array_add(list, o);
        return;
    }
    if (report->problem) {
        printf("%-20s  DAMAGED: %s\n", report->id, report->problem);
    } else {
        printf("%-20s  sound, %s compared\n", report->id, backup_size(report->bytes, size));
    }
    fflush(stdout);
}

/* Print what to do about damage. Returns the exit status. */
static int report_damage(const struct verify_result *result, const char *dir)
{
    if (result->description) {
        cli_fail("The backups can be restored, but no new one can be made before 'tidemark repair "
                 "%s'",
                 dir);
    }
    if (result->damaged) {
        cli_fail("%zu %s can't be restored. Bring the named files back from a copy, or remove "
                 "those backups; the next backup is then a full one",
                 result->damaged, result->damaged == 1 ? "backup" : "backups");
    }
    return result->damaged || result->description ? BACKUP_DAMAGED : 0;
}

static int verify_co_main(int argc, char **argv, struct error *err)
{
    struct verify_options options = {.report = print_report, .stop = &backup_stop};
    const char *output = NULL, *progress = NULL;
    CLI_OBSERVE_AUTO(observe);
    struct json_object *list = NULL;
    struct verify_result result;
    bool json, shown = false;
    int first, status, r;
    const struct cli_arg args[] = {
        {"at", 0, CLI_VALUE, &options.at, "ID", "only this backup and those that it builds on"},
        BACKUP_PROGRESS_ARGS(shown, progress),
        {"output", 0, CLI_VALUE, &output, "FORMAT", "'human' or 'json'"},
        CLI_OBSERVE_ARGS(observe),
        CLI_ARG_END,
    };

    first = cli_args_parse(args, &verify_usage, argc, argv);
    if (first < 0) {
        return first;
    }
    if (first != argc - 1) {
        return cli_usage_error(err, &verify_usage, "expecting one directory");
    }
    if (!cli_observe(&observe, &status)) {
        return status;
    }
    r = cli_parse_output(output, &json, err);
    UNLESS_FAILED(r, backup_progress(shown, progress, &options.progress, err));
    if (r < 0) {
        return r;
    }
    options.dir = argv[first];
    options.arg = list = json ? json_object_new_array() : NULL;
    backup_catch_signals();
    if (verify_co_run(&options, &result, err) < 0) {
        json_object_put(list);
        return backup_fail(err, json);
    }
    if (json && backup_print_json(list) != 0) {
        return 1;
    }
    return report_damage(&result, options.dir);
}

int cli_verify_main(int argc, char **argv)
{
    return cli_run(verify_co_main, argc, argv);
}
