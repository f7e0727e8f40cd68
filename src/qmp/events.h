/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Events: what happens in the layers below, sent to all sessions that have negotiated. Some events
 * are limited to one a second for each thing that they are about, as in QEMU (docs/qmp.md): of
 * those that come sooner the last one is sent at the end of the second.
 *
 * Main reactor, except as noted. Nothing here yields.
 */
#ifndef TIDEMARK_QMP_EVENTS_H
#define TIDEMARK_QMP_EVENTS_H

#include <json-c/json.h>
#include <stdbool.h>
#include <stdint.h>

/* Send an event. `data` is consumed; NULL: it has none. */
void qmp_emit(const char *name, struct json_object *data);

/* Likewise from any thread; the main reactor sends it. */
void qmp_emit_on_main(const char *name, struct json_object *data);

/*
 * Emit events from now on when an export is gone, when an image is found corrupt, when a threshold
 * is passed, and when children of a quorum disagree. Once, at start.
 */
void qmp_subscribe(void);
/* Likewise when a request of an export's client fails. */
void qmp_subscribe_io_errors(void);

/* --- event_limit.c ---------------------------------------------------------------------------- */

/*
 * By which clock seconds are counted, in nanoseconds; at first that of the loop. The owner of
 * another clock reports each of its steps by qmp_event_clock_moved().
 */
void qmp_event_use_clock(int64_t (*now)(void));
void qmp_event_clock_moved(void);

/*
 * What a limited event is about; *ret_key is owned by the caller, "" if all events of that name are
 * alike. False: the event is not limited. Any thread.
 */
bool qmp_event_key(const char *name, struct json_object *data, char **ret_key);

/* Send a whole message to whom it concerns. The message is borrowed. Does not yield. */
typedef void qmp_event_send(struct json_object *event);

/*
 * Keep the whole message `event` (borrowed) for later, if it has to wait: `send` is called then.
 * False: it is to be sent now.
 */
bool qmp_event_hold(const char *name, struct json_object *data, struct json_object *event,
                    qmp_event_send *send);

/* Send what waits, and forget when events were sent: at the end. */
void qmp_event_limits_release(void);

#endif
