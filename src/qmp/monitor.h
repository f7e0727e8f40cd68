/* SPDX-License-Identifier: Apache-2.0 */
/*
 * QMP sessions: a connected socket each. Main reactor only.
 *
 * A session reads one request at a time and answers it before it reads the next; commands of all sessions run one
 * after the other. What is to be sent waits in a buffer, from which a coroutine of its own sends: an event never
 * waits for a client. A client that does not read while events pile up to QMP_OUT_MAX is disconnected.
 *
 *      socket -> reader coroutine -> json_reader -> dispatch -> buffer -> writer coroutine -> socket
 *                                                   events --^
 */
#ifndef TIDEMARK_QMP_MONITOR_H
#define TIDEMARK_QMP_MONITOR_H

#include <json-c/json.h>
#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"

struct json_limits;

/* Bytes that may wait to be sent to a client when an event comes. */
#define QMP_OUT_MAX (1u << 20)

/*
 * Of one message: as QEMU has them, but for the memory, which QEMU does not bound. A client whose message goes beyond gets
 * an error, and is listened to again from the next line on.
 */
extern const struct json_limits qmp_json_limits;

/* Serve QMP on a connected, non-blocking socket (owned in any case). `pretty`: indented output. Does not yield. */
int qmp_session_start(int fd, bool pretty, struct error *err);

size_t qmp_session_count(void);

/* Send an event to all sessions that have negotiated. `data` is consumed. Does not yield. */
void qmp_emit(const char *name, struct json_object *data);

/* What the command quit does, after it has been answered. Called in a coroutine; must not yield. */
void qmp_set_quit_fn(void (*fn)(void));

/* Have the sessions told when an export is gone, and when an image is found corrupt. At start. */
void qmp_subscribe(void);

/*
 * Keep commands waiting, and let them run: around the start of the daemon, since its monitors may have clients before
 * its nodes are open. The first yields until a command that runs has ended; the second does not yield.
 */
void qmp_co_hold_commands(void);
void qmp_release_commands(void);

/*
 * Take the control lock again, in a command that released it meanwhile. It is held in any case; -ESHUTDOWN when the daemon has
 * begun to end, so that the command has to give up. Yields.
 */
int qmp_co_lock_again(struct error *err);

/*
 * Let no command run from now on, and wait for one that is at work. One that has released the control lock, since what it does
 * takes long, gives up when it is through with that. Yields.
 */
void qmp_co_stop_commands(void);

/*
 * Send what waits to be sent (for a second at most), disconnect all sessions, wait until they have ended (another second). False
 * if a command has not, such as the opening of an image on a server that is silent: the log names it. Yields.
 */
bool qmp_co_end_sessions(void);

#endif
