/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The face that serves a point in time over NBD. It is the face `nbd` with another image: the
 * driver tidemark-backup, or an overlay on it.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "backup/point.h"
#include "backup/repository.h"
#include "base/cleanup.h"
#include "block/control.h"
#include "cli/backup/faces.h"
#include "cli/cli.h"
#include "cli/nbd/command_line.h"

static const struct cli_usage serve_usage = {
    .synopsis = "DIR",
    .about =
        "Serves a disk as it was at one of its backups over NBD, at once, without restoring it. "
        "Every\n"
        "read is compared with its checksum: damage is an I/O error for the client, and a message\n"
        "here. The backups are never changed: with --writable, writes go to a temporary file and "
        "are\n"
        "lost at the end; with --overlay, to a qcow2 image that a later run continues, and that "
        "can\n"
        "be streamed to its final place while a guest runs from it (docs/backup.md).\n"
        "It listens on 127.0.0.1 unless an address is given, and ends on SIGINT or SIGTERM.",
    .examples = "@/backups/disk --at 20261120T0930 -k /run/disk.sock\n"
                "@/backups/disk --overlay /srv/disk.qcow2 -k /run/disk.sock --fork\n"
                "        boot from it: -drive file=nbd+unix:///?socket=/run/disk.sock,format=raw",
};

struct serve {
    struct nbd_command_line nbd;
    const char *at, *overlay;
    bool writable;
    char *image;   /* the options of the node that is served */
    char *backing; /* what the overlay names as its backing file */
    uint64_t disk_size;
};

/* --- the overlay ------------------------------------------------------------------------------ */

static int co_make_serve_overlay(const struct serve *s, struct error *err)
{
    struct options *opts = options_new();

    if (!opts) {
        return error_out_of_memory(err);
    }
    options_set_str(opts, "backing_file", s->backing);
    options_set_str(opts, "backing_fmt", "raw");
    return block_co_create_image("qcow2", s->overlay, s->disk_size, opts, err);
}

/* An overlay that exists is continued, if it was made on this backup. */
static int co_check_serve_overlay(const struct serve *s, struct error *err)
{
    struct block_node *node = NULL;
    struct block_info info;
    int r = block_co_open_filename(s->overlay, "qcow2", NULL, BLOCK_OPEN_NO_BACKING, &node, err);

    if (r < 0) {
        return r;
    }
    if (block_co_get_info(node, &info) < 0 || !info.backing_filename ||
        strcmp(info.backing_filename, s->backing) != 0) {
        error_set(err, EEXIST, "'%s' exists, and is no overlay on this backup", s->overlay);
        error_hint(err, "Name another file, or give the --at of the run that made it.");
        r = -EEXIST;
    }
    block_co_unref(node);
    return r;
}

static int co_prepare_overlay(void *arg, struct error *err)
{
    const struct serve *s = arg;
    struct stat st;

    if (lstat(s->overlay, &st) == 0) {
        return co_check_serve_overlay(s, err);
    }
    if (errno != ENOENT) {
        return error_set_errno(err, errno, "Could not inspect '%s'", s->overlay);
    }
    return co_make_serve_overlay(s, err);
}

/* --- the command line ------------------------------------------------------------------------- */

/* A text as the value of an option in a list of options: commas twice. NULL: no memory. */
static char *double_commas(const char *text)
{
    char *copy = malloc(2 * strlen(text) + 1), *to = copy;

    for (; copy && *text; text++) {
        *to++ = *text;
        if (*text == ',') {
            *to++ = ',';
        }
    }
    if (copy) {
        *to = '\0';
    }
    return copy;
}

static char *overlay_backing_name(const char *repository, const char *id)
{
    struct json_object *o = json_object_new_object();
    char *name = NULL;

    json_object_object_add(o, "driver", json_object_new_string(POINT_DRIVER));
    json_object_object_add(o, "repository", json_object_new_string(repository));
    json_object_object_add(o, "at", json_object_new_string(id));
    if (asprintf(&name, "json:%s",
                 json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN |
                                                       JSON_C_TO_STRING_NOSLASHESCAPE)) < 0) {
        name = NULL;
    }
    json_object_put(o);
    return name;
}

/* Find the backup, so that the whole time the same one is served, and say in options what is. */
static int name_image(struct serve *s, const char *dir, struct error *err)
{
    REPOSITORY_AUTO(repository);
    const struct repository_entry *e = NULL;
    char *path AUTO_FREE = NULL, *overlay AUTO_FREE = NULL;
    int r = repository_open(dir, &repository, err);

    if (r == 0) {
        e = repository_find(&repository, s->at, err);
    }
    if (!e) {
        return r < 0 ? r : -ENOENT;
    }
    s->disk_size = e->manifest.virtual_size;
    path = double_commas(repository.path);
    overlay = double_commas(s->overlay ?: "");
    s->backing = overlay_backing_name(repository.path, e->id);
    if (!path || !overlay || !s->backing ||
        asprintf(&s->image,
                 s->overlay ? "driver=qcow2,file.driver=file,file.filename=%s,"
                              "backing.driver=" POINT_DRIVER ",backing.repository=%s,backing.at=%s"
                            : "%sdriver=" POINT_DRIVER ",repository=%s,at=%s",
                 overlay, path, e->id) < 0) {
        s->image = NULL;
        return error_out_of_memory(err);
    }
    return 0;
}

