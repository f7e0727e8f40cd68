/* SPDX-License-Identifier: Apache-2.0 */
/* The face backup. */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backup/backup.h"
#include "cli/args.h"
#include "cli/backup/faces.h"
#include "cli/backup/notify.h"
#include "cli/cli.h"
#include "cli/observe.h"
#include "nbd/client.h"
#include "tls/tls.h"

#define CBW_TIMEOUT_S 30
#define AGENT_TIMEOUT_S 10

/* --- backup ----------------------------------------------------------------------------------- */

static const struct cli_usage backup_usage = {
    .synopsis = "--qmp SOCKET --node NODE --to DIR\n"
                "       tidemark backup --qmp SOCKET --vm NAME [--node NODE ...] --to DIR\n"
                "       tidemark backup --libvirt URI --domain NAME [--node DISK ...] --to DIR\n"
                "       tidemark backup --image IMAGE [--format FORMAT] --to DIR\n"
                "       tidemark backup --qmp SOCKET --node NODE --to DIR --abort\n"
                "       tidemark backup --qmp SOCKET [--node NODE] --leftovers\n"
                "       tidemark backup --qmp SOCKET [--node NODE] --forget REPOSITORY",
    .about =
        "Backs up a disk of a running daemon while it is being written. The backup is the state "
        "of\n"
        "one moment. The first backup holds the whole disk; a later one holds the changes since\n"
        "the one before. If the bitmap of the disk cannot be relied on, the whole disk is read "
        "and\n"
        "compared with the checksums of the last backup; if the directory is not intact, a full\n"
        "backup is taken. It prints why. DIR holds the backups of one disk, and "
        "is\n"
        "made if it does not exist. If a backup fails or is killed, the disk goes on working, the\n"
        "earlier backups stay as they are, and the next run cleans up.\n"
        "The exit status is 0, 1 if there is no backup, 3 if there is one but the daemon could "
        "not\n"
        "be cleaned up.",
    .examples =
        "@--qmp /run/tidemark/qmp.sock --node disk --to /backups/disk\n"
        "        full at first, incremental from then on\n"
        "@--image /srv/vm.qcow2 --format qcow2 --to /backups/vm\n"
        "        an image that is not in use\n"
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
        if (m->reason) {
            printf("  read and compared the whole disk: %s\n", m->reason);
        }
    }
    if (!m->reason && m->moved > m->changed + BACKUP_CLUSTER_SIZE) {
        printf("  the bitmap marks more than what differs: that was read, and is not stored\n");
    }
    printf("  disk %s, changed %s, moved %s, stored %s, in %.1f s\n",
           backup_size(m->virtual_size, virtual_size), backup_size(m->changed, changed),
           backup_size(m->moved, moved), backup_size(m->stored, stored),
           (double)m->duration_ms / 1000);
    printf("  checkpoint between %s and %s\n", m->begin.utc, m->end.utc);
}

static void print_result(const struct backup_result *result)
{
    if (result->set.id[0]) {
        printf("Set %s is complete: %zu %s\n", result->set.id, result->count,
               result->count == 1 ? "disk" : "disks");
    }
    for (size_t i = 0; i < result->count; i++) {
        if (result->set.id[0]) {
            printf("%s: ", result->set.disks[i].directory);
        }
        print_backup(&result->manifests[i]);
    }
}

/* The manifest of one disk; of a set: its description, and the manifests of all disks. */
static struct json_object *result_json(const struct backup_result *result)
{
    struct json_object *o, *list;

    if (!result->set.id[0]) {
        return manifest_to_json(&result->manifests[0]);
    }
    o = json_object_new_object();
    list = json_object_new_array();
    json_object_object_add(o, "set", set_to_json(&result->set, NULL));
    for (size_t i = 0; i < result->count; i++) {
        json_object_array_add(list, manifest_to_json(&result->manifests[i]));
    }
    json_object_object_add(o, "backups", list);
    return o;
}

