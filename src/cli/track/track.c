/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The face `tidemark track`: serves a raw file or a block device as it is, and keeps bitmaps of
 * what changes in an image next to it.
 *
 *   compare the disk with the record -> make or prepare the image, in a process of its own
 *   -> record: in use -> serve, as `tidemark daemon` does -> record: as it was at the end
 */
#include <errno.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "cli/args.h"
#include "cli/cli.h"
#include "cli/observe.h"
#include "cli/track/record.h"
#include "cli/track/sidecar.h"

static const struct cli_usage usage = {
    .synopsis = "PATH [-- DAEMON-OPTION...]",
    .about =
        "Serves PATH, a raw file, a block device or a logical volume, over NBD, and keeps "
        "persistent\n"
        "bitmaps of what changes. PATH stays a plain raw disk: the bitmaps are in a small qcow2 "
        "image\n"
        "next to it, whose raw data file is PATH. If PATH was changed while nobody tracked it, as "
        "far as\n"
        "this can be seen, all bitmaps have everything, and the next backup is full.\n"
        "What follows -- goes to the daemon (tidemark-daemon(1)).",
    .examples = "@-k /run/disk.sock --qmp /run/disk.qmp --bitmap b0 /srv/disk.raw\n"
                "@--image /srv/web.track -k /run/web.sock /dev/vg0/web\n"
                "@--no-serve /srv/disk.raw\n"
                "        only compare, and say what is found",
};

struct track {
    const char *image, *socket, *qmp, *name, *granularity_text, *pidfile;
    bool strict, no_serve, daemonize;
    struct cli_items bitmaps;
    struct cli_observe observe;

    uint64_t granularity;
    char *path, *image_path, *record; /* absolute */
    struct track_sidecar sidecar;
    bool exists, all_dirty;
    /* Keeps a device from being mounted; -1: it is a file, or nothing is served. */
    int claim;
};

static void track_clear(struct track *t)
{
    cli_items_clear(&t->bitmaps);
    cli_observe_clear(&t->observe);
    free(t->path);
    free(t->image_path);
    free(t->record);
    if (t->claim >= 0) {
        close(t->claim);
    }
}

/* --- what is there ---------------------------------------------------------------------------- */

/* The path from the root on. Links stay: those to volumes are their names. NULL: no memory. */
static char *absolute_path(const char *path)
{
    AUTO_FREE char *here = path[0] == '/' ? NULL : getcwd(NULL, 0);
    char *whole = NULL;

    if (path[0] == '/') {
        return strdup(path);
    }
    return here && asprintf(&whole, "%s/%s", here, path) >= 0 ? whole : NULL;
}

static int find_paths(struct track *t, const char *path, struct error *err)
{
    struct track_disk disk;
    AUTO_FREE char *beside = NULL;
    int r = track_look(path, &disk, err);

    if (r < 0) {
        return r;
    }
    if (!t->image && disk.device) {
        return cli_usage_error(err, &usage, "--image is needed for a block device");
    }
    if (!t->image && asprintf(&beside, "%s.track", path) < 0) {
        beside = NULL;
        return error_out_of_memory(err);
    }
    t->path = absolute_path(path);
    t->image_path = absolute_path(t->image ? t->image : beside);
    if (!t->path || !t->image_path || asprintf(&t->record, "%s.state", t->image_path) < 0) {
        t->record = NULL;
        return error_out_of_memory(err);
    }
    t->sidecar = (struct track_sidecar){t->path, t->image_path, disk.device, disk.size};
    t->exists = access(t->image_path, F_OK) == 0;
    return 0;
}

/*
 * The kernel lets one user claim a device: a file system, a volume or array that has it as a part,
 * or who opens it so. None of them can write to it from here on to the end.
 */
static int claim_device(struct track *t, struct error *err)
{
    t->claim = open(t->path, O_RDONLY | O_EXCL | O_CLOEXEC | O_NONBLOCK);
    if (t->claim >= 0) {
        return 0;
    }
    return errno == EBUSY
               ? error_set(err, EBUSY,
                           "'%s' is in use by the system: it is mounted, a part of another device, "
                           "or tracked already; what is written there can't be tracked",
                           t->path)
               : error_set_errno(err, errno, "Could not open '%s'", t->path);
}

/* Compare, tell what is found, and decide whether bitmaps can be trusted. */
static void judge(struct track *t)
{
    AUTO_FREE char *why = NULL;
    enum track_verdict verdict;

    if (!t->exists) {
        printf("%s: not tracked yet\n", t->path);
        return;
    }
    verdict = track_compare(t->path, t->image_path, t->record, &why);
    t->all_dirty = verdict == TRACK_CHANGED || verdict == TRACK_UNKNOWN ||
                   (verdict == TRACK_CRASHED && t->strict);
    switch (verdict) {
    case TRACK_UNCHANGED:
        printf("%s: as it was when tracking ended\n", t->path);
        break;
    case TRACK_CRASHED:
        printf("%s: %s; size and identity are the same%s\n", t->path, why ? why : "",
               t->all_dirty ? ", which is not enough with --strict" : "");
        break;
    case TRACK_CHANGED:
        printf("%s: was changed while nobody tracked it: %s\n", t->path, why ? why : "");
        break;
    case TRACK_UNKNOWN:
        printf("%s: it is not known what it was when tracking ended: %s\n", t->path,
               why ? why : "");
        break;
    }
    if (t->all_dirty) {
        printf("%s: the next backup is full\n", t->path);
    }
}

