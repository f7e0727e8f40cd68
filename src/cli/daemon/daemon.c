/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The face `tidemark daemon`: the storage daemon, in the grammar of qemu-storage-daemon(1). Options
 * that make something are carried out in the order in which they are given; later options can use
 * what earlier ones made.
 *
 *   main -> (fork, with --daemonize) -> reactor -> co_daemon_main:
 *       options, PID file, "ready" -> wait for a signal or quit -> end (end.h)
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "block/user_object.h"
#include "cli/args.h"
#include "cli/cli.h"
#include "cli/daemon/end.h"
#include "cli/daemon/help.h"
#include "cli/observe.h"
#include "cli/serving.h"
#include "loop/loop.h"
#include "qmp/chardev.h"
#include "qmp/command_lock.h"
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
        "disconnected, images completed and closed. If storage hangs, a second signal, or the end "
        "of 30 s,\n"
        "ends the daemon at once: the other images are completed, the hanging ones are named, and "
        "the\n"
        "status is 1.",
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
    struct cli_items items; /* options that make something, in order */
    bool daemonize;
    const char *pidfile;
    struct cli_serving serving;
    struct cli_observe observe;
    bool version;
    int ready_fd; /* gets a byte for the parent that waits; -1 without --daemonize */
    int pid_fd;   /* the locked pidfile; -1 if none */
    struct daemon_signals signals;
    bool starting; /* co_daemon_start() runs */
    bool ending;   /* co_daemon_start() has to stop where it is */
    bool failed;   /* co_daemon_start() has failed, with `err` */
    struct error err;
};

/* Of the daemon that runs, for the command quit. */
static int quit_fd = -1;

static void on_quit(void)
{
    uint64_t one = 1;

    if (write(quit_fd, &one, sizeof(one)) < 0) {
        log_error("quit: %s", strerror(errno));
    }
}

/* --- options that make something -------------------------------------------------------------- */

typedef int co_maker(struct options *opts /* consumed */, struct error *err);

/*
 * Convert an option to the arguments of a QMP command, and check them. *ret_args gets a new
 * reference.
 */
static int check_args(struct options *opts_, const struct qmp_type *type,
                      struct json_object **ret_args, struct error *err)
{
    AUTO_OPTIONS struct options *opts = opts_;
    struct json_object *args = options_to_json(opts);
    int r = qmp_check(type, args, QMP_CHECK_KEYVAL, err);

    if (r < 0) {
        json_object_put(args);
        return r;
    }
    *ret_args = args;
    return 0;
}

static int co_make_blockdev(struct options *opts_, struct error *err)
{
    AUTO_OPTIONS struct options *opts = opts_;
    struct json_object *args = options_to_arguments(opts);
    int r = options_has(opts, "driver") ? qmp_co_run_action(&qmp_action_blockdev_add, args, err)
                                        : error_set(err, EINVAL, "Parameter 'driver' is missing");

    json_object_put(args);
    return r;
}

static int co_make_nbd_server(struct options *opts, struct error *err)
{
    struct json_object *args;
    int r = check_args(opts, &qmp_type_nbd_server_options, &args, err);

    if (r >= 0) {
        r = qmp_co_start_nbd_server(args, err);
        json_object_put(args);
    }
    return r;
}

static int co_make_export(struct options *opts, struct error *err)
{
    struct json_object *args;
    int r = check_args(opts, &qmp_type_export_add, &args, err);

    if (r >= 0) {
        r = qmp_co_run_action(&qmp_action_export_add, args, err);
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
    {"blockdev", "driver", co_make_blockdev}, {"chardev", "backend", qmp_co_chardev_add},
    {"export", "type", co_make_export},       {"monitor", "chardev", qmp_monitor_add},
    {"nbd-server", NULL, co_make_nbd_server}, {"object", "qom-type", user_object_add},
};

static int co_make(const struct cli_item *item, struct error *err)
{
    for (size_t i = 0; i < ARRAY_SIZE(makers); i++) {
        const struct maker *m = &makers[i];
        struct options *opts;

        if (strcmp(m->option, item->name) == 0) {
            int r = options_parse(item->value, m->implied_key, &opts, err);

            UNLESS_FAILED(r, m->co_make(opts, err));
            error_prepend(err, "--%s %s: ", item->name, item->value);
            return r;
        }
    }
    return error_set(err, EINVAL, "There is no option --%s", item->name);
}

/* --- pidfile, daemonize ----------------------------------------------------------------------- */

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
        return error_set(err, code, "cannot create PID file: '%s' is locked by a running daemon",
                         d->pidfile);
    }
    if (ftruncate(d->pid_fd, 0) < 0 || pwrite(d->pid_fd, text, (size_t)len, 0) != len) {
        return error_set_errno(err, errno, "cannot create PID file: Failed to write '%s'",
                               d->pidfile);
    }
    return 0;
}

/*
 * Fork. The parent waits until the child is ready, or has failed and printed why, and exits.
 * Returns 0 in the child.
 */
