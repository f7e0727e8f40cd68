/* SPDX-License-Identifier: Apache-2.0 */
/* From an address to a connection. */
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "nbd/client_internal.h"

#define SOCKET_BUFFER (4 * 1024 * 1024)

static int co_dial_one(int family, const struct sockaddr *addr, socklen_t len, int64_t timeout_ns,
                       int *ret_fd)
{
    int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    int size = SOCKET_BUFFER, on = 1;
    int ret;

    if (fd < 0) {
        return -errno;
    }
    (void)setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
    (void)setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof(size));
    if (family != AF_UNIX) {
        (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
        (void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
    }
    *ret_fd = fd;
    ret = loop_co_connect(fd, addr, len, timeout_ns);
    if (ret < 0) {
        *ret_fd = -1;
        close(fd);
    }
    return ret;
}

static int co_dial_unix(const char *path, int64_t timeout_ns, int *ret_fd, struct error *err)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    int ret;

    if (strlen(path) >= sizeof(addr.sun_path)) {
        return error_set(err, EINVAL, "UNIX socket path '%s' is too long: it may have %zu bytes",
                         path, sizeof(addr.sun_path) - 1);
    }
    memcpy(addr.sun_path, path, strlen(path) + 1);
    ret = co_dial_one(AF_UNIX, (struct sockaddr *)&addr, sizeof(addr), timeout_ns, ret_fd);
    return ret < 0 ? error_set_errno(err, -ret, "Failed to connect to '%s'", path) : 0;
}

struct resolve {
    const struct nbd_address *address;
    const char *port;
    struct addrinfo *result;
};

static int resolve(void *arg)
{
    struct resolve *r = arg;
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};

    return getaddrinfo(r->address->host, r->port, &hints, &r->result);
}

static int co_dial_tcp(const struct nbd_address *address, int64_t timeout_ns, int *ret_fd,
                       struct error *err)
{
    struct resolve r = {.address = address,
                        .port = address->port ? address->port : NBD_DEFAULT_PORT};
    int ret = loop_co_offload(resolve, &r);

    if (ret != 0) {
        return error_set(err, EINVAL, "address resolution failed for %s:%s: %s", address->host,
                         r.port, gai_strerror(ret));
    }
    ret = -EADDRNOTAVAIL;
    for (struct addrinfo *a = r.result; a && ret < 0; a = a->ai_next) {
        ret = co_dial_one(a->ai_family, a->ai_addr, a->ai_addrlen, timeout_ns, ret_fd);
    }
    freeaddrinfo(r.result);
    return ret < 0
               ? error_set_errno(err, -ret, "Failed to connect to '%s:%s'", address->host, r.port)
               : 0;
}

int nbd_co_dial(const struct nbd_address *address, int64_t timeout_ns, int *ret_fd,
                struct error *err)
{
    return address->path ? co_dial_unix(address->path, timeout_ns, ret_fd, err)
                         : co_dial_tcp(address, timeout_ns, ret_fd, err);
}
