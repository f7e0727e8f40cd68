/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Character devices: places where monitors, and others that talk by bytes, meet their clients.
 * Main reactor only; functions with `co_` in their name yield.
 *
 *    --chardev (command_line.c) -> +                          +-> socket.c (_clients, _talk)
 *                                  | ChardevBackend (types.c) +-> plain.c: null, file, pipe, stdio
 *    chardev-add ----------------> +        (chardev.c)       +-> pty.c, ringbuf.c
 *
 * A user of a chardev gets connected sockets. Where a client is no socket, or speaks TLS, or is
 * recorded (logfile), the user gets one end of a pair, and pump.c carries the bytes between the
 * other end and the client. A socket that listens serves any number of clients at the same time.
 * (QEMU makes the second client wait until the first has left.)
 */
#ifndef TIDEMARK_CHARDEV_CHARDEV_H
#define TIDEMARK_CHARDEV_CHARDEV_H

#include <json-c/json.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "block/options.h"
#include "schema/schema.h"

struct chardev;

/* --- life ------------------------------------------------------------------------------------- */

/* ChardevBackend: what chardev-add takes. */
extern const struct schema_type chardev_backend_type;
/* The names of the types in it, sorted; ends with NULL. */
const char *const *chardev_type_names(void);

/*
 * Make a chardev of a ChardevBackend that has passed its check. A socket listens from now on, or is
 * connected; one that reconnects connects when it has a user. -EEXIST: the id is taken; -EINVAL: it
 * is no identifier, or options exclude each other; errors of opening.
 */
int chardev_co_new(const char *id, struct json_object *backend, struct chardev **ret_chardev,
                   struct error *err);

/*
 * Likewise from the options of --chardev, which are consumed: `backend`, `id`, and what the type
 * has. With wait=on, which is the default there, a listening socket waits for its first client.
 * `ret_chardev` may be NULL.
 */
int chardev_co_add(struct options *opts, struct chardev **ret_chardev, struct error *err);
/* A chardev_co_add() that waits for its first client fails with -ECANCELED. */
void chardev_stop_waiting(void);
/* Chardevs `stdio` are refused from now on, since the process gives its standard files up. */
void chardev_refuse_stdio(void);

/* The chardev of this id; NULL: there is none. */
struct chardev *chardev_find(const char *id);
/* Iterate over all chardevs, the oldest first: NULL begins, NULL ends. */
struct chardev *chardev_next(const struct chardev *c);
const char *chardev_id(const struct chardev *c);
/* The type of its back end: "socket". */
const char *chardev_type(const struct chardev *c);
/* Whether a client talks to its user. */
bool chardev_has_client(const struct chardev *c);
/* Whether chardev_co_new() still works on it. */
bool chardev_is_opening(const struct chardev *c);
/* What query-chardev shows; owned by the caller. NULL without memory. */
char *chardev_filename(const struct chardev *c);
/* The device of a pty; NULL: it is none. Borrowed. */
const char *chardev_pty(const struct chardev *c);

/* Whether it has connections that can be cut: a socket. Does not yield. */
bool chardev_can_be_cut(const struct chardev *c);
/* Cut those that there are; their talks end. Others may come. Does not yield. */
void chardev_cut(struct chardev *c);

/* Close a chardev that has no user. */
void chardev_co_remove(struct chardev *c);

/* --- users ------------------------------------------------------------------------------------ */

/*
 * A client has come: talk with it on `fd`, a connected non-blocking socket, which is consumed in
 * any case. Call chardev_client_left(c, fd) when the talk has ended, unless this fails. May not
 * yield.
 */
typedef int chardev_begin(struct chardev *c, int fd, void *arg, struct error *err);

/*
 * Let clients in, for the one user that a chardev can have. -ENOENT: there is no such chardev;
 * -EBUSY: it has a user.
 */
int chardev_attach(const char *id, chardev_begin *begin, void *arg, struct error *err);
bool chardev_has_user(const struct chardev *c);
/* A talk has ended; `fd` is the number of its socket, which is closed. */
void chardev_client_left(struct chardev *c, int fd);

/* --- ring buffers ----------------------------------------------------------------------------- */

/* Whether it is one; the functions below are for those. */
bool chardev_is_ringbuf(const struct chardev *c);
/* How many bytes it keeps. */
size_t chardev_ringbuf_size(const struct chardev *c);
/* Append bytes; the oldest ones make room. */
void chardev_ringbuf_write(struct chardev *c, const char *data, size_t size);
/* Take at most `size` bytes, the oldest first. Returns how many. */
size_t chardev_ringbuf_read(struct chardev *c, char *buf, size_t size);

/* --- the end ---------------------------------------------------------------------------------- */

/* Let no more clients in, and remove socket files. Talks continue. */
void chardev_co_close_all(void);
/*
 * After the talks have ended: wait, for at most a second, until everything that was sent has been
 * carried out, and release the chardevs.
 */
void chardev_co_release_all(void);

#endif
