/* SPDX-License-Identifier: Apache-2.0 */
/* The client's end of a connection, in the clear or in TLS. */
#include <errno.h>
#include <sys/socket.h>
#include <unistd.h>

#include "nbd/client_internal.h"

void nbd_wire_close(struct nbd_wire *w)
{
    tls_session_free(w->tls);
    if (w->fd >= 0) {
        close(w->fd);
    }
    *w = (struct nbd_wire){.fd = -1};
}

int nbd_wire_co_send(const struct nbd_wire *w, struct iovec *v, int count)
{
    if (w->tls) {
        return tls_session_co_send(w->tls, v, count);
    }
    while (count > 0) {
        struct msghdr msg = {.msg_iov = v, .msg_iovlen = (size_t)count};
        ssize_t n = loop_co_sendmsg(w->fd, &msg, MSG_NOSIGNAL);

        if (n < 0) {
            return (int)n;
        }
        while (count > 0 && (size_t)n >= v->iov_len) {
            n -= (ssize_t)v->iov_len;
            v++;
            count--;
        }
        if (count > 0) {
            v->iov_base = (uint8_t *)v->iov_base + n;
            v->iov_len -= (size_t)n;
        }
    }
    return 0;
}

static int lost(const struct nbd_wire *w, int ret, struct error *err)
{
    if (w->tls && tls_session_failure(w->tls)[0]) {
        return error_set(err, ECONNRESET,
                         "Failed to read option reply: Cannot read from TLS channel: %s",
                         tls_session_failure(w->tls));
    }
    return error_set_errno(err, ret < 0 ? -ret : ECONNRESET,
                           "The NBD server ended the connection during negotiation");
}

int nbd_wire_co_read(const struct nbd_wire *w, void *buf, size_t size, struct error *err)
{
    uint8_t *p = buf;

    while (size > 0) {
        ssize_t n = nbd_wire_co_recv(w, p, size);

        if (n <= 0) {
            return lost(w, (int)n, err);
        }
        p += n;
        size -= (size_t)n;
    }
    return 0;
}

int nbd_wire_co_write(const struct nbd_wire *w, const void *buf, size_t size, struct error *err)
{
    struct iovec vec = {.iov_base = (void *)(uintptr_t)buf, .iov_len = size};
    int ret = nbd_wire_co_send(w, &vec, 1);

    return ret < 0 ? lost(w, ret, err) : 0;
}
