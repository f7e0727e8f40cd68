/* SPDX-License-Identifier: Apache-2.0 */
/* The faces that write to a repository: backup and repair. */
#include <errno.h>
#include <stdio.h>

#include "backup/backup.h"
#include "cli/args.h"
#include "cli/backup/faces.h"
#include "cli/cli.h"
#include "cli/observe.h"
#include "nbd/client.h"
#include "tls/tls.h"

#define CBW_TIMEOUT_S 30

/* --- backup ----------------------------------------------------------------------------------- */

static const struct cli_usage backup_usage = {
    .synopsis = "--qmp SOCKET --node NODE --to DIR\n"
                "       tidemark backup --qmp SOCKET --node NODE --to DIR --abort\n"
                "       tidemark backup --qmp SOCKET [--node NODE] --leftovers\n"
                "       tidemark backup --qmp SOCKET [--node NODE] --forget REPOSITORY",
    .about =
        "Backs up a disk of a running daemon while it is being written. The backup is the state "
        "of\n"
        "one moment. The first backup holds the whole disk; a later one holds the changes since\n"
        "the one before, as long as the bitmap of the disk and the directory are intact. If they\n"
        "are not, it prints why and takes a full backup. DIR holds the backups of one disk, and "
        "is\n"
        "made if it does not exist. If a backup fails or is killed, the disk goes on working, the\n"
        "earlier backups stay as they are, and the next run cleans up.\n"
        "The exit status is 0, 1 if there is no backup, 3 if there is one but the daemon could "
        "not\n"
        "be cleaned up.",
    .examples =
        "@--qmp /run/tidemark/qmp.sock --node disk --to /backups/disk\n"
        "        full at first, incremental from then on\n"
        "@--qmp qmp.sock --node disk --to /backups/disk --fleece-dir /var/tmp\n"
        "        keeps old data of clusters that are overwritten meanwhile on another file system",
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
struct backup_words {
    const char *output, *progress, *forget;
    const char *tls_creds, *tls_hostname, *cbw_timeout;
    struct cli_items objects;
    struct cli_observe observe;
    struct nbd_client_tls tls;
    bool json, shown, abort, leftovers;
};

/* Returns 0, or what cli_exit_status() takes. */
static int parse_backup_words(int argc, char **argv, struct backup_options *o,
                              struct backup_words *w, struct error *err)
{
    const struct cli_arg args[] = {
        {"qmp", 0, CLI_VALUE, &o->qmp_socket, "SOCKET", "QMP socket of the daemon"},
        {"node", 0, CLI_VALUE, &o->node, "NODE", "node name of the disk"},
        {"to", 0, CLI_VALUE, &o->dir, "DIR", "directory of the disk's backups"},
        {"full", 0, CLI_FLAG, &o->full, NULL, "take a full backup in any case"},
        {"same-disk", 0, CLI_FLAG, &o->same_disk, NULL,
         "the disk is that of the earlier backups, although it was renamed\n"
         "or moved"},
        {"fleece-dir", 0, CLI_VALUE, &o->fleece_dir, "DIR",
         "where to keep old data of clusters that are overwritten meanwhile\n"
         "(default: the folder of the disk)"},
        {"cbw-timeout", 0, CLI_VALUE, &w->cbw_timeout, "SECONDS",
         "how long a write of the guest may wait for that before the backup\n"
         "is cancelled (default: 30; 0: no limit)"},
        {"nbd", 0, CLI_VALUE, &o->nbd_uri, "URI",
         "address of the daemon's NBD server (default: ask it, or start one)"},
        {"object", 0, CLI_REPEAT, &w->objects, "OPTIONS", "TLS credentials, or a secret"},
        {"tls-creds", 0, CLI_VALUE, &w->tls_creds, "ID", "credentials, if that server uses TLS"},
        {"tls-hostname", 0, CLI_VALUE, &w->tls_hostname, "NAME",
         "the name in the certificate of that server"},
        BACKUP_PROGRESS_ARGS(w->shown, w->progress),
        {"output", 0, CLI_VALUE, &w->output, "FORMAT", "'human' or 'json' (the manifest)"},
        {"abort", 0, CLI_FLAG, &w->abort, NULL,
         "only remove what a killed run to DIR has left in the daemon"},
        {"leftovers", 0, CLI_FLAG, &w->leftovers, NULL,
         "only list what backups to any directory have in the daemon"},
        {"forget", 0, CLI_VALUE, &w->forget, "REPOSITORY",
         "only remove all that backups to this repository (its ID) have in\n"
         "the daemon"},
        CLI_OBSERVE_ARGS(w->observe),
        CLI_ARG_END,
    };
    int first = cli_args_parse(args, &backup_usage, argc, argv);

    if (first < 0) {
        return first;
    }
    return first == argc
               ? 0
               : cli_usage_error(err, &backup_usage, "unexpected argument '%s'", argv[first]);
}

/* Find what is missing, or excludes each other. */
static int check_backup_words(struct backup_options *o, struct backup_words *w, struct error *err)
{
    bool whole_daemon = w->leftovers || w->forget;
    uint64_t timeout = CBW_TIMEOUT_S;
    int r;

    if (w->abort + w->leftovers + (w->forget != NULL) > 1) {
        return cli_usage_error(err, &backup_usage,
                               "--abort, --leftovers and --forget exclude each other");
    }
    if (!o->qmp_socket || (!whole_daemon && (!o->node || !o->dir))) {
        return cli_usage_error(err, &backup_usage, "%s is missing",
                               !o->qmp_socket ? "--qmp"
                               : !o->node     ? "--node"
                                              : "--to");
    }
    r = cli_parse_output(w->output, &w->json, err);
    UNLESS_FAILED(r, backup_progress(w->shown, w->progress, &o->progress, err));
    UNLESS_FAILED(r,
                  cli_take_number(w->cbw_timeout, "--cbw-timeout", 0, UINT32_MAX, &timeout, err));
    if (r == 0 && w->tls_hostname && !w->tls_creds) {
        r = cli_usage_error(err, &backup_usage, "--tls-hostname needs --tls-creds");
    }
    o->cbw_timeout_s = (unsigned)timeout;
    return r;
}

/* The functions below do what the command line says. Each returns the exit status. */

static int co_run_backup_face(struct backup_options *o, struct backup_words *w, struct error *err)
{
    struct tls_creds *creds = NULL;
    struct manifest m;
    ERROR_AUTO(unsettled);
    int r = cli_add_objects(&w->objects, err);

    if (r < 0) {
        return r;
    }
    if (w->tls_creds) {
        r = tls_creds_ref(w->tls_creds, TLS_CLIENT, &creds, err);
        w->tls = (struct nbd_client_tls){.creds = creds, .hostname = w->tls_hostname};
        o->tls = &w->tls;
    }
    UNLESS_FAILED(r, backup_co_take(o, &m, &unsettled, err));
    tls_creds_unref(creds);
    if (r < 0) {
        return backup_fail(err, w->json);
    }
    if (w->json) {
        r = backup_print_json(manifest_to_json(&m));
    } else {
        print_backup(&m);
    }
    manifest_clear(&m);
    if (error_is_set(&unsettled)) {
        cli_report(&unsettled);
        return BACKUP_UNSETTLED;
    }
    return r;
}

static int co_abort_backup(const struct backup_options *o, const struct backup_words *w,
                           struct error *err)
{
    if (backup_co_abort(o, err) < 0) {
        return backup_fail(err, w->json);
    }
    if (!w->json) {
        printf("Nothing of an unfinished backup to '%s' is left.\n", o->dir);
    }
    return 0;
}

static int co_forget_repository(const struct backup_options *o, const struct backup_words *w,
                                struct error *err)
{
    if (backup_co_forget(o->qmp_socket, o->node, w->forget, err) < 0) {
        return backup_fail(err, w->json);
    }
    if (!w->json) {
        printf("The daemon has nothing of repository %s any more.\n", w->forget);
    }
    return 0;
}

static void backup_words_clear(struct backup_words *w)
{
    cli_items_clear(&w->objects);
    cli_observe_clear(&w->observe);
}

static int backup_co_main(int argc, char **argv, struct error *err)
{
    struct backup_options options = {.stop = &backup_stop};
    __attribute__((cleanup(backup_words_clear))) struct backup_words words = {0};
    int r = parse_backup_words(argc, argv, &options, &words, err);
    int status;

    UNLESS_FAILED(r, check_backup_words(&options, &words, err));
    if (r < 0) {
        return r;
    }
    if (!cli_observe(&words.observe, &status)) {
        return status;
    }
    backup_catch_signals();
    if (words.leftovers) {
        return backup_co_print_leftovers(options.qmp_socket, options.node, words.json);
    }
    if (words.forget) {
        return co_forget_repository(&options, &words, err);
    }
    return words.abort ? co_abort_backup(&options, &words, err)
                       : co_run_backup_face(&options, &words, err);
}

int cli_backup_main(int argc, char **argv)
{
    return cli_run(backup_co_main, argc, argv);
}

/* --- repair ----------------------------------------------------------------------------------- */

static const struct cli_usage repair_usage = {
    .synopsis = "DIR",
    .about = "Makes the file repository.json of a directory of backups again, from its backups, if "
             "it is damaged\n"
             "or lost. With --new-id, gives a copied directory an ID of its own. Otherwise the "
             "original and the\n"
             "copy remove each other's bitmaps, and every backup is a full one.",
    .examples = "@/backups/disk\n"
                "  cp -a /backups/disk /mnt/second && tidemark repair --new-id /mnt/second",
};

int cli_repair_main(int argc, char **argv)
{
    REPOSITORY_AUTO(repository);
    CLI_OBSERVE_AUTO(observe);
    bool new_id = false;
    int status;
    ERROR_AUTO(err);
    const struct cli_arg args[] = {
        {"new-id", 0, CLI_FLAG, &new_id, NULL, "give it another ID"},
        CLI_OBSERVE_ARGS(observe),
        CLI_ARG_END,
    };
    int first = cli_args_parse(args, &repair_usage, argc, argv);

    if (first < 0) {
        return cli_exit_status(first, &err);
    }
    if (first != argc - 1) {
        cli_usage_error(&err, &repair_usage, "expecting one directory");
        return cli_report(&err);
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
