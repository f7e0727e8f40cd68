/* SPDX-License-Identifier: Apache-2.0 */
/* Monitors on chardevs: --monitor of qemu-storage-daemon(1). Main reactor only; nothing yields. */
#ifndef TIDEMARK_QMP_MONITORS_H
#define TIDEMARK_QMP_MONITORS_H

#include <stdbool.h>

#include "base/error.h"
#include "block/options.h"

/*
 * Clients of all monitors together; one more gets an error instead of a greeting, and is
 * disconnected.
 */
#define QMP_SESSION_MAX 512

/* Serve QMP on the chardev of that id; `pretty`: indented output. Errors of chardev_attach(). */
int qmp_monitor_start(const char *chardev_id, bool pretty, struct error *err);

/* Likewise for `opts` (consumed; members chardev, id, mode, pretty). -EINVAL. */
int qmp_monitor_add(struct options *opts, struct error *err);

/* Release the monitors, at the end, when their chardevs have gone. Yields. */
void qmp_monitors_co_release(void);

#endif
