/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A library to preload: sockets of generic netlink are connected to the unix socket (SEQPACKET)
 * $NETLINK_STAND_IN instead, where a test answers in place of the kernel.
 */
#include <linux/netlink.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

int socket(int domain, int type, int protocol)
{
    const char *path = getenv("NETLINK_STAND_IN");
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    int fd;

    if (domain != AF_NETLINK || protocol != NETLINK_GENERIC || !path) {
        return (int)syscall(SYS_socket, domain, type, protocol);
    }
    fd = (int)syscall(SYS_socket, AF_UNIX, SOCK_SEQPACKET | (type & (SOCK_CLOEXEC | SOCK_NONBLOCK)),
                      0);
    strncpy(addr.sun_path, path, sizeof(addr.sun_path) - 1);
    if (fd >= 0 && connect(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0) {
        close(fd);
        return -1;
    }
    return fd;
}
