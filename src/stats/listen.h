/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TIDEMARK_STATS_LISTEN_H
#define TIDEMARK_STATS_LISTEN_H

#include "base/error.h"

/*
 * Listen where `address` says: "PORT" or ":PORT" (127.0.0.1), "HOST:PORT", "[IPv6]:PORT", "*:PORT"
 * (all addresses), or a path with a '/' in it: a unix socket, which replaces one that nobody
 * serves. A non-blocking socket in *ret_fd, and in *ret_path the path to be removed at the end (to
 * be freed), or NULL. -EINVAL: the address is malformed; errors of bind(2) and listen(2). Looks
 * names up, which blocks. Does not yield.
 */
int metrics_listen(const char *address, int *ret_fd, char **ret_path, struct error *err);

#endif
