/* SPDX-License-Identifier: Apache-2.0 */
/* The faces backup, backups, restore and verify. */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backup/backup.h"
#include "base/cleanup.h"
#include "base/size.h"
#include "cli/args.h"
#include "cli/cli.h"
#include "cli/image.h"

#define VERIFY_DAMAGED 2

/* The first Ctrl-C ends the work in order, a second one at once. */
static volatile sig_atomic_t stop;

static void on_signal(int number)
{
    stop = 1;
}

static void catch_signals(void)
{
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = (int)SA_RESETHAND};

    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

static const char *size_text(uint64_t bytes, char buf[static 16])
{
    return size_format(bytes, buf, 16);
}

static int print_json(struct json_object *o)
{
    if (!o) {
        return cli_fail("Out of memory");
    }
    cli_print_json(o);
    json_object_put(o);
    return 0;
}

/* --- backup --- */

static const struct cli_usage backup_usage = {
    .synopsis = "--qmp SOCKET --node NODE --to DIR",
    .about =
        "Backs up a disk that a running daemon serves, while it is being written. The backup is\n"
        "the state of one moment. The first one holds the whole disk; later ones what changed "
        "since\n"
        "the one before, as long as the disk's bitmap and the directory are intact. If not, it\n"
        "says why and takes a full one. DIR holds the backups of one disk and is made if absent.\n"
        "If a backup fails or is cut off, the disk goes on working, the earlier backups stay as\n"
        "they are, and the next run cleans up.",
    .examples =
        "  tidemark backup --qmp /run/tidemark/qmp.sock --node disk --to /backups/disk\n"
        "        full at first, incremental from then on\n"
        "  tidemark backup --qmp qmp.sock --node disk --to /backups/disk --fleece-dir /var/tmp\n"
        "        keep old data of what is overwritten meanwhile on another file system",
};

static void print_backup(const struct manifest *m)
{
    char virtual_size[16], changed[16], moved[16], stored[16];

    printf("Backup %s is complete: ", m->id);
    if (manifest_is_full(m)) {
        printf("full (%s)\n", m->reason);
    } else {
        printf("incremental, builds on %s\n", m->parent);
    }
    printf("  disk %s, changed %s, moved %s, stored %s, in %.1f s\n",
           size_text(m->virtual_size, virtual_size), size_text(m->changed, changed),
           size_text(m->moved, moved), size_text(m->stored, stored), (double)m->duration_ms / 1000);
    printf("  checkpoint between %s and %s\n", m->begin.utc, m->end.utc);
}

static int backup_co_main(int argc, char **argv)
{
    struct backup_options options = {.stop = &stop};
    const char *output = NULL;
    bool json;
    struct manifest m;
    ERROR_AUTO(err);
    const struct cli_arg args[] = {
        {"qmp", 0, CLI_VALUE, &options.qmp_socket, "SOCKET", "QMP socket of the daemon"},
        {"node", 0, CLI_VALUE, &options.node, "NODE", "node name of the disk"},
        {"to", 0, CLI_VALUE, &options.dir, "DIR", "directory of the disk's backups"},
        {"full", 0, CLI_FLAG, &options.full, NULL, "take a full backup in any case"},
        {"fleece-dir", 0, CLI_VALUE, &options.fleece_dir, "DIR",
         "where old data of what is overwritten meanwhile is kept (default: DIR of --to)"},
        {"nbd", 0, CLI_VALUE, &options.nbd_uri, "URI",
         "address of the daemon's NBD server (default: ask it, or start one)"},
        {NULL, 'p', CLI_FLAG, &options.progress, NULL, "show progress, also if not on a terminal"},
        {"output", 0, CLI_VALUE, &output, "FORMAT", "'human' or 'json' (the manifest)"},
        {NULL, 0, CLI_FLAG, NULL, NULL, NULL},
    };
    int first = cli_args_parse(args, &backup_usage, argc, argv), status = 0;

    if (first < 0) {
        return first == CLI_ARGS_HELP ? 0 : 1;
    }
    if (first != argc) {
        return cli_usage_fail(&backup_usage, "unexpected argument '%s'", argv[first]);
    }
    if (!options.qmp_socket || !options.node || !options.dir) {
        return cli_usage_fail(&backup_usage, "%s is missing",
                              !options.qmp_socket ? "--qmp"
                              : !options.node     ? "--node"
                                                  : "--to");
    }
    if (cli_parse_output(output, &json) < 0) {
        return 1;
    }
    catch_signals();
    if (backup_co_take(&options, &m, &err) < 0) {
        return cli_report(&err);
    }
    if (json) {
        status = print_json(manifest_to_json(&m));
    } else {
        print_backup(&m);
    }
    manifest_clear(&m);
    return status;
}

int cli_backup_main(int argc, char **argv)
{
    return cli_run(backup_co_main, argc, argv);
}

/* --- backups --- */

static const struct cli_usage backups_usage = {
    .synopsis = "DIR",
    .about = "Lists the backups in a directory, oldest first: what each one holds and cost.",
    .examples = "  tidemark backups /backups/disk\n"
                "  tidemark backups --output=json /backups/disk\n"
                "        all that is known of each",
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
               manifest_is_full(m) ? "full" : "incremental", size_text(m->virtual_size, disk),
               size_text(m->changed, changed), size_text(m->moved, moved),
               size_text(m->stored, stored), (double)m->duration_ms / 1000);
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
    return print_json(list);
}

