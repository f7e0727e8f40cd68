/* SPDX-License-Identifier: Apache-2.0 */
/* The faces backup and repair: those that write to a repository. */
#include <errno.h>
#include <stdio.h>

#include "backup/backup.h"
#include "cli/args.h"
#include "cli/backup/faces.h"
#include "cli/cli.h"
#include "cli/image.h"
#include "cli/observe.h"
#include "nbd/client.h"
#include "tls/tls.h"

#define CBW_TIMEOUT_S 30

/* --- backup --- */

static const struct cli_usage backup_usage = {
    .synopsis = "--qmp SOCKET --node NODE --to DIR\n"
                "       tidemark backup --qmp SOCKET --node NODE --to DIR --abort\n"
                "       tidemark backup --qmp SOCKET [--node NODE] --leftovers\n"
                "       tidemark backup --qmp SOCKET [--node NODE] --forget REPOSITORY",
    .about =
        "Backs up a disk that a running daemon serves, while it is being written. The backup is\n"
        "the state of one moment. The first one holds the whole disk; later ones what changed "
        "since\n"
        "the one before, as long as the disk's bitmap and the directory are intact. If not, it\n"
        "says why and takes a full one. DIR holds the backups of one disk and is made if absent.\n"
        "If a backup fails or is cut off, the disk goes on working, the earlier backups stay as\n"
        "they are, and the next run cleans up.\n"
        "The exit status is 0, 1 if there is no backup, 3 if there is one but the daemon could not "
        "be\n"
        "put in order.",
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

/* What is on the command line, and not in backup_options. */
struct words {
    const char *output, *progress, *forget;
    const char *tls_creds, *tls_hostname, *cbw_timeout;
    struct cli_items objects;
    struct cli_observe observe;
    struct nbd_client_tls tls;
    bool json, shown, abort, leftovers;
};

static int parse_words(int argc, char **argv, struct backup_options *o, struct words *w)
{
    const struct cli_arg args[] = {
        {"qmp", 0, CLI_VALUE, &o->qmp_socket, "SOCKET", "QMP socket of the daemon"},
        {"node", 0, CLI_VALUE, &o->node, "NODE", "node name of the disk"},
        {"to", 0, CLI_VALUE, &o->dir, "DIR", "directory of the disk's backups"},
        {"full", 0, CLI_FLAG, &o->full, NULL, "take a full backup in any case"},
        {"same-disk", 0, CLI_FLAG, &o->same_disk, NULL,
         "the disk is that of the earlier backups, though it was renamed or moved"},
        {"fleece-dir", 0, CLI_VALUE, &o->fleece_dir, "DIR",
         "where old data of what is overwritten meanwhile is kept (default: beside the disk)"},
        {"cbw-timeout", 0, CLI_VALUE, &w->cbw_timeout, "SECONDS",
         "that a write of the guest waits for that at most, before the backup is given up "
         "(default: 30; 0: no limit)"},
        {"nbd", 0, CLI_VALUE, &o->nbd_uri, "URI",
         "address of the daemon's NBD server (default: ask it, or start one)"},
        {"object", 0, CLI_REPEAT, &w->objects, "OPTIONS", "TLS credentials, or a secret"},
        {"tls-creds", 0, CLI_VALUE, &w->tls_creds, "ID", "credentials, if that server speaks TLS"},
        {"tls-hostname", 0, CLI_VALUE, &w->tls_hostname, "NAME", "that its certificate is for"},
        BACKUP_PROGRESS_ARGS(w->shown, w->progress),
        {"output", 0, CLI_VALUE, &w->output, "FORMAT", "'human' or 'json' (the manifest)"},
        {"abort", 0, CLI_FLAG, &w->abort, NULL,
         "only remove what a run to DIR that was killed has left in the daemon"},
        {"leftovers", 0, CLI_FLAG, &w->leftovers, NULL,
         "only list what backups to any directory have in the daemon"},
        {"forget", 0, CLI_VALUE, &w->forget, "REPOSITORY",
         "only remove all that backups to this repository (by its id) have in the daemon"},
        CLI_OBSERVE_ARGS(w->observe),
        {NULL, 0, CLI_FLAG, NULL, NULL, NULL},
    };
    int first = cli_args_parse(args, &backup_usage, argc, argv);

    if (first < 0) {
        return first == CLI_ARGS_HELP ? 0 : 1;
    }
    if (first != argc) {
        return cli_usage_fail(&backup_usage, "unexpected argument '%s'", argv[first]);
    }
    return cli_observe(&w->observe, &first) ? -1 : first;
}

/* What is missing, or does not go together. -1: nothing; else the exit status. */
static int check_words(struct backup_options *o, struct words *w)
{
    bool whole_daemon = w->leftovers || w->forget;
    uint64_t timeout = CBW_TIMEOUT_S;

    if (w->abort + w->leftovers + (w->forget != NULL) > 1) {
        return cli_usage_fail(&backup_usage, "--abort, --leftovers and --forget are apart");
    }
    if (!o->qmp_socket || (!whole_daemon && (!o->node || !o->dir))) {
        return cli_usage_fail(&backup_usage, "%s is missing",
                              !o->qmp_socket ? "--qmp"
                              : !o->node     ? "--node"
                                             : "--to");
    }
    if (cli_parse_output(w->output, &w->json) < 0 ||
        backup_progress(w->shown, w->progress, &o->progress) < 0 ||
        (w->cbw_timeout &&
         cli_parse_number(w->cbw_timeout, "--cbw-timeout", 0, UINT32_MAX, &timeout) < 0)) {
        return 1;
    }
    if (w->tls_hostname && !w->tls_creds) {
        return cli_usage_fail(&backup_usage, "--tls-hostname needs --tls-creds");
    }
    o->cbw_timeout_s = (unsigned)timeout;
    return -1;
}

static int co_take(struct backup_options *o, struct words *w)
{
    struct tls_creds *creds = NULL;
    struct manifest m;
    ERROR_AUTO(unsettled);
    ERROR_AUTO(err);
    int rc = cli_add_objects(&w->objects) ? -EINVAL : 0;

    if (rc < 0) {
        return BACKUP_FAILED;
    }
    if (w->tls_creds) {
        rc = tls_creds_ref(w->tls_creds, TLS_CLIENT, &creds, &err);
        w->tls = (struct nbd_client_tls){.creds = creds, .hostname = w->tls_hostname};
        o->tls = &w->tls;
    }
    rc = rc < 0 ? rc : backup_co_take(o, &m, &unsettled, &err);
    tls_creds_unref(creds);
    if (rc < 0) {
        return backup_fail(&err, w->json);
    }
    if (w->json) {
        rc = backup_print_json(manifest_to_json(&m));
    } else {
        print_backup(&m);
    }
    manifest_clear(&m);
    if (error_is_set(&unsettled)) {
        cli_report(&unsettled);
        return BACKUP_UNSETTLED;
    }
    return rc;
}

static int co_abort(const struct backup_options *o, const struct words *w)
{
    ERROR_AUTO(err);

    if (backup_co_abort(o, &err) < 0) {
        return backup_fail(&err, w->json);
    }
    if (!w->json) {
        printf("Nothing of an unfinished backup to '%s' is left.\n", o->dir);
    }
    return 0;
}

static int co_forget(const struct backup_options *o, const struct words *w)
{
    ERROR_AUTO(err);

    if (backup_co_forget(o->qmp_socket, o->node, w->forget, &err) < 0) {
        return backup_fail(&err, w->json);
    }
    if (!w->json) {
        printf("The daemon has nothing of repository %s any more.\n", w->forget);
    }
    return 0;
}

static int backup_co_main(int argc, char **argv)
{
    struct backup_options options = {.stop = &backup_stop};
    struct words words = {0};
    int status = parse_words(argc, argv, &options, &words);

    status = status < 0 ? check_words(&options, &words) : status;
    if (status < 0) {
        backup_catch_signals();
        status = words.leftovers
                     ? backup_co_print_leftovers(options.qmp_socket, options.node, words.json)
                 : words.forget ? co_forget(&options, &words)
                 : words.abort  ? co_abort(&options, &words)
                                : co_take(&options, &words);
    }
    cli_items_clear(&words.objects);
    cli_observe_clear(&words.observe);
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
    CLI_OBSERVE_AUTO(observe);
    bool new_id = false;
    int status;
    ERROR_AUTO(err);
    const struct cli_arg args[] = {
        {"new-id", 0, CLI_FLAG, &new_id, NULL, "give it another id"},
        CLI_OBSERVE_ARGS(observe),
        {NULL, 0, CLI_FLAG, NULL, NULL, NULL},
    };
    int first = cli_args_parse(args, &repair_usage, argc, argv);

    if (first < 0) {
        return first == CLI_ARGS_HELP ? 0 : 1;
    }
    if (first != argc - 1) {
        return cli_usage_fail(&repair_usage, "expecting one directory");
    }
    if (!cli_observe(&observe, &status)) {
        return status;
    }
    if (repository_repair(argv[first], new_id, &repository, &err) < 0) {
        return backup_fail(&err, false);
    }
    printf("'%s' is repository %s, with %zu %s\n", repository.path, repository.id, repository.count,
           repository.count == 1 ? "backup" : "backups");
    return 0;
}
