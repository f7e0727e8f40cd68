/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `tidemark daemon`: the storage daemon, in the grammar of qemu-storage-daemon(1). Options that make something are
 * carried out in the order they are given; what they make can be used by those after them.
 *
 *   main -> (fork, with --daemonize) -> reactor -> co_daemon: options, pidfile, "ready"
 *                                                  wait for a signal or quit
 *                                                  no more commands; exports closed; nodes closed (daemon_end.c)
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "block/user_object.h"
#include "cli/args.h"
#include "cli/cli.h"
#include "cli/daemon/end.h"
#include "cli/daemon/help.h"
#include "cli/observe.h"
#include "loop/loop.h"
#include "qmp/chardev.h"
#include "qmp/commands.h"
#include "qmp/monitor.h"
#include "qmp/objects.h"
#include "qmp/transaction.h"

static const struct cli_usage usage = {
    .synopsis = "",
    .about =
        "Opens disk images, serves them over NBD, and takes commands (QMP) on a socket. Options "
        "are carried\n"
        "out in the order given. Ends on SIGTERM, SIGINT, SIGHUP or the QMP command 'quit': "
        "clients are\n"
        "disconnected, images completed and closed. If storage hangs, a second signal or 30 s\n"
        "end it in haste: the other images are completed, what hangs is named, the status is 1.",
    .examples =
        "  daemon --blockdev driver=file,node-name=file,filename=disk.qcow2 \\\n"
        "         --blockdev driver=qcow2,node-name=disk,file=file \\\n"
        "         --nbd-server addr.type=unix,addr.path=nbd.sock \\\n"
        "         --export type=nbd,id=export,node-name=disk,name=disk,writable=on \\\n"
        "         --chardev socket,id=qmp,path=qmp.sock,server=on,wait=off \\\n"
        "         --monitor chardev=qmp\n"
        "        serves disk.qcow2 at nbd+unix:///disk?socket=nbd.sock; commands on qmp.sock, for "
        "instance\n"
        "        {\"execute\": \"qmp_capabilities\"} {\"execute\": \"query-block-exports\"}",
};

struct daemon {
    struct cli_items items; /* what is to be made, in order */
    bool daemonize;
    const char *pidfile;
    struct cli_observe observe;
    int ready_fd; /* tells the parent that waits; -1 without --daemonize */
    int pid_fd;   /* the locked pidfile; -1 if none */
    struct daemon_signals signals;
    bool starting; /* co_start() runs */
    bool ending;   /* it is to stop where it is */
    bool failed;   /* it has failed, with a message */
};

static struct daemon *the_daemon;

static void on_quit(void)
{
    uint64_t one = 1;

    if (write(the_daemon->signals.quit_fd, &one, sizeof(one)) < 0) {
        log_error("quit: %s", strerror(errno));
    }
}

/* --- options that make something ------------------------------------------------------------------- */

typedef int co_maker(struct options *opts /* consumed */, struct error *err);

/* The arguments of a QMP command from an option, converted and checked. A new reference in *ret. */
static int check_args(struct options *opts_, const struct qmp_type *type, struct json_object **ret,
                      struct error *err)
{
    AUTO_OPTIONS struct options *opts = opts_;
    struct json_object *args = options_to_json(opts);
    int r = qmp_check(type, args, QMP_CHECK_KEYVAL, err);

    if (r < 0) {
        json_object_put(args);
        return r;
    }
    *ret = args;
    return 0;
}

static int co_add_blockdev(struct options *opts_, struct error *err)
{
    AUTO_OPTIONS struct options *opts = opts_;
    struct json_object *args = options_to_arguments(opts);
    int r = options_has(opts, "driver") ? qmp_co_run_action(&qmp_action_blockdev_add, args, err)
                                        : error_set(err, EINVAL, "Parameter 'driver' is missing");

    json_object_put(args);
    return r;
}

static int co_add_nbd_server(struct options *opts, struct error *err)
{
    struct json_object *args;
    int r = check_args(opts, &qmp_type_nbd_server_options, &args, err);

    if (r >= 0) {
        r = qmp_co_start_nbd_server(args, err);
        json_object_put(args);
    }
    return r;
}

static int co_add_export(struct options *opts, struct error *err)
{
    struct json_object *args;
    int r = check_args(opts, &qmp_type_export_add, &args, err);

    if (r >= 0) {
        r = qmp_co_run_action(&qmp_action_export_add, args, err);
        json_object_put(args);
    }
    return r;
}