/* What is on the command line, and not in backup_options. */
struct backup_words {
    const char *output, *progress, *forget;
    const char *tls_creds, *qmp_tls_creds, *tls_hostname;
    const char *cbw_timeout, *agent_timeout, *abort_after, *rate;
    struct cli_items objects, nodes;
    const char **node_names; /* of `nodes` */
    struct cli_observe observe;
    struct nbd_client_tls tls, qmp_tls;
    struct tls_creds *creds, *qmp_creds; /* of both */
    bool json, shown, abort, leftovers, no_guard;
    char **guard; /* command line of the guard */
};

/* Returns 0, or what cli_exit_status() takes. */
static int parse_backup_words(int argc, char **argv, struct backup_options *o,
                              struct backup_words *w, struct error *err)
{
    const struct cli_arg args[] = {
        {"qmp", 0, CLI_VALUE, &o->source.qmp_socket, "SOCKET",
         "QMP socket of the daemon, of QEMU, or of qemu-storage-daemon; of a\n"
         "daemon on another machine: tcp:HOST:PORT or ssh://[USER@]HOST/PATH"},
        {"qmp-tls-creds", 0, CLI_VALUE, &w->qmp_tls_creds, "ID",
         "credentials, if that socket uses TLS"},
        {"node", 0, CLI_REPEAT, &w->nodes, "NODE",
         "node name of the disk, or name or id of its device; several are\n"
         "backed up at one moment, as a set"},
        {"libvirt", 0, CLI_VALUE, &o->source.libvirt_uri, "URI",
         "instead of --qmp: a domain of libvirt on this machine, such as\n"
         "qemu:///system; --node is then the target of a disk ('vda')"},
        {"domain", 0, CLI_VALUE, &o->source.domain, "NAME",
         "name of the domain; without --node, a set of all its disks"},
        {"freeze", 0, CLI_FLAG, &o->source.freeze, NULL,
         "have libvirt and the guest agent freeze the guest's file systems\n"
         "for the moment of the backup"},
        {"vm", 0, CLI_VALUE, &o->quiesce.machine, "NAME",
         "a set of all disks of the machine that can be written, or of those\n"
         "named by --node; NAME is noted in the set"},
        {"image", 0, CLI_VALUE, &o->source.image, "IMAGE",
         "instead of --qmp and --node: an image that is not in use, a block\n"
         "device, an NBD URI, or another name as 'tidemark img' takes it"},
        {"format", 'f', CLI_VALUE, &o->source.format, "FORMAT",
         "format of that image (default for what is no file: raw)"},
        {"to", 0, CLI_VALUE, &o->dir, "DIR",
         "directory of the disk's backups; of a set: with one for each disk"},
        {"agent", 0, CLI_VALUE, &o->quiesce.agent, "SOCKET",
         "guest agent: file systems are frozen for the moment of the backup"},
        {"agent-timeout", 0, CLI_VALUE, &w->agent_timeout, "SECONDS",
         "how long to wait for an answer of the agent (default: 10)"},
        {"pre-hook", 0, CLI_VALUE, &o->quiesce.pre_hook, "COMMAND",
         "shell command to run before that moment; if it fails, there is no\n"
         "backup"},
        {"post-hook", 0, CLI_VALUE, &o->quiesce.post_hook, "COMMAND",
         "shell command to run after that moment, in any case"},
        {"definition", 0, CLI_VALUE, &o->definition, "FILE",
         "description of the machine, to be kept with the set"},
        {"full", 0, CLI_FLAG, &o->full, NULL, "take a full backup in any case"},
        {"compare", 0, CLI_FLAG, &o->compare, NULL,
         "read the whole disk, and store what differs from the last backup"},
        {"same-disk", 0, CLI_FLAG, &o->same_disk, NULL,
         "the disk is that of the earlier backups, although it was renamed\n"
         "or moved"},
        {"fleece-dir", 0, CLI_VALUE, &o->source.fleece_dir, "DIR",
         "where to keep old data of clusters that are overwritten meanwhile\n"
         "(default: the folder of the disk)"},
        {"cbw-timeout", 0, CLI_VALUE, &w->cbw_timeout, "SECONDS",
         "how long a write of the guest may wait for that before the backup\n"
         "is cancelled (default: 30; 0: no limit; with QEMU: of one disk,\n"
         "and no limit by default)"},
        {"rate", 0, CLI_VALUE, &w->rate, "RATE",
         "read at most RATE bytes per second (suffixes K, M, G)"},
        {"nbd", 0, CLI_VALUE, &o->source.nbd_uri, "URI",
         "address of the daemon's NBD server (default: ask it, or start one)"},
        {"object", 0, CLI_OBJECT, &w->objects, "OPTIONS", "TLS credentials, or a secret"},
        {"tls-creds", 0, CLI_VALUE, &w->tls_creds, "ID", "credentials, if that server uses TLS"},
        {"tls-hostname", 0, CLI_VALUE, &w->tls_hostname, "NAME",
         "the name in the certificate of that server, and of the QMP socket"},
        BACKUP_NOTIFY_ARG,
        BACKUP_PROGRESS_ARGS(w->shown, w->progress),
        BACKUP_KEY_ARGS,
        BACKUP_ENCRYPT_ARG,
        BACKUP_APPEND_ONLY_ARG,
        {"output", 0, CLI_VALUE, &w->output, "FORMAT", "'human' or 'json' (the manifest)"},
        {"abort", 0, CLI_FLAG, &w->abort, NULL,
         "only remove what a killed run to DIR has left in the daemon, and\n"
         "thaw the guest, with --agent or --freeze"},
        {"no-guard", 0, CLI_FLAG, &w->no_guard, NULL,
         "start no second process that cleans up if this one is killed"},
        {"abort-after", 0, CLI_VALUE, &w->abort_after, "FD", NULL},
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

/* Take the names of --node, and find out whether it is a set. */
static int take_nodes(struct backup_options *o, struct backup_words *w, struct error *err)
{
    w->node_names = calloc(w->nodes.count + 1, sizeof(*w->node_names));
    if (!w->node_names) {
        return error_out_of_memory(err);
    }
    for (size_t i = 0; i < w->nodes.count; i++) {
        w->node_names[i] = w->nodes.item[i].value;
    }
    o->source.nodes = w->node_names;
    o->source.node_count = w->nodes.count;
    o->is_set = o->quiesce.machine || w->nodes.count > 1 || (o->source.domain && !w->nodes.count);
    if (o->source.domain && !o->quiesce.machine) {
        o->quiesce.machine = o->source.domain;
    }
    return 0;
}

/* Find what is missing in the names of the source, or excludes each other. */
static int check_source_words(const struct backup_options *o, const struct backup_words *w,
                              struct error *err)
{
    const struct source_options *s = &o->source;
    bool whole_daemon = w->leftovers || w->forget, named = s->node_count > 0 || o->is_set;

    if (!s->libvirt_uri != !s->domain || (s->freeze && !s->domain)) {
        return cli_usage_error(err, &backup_usage, "--libvirt, --domain and --freeze go together");
    }
    if (s->libvirt_uri &&
        (s->qmp_socket || s->image || s->nbd_uri || w->tls_creds || w->qmp_tls_creds ||
         w->cbw_timeout || o->quiesce.agent || whole_daemon)) {
        return cli_usage_error(err, &backup_usage,
                               "--libvirt excludes --image and the options of a QMP socket");
    }
    if (s->image && (s->qmp_socket || named || s->nbd_uri || s->fleece_dir || w->cbw_timeout ||
                     w->tls_creds || w->qmp_tls_creds || o->quiesce.agent || whole_daemon)) {
        return cli_usage_error(err, &backup_usage,
                               "--image excludes the options that concern a daemon");
    }
    if (s->format && !s->image) {
        return cli_usage_error(err, &backup_usage, "--format needs --image");
    }
    if (w->agent_timeout && !o->quiesce.agent && !s->freeze) {
        return cli_usage_error(err, &backup_usage, "--agent-timeout needs --agent or --freeze");
    }
    if (o->definition && !o->is_set) {
        return cli_usage_error(err, &backup_usage, "--definition needs --vm or several disks");
    }
    if (whole_daemon && o->is_set) {
        return cli_usage_error(err, &backup_usage, "--leftovers and --forget take one node");
    }
    if (!s->image && !s->libvirt_uri && (!s->qmp_socket || (!whole_daemon && !named))) {
        return cli_usage_error(err, &backup_usage, "%s is missing",
                               s->qmp_socket ? "--node"
                               : named       ? "--qmp"
                                             : "--qmp or --image");
    }
    return !whole_daemon && !o->dir ? cli_usage_error(err, &backup_usage, "--to is missing") : 0;
}

/* Find what is missing, or excludes each other. */
static int check_backup_words(struct backup_options *o, struct backup_words *w, struct error *err)
{
    uint64_t timeout = CBW_TIMEOUT_S, agent_timeout = AGENT_TIMEOUT_S;
    int r;

    if (w->abort + w->leftovers + (w->forget != NULL) > 1) {
        return cli_usage_error(err, &backup_usage,
                               "--abort, --leftovers and --forget exclude each other");
    }
    r = take_nodes(o, w, err);
    UNLESS_FAILED(r, check_source_words(o, w, err));
    if (r < 0) {
        return r;
    }
    r = cli_parse_output(w->output, &w->json, err);
    UNLESS_FAILED(r, backup_progress(w->shown, w->progress, &o->progress, err));
    UNLESS_FAILED(r,
                  cli_take_number(w->cbw_timeout, "--cbw-timeout", 0, UINT32_MAX, &timeout, err));
    if (r == 0 && w->tls_hostname && !w->tls_creds && !w->qmp_tls_creds) {
        r = cli_usage_error(err, &backup_usage,
                            "--tls-hostname needs --tls-creds or --qmp-tls-creds");
    }
    UNLESS_FAILED(r, cli_take_size(w->rate, "--rate", 1, INT64_MAX, &o->rate, err));
    UNLESS_FAILED(r, cli_take_number(w->agent_timeout, "--agent-timeout", 1, UINT32_MAX,
                                     &agent_timeout, err));
    o->source.cbw_timeout_s = (unsigned)timeout;
    o->source.asks_cbw_timeout = w->cbw_timeout != NULL;
    o->quiesce.timeout_s = (unsigned)agent_timeout;
    o->source.freeze_timeout_s = (unsigned)agent_timeout;
    return r;
}

/* Make the objects, and find the credentials among them. */
static int take_creds(struct backup_options *o, struct backup_words *w, struct error *err)
{
    int r = cli_add_objects(&w->objects, err);

    if (r == 0 && w->tls_creds) {
        r = tls_creds_ref(w->tls_creds, TLS_CLIENT, &w->creds, err);
        w->tls = (struct nbd_client_tls){.creds = w->creds, .hostname = w->tls_hostname};
        o->source.tls = &w->tls;
    }
    if (r == 0 && w->qmp_tls_creds) {
        r = tls_creds_ref(w->qmp_tls_creds, TLS_CLIENT, &w->qmp_creds, err);
        w->qmp_tls = (struct nbd_client_tls){.creds = w->qmp_creds, .hostname = w->tls_hostname};
        o->source.qmp_tls = &w->qmp_tls;
    }
    return r;
}

/* The functions below do what the command line says. Each returns the exit status. */

static int co_run_backup_face(struct backup_options *o, struct backup_words *w, struct error *err)
{
    struct backup_result result;
    struct json_object *json;
    ERROR_AUTO(unsettled);
    int r = backup_co_take(o, &result, &unsettled, err);

    if (r < 0) {
        return backup_fail(err, w->json);
    }
    json = result_json(&result);
    backup_note_result(json);
    if (w->json) {
        r = backup_print_json(json);
    } else {
        json_object_put(json);
        print_result(&result);
    }
    backup_result_clear(&result);
    if (error_is_set(&unsettled)) {
        cli_report(&unsettled);
        return BACKUP_UNSETTLED;
    }
    return r;
}

/* A success without figures, as JSON. */
static int print_done(const char *member, const char *value)
{
    struct json_object *o = json_object_new_object();

    json_object_object_add(o, member, json_object_new_string(value));
    return backup_print_json(o);
}

static int co_abort_backup(const struct backup_options *o, const struct backup_words *w,
                           struct error *err)
{
    if (backup_co_abort(o, err) < 0) {
        return backup_fail(err, w->json);
    }
    if (!w->json) {
        printf("Nothing of an unfinished backup to '%s' is left.\n", o->dir);
        return 0;
    }
    return print_done("to", o->dir);
}

static int co_forget_repository(const struct backup_options *o, const struct backup_words *w,
                                struct error *err)
{
    if (backup_co_forget(&o->source, w->node_names[0], w->forget, err) < 0) {
        return backup_fail(err, w->json);
    }
    if (!w->json) {
        printf("The daemon has nothing of repository %s any more.\n", w->forget);
        return 0;
    }
    return print_done("repository", w->forget);
}

/* The guard gets the words of this run. */
static int make_guard(int argc, char **argv, struct backup_options *o, struct backup_words *w,
                      struct error *err)
{
    static char program[] = "tidemark", face[] = "backup";

    w->guard = calloc((size_t)argc + 4, sizeof(*w->guard));
    if (!w->guard) {
        return error_out_of_memory(err);
    }
    w->guard[0] = program;
    w->guard[1] = face;
    memcpy(w->guard + 2, argv + 1, (size_t)(argc - 1) * sizeof(*argv));
    o->guard = w->guard;
    return 0;
}

/* As a guard: nobody reads what it prints. */
static int co_guard_backup(const struct backup_options *o, const struct backup_words *w,
                           struct error *err)
{
    uint64_t fd = 0;
    int r = cli_take_number(w->abort_after, "--abort-after", 0, INT_MAX, &fd, err);

    return r < 0 ? r : backup_co_guard(o, (int)fd, err);
}

static void backup_words_clear(struct backup_words *w)
{
    tls_creds_unref(w->creds);
    tls_creds_unref(w->qmp_creds);
    free(w->guard);
    cli_items_clear(&w->objects);
    cli_items_clear(&w->nodes);
    free(w->node_names);
    cli_observe_clear(&w->observe);
}

static int backup_co_main(int argc, char **argv, struct error *err)
{
    struct backup_options options = {
        .source.stop = &backup_stop, .stop = &backup_stop, .quiesce.stop = &backup_stop};
    __attribute__((cleanup(backup_words_clear))) struct backup_words words = {0};
    int r = parse_backup_words(argc, argv, &options, &words, err);
    int status;

    UNLESS_FAILED(r, check_backup_words(&options, &words, err));
    UNLESS_FAILED(r, take_creds(&options, &words, err));
    if (r < 0) {
        return r;
    }
    /* Traces, logs and --notify are those of the backup. */
    if (words.abort_after) {
        backup_notify_program = NULL;
        return co_guard_backup(&options, &words, err);
    }
    if (!cli_observe(&words.observe, &status)) {
        return status;
    }
    backup_catch_signals();
    cli_raise_file_limit(); /* each disk of a set takes several */
    if (!words.no_guard && !options.source.image) {
        r = make_guard(argc, argv, &options, &words, err);
        if (r < 0) {
            return r;
        }
    }
    if (words.leftovers) {
        return backup_co_print_leftovers(&options.source, words.node_names[0], words.json);
    }
    if (words.forget) {
        return co_forget_repository(&options, &words, err);
    }
    return words.abort ? co_abort_backup(&options, &words, err)
                       : co_run_backup_face(&options, &words, err);
}

int cli_backup_main(int argc, char **argv)
{
    return backup_notify("backup", cli_run(backup_co_main, argc, argv));
}
