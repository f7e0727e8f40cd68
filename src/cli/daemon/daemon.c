/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The face `tidemark daemon`: the storage daemon, in the grammar of qemu-storage-daemon(1). Options
 * that make something are carried out in the order in which they are given; later options can use
 * what earlier ones made.
 *
 * run.h has what happens before and after that.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/checked.h"
#include "base/list.h"
#include "block/option_types.h"
#include "block/user_object.h"
#include "chardev/chardev.h"
#include "cli/args.h"
#include "cli/cli.h"
#include "cli/daemon/help.h"
#include "cli/daemon/run.h"
#include "cli/observe.h"
#include "cli/serving.h"
#include "export/export.h"
#include "qmp/commands.h"
#include "qmp/monitor.h"
#include "qmp/monitors.h"
#include "qmp/transaction.h"

static const struct cli_usage usage = {
    .synopsis = "",
    .about =
        "Opens disk images, serves them over NBD and FUSE, and takes commands (QMP) on a socket.\n"
        "Options are carried out in the order given. Ends on SIGTERM, SIGINT, SIGHUP or the QMP\n"
        "command 'quit': clients are disconnected, images completed and closed. If storage hangs,\n"
        "a second signal, or the end of 30 s, ends the daemon at once: the other images are\n"
        "completed, the hanging ones are named, and the status is 1.",
    .examples =
        "@--blockdev driver=file,node-name=file,filename=disk.qcow2 \\\n"
        "      --blockdev driver=qcow2,node-name=disk,file=file \\\n"
        "      --nbd-server addr.type=unix,addr.path=nbd.sock \\\n"
        "      --export type=nbd,id=export,node-name=disk,name=disk,writable=on \\\n"
        "      --chardev socket,id=qmp,path=qmp.sock,server=on,wait=off \\\n"
        "      --monitor chardev=qmp\n"
        "        serves disk.qcow2 at nbd+unix:///disk?socket=nbd.sock; takes commands on "
        "qmp.sock, "
        "such as\n"
        "        {\"execute\": \"qmp_capabilities\"} {\"execute\": \"query-block-exports\"}",
};

struct daemon {
    struct daemon_run run;
    struct cli_items items; /* options that make something, in order */
    struct cli_serving serving;
    struct cli_observe observe;
    bool version;
};

/* --- options that make something -------------------------------------------------------------- */

typedef int co_maker(struct options *opts /* consumed */, struct error *err);

static int co_run_option(const struct qmp_action *action, const struct schema_type *type,
                         struct options *opts_, struct error *err)
{
    AUTO_OPTIONS struct options *opts = opts_;
    struct json_object *args;
    int r = qmp_args_of_options(type, opts, &args, err);

    if (r >= 0) {
        r = qmp_co_run_action(action, args, err);
        json_object_put(args);
    }
    return r;
}

static int co_make_blockdev(struct options *opts, struct error *err)
{
    return co_run_option(&qmp_action_blockdev_add, &block_options_type, opts, err);
}

static int co_make_export(struct options *opts, struct error *err)
{
    return co_run_option(&qmp_action_export_add, &export_options_type, opts, err);
}

/* The name of a pseudo terminal is needed to reach it. */
static int co_make_named_chardev(struct options *opts, struct error *err)
{
    struct chardev *c;
    int r = chardev_co_add(opts, &c, err);

    if (r >= 0 && chardev_pty(c)) {
        printf("char device redirected to %s (label %s)\n", chardev_pty(c), chardev_id(c));
        fflush(stdout);
    }
    return r;
}

static int co_make_nbd_server(struct options *opts_, struct error *err)
{
    AUTO_OPTIONS struct options *opts = opts_;
    struct json_object *args;
    int r = qmp_args_of_options(&qmp_type_nbd_server_options, opts, &args, err);

    if (r >= 0) {
        r = qmp_co_start_nbd_server(args, err);
        json_object_put(args);
    }
    return r;
}

/* Options that make something. `implied_key` is that of a first word without "=". */
static const struct maker {
    const char *option;
    const char *implied_key;
    co_maker *co_make;
} makers[] = {
    {"blockdev", "driver", co_make_blockdev}, {"chardev", "backend", co_make_named_chardev},
    {"export", "type", co_make_export},       {"monitor", "chardev", qmp_monitor_add},
    {"nbd-server", NULL, co_make_nbd_server}, {"object", "qom-type", user_object_co_add},
};

/*
 * Name the option in front of an error, which is printed and logged: the data of a secret are left
 * out. A comma in a value is doubled; of an object in JSON nothing is shown.
 */
static void prepend_option(const struct cli_item *item, struct error *err)
{
    static const char key[] = "data=";
    bool is_object = strcmp(item->name, "object") == 0;
    const char *data = is_object ? strstr(item->value, key) : NULL;
    const char *rest;

    if (is_object && item->value[0] == '{') {
        error_prepend(err, "--object {...}: ");
    } else if (data) {
        data += strlen(key);
        rest = data;
        while (*rest && (*rest != ',' || rest[1] == ',')) {
            rest += *rest == ',' ? 2 : 1;
        }
        error_prepend(err, "--object %.*s...%s: ", (int)(data - item->value), item->value, rest);
    } else {
        error_prepend(err, "--%s %s: ", item->name, item->value);
    }
}