/* Options, the key that a first word without "=" stands for, and what carries them out. */
static const struct maker {
    const char *option;
    const char *implied_key;
    co_maker *co_make;
} makers[] = {
    {"blockdev", "driver", co_add_blockdev}, {"chardev", "backend", qmp_co_chardev_add},
    {"export", "type", co_add_export},       {"monitor", "chardev", qmp_monitor_add},
    {"nbd-server", NULL, co_add_nbd_server}, {"object", "qom-type", user_object_add},
};

static int co_make(const struct cli_item *item, struct error *err)
{
    for (size_t i = 0; i < sizeof(makers) / sizeof(makers[0]); i++) {
        const struct maker *m = &makers[i];
        struct options *opts;

        if (strcmp(m->option, item->name) == 0) {
            int r = options_parse(item->value, m->implied_key, &opts, err);

            r = r < 0 ? r : m->co_make(opts, err);
            error_prepend(err, "--%s %s: ", item->name, item->value);
            return r;
        }
    }
    return error_set(err, EINVAL, "There is no option --%s", item->name);
}

/* --- pidfile, daemonize ---------------------------------------------------------------------------- */

static int write_pidfile(struct daemon *d, struct error *err)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    char text[24];
    int len = snprintf(text, sizeof(text), "%d\n", (int)getpid());

    d->pid_fd = open(d->pidfile, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (d->pid_fd < 0) {
        return error_set_errno(err, errno, "cannot create PID file: Could not create '%s'",
                               d->pidfile);
    }
    if (fcntl(d->pid_fd, F_SETLK, &lock) < 0) {
        int code = errno;

        close(d->pid_fd);
        d->pid_fd = -1;
        return error_set(err, code, "cannot create PID file: '%s' is locked by a daemon that runs",
                         d->pidfile);
    }
    if (ftruncate(d->pid_fd, 0) < 0 || pwrite(d->pid_fd, text, (size_t)len, 0) != len) {
        return error_set_errno(err, errno, "cannot create PID file: Failed to write '%s'",
                               d->pidfile);
    }
    return 0;
}

/*
 * Fork. The parent waits until the child is ready, or has ended with its error printed, and exits accordingly. 0 in
 * the child.
 */
static int fork_daemon(struct daemon *d)
{
    int ends[2];
    char ready = 0;
    ssize_t n;
    pid_t pid;

    if (pipe2(ends, O_CLOEXEC) < 0 || (pid = fork()) < 0) {
        return cli_fail("cannot fork: %s", strerror(errno));
    }
    if (pid == 0) {
        close(ends[0]);
        d->ready_fd = ends[1];
        setsid();
        return 0;
    }
    close(ends[1]);
    do {
        n = read(ends[0], &ready, 1);
    } while (n < 0 && errno == EINTR);
    exit(n == 1 ? 0 : 1);
}

/* The working directory stays: names of keys, rules, sockets and the PID file are used again, and may be relative. */
static void tell_ready(struct daemon *d)
{
    AUTO_CLOSE int null = open("/dev/null", O_RDWR | O_CLOEXEC);

    if (null < 0 || dup2(null, STDIN_FILENO) < 0 || dup2(null, STDOUT_FILENO) < 0 ||
        dup2(null, STDERR_FILENO) < 0 || write(d->ready_fd, "", 1) != 1) {
        log_error("daemonize: %s", strerror(errno));
    }
    close(d->ready_fd);
    d->ready_fd = -1;
}

/* --- run --------------------------------------------------------------------------------------------- */

static int co_make_all(struct daemon *d, struct error *err)
{
    for (size_t i = 0; i < d->items.count && !d->ending; i++) {
        int r = co_make(&d->items.item[i], err);

        if (r < 0) {
            return r;
        }
    }
    return d->pidfile && !d->ending ? write_pidfile(d, err) : 0;
}

static void co_start(void *arg)
{
    struct daemon *d = arg;
    ERROR_AUTO(err);

    qmp_co_hold_commands();
    if (co_make_all(d, &err) < 0 && !d->ending) {
        d->failed = true;
        cli_report(&err);
    }
    qmp_release_commands();
    d->starting = false;
    daemon_note(&d->signals);
}

/* Until everything is up, or has failed, or a signal comes meanwhile. Whether it is up. */
static bool co_start_all(struct daemon *d)
{
    enum daemon_wake wake = DAEMON_WAKE_NOTE;

    d->starting = true;
    if (reactor_spawn(reactor_main(), co_start, d) < 0) {
        co_start(d);
    }
    while (d->starting && wake == DAEMON_WAKE_NOTE) {
        wake = daemon_co_wait(&d->signals, -1);
    }
    if (wake != DAEMON_WAKE_NOTE) {
        log_error("a signal ends the daemon before it is up");
        d->ending = true;
        qmp_chardevs_stop_waiting();
        return false;
    }
    return !d->failed;
}

