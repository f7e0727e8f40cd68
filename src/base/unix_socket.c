/* SPDX-License-Identifier: Apache-2.0 */
#include "base/unix_socket.h"

#include <errno.h>
#include <signal.h>
#include <sys/socket.h>

#include "base/cleanup.h"

bool unix_socket_is_stale(const struct sockaddr_un *addr)
{
    AUTO_CLOSE int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    struct ucred server;
    socklen_t size = sizeof(server);

    if (fd < 0) {
        return false;
    }
    if (connect(fd, (const struct sockaddr *)addr, sizeof(*addr)) < 0) {
        return errno == ECONNREFUSED;
    }
    /* The process ID is 0 for a server in a PID namespace that is invisible to this process. */
    return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &server, &size) == 0 && server.pid > 0 &&
           kill(server.pid, 0) < 0 && errno == ESRCH;
}
