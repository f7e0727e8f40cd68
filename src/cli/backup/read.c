/* SPDX-License-Identifier: Apache-2.0 */
/* The faces that only read a repository: restore and verify. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "backup/backup.h"
#include "backup/files.h"
#include "backup/set_root.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/shell_word.h"
#include "base/time_units.h"
#include "cli/args.h"
#include "cli/backup/faces.h"
#include "cli/backup/notify.h"
#include "cli/cli.h"
#include "cli/observe.h"
#include "loop/loop.h"

/* --- restore ---------------------------------------------------------------------------------- */

static const struct cli_usage restore_usage = {
    .synopsis = "DIR TARGET",
    .about =
        "Writes the disk as it was at the time of a backup: to a new file, in which areas of "
        "zeroes "
        "take\n"
        "no space, to a block device, to an export of an NBD server, or to standard output ('-'). "
        "All\n"
        "data is compared with its checksum first. A file gets its name when it is complete. With\n"
        "--force it replaces an existing file, and takes over its owner, mode and labels. Files in "
        "use,\n"
        "mounted devices and symbolic links to files are never replaced. With --qmp and --node a\n"
        "running daemon gets the disk as a new node.",
    .examples = "@/backups/disk disk.raw\n"
                "        the newest backup\n"
                "@/backups/disk --at 20261120T0930 -f qcow2 disk.qcow2\n"
                "        the backup of 20 November 2026, 09:30 (UTC)\n"
                "@/backups/disk - | ssh host 'cat > disk.raw'",
};

static struct json_object *restore_json(const struct restore_options *options,
                                        const struct restore_result *result)
{
    struct json_object *o = json_object_new_object();

    json_object_object_add(o, "id", json_object_new_string(result->id));
    json_object_object_add(o, "target", json_object_new_string(options->target));
    json_object_object_add(o, "virtual-size", json_object_new_uint64(result->virtual_size));
    json_object_object_add(o, "written-bytes", json_object_new_uint64(result->written));
    json_object_object_add(o, "duration-ms", json_object_new_uint64(result->duration_ms));
    return o;
}

static void print_restore(const struct restore_options *options,
                          const struct restore_result *result)
{
    bool stream = strcmp(options->target, "-") == 0;
    char size[16], written[16];

    fprintf(stream ? stderr : stdout,
            "Backup %s is restored to %s%s%s: disk %s, data %s, verified, in %.1f s\n", result->id,
            stream ? "" : "'", stream ? "standard output" : options->target, stream ? "" : "'",
            backup_size(result->virtual_size, size), backup_size(result->written, written),
            (double)result->duration_ms / 1000);
}

