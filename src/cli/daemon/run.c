/* SPDX-License-Identifier: Apache-2.0 */
#include "chardev/chardev.h"
#include "cli/daemon/run.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "cli/cli.h"
#include "cli/daemon/leave.h"
#include "cli/serving.h"
#include "loop/loop.h"
#include "qmp/command_lock.h"
#include "qmp/jobs.h"
#include "qmp/events.h"
#include "qmp/monitor.h"
#include "qmp/objects.h"

/* Of the daemon that runs, for the command quit. */
static int quit_fd = -1;

void daemon_quit(void)
{
    uint64_t one = 1;

    if (write(quit_fd, &one, sizeof(one)) < 0) {
        log_error("quit: %s", strerror(errno));
    }
}

/* --- pidfile, daemonize ----------------------------------------------------------------------- */

static int write_pidfile(struct daemon_run *d, struct error *err)
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
static int fork_daemon(struct daemon_run *d, struct error *err)
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
static void announce_daemon(struct daemon_run *d)
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

static int co_make_all(struct daemon_run *d, struct error *err)
{
    int r = d->co_make(d, err);

    return r >= 0 && d->pidfile && !d->ending ? write_pidfile(d, err) : r;
}

static void co_daemon_start(void *arg)
{
    struct daemon_run *d = arg;
    int r;

    qmp_co_hold_commands();
    r = d->serving ? cli_serving_co_start(d->serving, &d->err) : 0;
    UNLESS_FAILED(r, co_make_all(d, &d->err));
    d->failed = r < 0 && !d->ending;
    qmp_release_commands(d->failed);
    d->starting = false;
    daemon_note(&d->signals);
}

/*
 * Wait until everything is up, or has failed, or a signal comes meanwhile. Returns whether it is
 * up.
 */
static bool co_start_all(struct daemon_run *d)
{
    enum daemon_wake wake = DAEMON_WAKE_NOTE;

    d->starting = true;
    if (reactor_spawn(reactor_main(), co_daemon_start, d) < 0) {
        co_daemon_start(d);
    }
    while (d->starting && wake == DAEMON_WAKE_NOTE) {
        wake = daemon_co_wait(&d->signals, -1);
    }
    if (wake != DAEMON_WAKE_NOTE && !d->starting) {
        /* A client's first command was quit, or a signal came, and the daemon is just up. */
        d->ending = true;
    } else if (wake != DAEMON_WAKE_NOTE) {
        log_error("a signal ends the daemon before it is up");
        d->ending = true;
        chardev_stop_waiting();
        return false;
    }
    return !d->failed;
}

/* Exit without waiting for threads and coroutines that hang. */
static int co_daemon_main(void *arg, struct error *err)
{
    struct daemon_run *d = arg;
    int status = 0;
    bool clean;

    qmp_register_objects();
    if (d->print_help && d->print_help(d, &status, err)) {
        return status;
    }
    qmp_set_quit_fn(daemon_quit);
    qmp_subscribe();
    qmp_subscribe_jobs();
    qmp_subscribe_io_errors();
    if (co_start_all(d)) {
        if (d->ready_fd >= 0) {
            announce_daemon(d);
        }
        while (!d->ending && daemon_co_wait(&d->signals, -1) != DAEMON_WAKE_SIGNAL) {
        }
    } else if (d->failed) {
        status = cli_report(&d->err); /* before the end, which may take its time */
    }
    if (daemon_co_end(&d->signals, &d->starting, d->co_end_users, &clean) != 0) {
        status = 1;
    }
    if (d->pid_fd >= 0 && loop_co_unlink_soon(d->pidfile) == -ETIMEDOUT) {
        clean = false;
    }
    if (d->serving) {
        cli_serving_co_stop();
    }
    if (!clean) {
        daemon_leave(status);
    }
    return status;
}

int daemon_run(struct daemon_run *d)
{
    ERROR_AUTO(err);
    int status, r;

    d->ready_fd = -1;
    d->pid_fd = -1;
    if (d->daemonize) {
        chardev_refuse_stdio();
        if (fork_daemon(d, &err) < 0) {
            return cli_report(&err);
        }
    }
    /* A connection takes a descriptor, and an image with its backing files several. */
    cli_raise_file_limit();
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
    error_clear(&d->err);
    return status;
}
