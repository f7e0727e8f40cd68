/* SPDX-License-Identifier: Apache-2.0 */
/* Unix socket files. */
#ifndef TIDEMARK_BASE_UNIX_SOCKET_H
#define TIDEMARK_BASE_UNIX_SOCKET_H

#include <stdbool.h>
#include <sys/un.h>

/*
 * Bind `fd`, a unix socket, to the path in `addr`; a stale socket there is replaced. A file of
 * another kind is never touched. Errors of bind(2). Does not yield; blocks while the file system of
 * the path does.
 */
int unix_socket_bind(int fd, const struct sockaddr_un *addr);

/*
 * Whether a socket file is a leftover: no process listens on it, or the listening process has been
 * killed (its socket stays until the kernel has ended the I/O that holds it). False if the state
 * can't be determined, and for files of other kinds. Does not yield; blocks likewise.
 */
bool unix_socket_is_stale(const struct sockaddr_un *addr);

#endif
