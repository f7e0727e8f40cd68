/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where monitors meet their clients: --chardev and --monitor of qemu-storage-daemon(1). Main
 * reactor only.
 *
 * A server socket serves any number of clients, one after another or at the same time. (QEMU makes
 * the second client wait until the first has left.)
 */
#ifndef TIDEMARK_QMP_CHARDEV_H
#define TIDEMARK_QMP_CHARDEV_H

#include "base/error.h"
#include "block/options.h"

/*
 * Clients of all chardevs together; one more gets an error instead of a greeting, and is
 * disconnected.
 */
#define QMP_SESSION_MAX 512

/*
 * Make the chardev that `opts` (consumed) describes: `backend` is socket with id, path (or host and
 * port, or fd), server=on and wait; or stdio. A socket listens from now on. A socket file that
 * nobody serves is replaced. 0; -EINVAL for wrong options; errors of bind(2). With wait=on it
 * yields until the first client has connected.
 */
int qmp_co_chardev_add(struct options *opts, struct error *err);

/*
 * Serve QMP on the chardev that `opts` (consumed; members chardev, mode, pretty) names. 0; -EINVAL,
 * also if there is no such chardev. Does not yield.
 */
int qmp_monitor_add(struct options *opts, struct error *err);

/* A qmp_co_chardev_add() that waits for its first client fails with -ECANCELED. Does not yield. */
void qmp_chardevs_stop_waiting(void);

/* Accept no more clients and remove socket files. Sessions continue. Yields. */
void qmp_co_chardevs_close(void);

/*
 * After the sessions have ended: wait, for at most a second, until standard output has taken
 * everything. Yields.
 */
void qmp_co_chardevs_release(void);

#endif
