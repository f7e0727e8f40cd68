/* SPDX-License-Identifier: Apache-2.0 */
#include "base/unix_socket.h"

#include <errno.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"

bool unix_socket_is_stale(const struct sockaddr_un *addr)
{
    AUTO_CLOSE int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    struct ucred server;
    socklen_t size = sizeof(server);
    struct stat st;

    /* To connect to a file of another kind is refused, too. */
    if (fd < 0 || stat(addr->sun_path, &st) < 0 || !S_ISSOCK(st.st_mode)) {
        return false;
    }
    if (connect(fd, (const struct sockaddr *)addr, sizeof(*addr)) < 0) {
        return errno == ECONNREFUSED;
    }
    /* The process ID is 0 for a server in a PID namespace that is invisible to this process. */
    return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &server, &size) == 0 && server.pid > 0 &&
           kill(server.pid, 0) < 0 && errno == ESRCH;
}

int unix_socket_bind(int fd, const struct sockaddr_un *addr)
{
    int cause;

    if (bind(fd, (const struct sockaddr *)addr, sizeof(*addr)) == 0) {
        return 0;
    }
    cause = errno;
    if (cause != EADDRINUSE || !unix_socket_is_stale(addr) || unlink(addr->sun_path) < 0) {
        return -cause;
    }
    return bind(fd, (const struct sockaddr *)addr, sizeof(*addr)) < 0 ? -errno : 0;
}
