/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A QMP client: one command at a time; events are ignored. Main reactor, in a coroutine; all `co_`
 * functions yield, the others do not. After QEMU's docs/interop/qmp-spec.
 */
#ifndef TIDEMARK_BACKUP_QMP_CLIENT_H
#define TIDEMARK_BACKUP_QMP_CLIENT_H

#include <json-c/json.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

#include "base/error.h"
#include "nbd/client.h"

struct qmp_client;

/*
 * Connect, read the greeting, negotiate capabilities. `address`: the path of a unix socket;
 * tcp:HOST:PORT; or, for a unix socket of another machine, ssh://[USER@]HOST[:PORT]/PATH. tls NULL:
 * in the clear; what it refers to outlives the client. `stop` (may be NULL) becomes true when the
 * user wants to stop: from then on an answer is awaited for 5 s at most. 0 or -errno; errors name
 * the address. *ret_client is to be closed by the caller.
 */
int qmp_client_co_connect(const char *address, const struct nbd_client_tls *tls,
                          volatile sig_atomic_t *stop, struct qmp_client **ret_client,
                          struct error *err);
/* Disconnect and release. NULL is ignored. */
void qmp_client_close(struct qmp_client *c);
static inline void qmp_client_cleanup(struct qmp_client **c)
{
    qmp_client_close(*c);
}
#define AUTO_QMP __attribute__((cleanup(qmp_client_cleanup)))

/* The address, as it was given. Borrowed. */
const char *qmp_client_path(const struct qmp_client *c);
/* The process, user and group that listens there; all -1 if not known. */
struct ucred qmp_client_peer(const struct qmp_client *c);
/* The machine, if the address names one; else NULL. Borrowed. */
const char *qmp_client_host(const struct qmp_client *c);
/* Whether that is reached by SSH. */
bool qmp_client_uses_ssh(const struct qmp_client *c);
/*
 * Connect to another unix socket of that machine, by SSH. *ret_fd: a non-blocking socket, which the
 * caller owns.
 */
int qmp_client_co_tunnel(const struct qmp_client *c, const char *path, int *ret_fd,
                         struct error *err);

/*
 * Run a command. `arguments` (consumed; NULL: none) is an object. *ret_object (may be NULL) gets
 * the returned value, a new reference. An error of the daemon is -EIO (-ENOSYS: no such command)
 * with the daemon's sentence. -ETIMEDOUT, -ECONNRESET and -EINTR (the user has stopped): there was
 * no answer, and every later command fails too.
 */
int qmp_client_co_execute(struct qmp_client *c, const char *command, struct json_object *arguments,
                          struct json_object **ret_object, struct error *err);

#endif
