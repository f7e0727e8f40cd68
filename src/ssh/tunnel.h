/* SPDX-License-Identifier: Apache-2.0 */
/* A connection to a unix socket of another machine, by SSH. */
#ifndef TIDEMARK_SSH_TUNNEL_H
#define TIDEMARK_SSH_TUNNEL_H

#include "base/error.h"
#include "ssh/remote_file.h"

/*
 * Connect to the unix socket t->path on the server. *ret_fd: a non-blocking socket, which the
 * caller owns; closing it ends the connection. Blocks, on the offload pool. Errors as those of
 * remote_file_open(). -ECONNREFUSED: the server does not connect to that socket.
 */
int ssh_tunnel_open(const struct ssh_target *t, int *ret_fd, struct error *err);

/*
 * Before the program ends: wait until the threads of all connections have ended, a second at most
 * before they are cut off. Libraries clean up at the end, and must not be used any more then.
 */
void ssh_tunnels_end(void);

#endif
