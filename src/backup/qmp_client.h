/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A QMP client on a unix socket: one command at a time; events are ignored. Main reactor, in a
 * coroutine; all `co_` functions yield, the others do not. After QEMU's docs/interop/qmp-spec.
 */
#ifndef TIDEMARK_BACKUP_QMP_CLIENT_H
#define TIDEMARK_BACKUP_QMP_CLIENT_H

#include <json-c/json.h>
#include <stdint.h>
#include <sys/socket.h>

#include "base/error.h"

struct qmp_client;

/*
 * Connect, read the greeting, negotiate capabilities. 0 or -errno; errors name the socket.
 * *ret_client is to be closed by the caller.
 */
int qmp_client_co_connect(const char *path, struct qmp_client **ret_client, struct error *err);
/* Disconnect and release. NULL is ignored. */
void qmp_client_close(struct qmp_client *c);
static inline void qmp_client_cleanup(struct qmp_client **c)
{
    qmp_client_close(*c);
}
#define AUTO_QMP __attribute__((cleanup(qmp_client_cleanup)))

/* The path of the socket. Borrowed. */
const char *qmp_client_path(const struct qmp_client *c);
/* The process, user and group that listens there; all -1 if not known. */
struct ucred qmp_client_peer(const struct qmp_client *c);

/*
 * Run a command. `arguments` (consumed; NULL: none) is an object. *ret_object (may be NULL) gets
 * the returned value, a new reference. An error of the daemon is -EIO (-ENOSYS: no such command)
 * with the daemon's sentence. -ETIMEDOUT and -ECONNRESET: there was no answer, and every later
 * command fails too.
 */
int qmp_client_co_execute(struct qmp_client *c, const char *command, struct json_object *arguments,
                          struct json_object **ret_object, struct error *err);

#endif
