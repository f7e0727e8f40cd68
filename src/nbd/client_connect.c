/* SPDX-License-Identifier: Apache-2.0 */
/* From an address to a server that has agreed to serve an export. */
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/socket.h>

#include "nbd/client_internal.h"
#include "trace/events.h"

/* Send and receive buffer of the socket. Bytes. */
#define SOCKET_BUFFER (4 * 1024 * 1024)

int nbd_co_dial(const struct socket_address *address, int64_t timeout_ns, int *ret_fd,
                struct error *err)
{
    struct socket_address a = *address; /* borrows the strings */
    int r, on = 1;

    a.port = a.port ?: (char *)(uintptr_t)NBD_DEFAULT_PORT;
    r = socket_address_co_connect(&a, SOCKET_BUFFER, timeout_ns, ret_fd, err);
    if (r == 0 && !a.path && !a.fd && !a.cid) {
        (void)setsockopt(*ret_fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
        (void)setsockopt(*ret_fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
    }
    return r;
}

struct nbd_server_id nbd_server_id_of(int fd)
{
    struct nbd_server_id id = {.size = sizeof(id.address)};
    struct ucred peer = {0};
    socklen_t size = sizeof(peer);

    if (getpeername(fd, (struct sockaddr *)&id.address, &id.size) < 0) {
        id.size = 0;
    } else if (id.address.ss_family == AF_UNIX) {
        /* Another server may have taken the path. */
        id.size = 0;
        (void)getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size);
        id.pid = peer.pid;
    }
    return id;
}

bool nbd_server_ids_equal(const struct nbd_server_id *a, const struct nbd_server_id *b)
{
    return a->pid == b->pid && a->size == b->size && memcmp(&a->address, &b->address, a->size) == 0;
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
