/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How the daemon ends. Storage below may hang, a server that is being connected to may be silent: neither keeps it from ending,
 * nor the bitmaps of healthy disks from being stored.
 *
 *   ORDERLY --all closed--> exit 0, or 1 if something could not be stored
 *      | another signal, or DAEMON_END_SECONDS
 *      v
 *    HASTY: what hangs is named; each image that is still open is completed by a coroutine of its own
 *      | all complete; or none became so for DAEMON_HASTE_SECONDS
 *      v
 *    exit 1
 */
#ifndef TIDEMARK_CLI_DAEMON_END_H
#define TIDEMARK_CLI_DAEMON_END_H

#include <stdbool.h>

#define DAEMON_END_SECONDS 30
#define DAEMON_HASTE_SECONDS 3

/* Descriptors that the main coroutine waits for. */
struct daemon_signals {
    int set;       /* epoll: the others */
    int signal_fd; /* signalfd: SIGTERM, SIGINT, SIGHUP */
    int quit_fd;   /* eventfd: the command quit */
    int note_fd;   /* eventfd: a coroutine has something to tell the main one */
};

enum daemon_wake {
    DAEMON_WAKE_SIGNAL, /* or quit */
    DAEMON_WAKE_NOTE,
    DAEMON_WAKE_TIMEOUT,
};

/* The signals have to be blocked, in all threads. 0 or -errno; then none is open. */
int daemon_signals_open(struct daemon_signals *s);
void daemon_signals_close(struct daemon_signals *s);

/* Until one of them tells something, which is taken. `timeout_ns` < 0: for ever. Yields. */
enum daemon_wake daemon_co_wait(struct daemon_signals *s, long long timeout_ns);

/* Wake who waits, or will. */
void daemon_note(struct daemon_signals *s);

/*
 * Close all. `*starting` says whether the start still runs: it gets a second to end by itself. Returns the exit status; *ret_clean
 * is false if coroutines are left that will not end, so that the process has to _exit(). Yields.
 */
int daemon_co_end(struct daemon_signals *s, const bool *starting, bool *ret_clean);

#endif