static int fork_daemon(struct daemon *d, struct error *err)
{
    int ends[2];
    char ready = 0;
    ssize_t n;
    pid_t pid;

    if (pipe2(ends, O_CLOEXEC) < 0 || (pid = fork()) < 0) {
        return error_set_errno(err, errno, "cannot fork");
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

/*
 * Let the parent end, and give up the terminal. The working directory stays: names of keys, rules,
 * sockets and the PID file may be relative, and are used again.
 */
static void announce_daemon(struct daemon *d)
{
    AUTO_CLOSE int null = open("/dev/null", O_RDWR | O_CLOEXEC);

    if (null < 0 || dup2(null, STDIN_FILENO) < 0 || dup2(null, STDOUT_FILENO) < 0 ||
        dup2(null, STDERR_FILENO) < 0 || write(d->ready_fd, "", 1) != 1) {
        log_error("daemonize: %s", strerror(errno));
    }
    close(d->ready_fd);
    d->ready_fd = -1;
}

/* --- run -------------------------------------------------------------------------------------- */

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

static void co_daemon_start(void *arg)
{
    struct daemon *d = arg;
    int r;

    qmp_co_hold_commands();
    r = cli_serving_co_start(&d->serving, &d->err);
    UNLESS_FAILED(r, co_make_all(d, &d->err));
    d->failed = r < 0 && !d->ending;
    qmp_release_commands();
    d->starting = false;
    daemon_note(&d->signals);
}

/*
 * Wait until everything is up, or has failed, or a signal comes meanwhile. Returns whether it is
 * up.
 */
static bool co_start_all(struct daemon *d)
{
    enum daemon_wake wake = DAEMON_WAKE_NOTE;

    d->starting = true;
    if (reactor_spawn(reactor_main(), co_daemon_start, d) < 0) {
        co_daemon_start(d);
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

/* Exit without waiting for threads and coroutines that hang. */
static void exit_at_once(int status)
{
    fflush(stdout);
    fflush(stderr);
    _exit(status);
}

/* Print the help that an option asks for, and nothing else then. */
static bool print_asked_help(const struct daemon *d, int *ret_result, struct error *err)
{
    for (size_t i = 0; i < d->items.count; i++) {
        if (daemon_help(d->items.item[i].name, d->items.item[i].value, ret_result, err)) {
            return true;
        }
    }
    return false;
}

static int co_daemon_main(void *arg, struct error *err)
{
    struct daemon *d = arg;
    int status = 0;
    bool clean;

    qmp_register_objects();
    if (print_asked_help(d, &status, err)) {
        return status;
    }
    qmp_set_quit_fn(on_quit);
    qmp_subscribe();
    if (co_start_all(d)) {
        if (d->ready_fd >= 0) {
            announce_daemon(d);
        }
        while (daemon_co_wait(&d->signals, -1) != DAEMON_WAKE_SIGNAL) {
        }
    } else if (d->failed) {
        status = cli_report(&d->err); /* before the end, which may take its time */
    }
    if (daemon_co_end(&d->signals, &d->starting, &clean) != 0) {
        status = 1;
    }
    if (d->pid_fd >= 0) {
        unlink(d->pidfile);
    }
    cli_serving_co_stop();
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

static int run_daemon(struct daemon *d)
{
    ERROR_AUTO(err);
    int status, r;

    if (d->daemonize && fork_daemon(d, &err) < 0) {
        return cli_report(&err);
    }
    raise_fd_limit();
    /*
     * Before there are threads, which inherit that the signals are blocked: a descriptor gets them.
     */
    r = daemon_signals_open(&d->signals);
    if (r < 0) {
        return cli_fail("cannot set up signals: %s", strerror(-r));
    }
    quit_fd = d->signals.quit_fd;
    loop_set_serving(true);
    status = cli_run_with(co_daemon_main, d);
    daemon_signals_close(&d->signals);
    return status;
}

static void daemon_clear(struct daemon *d)
{
    cli_items_clear(&d->items);
    cli_observe_clear(&d->observe);
    error_clear(&d->err);
}

int cli_daemon_main(int argc, char **argv)
{
    __attribute__((cleanup(daemon_clear))) struct daemon d = {.ready_fd = -1, .pid_fd = -1};
    ERROR_AUTO(err);
    const struct cli_arg args[] = {
        {"blockdev", 0, CLI_REPEAT, &d.items, "OPTIONS",
         "open a node: [driver=]DRIVER,node-name=NODE,... or JSON"},
        {"nbd-server", 0, CLI_REPEAT, &d.items, "OPTIONS",
         "serve NBD: addr.type=unix,addr.path=PATH or\n"
         "addr.type=inet,addr.host=HOST,addr.port=PORT;\n"
         "max-connections=N, tls-creds=ID, tls-authz=ID"},
        {"export", 0, CLI_REPEAT, &d.items, "OPTIONS",
         "offer a node: [type=]nbd,id=ID,node-name=NODE;\n"
         "name=NAME, writable=on, bitmaps.0=BITMAP, iothread=ID"},
        {"chardev", 0, CLI_REPEAT, &d.items, "OPTIONS",
         "place for a monitor: socket,id=ID,path=PATH,server=on,\n"
         "wait=off or stdio,id=ID"},
        {"monitor", 0, CLI_REPEAT, &d.items, "OPTIONS",
         "take QMP commands there: [chardev=]ID; pretty=on"},
        {"object", 0, CLI_REPEAT, &d.items, "OPTIONS",
         "an object that others refer to: TYPE,id=ID,...;\n"
         "types iothread, secret, tls-creds-x509, tls-creds-psk,\n"
         "tls-creds-anon, authz-simple, authz-list, authz-list-file"},
        {"daemonize", 0, CLI_FLAG, &d.daemonize, NULL,
         "go to the background once everything is up"},
        {"pidfile", 0, CLI_VALUE, &d.pidfile, "FILE",
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
    return run_daemon(&d);
}