int cli_backups_main(int argc, char **argv)
{
    REPOSITORY_AUTO(repository);
    const char *output = NULL;
    bool json;
    ERROR_AUTO(err);
    const struct cli_arg args[] = {
        {"output", 0, CLI_VALUE, &output, "FORMAT", "'human' or 'json'"},
        {NULL, 0, CLI_FLAG, NULL, NULL, NULL},
    };
    int first = cli_args_parse(args, &backups_usage, argc, argv);

    if (first < 0) {
        return first == CLI_ARGS_HELP ? 0 : 1;
    }
    if (first != argc - 1) {
        return cli_usage_fail(&backups_usage, "expecting one directory");
    }
    if (cli_parse_output(output, &json) < 0) {
        return 1;
    }
    if (repository_open(argv[first], &repository, &err) < 0) {
        return cli_report(&err);
    }
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

/* --- restore --- */

static const struct cli_usage restore_usage = {
    .synopsis = "DIR TARGET",
    .about = "Writes the disk as it was at one of the backups: to a new file, in which areas of "
             "zeroes take\n"
             "no space, or to a block device. All that is read is compared with its checksum "
             "first. A file\n"
             "gets its name when it is complete.",
    .examples = "  tidemark restore /backups/disk disk.raw\n"
                "        the newest backup\n"
                "  tidemark restore /backups/disk --at 20261120T0930 -f qcow2 disk.qcow2\n"
                "        that of 20 November 2026, 09:30 (UTC)",
};

static int restore_co_main(int argc, char **argv)
{
    struct restore_options options = {.format = "raw", .stop = &stop};
    struct restore_result result;
    char size[16], written[16];
    ERROR_AUTO(err);
    const struct cli_arg args[] = {
        {"at", 0, CLI_VALUE, &options.at, "ID",
         "the backup, or an unambiguous beginning of its id (default: the newest)"},
        {"format", 'f', CLI_VALUE, &options.format, "FORMAT", "'raw' (default) or 'qcow2'"},
        {"force", 0, CLI_FLAG, &options.force, NULL, "overwrite an existing file or a device"},
        {NULL, 'p', CLI_FLAG, &options.progress, NULL, "show progress, also if not on a terminal"},
        {NULL, 0, CLI_FLAG, NULL, NULL, NULL},
    };
    int first = cli_args_parse(args, &restore_usage, argc, argv);

    if (first < 0) {
        return first == CLI_ARGS_HELP ? 0 : 1;
    }
    if (first != argc - 2) {
        return cli_usage_fail(&restore_usage, "expecting a directory and a target");
    }
    if (strcmp(options.format, "raw") != 0 && strcmp(options.format, "qcow2") != 0) {
        return cli_usage_fail(&restore_usage, "--format needs 'raw' or 'qcow2', not '%s'",
                              options.format);
    }
    options.dir = argv[first];
    options.target = argv[first + 1];
    catch_signals();
    if (restore_co_run(&options, &result, &err) < 0) {
        return cli_report(&err);
    }
    printf("Backup %s is restored to '%s': disk %s, data %s, verified, in %.1f s\n", result.id,
           options.target, size_text(result.virtual_size, size), size_text(result.written, written),
           (double)result.duration_ms / 1000);
    return 0;
}

int cli_restore_main(int argc, char **argv)
{
    return cli_run(restore_co_main, argc, argv);
}

/* --- verify --- */

static const struct cli_usage verify_usage = {
    .synopsis = "DIR",
    .about =
        "Proves that backups can be restored: reads all of each one, and checks manifests, links "
        "to\n"
        "the backups they build on, files, qcow2 structures and every cluster's checksum.\n"
        "The exit status is 0 if all are sound, 2 if one is damaged, 1 if it could not be found "
        "out.",
    .examples = "  tidemark verify /backups/disk\n"
                "  tidemark verify /backups/disk --at 20261120T093000Z\n"
                "        that one and those it builds on",
};

static void print_report(const struct verify_report *report, void *arg)
{
    char size[16];

    if (report->problem) {
        printf("%-20s  DAMAGED: %s\n", report->id, report->problem);
    } else {
        printf("%-20s  sound, %s compared\n", report->id, size_text(report->bytes, size));
    }
    fflush(stdout);
}

static int verify_co_main(int argc, char **argv)
{
    struct verify_options options = {.report = print_report};
    size_t damaged;
    ERROR_AUTO(err);
    const struct cli_arg args[] = {
        {"at", 0, CLI_VALUE, &options.at, "ID", "only this backup and those it builds on"},
        {NULL, 'p', CLI_FLAG, &options.progress, NULL, "show progress, also if not on a terminal"},
        {NULL, 0, CLI_FLAG, NULL, NULL, NULL},
    };
    int first = cli_args_parse(args, &verify_usage, argc, argv);

    if (first < 0) {
        return first == CLI_ARGS_HELP ? 0 : 1;
    }
    if (first != argc - 1) {
        return cli_usage_fail(&verify_usage, "expecting one directory");
    }
    options.dir = argv[first];
    if (verify_co_run(&options, &damaged, &err) < 0) {
        return cli_report(&err);
    }
    if (damaged) {
        cli_fail("%zu %s can't be restored. Bring the named files back from a copy, or remove "
                 "those backups; the next backup is then a full one",
                 damaged, damaged == 1 ? "backup" : "backups");
        return VERIFY_DAMAGED;
    }
    return 0;
}

int cli_verify_main(int argc, char **argv)
{
    return cli_run(verify_co_main, argc, argv);
}
