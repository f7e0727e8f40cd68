/* SPDX-License-Identifier: Apache-2.0 */
/*
 * QMP sessions: one for each connected socket. Main reactor only.
 *
 * A session reads one request at a time, and answers it before it reads the next. If the client
 * uses execution out of band, the session reads on, queues requests, and executes those out of band
 * at once. Other commands of all sessions run one after the other. Output waits in a buffer, from
 * which a coroutine of the session sends: an event never waits for a client. A client may send
 * commands before it reads the answers to earlier ones; with more than QMP_UNREAD_MAX bytes that
 * wait for it the next command is executed when it has read. A client that does not read is
 * disconnected when QMP_OUT_MAX bytes wait for it besides answers.
 *
 *    socket -> reader coroutine -> json_reader -> dispatch -> buffer -> writer coroutine -> socket
 *                                                 events --^
 */
#ifndef TIDEMARK_QMP_MONITOR_H
#define TIDEMARK_QMP_MONITOR_H

#include <json-c/json.h>
#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"

struct chardev;
struct fd_names;
struct json_limits;

/* Bytes that may wait to be sent to a client when an event is emitted, besides answers. */
#define QMP_OUT_MAX (1u << 20)
/* And when its next command is executed. */
#define QMP_UNREAD_MAX (QMP_OUT_MAX / 2)

/*
 * Limits of one message: those of QEMU, and one for memory, which QEMU does not limit. A message
 * beyond a limit is answered with an error; the session then reads on from the next line.
 */
extern const struct json_limits qmp_json_limits;

/*
 * Serve QMP on a connected, non-blocking socket `fd`, which is consumed also on failure. `pretty`:
 * indented output. `fd_names`: names of descriptors of this monitor, of which the session takes a
 * reference; NULL: the client can't name any. `chardev`: learns of the end; may be NULL. 0, or
 * -ENOMEM or -EAGAIN of co_spawn(). Does not yield.
 */
int qmp_session_start(int fd, bool pretty, struct fd_names *fd_names, struct chardev *chardev,
                      struct error *err);

/* Sessions that have not ended. Does not yield. */
size_t qmp_session_count(void);

/*
 * Send an event, a whole message (borrowed), to all sessions that have negotiated. Does not yield.
 */
void qmp_send_event(struct json_object *event);

/*
 * Set the function that the command quit calls after its answer has been sent. The function is
 * called in a coroutine and must not yield.
 */
void qmp_set_quit_fn(void (*fn)(void));
/*
 * Answer quit only when everything is closed, as QEMU's emulator does: qmp_co_end_sessions() sends
 * the answers.
 */
void qmp_answer_quit_late(void);

/*
 * Send what is buffered (for at most a second), disconnect all sessions, and wait until they have
 * ended (for another second). False: a command has not ended, such as the opening of an image on a
 * silent server; the log names it. Yields.
 */
bool qmp_co_end_sessions(void);

#endif
