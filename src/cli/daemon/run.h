/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The life of a daemon, for the faces that are one:
 *
 *   main -> (fork, if asked for) -> reactor -> co_daemon_main:
 *       co_make, PID file, "ready" -> wait for a signal or quit -> end (end.h)
 */
#ifndef TIDEMARK_CLI_DAEMON_RUN_H
#define TIDEMARK_CLI_DAEMON_RUN_H

#include <stdbool.h>

#include "base/error.h"
#include "cli/daemon/end.h"

struct cli_serving;

struct daemon_run {
    /* --- set by the face; what is not set does nothing --- */

    /*
     * Make everything that the command line asks for, and stop early when `ending` becomes true. No
     * command of a monitor runs meanwhile. Yields.
     */
    int (*co_make)(struct daemon_run *run, struct error *err);
    /*
     * Before that, with drivers and types of objects registered: print the help that an option asks
     * for. True: the daemon ends with *ret_result, an exit status or -errno.
     */
    bool (*print_help)(struct daemon_run *run, int *ret_result, struct error *err);
    /* Release the users of nodes that co_make made. Yields. */
    void (*co_end_users)(void);
    const struct cli_serving *serving;
    bool daemonize;
    const char *pidfile;

    /* --- private, but for `ending` --- */

    int ready_fd; /* gets a byte for the parent that waits; -1 without daemonize */
    int pid_fd;   /* the locked PID file; -1 if none */
    struct daemon_signals signals;
    bool starting; /* co_make runs */
    bool ending;   /* co_make has to stop where it is */
    bool failed;   /* co_make has failed, with `err` */
    struct error err;
};

/* End the daemon that runs, as the command quit does. Does not yield. */
void daemon_quit(void);

/* Run the daemon to its end. Returns the exit status of the process; reports errors. */
int daemon_run(struct daemon_run *run);

#endif
