/* SPDX-License-Identifier: Apache-2.0 */
/* The faces backup and repair: those that write to a repository. */
#include <stdio.h>

#include "backup/backup.h"
#include "cli/args.h"
#include "cli/backup_faces.h"
#include "cli/cli.h"
#include "cli/image.h"

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
           backup_size(m->virtual_size, virtual_size), backup_size(m->changed, changed),
           backup_size(m->moved, moved), backup_size(m->stored, stored),
           (double)m->duration_ms / 1000);
    printf("  checkpoint between %s and %s\n", m->begin.utc, m->end.utc);
}

static int backup_co_main(int argc, char **argv)
{
    struct backup_options options = {.stop = &backup_stop};
    const char *output = NULL, *progress = NULL;
    bool json, shown = false;
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
        BACKUP_PROGRESS_ARGS(shown, progress),
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
    if (cli_parse_output(output, &json) < 0 ||
        backup_progress(shown, progress, &options.progress) < 0) {
        return 1;
    }
    backup_catch_signals();
    if (backup_co_take(&options, &m, &err) < 0) {
        return backup_fail(&err, json);
    }
    if (json) {
        status = backup_print_json(manifest_to_json(&m));
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

/* --- repair --- */

static const struct cli_usage repair_usage = {
    .synopsis = "DIR",
    .about = "Makes the file repository.json of a directory of backups anew, if it is damaged or "
             "lost, from what\n"
             "the backups say. With --new-id, gives a directory that was copied an id of its own: "
             "else it and\n"
             "the one it was copied from take each other's bitmaps away, and every backup is a "
             "full one.",
    .examples = "  tidemark repair /backups/disk\n"
                "  cp -a /backups/disk /mnt/second && tidemark repair --new-id /mnt/second\n",
};

int cli_repair_main(int argc, char **argv)
{
    REPOSITORY_AUTO(repository);
    bool new_id = false;
    ERROR_AUTO(err);
    const struct cli_arg args[] = {
        {"new-id", 0, CLI_FLAG, &new_id, NULL, "give it another id"},
        {NULL, 0, CLI_FLAG, NULL, NULL, NULL},
    };
    int first = cli_args_parse(args, &repair_usage, argc, argv);

    if (first < 0) {
        return first == CLI_ARGS_HELP ? 0 : 1;
    }
    if (first != argc - 1) {
        return cli_usage_fail(&repair_usage, "expecting one directory");
    }
    if (repository_repair(argv[first], new_id, &repository, &err) < 0) {
        return backup_fail(&err, false);
    }
    printf("'%s' is repository %s, with %zu %s\n", repository.path, repository.id, repository.count,
           repository.count == 1 ? "backup" : "backups");
    return 0;
}
