/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The metrics endpoint: HTTP for Prometheus, by libmicrohttpd, in a thread of its own.
 *
 *      thread "metrics"                          main reactor
 *      GET /metrics  --- asks for a snapshot ---> copies the figures
 *      writes the text <------------------------- (at most SNAPSHOT_SECONDS later, else 503)
 *      sends it
 *
 * No reactor ever waits for the thread or for a client. Clients cannot do more than occupy the
 * thread: they are limited in number, in the size of a request and in the time that a connection
 * lasts.
 *
 * Main reactor.
 */
#ifndef TIDEMARK_STATS_METRICS_H
#define TIDEMARK_STATS_METRICS_H

#include "base/error.h"

/*
 * Listen at `address` (stats/listen.h) and answer from now on. One endpoint in the process. Yields.
 * -EINVAL: malformed address. -ENOENT: libmicrohttpd is not installed. Errors of bind(2), -ENOMEM.
 */
int metrics_co_start(const char *address, struct error *err);

/* End it, if it was started; its connections are closed. Yields. */
void metrics_co_stop(void);

#endif
