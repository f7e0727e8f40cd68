/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A QMP client on a unix socket: one command at a time; events are passed over. Main reactor, in a coroutine; all
 * `co_` functions yield. From QEMU's docs/interop/qmp-spec.
 */
#ifndef TIDEMARK_BACKUP_QMP_CLIENT_H
#define TIDEMARK_BACKUP_QMP_CLIENT_H

#include <json-c/json.h>
#include <stdint.h>
#include <sys/socket.h>

#include "base/error.h"

struct qmp_client;

/* Connect, read the greeting, negotiate capabilities. Errors name the socket. */
int qmp_client_co_connect(const char *path, struct qmp_client **ret, struct error *err);
/* NULL is fine. Does not yield. */
void qmp_client_close(struct qmp_client *c);
static inline void qmp_client_cleanup(struct qmp_client **c)
{
    qmp_client_close(*c);
}
#define AUTO_QMP __attribute__((cleanup(qmp_client_cleanup)))

/* The path that it was connected to. Borrowed. */
const char *qmp_client_path(const struct qmp_client *c);
/* Who listens there: process, user and group. All -1 if that is not known. */
struct ucred qmp_client_peer(const struct qmp_client *c);

/*
 * Run a command. `arguments` (consumed; NULL: none) is an object. *ret (may be NULL) gets what it returned, a new
 * reference. An error of the daemon is -EIO (-ENOSYS: no such command) with its sentence; -ETIMEDOUT and -ECONNRESET
 * when there is no answer, and then every later command fails, too.
 */
int qmp_client_co_execute(struct qmp_client *c, const char *command, struct json_object *arguments,
                          struct json_object **ret, struct error *err);

#endif
