/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The end of the daemon. Storage may hang, and a server that is being connected to may be silent.
 * The daemon ends all the same, and stores the bitmaps of healthy disks.
 *
 *   ORDERLY --all closed--> exit 0, or 1 if something could not be stored
 *      | another signal; jobs hang; exports, the command that runs, the closing of a node, or the
 *      | completion of nodes that keep no writes hang for DAEMON_STALL_MS (no operation of theirs
 *      | ends); or DAEMON_END_SECONDS
 *      v
 *    HASTY: what hangs is reported; exports let their clients go; a coroutine per image completes
 *      |    those that are still open
 *      | all are complete; or none was completed for DAEMON_HASTE_SECONDS (DAEMON_END_SECONDS from
 *      | the beginning on if it keeps writes), and no operation has ended; DAEMON_SUSPECT_MS if a
 *      | command, export or job that hangs may write to each that is left, a job hangs there, or
 *      | nothing is left but the one whose closing hangs
 *      v
 *    exit 1
 *
 * In order, too, all images are completed at the same time before they are closed one by one.
 */
#ifndef TIDEMARK_CLI_DAEMON_END_H
#define TIDEMARK_CLI_DAEMON_END_H

#include <stdbool.h>

#define DAEMON_END_SECONDS 30
#define DAEMON_HASTE_SECONDS 3
#define DAEMON_STALL_MS 2000
#define DAEMON_SUSPECT_MS 500

/* Descriptors that the main coroutine waits for. */
struct daemon_signals {
    int set;       /* epoll: the others */
    int signal_fd; /* signalfd: SIGTERM, SIGINT, SIGHUP */
    int quit_fd;   /* eventfd: the command quit */
    int note_fd;   /* eventfd: a coroutine has news for the main one */
};

enum daemon_wake {
    DAEMON_WAKE_SIGNAL, /* or quit */
    DAEMON_WAKE_NOTE,
    DAEMON_WAKE_TIMEOUT,
};

/*
 * Open the descriptors, and block the signals in this thread, whose threads inherit that. 0, or
 * -errno and none is open. Does not yield.
 */
int daemon_signals_open(struct daemon_signals *s);
/* Close what is open. Does not yield. */
void daemon_signals_close(struct daemon_signals *s);

/* Wait for one event, and take it. `timeout_ns` < 0: without a limit. Yields. */
enum daemon_wake daemon_co_wait(struct daemon_signals *s, long long timeout_ns);

/* Wake the coroutine in daemon_co_wait(), or the next one to call it. Does not yield. */
void daemon_note(struct daemon_signals *s);

/*
 * End the daemon: close everything. `*starting` says whether the start still runs; it gets a second
 * to end by itself. `co_end_users` (NULL: none) releases users of nodes that are neither exports
 * nor jobs. Returns the exit status. *ret_clean is false if coroutines are left that will not end,
 * so that the process has to _exit(). Yields.
 */
int daemon_co_end(struct daemon_signals *s, const bool *starting, void (*co_end_users)(void),
                  bool *ret_clean);

#endif
