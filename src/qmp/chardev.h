/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where monitors meet their clients: --chardev and --monitor of qemu-storage-daemon(1). Main reactor only.
 *
 * A server socket serves any number of clients, one after another or together (QEMU lets the second wait until the
 * first has gone).
 */
#ifndef TIDEMARK_QMP_CHARDEV_H
#define TIDEMARK_QMP_CHARDEV_H

#include "base/error.h"
#include "block/options.h"

/* Clients of all chardevs together; one more gets an error instead of a greeting, and is disconnected. */
#define QMP_SESSION_MAX 512

/*
 * Make what `opts` (consumed) describes: `backend` socket with id, path (or host and port, or fd), server=on and wait;
 * or stdio. A socket listens from now on. -EINVAL, or what bind(2) says. A socket file that nobody serves is replaced.
 * May yield: with wait=on until the first client has connected.
 */
int qmp_co_chardev_add(struct options *opts, struct error *err);

/* Serve QMP on the chardev that `opts` (consumed; members chardev, mode, pretty) names. Does not yield. */
int qmp_monitor_add(struct options *opts, struct error *err);

/* A qmp_co_chardev_add() that waits for its first client fails with -ECANCELED. Does not yield. */
void qmp_chardevs_stop_waiting(void);

/* Accept no more clients and remove socket files. Sessions go on. Yields. */
void qmp_co_chardevs_close(void);

/* After the sessions have ended: wait (shortly) until standard output has everything. Yields. */
void qmp_co_chardevs_release(void);

#endif
