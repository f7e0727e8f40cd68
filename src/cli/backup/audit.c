/* SPDX-License-Identifier: Apache-2.0 */
/* The face that finds bitmaps which missed a write. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

#include "backup/audit.h"
#include "cli/args.h"
#include "cli/backup/faces.h"
#include "cli/backup/notify.h"
#include "cli/cli.h"
#include "cli/observe.h"
#include "nbd/client.h"
#include "tls/tls.h"

#define CBW_TIMEOUT_S 30

static const struct cli_usage audit_usage = {
    .synopsis = "--qmp SOCKET --node NODE --to DIR\n"
                "       tidemark audit --image IMAGE --format FORMAT --to DIR",
    .about =
        "Checks that incremental backups have all that changed: compares a disk, as it is at one\n"
        "moment, with its last backup in DIR, wherever its bitmap says that nothing has changed. "
        "The\n"
        "disk may be in use meanwhile. Nothing is stored, and the bitmap records on.\n"
        "The exit status is 0 if the bitmap is right, 2 if it missed a change, 1 if that could not "
        "be\n"
        "found out.",
    .examples = "@--qmp /run/tidemark/qmp.sock --node disk --to /backups/disk",
};

struct audit_words {
    struct backup_options options;
    const char *node;
    const char *output, *progress, *tls_creds, *qmp_tls_creds, *tls_hostname;
    struct cli_items objects;
    struct cli_observe observe;
    struct nbd_client_tls tls, qmp_tls;
    bool json, shown;
};

static int parse_audit_words(int argc, char **argv, struct audit_words *w, struct error *err)
{
    struct source_options *s = &w->options.source;
    const struct cli_arg args[] = {
        {"qmp", 0, CLI_VALUE, &s->qmp_socket, "SOCKET",
         "QMP socket of the daemon; tcp:HOST:PORT; ssh://[USER@]HOST/PATH"},
        {"qmp-tls-creds", 0, CLI_VALUE, &w->qmp_tls_creds, "ID",
         "credentials, if that socket uses TLS"},
        {"node", 0, CLI_VALUE, &w->node, "NODE", "node name of the disk"},
        {"image", 0, CLI_VALUE, &s->image, "IMAGE",
         "instead of those: an image that is not in use"},
        {"format", 'f', CLI_VALUE, &s->format, "FORMAT", "format of that image"},
        {"to", 0, CLI_VALUE, &w->options.dir, "DIR", "directory of the disk's backups"},
        {"fleece-dir", 0, CLI_VALUE, &s->fleece_dir, "DIR",
         "where to keep old data of clusters that are overwritten meanwhile\n"
         "(default: the folder of the disk)"},
        {"nbd", 0, CLI_VALUE, &s->nbd_uri, "URI",
         "address of the daemon's NBD server (default: ask it, or start one)"},
        {"object", 0, CLI_OBJECT, &w->objects, "OPTIONS", "TLS credentials, or a secret"},
        {"tls-creds", 0, CLI_VALUE, &w->tls_creds, "ID", "credentials, if that server uses TLS"},
        {"tls-hostname", 0, CLI_VALUE, &w->tls_hostname, "NAME",
         "the name in the certificate of that server, and of the QMP socket"},
        BACKUP_KEY_ARGS,
        BACKUP_NOTIFY_ARG,
        BACKUP_PROGRESS_ARGS(w->shown, w->progress),
        {"output", 0, CLI_VALUE, &w->output, "FORMAT", "'human' or 'json'"},
        CLI_OBSERVE_ARGS(w->observe),
        CLI_ARG_END,
    };
    int first = cli_args_parse(args, &audit_usage, argc, argv);
    int r;

    if (first < 0) {
        return first;
    }
    if (first != argc) {
        return cli_usage_error(err, &audit_usage, "unexpected argument '%s'", argv[first]);
    }
    if (!w->options.dir || !s->image == !(s->qmp_socket && w->node)) {
        return cli_usage_error(err, &audit_usage,
                               "expecting --to, and --qmp with --node, or --image");
    }
    if (s->image && (s->qmp_socket || w->node || s->fleece_dir || s->nbd_uri || w->tls_creds ||
                     w->qmp_tls_creds)) {
        return cli_usage_error(err, &audit_usage,
                               "--image excludes the options that concern a daemon");
    }
    if (s->format && !s->image) {
        return cli_usage_error(err, &audit_usage, "--format needs --image");
    }
    if (w->tls_hostname && !w->tls_creds && !w->qmp_tls_creds) {
        return cli_usage_error(err, &audit_usage,
                               "--tls-hostname needs --tls-creds or --qmp-tls-creds");
    }
    s->nodes = &w->node;
    s->node_count = w->node ? 1 : 0;
    r = cli_parse_output(w->output, &w->json, err);
    UNLESS_FAILED(r, backup_progress(w->shown, w->progress, &w->options.progress, err));
    return r;
}

static struct json_object *audit_json(const struct audit_result *result)
{
    struct json_object *o = json_object_new_object(), *areas = json_object_new_array();

    json_object_object_add(o, "id", json_object_new_string(result->id));
    json_object_object_add(o, "marked-bytes", json_object_new_uint64(result->marked));
    json_object_object_add(o, "compared-bytes", json_object_new_uint64(result->compared));
    json_object_object_add(o, "missed-bytes", json_object_new_uint64(result->missed));
    for (size_t i = 0; i < result->count; i++) {
        struct json_object *area = json_object_new_object();

        json_object_object_add(area, "offset", json_object_new_uint64(result->areas[i].offset));
        json_object_object_add(area, "length", json_object_new_uint64(result->areas[i].length));
        json_object_array_add(areas, area);
    }
    json_object_object_add(o, "areas", areas);
    return o;
}

static void print_audit(const struct audit_result *result)
{
    char compared[16], marked[16], missed[16];

    printf("Compared with backup %s: %s, and %s are marked as changed\n", result->id,
           backup_size(result->compared, compared), backup_size(result->marked, marked));
    if (!result->missed) {
        printf("The bitmap is right.\n");
        return;
    }
    printf("The bitmap MISSED changes of %s:\n", backup_size(result->missed, missed));
    for (size_t i = 0; i < result->count; i++) {
        printf("  offset %" PRIu64 ", %" PRIu64 " bytes\n", result->areas[i].offset,
               result->areas[i].length);
    }
    if (result->count == AUDIT_AREAS_MAX) {
        printf("  and maybe more\n");
    }
}

static int co_run_audit(struct audit_words *w, struct audit_result *result, struct error *err)
{
    struct tls_creds *creds = NULL, *qmp_creds = NULL;
    int r = cli_add_objects(&w->objects, err);

    if (r == 0 && w->tls_creds) {
        r = tls_creds_ref(w->tls_creds, TLS_CLIENT, &creds, err);
        w->tls = (struct nbd_client_tls){.creds = creds, .hostname = w->tls_hostname};
        w->options.source.tls = &w->tls;
    }
    if (r == 0 && w->qmp_tls_creds) {
        r = tls_creds_ref(w->qmp_tls_creds, TLS_CLIENT, &qmp_creds, err);
        w->qmp_tls = (struct nbd_client_tls){.creds = qmp_creds, .hostname = w->tls_hostname};
        w->options.source.qmp_tls = &w->qmp_tls;
    }
    UNLESS_FAILED(r, audit_co_run(&w->options, result, err));
    tls_creds_unref(creds);
    tls_creds_unref(qmp_creds);
    return r;
}

static void audit_words_clear(struct audit_words *w)
{
    cli_items_clear(&w->objects);
    cli_observe_clear(&w->observe);
}

static int audit_co_main(int argc, char **argv, struct error *err)
{
    __attribute__((cleanup(audit_words_clear))) struct audit_words w = {
        .options = {.source.cbw_timeout_s = CBW_TIMEOUT_S,
                    .source.stop = &backup_stop,
                    .stop = &backup_stop}};
    int r = parse_audit_words(argc, argv, &w, err), status;
    struct audit_result result;
    struct json_object *o;

    if (r < 0) {
        return r;
    }
    if (!cli_observe(&w.observe, &status)) {
        return status;
    }
    backup_catch_signals();
    if (co_run_audit(&w, &result, err) < 0) {
        return backup_fail(err, w.json);
    }
    o = audit_json(&result);
    backup_note_result(o);
    if (w.json) {
        backup_print_json(o);
    } else {
        json_object_put(o);
        print_audit(&result);
    }
    if (result.missed) {
        cli_fail(
            "Backups since then lack these changes. 'tidemark backup --compare' reads the whole "
            "disk, and stores them");
        return BACKUP_DAMAGED;
    }
    return 0;
}

int cli_audit_main(int argc, char **argv)
{
    return backup_notify("audit", cli_run(audit_co_main, argc, argv));
}