static int fill_nbd_command_line(struct serve *s, struct error *err)
{
    struct nbd_command_line *nbd = &s->nbd;

    if (s->writable && s->overlay) {
        return cli_usage_error(err, &serve_usage, "--writable and --overlay exclude each other");
    }
    if (nbd->socket && (nbd->port || nbd->bind)) {
        return cli_usage_error(err, &serve_usage, "a unix socket has no port and no address");
    }
    if (nbd->tls_authz && !nbd->tls_creds) {
        return cli_usage_error(err, &serve_usage, "--tls-authz needs --tls-creds");
    }
    if (!nbd->socket && !nbd->bind) {
        nbd->bind = "127.0.0.1";
    }
    nbd->file = s->image;
    nbd->image_opts = true;
    nbd->read_only = !s->writable && !s->overlay;
    nbd->snapshot = s->writable;
    nbd->persistent = true;
    nbd->discard = "unmap";
    nbd->stop = &backup_stop;
    point_stop_by(nbd->stop);
    if (s->overlay) {
        nbd->co_prepare = co_prepare_overlay;
        nbd->prepare_arg = s;
    }
    return cli_take_number(nbd->shared, "--shared", 0, INT32_MAX, &nbd->max_clients, err);
}

static void serve_clear(struct serve *s)
{
    nbd_command_line_clear(&s->nbd);
    free(s->image);
    free(s->backing);
}

int cli_serve_main(int argc, char **argv)
{
    CLEANUP(serve_clear) struct serve s = {.nbd = {.ready_fd = -1}};
    struct nbd_command_line *nbd = &s.nbd;
    const struct cli_arg args[] = {
        {"at", 0, CLI_VALUE, &s.at, "ID",
         "the backup, or an unambiguous beginning of its ID\n"
         "(default: the newest)"},
        {"writable", 'w', CLI_FLAG, &s.writable, NULL,
         "accept writes; they go to a temporary file, and are lost at the\n"
         "end"},
        {"overlay", 0, CLI_VALUE, &s.overlay, "FILE",
         "accept writes; they go to this qcow2 image, which is made if it\n"
         "does not exist"},
        {"socket", 'k', CLI_VALUE, &nbd->socket, "PATH", "listen on a unix socket"},
        {"port", 'p', CLI_VALUE, &nbd->port, "PORT", "TCP port (default 10809)"},
        {"bind", 'b', CLI_VALUE, &nbd->bind, "HOST", "address to listen on (default 127.0.0.1)"},
        {"shared", 'e', CLI_VALUE, &nbd->shared, "NUM", "clients at a time (default: any number)"},
        {"export-name", 'x', CLI_VALUE, &nbd->name, "NAME",
         "name of the export for clients (default: empty)"},
        {"fork", 0, CLI_FLAG, &nbd->fork, NULL, "go to the background once clients can connect"},
        {"pid-file", 0, CLI_VALUE, &nbd->pid_file, "PATH", "write the process ID to a file"},
        BACKUP_KEY_ARGS,
        CLI_ARG_OBJECT(nbd->objects),
        {"tls-creds", 0, CLI_VALUE, &nbd->tls_creds, "ID",
         "use TLS, with these credentials (--object tls-creds-...)"},
        {"tls-authz", 0, CLI_VALUE, &nbd->tls_authz, "ID",
         "accept only clients that this object allows (--object authz-...)"},
        CLI_SERVING_ARGS(nbd->serving),
        CLI_OBSERVE_ARGS(nbd->observe),
        CLI_ARG_END,
    };
    ERROR_AUTO(err);
    int first = cli_args_parse(args, &serve_usage, argc, argv);
    int status, r;

    if (first < 0) {
        return cli_exit_status(first, &err);
    }
    if (first != argc - 1) {
        cli_usage_error(&err, &serve_usage, "expecting one directory");
        return cli_report(&err);
    }
    if (!cli_observe(&nbd->observe, &status)) {
        return status;
    }
    r = name_image(&s, argv[first], &err);
    UNLESS_FAILED(r, fill_nbd_command_line(&s, &err));
    UNLESS_FAILED(r, cli_serving_apply(&nbd->serving, &err));
    return r < 0 ? cli_report(&err) : nbd_run(nbd);
}
