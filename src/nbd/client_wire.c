/* SPDX-License-Identifier: Apache-2.0 */
/* The client's end of a connection, in the clear or in TLS, and the limit of its time. */
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

/* The connection was lost while `what` was being read or sent. */
static int wire_lost(const struct nbd_wire *w, int r, const char *verb, const char *what,
                     struct error *err)
{
    const char *failure = w->tls ? tls_session_failure(w->tls) : "";

    if (failure[0]) {
        /* The server ended the session; it may have done so before it read what was sent. */
        return error_set(err, ECONNRESET,
                         "Failed to read option reply: Cannot read from TLS channel: %s", failure);
    }
    if (r == 0) {
        return error_set(err, ECONNRESET,
                         "Failed to %s %s: Unexpected end-of-file before all data were read", verb,
                         what);
    }
    return error_set_errno(err, -r, "Failed to %s %s", verb, what);
}

int nbd_wire_co_read(const struct nbd_wire *w, void *buf, size_t size, const char *what,
                     struct error *err)
{
    uint8_t *p = buf;

    while (size > 0) {
        ssize_t n = nbd_wire_co_recv(w, p, size);

        if (n <= 0) {
            return wire_lost(w, (int)n, "read", what, err);
        }
        p += n;
        size -= (size_t)n;
    }
    return 0;
}

int nbd_wire_co_write(const struct nbd_wire *w, const void *buf, size_t size, const char *what,
                      struct error *err)
{
    struct iovec vec = {.iov_base = (void *)(uintptr_t)buf, .iov_len = size};
    int r = nbd_wire_co_send(w, &vec, 1);

    return r < 0 ? wire_lost(w, r, "send", what, err) : 0;
}

/* --- time ----------------------------------------------------------------------------------- */

/* Of struct nbd_deadline: those that have begun, of all reactors. */
static struct list deadlines = LIST_INIT(deadlines);
static pthread_mutex_t deadlines_lock = PTHREAD_MUTEX_INITIALIZER;

static void end_by_deadline(struct nbd_deadline *d)
{
    atomic_store(&d->passed, true);
    shutdown(*d->fd, SHUT_RDWR);
}

static void deadline_passed(struct loop_timer *timer)
{
    end_by_deadline(container_of(timer, struct nbd_deadline, timer));
}

void nbd_client_give_up_attempts(void)
{
    struct nbd_deadline *d;

    pthread_mutex_lock(&deadlines_lock);
    LIST_FOREACH (d, &deadlines, link) {
        end_by_deadline(d);
    }
    pthread_mutex_unlock(&deadlines_lock);
    socket_address_give_up_dials();
}

void nbd_deadline_begin(struct nbd_deadline *d, const int *fd, int64_t timeout_ns)
{
    *d = (struct nbd_deadline){.fd = fd};
    pthread_mutex_lock(&deadlines_lock);
    list_append(&deadlines, &d->link);
    pthread_mutex_unlock(&deadlines_lock);
    loop_timer_init(&d->timer, deadline_passed);
    nbd_deadline_renew(d, timeout_ns);
}

void nbd_deadline_renew(struct nbd_deadline *d, int64_t timeout_ns)
{
    if (timeout_ns >= 0) {
        loop_timer_arm(&d->timer, loop_now_ns() + timeout_ns);
    }
}

int nbd_deadline_end(struct nbd_deadline *d, int r, struct error *err)
{
    loop_timer_disarm(&d->timer);
    pthread_mutex_lock(&deadlines_lock);
    list_remove(&d->link);
    pthread_mutex_unlock(&deadlines_lock);
    if (!atomic_load(&d->passed)) {
        return r;
    }
    if (err) {
        error_clear(err);
    }
    return error_set(err, ETIMEDOUT, "The NBD server took too long to negotiate");
}
