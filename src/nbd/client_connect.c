/* SPDX-License-Identifier: Apache-2.0 */
/* From an address to a server that has agreed to serve an export. */
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/inet.h"
#include "nbd/client_internal.h"
#include "trace/events.h"

/* Send and receive buffer of the socket. Bytes. */
#define SOCKET_BUFFER (4 * 1024 * 1024)

static int co_dial_one(int family, const struct sockaddr *addr, socklen_t len, int64_t timeout_ns,
                       int *ret_fd)
{
    int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    int size = SOCKET_BUFFER, on = 1;
    int r;

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
    r = loop_co_connect(fd, addr, len, timeout_ns);
    if (r < 0) {
        *ret_fd = -1;
        close(fd);
    }
    return r;
}

static int co_dial_unix(const char *path, int64_t timeout_ns, int *ret_fd, struct error *err)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    int r;

    if (strlen(path) >= sizeof(addr.sun_path)) {
        return error_set(err, EINVAL, "UNIX socket path '%s' is too long: it may have %zu bytes",
                         path, sizeof(addr.sun_path) - 1);
    }
    memcpy(addr.sun_path, path, strlen(path) + 1);
    r = co_dial_one(AF_UNIX, (struct sockaddr *)&addr, sizeof(addr), timeout_ns, ret_fd);
    return r < 0 ? error_set_errno(err, -r, "Failed to connect to '%s'", path) : 0;
}

/* Name resolution asks servers: for the offload pool. */
struct resolving {
    const struct nbd_address *address;
    const char *port;
    struct addrinfo *result;
};

static int resolve_server(void *arg)
{
    struct resolving *q = arg;
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};

    return inet_lookup(q->address->host, q->port, &hints, &q->result);
}

static int co_dial_tcp(const struct nbd_address *address, int64_t timeout_ns, int *ret_fd,
                       struct error *err)
{
    struct resolving q = {
        .address = address,
        .port = address->port ? address->port : NBD_DEFAULT_PORT,
    };
    int r = loop_co_offload(resolve_server, &q);

    if (r != 0) {
        return error_set(err, EINVAL, "address resolution failed for %s:%s: %s", address->host,
                         q.port, gai_strerror(r));
    }
    r = -EADDRNOTAVAIL;
    for (struct addrinfo *a = q.result; a && r < 0; a = a->ai_next) {
        r = co_dial_one(a->ai_family, a->ai_addr, a->ai_addrlen, timeout_ns, ret_fd);
    }
    freeaddrinfo(q.result);
    return r < 0 ? error_set_errno(err, -r, "Failed to connect to '%s:%s'", address->host, q.port)
                 : 0;
}

int nbd_co_dial(const struct nbd_address *address, int64_t timeout_ns, int *ret_fd,
                struct error *err)
{
    return address->path ? co_dial_unix(address->path, timeout_ns, ret_fd, err)
                         : co_dial_tcp(address, timeout_ns, ret_fd, err);
}

int nbd_co_attempt(const struct nbd_target *t, struct nbd_wire *w,
                   struct nbd_agreement *ret_agreement, struct error *err)
{
    const char *contexts[NBD_CLIENT_CONTEXT_MAX];
    struct nbd_deadline deadline;
    ERROR_AUTO(local);
    int r = nbd_co_dial(&t->address, t->timeout_ns, &w->fd, err);

    if (r < 0) {
        trace_nbd_client_connect(t->export_name, r);
        return r;
    }
    for (size_t i = 0; i < t->context_count; i++) {
        contexts[i] = t->contexts[i];
    }
    nbd_deadline_begin(&deadline, &w->fd, t->timeout_ns);
    r = nbd_handshake_co_choose(w, t->tls.creds ? &t->tls : NULL, t->export_name, contexts,
                                t->context_count, ret_agreement, &local);
    r = nbd_deadline_end(&deadline, r, &local);
    trace_nbd_client_connect(t->export_name, r);
    if (r < 0) {
        error_move(err, &local);
    }
    return r;
}
