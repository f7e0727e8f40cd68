/* SPDX-License-Identifier: Apache-2.0 */
/* Unix socket files that a server left. Does not yield. */
#ifndef TIDEMARK_BASE_UNIX_SOCKET_H
#define TIDEMARK_BASE_UNIX_SOCKET_H

#include <stdbool.h>
#include <sys/un.h>

/*
 * Whether a socket file is a leftover: nobody listens, or who does has died. (After a kill the kernel may take a moment to
 * end the I/O that holds the listening socket.) False if that can't be found out.
 */
bool unix_socket_is_stale(const struct sockaddr_un *addr);

#endif