/* --- the image -------------------------------------------------------------------------------- */

static int co_prepare(void *arg, struct error *err)
{
    struct track *t = arg;
    int r = t->exists ? 0 : track_co_make_sidecar(&t->sidecar, err);

    return UNLESS_FAILED(r, track_co_prepare_sidecar(&t->sidecar, &t->bitmaps,
                                                     (uint32_t)t->granularity, t->all_dirty, err));
}

/* In a process of its own, since the daemon makes this one's reactors. Its exit status. */
static int prepare_image(struct track *t)
{
    int status;
    pid_t pid;

    fflush(stdout);
    pid = fork();
    if (pid == 0) {
        _exit(cli_run_with(co_prepare, t));
    }
    if (pid < 0 || waitpid(pid, &status, 0) < 0) {
        return cli_fail("Could not prepare '%s': %s", t->image_path, strerror(errno));
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}

/* --- serving ---------------------------------------------------------------------------------- */

#define WORDS_MAX 16

/* The words of a command line; those of `owned` are freed. */
struct words {
    char *owned[WORDS_MAX];
    size_t count;
    bool failed;
};

static void words_clear(struct words *w)
{
    for (size_t i = 0; i < w->count; i++) {
        free(w->owned[i]);
    }
}

static void add_word(struct words *w, const char *text)
{
    char *copy = text ? strdup(text) : NULL;

    if (!copy) {
        w->failed = true;
    } else {
        w->owned[w->count++] = copy;
    }
}

/* An option whose value is JSON (consumed). */
static void add_json(struct words *w, const char *option, struct json_object *value)
{
    add_word(w, option);
    add_word(w, json_object_to_json_string(value));
    json_object_put(value);
}

static struct json_object *new_object(const char *key, const char *value)
{
    struct json_object *o = json_object_new_object();

    json_object_object_add(o, key, json_object_new_string(value));
    return o;
}

static void add_nbd(struct words *w, const struct track *t)
{
    struct json_object *server = json_object_new_object(), *address = new_object("type", "unix");
    struct json_object *export = new_object("type", "nbd");

    json_object_object_add(address, "path", json_object_new_string(t->socket));
    json_object_object_add(server, "addr", address);
    add_json(w, "--nbd-server", server);
    json_object_object_add(export, "id", json_object_new_string(t->name));
    json_object_object_add(export, "node-name", json_object_new_string(t->name));
    json_object_object_add(export, "name", json_object_new_string(t->name));
    json_object_object_add(export, "writable", json_object_new_boolean(true));
    add_json(w, "--export", export);
}

/* In "KEY=VALUE,..." a comma in a value is written twice. */
static void add_qmp(struct words *w, const struct track *t)
{
    AUTO_FREE char *text = NULL;
    FILE *out;
    size_t size;

    out = open_memstream(&text, &size);
    if (!out) {
        w->failed = true;
        return;
    }
    fputs("socket,id=qmp,server=on,wait=off,path=", out);
    for (const char *p = t->qmp; *p; p++) {
        fprintf(out, *p == ',' ? "%c," : "%c", *p);
    }
    fclose(out);
    add_word(w, "--chardev");
    add_word(w, text);
    add_word(w, "--monitor");
    add_word(w, "chardev=qmp");
}

/* Serve until the end; the exit status. `rest`: more words for the daemon. */
static int serve(const struct track *t, char **rest, int rest_count)
{
    CLEANUP(words_clear) struct words w = {0};
    AUTO_FREE char **argv = NULL;
    int argc = 0;

    add_word(&w, "daemon");
    add_json(&w, "--blockdev", track_sidecar_options(&t->sidecar, t->name));
    if (t->qmp) {
        add_qmp(&w, t);
    }
    if (t->socket) {
        add_nbd(&w, t);
    }
    if (t->pidfile) {
        add_word(&w, "--pidfile");
        add_word(&w, t->pidfile);
    }
    if (t->daemonize) {
        add_word(&w, "--daemonize");
    }
    argv = calloc(w.count + (size_t)rest_count + 1, sizeof(*argv));
    if (w.failed || !argv) {
        return cli_fail("Out of memory");
    }
    for (size_t i = 0; i < w.count; i++) {
        argv[argc++] = w.owned[i];
    }
    for (int i = 0; i < rest_count; i++) {
        argv[argc++] = rest[i];
    }
    return cli_daemon_main(argc, argv);
}

/* While it was served, `path` may have got another file, that nobody has tracked. */
static int check_is_still(const char *path, const struct track_disk *was, struct error *err)
{
    struct track_disk now;
    int r = track_look(path, &now, err);

    if (r == 0 && !track_same_identity(was->identity, now.identity)) {
        r = error_set(err, ESTALE,
                      "'%s' is not the file that was served: it was '%s', and is '%s'; bitmaps say "
                      "nothing of it, and the next backup is full",
                      path, was->identity, now.identity);
    }
    return r;
}

/* Serve, between both records. The exit status. */
static int serve_and_note(const struct track *t, char **rest, int rest_count, struct error *err)
{
    struct track_disk disk, image;
    int status, r = track_look(t->path, &disk, err);

    UNLESS_FAILED(r, track_look(t->image_path, &image, err));
    UNLESS_FAILED(r, track_write_record(t->path, t->image_path, t->record, false, err));
    if (r < 0) {
        return cli_report(err);
    }
    fflush(stdout);
    status = serve(t, rest, rest_count);
    if (status != 0) {
        return status;
    }
    r = check_is_still(t->path, &disk, err);
    UNLESS_FAILED(r, check_is_still(t->image_path, &image, err));
    UNLESS_FAILED(r, track_write_record(t->path, t->image_path, t->record, true, err));
    return r < 0 ? cli_report(err) : 0;
}

static int run_track(struct track *t, char **rest, int rest_count, struct error *err)
{
    int status;

    if (t->sidecar.device && !t->no_serve && claim_device(t, err) < 0) {
        return cli_report(err);
    }
    judge(t);
    if (t->no_serve) {
        return 0;
    }
    status = prepare_image(t);
    return status != 0 ? status : serve_and_note(t, rest, rest_count, err);
}

/* --- the command line ------------------------------------------------------------------------- */

static int check_track(struct track *t, int argc, int first, struct error *err)
{
    int r;

    if (first >= argc) {
        return cli_usage_error(err, &usage, "name the file or device to track");
    }
    if (!t->no_serve && !t->socket && !t->qmp) {
        return cli_usage_error(err, &usage, "--socket or --qmp is needed, or --no-serve");
    }
    if (t->no_serve && (t->socket || t->qmp || t->daemonize || t->pidfile || t->bitmaps.count)) {
        return cli_usage_error(err, &usage, "--no-serve only looks: nothing can be served with it");
    }
    if (t->granularity_text && !t->bitmaps.count) {
        return cli_usage_error(err, &usage, "--granularity is for --bitmap");
    }
    r = cli_take_size(t->granularity_text, "granularity", 512, 1ull << 31, &t->granularity, err);
    if (r >= 0 && t->granularity && !is_power_of_2(t->granularity)) {
        return error_set(err, EINVAL, "The granularity must be a power of 2");
    }
    return r;
}

int cli_track_main(int argc, char **argv)
{
    CLEANUP(track_clear) struct track t = {.name = "disk", .claim = -1};
    ERROR_AUTO(err);
    const struct cli_arg args[] = {
        {"image", 0, CLI_VALUE, &t.image, "FILE",
         "where the bitmaps are kept (default for a file: PATH.track)"},
        {"socket", 'k', CLI_VALUE, &t.socket, "SOCKET", "serve NBD on this unix socket"},
        {"qmp", 0, CLI_VALUE, &t.qmp, "SOCKET", "take QMP commands on this unix socket"},
        {"name", 0, CLI_VALUE, &t.name, "NAME",
         "name of the node and of the export (default: disk)"},
        {"bitmap", 0, CLI_REPEAT, &t.bitmaps, "BITMAP",
         "a bitmap that records from now on, if it does not exist"},
        {"granularity", 'g', CLI_VALUE, &t.granularity_text, "SIZE",
         "with --bitmap: bytes that one bit stands for (default: 64k)"},
        {"strict", 0, CLI_FLAG, &t.strict, NULL,
         "trust bitmaps only if the disk can be shown to be unchanged: after\n"
         "a crash the next backup is full"},
        {"no-serve", 0, CLI_FLAG, &t.no_serve, NULL, "only compare, and say what is found"},
        {"daemonize", 0, CLI_FLAG, &t.daemonize, NULL,
         "go to the background once everything is up"},
        {"pidfile", 0, CLI_VALUE, &t.pidfile, "FILE",
         "write the process ID to a file, and lock it"},
        CLI_OBSERVE_ARGS(t.observe),
        CLI_ARG_END,
    };
    int first = cli_args_parse(args, &usage, argc, argv);
    int status;

    if (first < 0) {
        return cli_exit_status(first, &err);
    }
    if (!cli_observe(&t.observe, &status)) {
        return status;
    }
    if (check_track(&t, argc, first, &err) < 0 || find_paths(&t, argv[first], &err) < 0) {
        return cli_report(&err);
    }
    return run_track(&t, argv + first + 1, argc - first - 1, &err);
}