/* Without waiting for threads and coroutines that hang. */
static void exit_at_once(int status)
{
    fflush(stdout);
    fflush(stderr);
    _exit(status);
}

/* Who asks for help wants nothing else. */
static bool print_help(const struct daemon *d, int *ret_status)
{
    for (size_t i = 0; i < d->items.count; i++) {
        if (daemon_help(d->items.item[i].name, d->items.item[i].value, ret_status)) {
            return true;
        }
    }
    return false;
}

static int co_daemon(int argc, char **argv)
{
    struct daemon *d = the_daemon;
    int status = 0;
    bool clean;

    qmp_register_objects();
    if (print_help(d, &status)) {
        return status;
    }
    qmp_set_quit_fn(on_quit);
    qmp_subscribe();
    if (co_start_all(d)) {
        if (d->ready_fd >= 0) {
            tell_ready(d);
        }
        while (daemon_co_wait(&d->signals, -1) != DAEMON_WAKE_SIGNAL) {
        }
    } else if (d->failed) {
        status = 1;
    }
    if (daemon_co_end(&d->signals, &d->starting, &clean) != 0) {
        status = 1;
    }
    if (d->pid_fd >= 0) {
        unlink(d->pidfile);
    }
    if (!clean) {
        exit_at_once(status);
    }
    return status;
}

/* A connection takes a descriptor, and an image with its backing files several. */
static void raise_fd_limit(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

static int run(struct daemon *d, int argc, char **argv)
{
    int status, r;

    if (d->daemonize && fork_daemon(d) != 0) {
        return 1;
    }
    raise_fd_limit();
    /* All threads are to inherit that the signals are blocked: a descriptor delivers them. */
    r = daemon_signals_open(&d->signals);
    if (r < 0) {
        return cli_fail("cannot set up signals: %s", strerror(-r));
    }
    the_daemon = d;
    loop_set_serving(true);
    status = cli_run(co_daemon, argc, argv);
    daemon_signals_close(&d->signals);
    return status;
}

int cli_daemon_main(int argc, char **argv)
{
    struct daemon d = {.ready_fd = -1, .pid_fd = -1};
    bool version = false;
    const struct cli_arg args[] = {
        {"blockdev", 0, CLI_REPEAT, &d.items, "OPTIONS",
         "open a node: [driver=]DRIVER,node-name=NODE,... or JSON"},
        {"nbd-server", 0, CLI_REPEAT, &d.items, "OPTIONS",
         "serve NBD: addr.type=unix,addr.path=PATH or addr.type=inet,\n"
         "                             addr.host=HOST,addr.port=PORT; max-connections=N,\n"
         "                             tls-creds=ID, tls-authz=ID"},
        {"export", 0, CLI_REPEAT, &d.items, "OPTIONS",
         "offer a node: [type=]nbd,id=ID,node-name=NODE; name=NAME,\n"
         "                             writable=on, bitmaps.0=BITMAP, iothread=ID"},
        {"chardev", 0, CLI_REPEAT, &d.items, "OPTIONS",
         "place for a monitor: socket,id=ID,path=PATH,server=on,\n"
         "                             wait=off or stdio,id=ID"},
        {"monitor", 0, CLI_REPEAT, &d.items, "OPTIONS",
         "take QMP commands there: [chardev=]ID; pretty=on"},
        {"object", 0, CLI_REPEAT, &d.items, "OPTIONS",
         "an object that others refer to: TYPE,id=ID,...; types iothread,\n"
         "                             secret, tls-creds-x509, tls-creds-psk, tls-creds-anon,\n"
         "                             authz-simple, authz-list, authz-list-file"},
        {"daemonize", 0, CLI_FLAG, &d.daemonize, NULL,
         "go to the background once everything is up"},
        {"pidfile", 0, CLI_VALUE, &d.pidfile, "FILE", "write the process id there, and lock it"},
        CLI_OBSERVE_ARGS(d.observe),
        {"version", 'V', CLI_FLAG, &version, NULL, "print the version"},
        {NULL, 0, CLI_FLAG, NULL, NULL, NULL},
    };
    int first = cli_args_parse(args, &usage, argc, argv);
    int status = 0;

    if (first == CLI_ARGS_HELP) {
        status = 0;
    } else if (first == CLI_ARGS_BAD) {
        status = 1;
    } else if (version) {
        cli_print_version();
    } else if (first < argc) {
        status = cli_usage_fail(&usage, "%s: Unexpected argument", argv[first]);
    } else if (cli_observe(&d.observe, &status)) {
        cli_observe_server();
        status = run(&d, argc, argv);
    }
    cli_items_clear(&d.items);
    cli_observe_clear(&d.observe);
    return status;
}