static int co_make(const struct cli_item *item, struct error *err)
{
    for (size_t i = 0; i < ARRAY_SIZE(makers); i++) {
        const struct maker *m = &makers[i];
        struct options *opts;

        if (strcmp(m->option, item->name) == 0) {
            /* Of those of a chardev a short form is accepted, as in QEMU. */
            int r = strcmp(m->option, "chardev") == 0
                        ? options_parse(item->value, m->implied_key, &opts, err)
                        : options_parse_strict(item->value, m->implied_key, &opts, err);

            UNLESS_FAILED(r, m->co_make(opts, err));
            prepend_option(item, err);
            if (strcmp(m->option, "object") == 0) {
                cli_hide_secret(item->value);
            }
            return r;
        }
    }
    return error_set(err, EINVAL, "There is no option --%s", item->name);
}

static int co_make_items(struct daemon_run *run, struct error *err)
{
    const struct daemon *d = container_of(run, struct daemon, run);
    int r = 0;

    for (size_t i = 0; i < d->items.count && r >= 0 && !run->ending; i++) {
        r = co_make(&d->items.item[i], err);
    }
    return r;
}

/* --- the command line ------------------------------------------------------------------------- */

/* Print the help that an option asks for, and nothing else then. */
static bool print_asked_help(struct daemon_run *run, int *ret_result, struct error *err)
{
    const struct daemon *d = container_of(run, struct daemon, run);

    for (size_t i = 0; i < d->items.count; i++) {
        if (daemon_help(d->items.item[i].name, d->items.item[i].value, ret_result, err)) {
            return true;
        }
    }
    return false;
}

static void daemon_clear(struct daemon *d)
{
    cli_items_clear(&d->items);
    cli_observe_clear(&d->observe);
}

int cli_daemon_main(int argc, char **argv)
{
    __attribute__((cleanup(daemon_clear))) struct daemon d = {
        .run = {.co_make = co_make_items, .print_help = print_asked_help}};
    ERROR_AUTO(err);
    const struct cli_arg args[] = {
        {"blockdev", 0, CLI_REPEAT, &d.items, "OPTIONS",
         "open a node: [driver=]DRIVER,node-name=NODE,... or JSON"},
        {"nbd-server", 0, CLI_REPEAT, &d.items, "OPTIONS",
         "serve NBD: addr.type=unix,addr.path=PATH or\n"
         "addr.type=inet,addr.host=HOST,addr.port=PORT;\n"
         "max-connections=N, x-max-connections-per-address=N,\n"
         "tls-creds=ID, tls-authz=ID"},
        {"export", 0, CLI_REPEAT, &d.items, "OPTIONS",
         "offer a node: [type=]nbd,id=ID,node-name=NODE;\n"
         "name=NAME, writable=on, bitmaps.0=BITMAP, iothread=ID;\n"
         "fuse,id=ID,node-name=NODE,mountpoint=FILE, growable=on,\n"
         "allow-other=on|off|auto"},
        {"chardev", 0, CLI_REPEAT, &d.items, "OPTIONS",
         "place for a monitor: socket,id=ID,path=PATH,server=on,\n"
         "wait=off, or without server=on: connect there, again\n"
         "after reconnect-ms=N; host=HOST,port=PORT in place of a\n"
         "path; tls-creds=ID, tls-authz=ID; or stdio, null, file,\n"
         "pipe, pty, ringbuf"},
        {"monitor", 0, CLI_REPEAT, &d.items, "OPTIONS",
         "take QMP commands there: [chardev=]ID; pretty=on"},
        {"object", 0, CLI_REPEAT, &d.items, "OPTIONS",
         "an object that others refer to: TYPE,id=ID,...;\n"
         "types iothread, secret, tls-creds-x509, tls-creds-psk,\n"
         "tls-creds-anon, authz-simple, authz-list, authz-list-file,\n"
         "throttle-group"},
        {"daemonize", 0, CLI_FLAG, &d.run.daemonize, NULL,
         "go to the background once everything is up"},
        {"pidfile", 0, CLI_VALUE, &d.run.pidfile, "FILE",
         "write the process ID to a file, and lock it"},
        CLI_SERVING_ARGS(d.serving),
        CLI_OBSERVE_ARGS(d.observe),
        {"version", 'V', CLI_FLAG, &d.version, NULL, "print the version"},
        CLI_ARG_END,
    };
    int first = cli_args_parse(args, &usage, argc, argv);
    int status;

    if (first < 0) {
        return cli_exit_status(first, &err);
    }
    if (d.version) {
        cli_print_version();
        return 0;
    }
    if (first < argc) {
        cli_usage_error(&err, &usage, "%s: Unexpected argument", argv[first]);
        return cli_report(&err);
    }
    if (cli_serving_apply(&d.serving, &err) < 0) {
        return cli_report(&err);
    }
    if (!cli_observe(&d.observe, &status)) {
        return status;
    }
    cli_observe_server();
    d.run.serving = &d.serving;
    return daemon_run(&d.run);
}