static int restore_co_main(int argc, char **argv, struct error *err)
{
    struct restore_options options = {.format = "raw", .stop = &backup_stop};
    const char *output = NULL, *progress = NULL;
    CLI_OBSERVE_AUTO(observe);
    struct restore_result result;
    struct json_object *o;
    bool json, shown = false;
    int first, status, r;
    const struct cli_arg args[] = {
        {"at", 0, CLI_VALUE, &options.at, "ID",
         "the backup, or an unambiguous beginning of its ID\n"
         "(default: the newest)"},
        {"format", 'f', CLI_VALUE, &options.format, "FORMAT", "'raw' (default) or 'qcow2'"},
        {"force", 0, CLI_FLAG, &options.force, NULL,
         "overwrite an existing file, a device or an export"},
        {"qmp", 0, CLI_VALUE, &options.qmp_socket, "SOCKET",
         "QMP socket of a daemon that gets the disk, with --node"},
        {"node", 0, CLI_VALUE, &options.node, "NODE", "the name of its new node"},
        BACKUP_NOTIFY_ARG,
        BACKUP_PROGRESS_ARGS(shown, progress),
        BACKUP_KEY_ARGS,
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
    if (!options.qmp_socket != !options.node) {
        return cli_usage_error(err, &restore_usage, "--qmp and --node need each other");
    }
    if (!cli_observe(&observe, &status)) {
        return status;
    }
    options.dir = argv[first];
    options.target = argv[first + 1];
    r = cli_parse_output(output, &json, err);
    UNLESS_FAILED(r, backup_progress(shown, progress, &options.progress, err));
    if (r == 0 && json && strcmp(options.target, "-") == 0) {
        r = cli_usage_error(err, &restore_usage, "the disk goes to standard output, so JSON can't");
    }
    if (r < 0) {
        return r;
    }
    backup_catch_signals();
    if (restore_co_run(&options, &result, err) < 0) {
        return backup_fail(err, json);
    }
    o = restore_json(&options, &result);
    backup_note_result(o);
    if (json) {
        return backup_print_json(o);
    }
    json_object_put(o);
    print_restore(&options, &result);
    return 0;
}

int cli_restore_main(int argc, char **argv)
{
    return backup_notify("restore", cli_run(restore_co_main, argc, argv));
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
                "        that backup and those that it builds on\n"
                "@/backups/disk --for 1h\n"
                "        for a timer: each day an hour, until all were verified, and again",
};

/* "90", "90s", "15m", "2h", "1d" as nanoseconds. -EINVAL */
static int parse_limit(const char *text, int64_t *ret_ns, struct error *err)
{
    static const struct {
        const char *suffix;
        int64_t seconds;
    } units[] = {{"", 1}, {"s", 1}, {"m", 60}, {"h", 3600}, {"d", 86400}};
    char *end;
    unsigned long long n;

    if (!text) {
        return 0;
    }
    errno = 0;
    n = strtoull(text, &end, 10);
    for (size_t i = 0; end != text && text[0] >= '0' && text[0] <= '9' && i < ARRAY_SIZE(units);
         i++) {
        if (strcmp(end, units[i].suffix) == 0 && errno == 0 && n > 0 && n <= 1000000000) {
            *ret_ns = (int64_t)n * units[i].seconds * NS_PER_SECOND;
            return 0;
        }
    }
    return cli_usage_error(err, &verify_usage,
                           "--for needs a time such as '90s', '30m' or '2h', not '%s'", text);
}

struct verify_reports {
    const char *disk; /* in a root of sets; NULL: there is only one */
    struct json_object *list;
    bool json; /* only that is printed, at the end */
};

static void print_report(const struct verify_report *report, void *arg)
{
    const struct verify_reports *reports = arg;
    struct json_object *o = json_object_new_object();
    char size[16];

    if (reports->disk) {
        json_object_object_add(o, "directory", json_object_new_string(reports->disk));
    }
    json_object_object_add(o, "id", json_object_new_string(report->id));
    json_object_object_add(o, "sound", json_object_new_boolean(!report->problem));
    json_object_object_add(o, "checked", json_object_new_boolean(!report->unread));
    json_object_object_add(o, "compared-bytes", json_object_new_uint64(report->bytes));
    if (report->from) {
        json_object_object_add(o, "from-bytes", json_object_new_uint64(report->from));
    }
    if (report->problem) {
        json_object_object_add(o, "problem", json_object_new_string(report->problem));
    }
    json_object_array_add(reports->list, o);
    if (reports->json) {
        return;
    }
    if (reports->disk) {
        printf("%-12s  ", reports->disk);
    }
    if (report->problem) {
        printf("%-20s  %s: %s\n", report->id, report->unread ? "NOT CHECKED" : "DAMAGED",
               report->problem);
    } else {
        printf("%-20s  sound, %s compared\n", report->id, backup_size(report->bytes, size));
    }
    fflush(stdout);
}

/* Print what to do about damage. Returns the exit status. */
static int report_damage(const struct verify_result *result, const char *dir)
{
    if (result->description) {
        char *word AUTO_FREE = shell_word(dir);

        cli_fail("The backups can be restored, but no new one can be made before 'tidemark repair "
                 "%s'",
                 word ?: dir);
    }
    if (result->damaged) {
        cli_fail("%zu %s can't be restored. Bring the named files back from a copy, and verify "
                 "again; otherwise the next backup that would build on them is a full one",
                 result->damaged, result->damaged == 1 ? "backup" : "backups");
    }
    if (result->unread) {
        cli_fail("%zu could not be checked", result->unread);
    }
    return result->damaged || result->description ? BACKUP_DAMAGED
           : result->unread                       ? BACKUP_FAILED
                                                  : 0;
}

/* --- all disks of a root of sets --- */

static void add_result(struct verify_result *sum, const struct verify_result *one)
{
    sum->damaged += one->damaged;
    sum->unread += one->unread;
    sum->description = sum->description || one->description;
    sum->verified += one->verified;
    sum->left += one->left;
    sum->unrecorded = sum->unrecorded ? sum->unrecorded : one->unrecorded;
}

/* Whether a set lacks its definition, or has another one; not of one that a prune removes. */
static bool has_lost_definition(const char *root, const struct set *s, struct error *err)
{
    char *text AUTO_FREE = NULL;
    int r = s->definition ? set_load_definition(root, s, &text, err) : 0;

    return r < 0 && r != -ENOENT;
}

/* Sets that have lost a backup, or have a damaged one; as backups of the directory "sets". */
static void report_sets(const struct set_root *root, const char *machine, const char *at,
                        struct verify_reports *reports, struct verify_result *sum)
{
    reports->disk = SET_DIRECTORY;
    for (size_t i = 0; i < root->sets.count; i++) {
        const struct set *s = &root->sets.list[i];
        const struct set_disk *d = set_problem_disk(s);
        ERROR_AUTO(err);
        bool lost = !s->damaged && has_lost_definition(root->path, s, &err);
        const struct verify_report report = {
            .id = s->id,
            .problem = s->damaged ? set_describe_damage(s)
                       : d        ? d->problem
                       : lost     ? error_message(&err)
                                  : NULL,
            .unread = s->denied,
        };

        if (report.problem && set_is_of(s, machine) && (!at || strcmp(at, s->id) == 0)) {
            print_report(&report, reports);
            sum->damaged += !report.unread;
            sum->unread += report.unread;
        }
    }
}

/* A disk that can't be checked keeps no other from being checked. A stop is for all. */
static int note_unread_disk(int r, const struct error *why, struct verify_reports *reports,
                            struct verify_result *sum, struct error *err)
{
    if (r == -EINTR || r == -ENOMEM) {
        return error_set(err, -r, "%s", error_message(why));
    }
    if (r < 0) {
        print_report(&(struct verify_report){.id = REPOSITORY_DESCRIPTION,
                                             .problem = error_message(why),
                                             .unread = true},
                     reports);
        sum->unread++;
    }
    return 0;
}

/* Each disk gets what is left of the time, another one first in each run. */
static int co_verify_disks(const struct verify_options *options, const struct set_root *root,
                           const struct set *only, struct verify_result *sum, struct error *err)
{
    struct verify_reports *reports = options->arg;
    const int64_t began = loop_now_ns();
    const size_t first = options->limit_ns ? (size_t)time(NULL) / 60 % root->count : 0;
    int r = 0;

    for (size_t i = 0; r == 0 && i < root->count; i++) {
        const char *disk = root->disks[(first + i) % root->count];
        const char *backup = only ? set_backup_of(only, disk) : NULL;
        char *path AUTO_FREE = files_join(root->path, disk);
        struct verify_options one = *options;
        struct verify_result result = {0};
        ERROR_AUTO(why);

        if (only && !backup) {
            continue;
        }
        reports->disk = disk;
        one.dir = path;
        one.at = backup;
        if (options->limit_ns) {
            one.limit_ns = MAX(options->limit_ns - (loop_now_ns() - began), 1);
        }
        r = path ? verify_co_run(&one, &result, &why) : error_out_of_memory(&why);
        add_result(sum, &result);
        r = note_unread_disk(r, &why, reports, sum, err);
    }
    return r;
}

static int co_verify_root(const struct verify_options *options, const char *machine,
                          struct verify_result *ret_result, struct error *err)
{
    const struct set *only = NULL;
    struct set_root root = {0};
    int r = set_root_open(options->dir, machine, &root, err);

    *ret_result = (struct verify_result){0};
    if (r == 0 && options->at) {
        only = set_find(&root.sets, options->at, err);
        r = only ? 0 : -ENOENT;
    }
    UNLESS_FAILED(r, co_verify_disks(options, &root, only, ret_result, err));
    if (r == 0) {
        report_sets(&root, machine, only ? only->id : NULL, options->arg, ret_result);
    }
    set_root_clear(&root);
    return r;
}

static int verify_co_main(int argc, char **argv, struct error *err)
{
    struct verify_options options = {
        .report = print_report, .stop = &backup_stop, .remember = true};
    const char *output = NULL, *progress = NULL, *limit = NULL, *machine = NULL;
    CLI_OBSERVE_AUTO(observe);
    struct verify_reports reports = {0};
    struct verify_result result;
    bool shown = false;
    int first, status, r;
    const struct cli_arg args[] = {
        {"at", 0, CLI_VALUE, &options.at, "ID", "only this backup and those that it builds on"},
        {"for", 0, CLI_VALUE, &limit, "TIME",
         "stop after this time (90s, 30m, 2h); begin with what was not\n"
         "verified for longest, and go on where the last run was stopped"},
        BACKUP_VM_ARG(machine),
        BACKUP_NOTIFY_ARG,
        BACKUP_PROGRESS_ARGS(shown, progress),
        BACKUP_KEY_ARGS,
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
    r = cli_parse_output(output, &reports.json, err);
    UNLESS_FAILED(r, backup_progress(shown, progress, &options.progress, err));
    UNLESS_FAILED(r, parse_limit(limit, &options.limit_ns, err));
    if (r < 0) {
        return r;
    }
    options.dir = argv[first];
    reports.list = json_object_new_array();
    options.arg = &reports;
    backup_catch_signals();
    r = machine || set_is_root(options.dir) ? co_verify_root(&options, machine, &result, err)
                                            : verify_co_run(&options, &result, err);
    if (r < 0) {
        json_object_put(reports.list);
        backup_fail(err, reports.json);
        return r == -EINTR ? BACKUP_STOPPED : BACKUP_FAILED;
    }
    backup_note_result(reports.list);
    if (reports.json) {
        backup_print_json(reports.list);
    } else {
        json_object_put(reports.list);
    }
    if (result.unrecorded) {
        cli_warn("Could not record in '%s' what was verified: %s", options.dir,
                 strerror(-result.unrecorded));
    }
    if (!reports.json && result.left) {
        printf("The time is up: %zu verified, %zu left for the next run\n", result.verified,
               result.left);
    }
    return report_damage(&result, options.dir);
}

int cli_verify_main(int argc, char **argv)
{
    return backup_notify("verify", cli_run(verify_co_main, argc, argv));
}
