/* SPDX-License-Identifier: Apache-2.0 */
/* A talk with a client of a socket: by TLS, recorded, or by the socket itself. */
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "chardev/internal.h"
#include "loop/loop.h"
#include "tls/session.h"

/* A TLS handshake that takes longer is given up. */
#define HANDSHAKE_NS (10000 * NS_PER_MS)

/* Shuts a socket down when a handshake takes too long. */
struct handshake_limit {
    struct loop_timer timer;
    int fd;
};

static void handshake_is_late(struct loop_timer *timer)
{
    shutdown(container_of(timer, struct handshake_limit, timer)->fd, SHUT_RDWR);
}

static int co_secure(struct socket_chardev *s, int fd, struct tls_session **ret_session,
                     struct error *err)
{
    struct handshake_limit limit = {.fd = fd};
    struct tls_session *session = NULL;
    struct tls_authz *authz = NULL;
    int r = s->authz ? tls_authz_ref(s->authz, &authz, err) : 0;

    UNLESS_FAILED(
        r, tls_session_new(s->creds, fd, s->server ? NULL : s->address.host, authz, &session, err));
    if (r >= 0) {
        loop_timer_init(&limit.timer, handshake_is_late);
        loop_timer_arm(&limit.timer, loop_now_ns() + HANDSHAKE_NS);
        r = tls_session_co_handshake(session, err);
        loop_timer_disarm(&limit.timer);
    }
    tls_authz_unref(authz);
    if (r < 0) {
        tls_session_free(session);
        return r;
    }
    *ret_session = session;
    return 0;
}

/* --- talks that go on ------------------------------------------------------------------------- */

/* The talk can be cut from now on; without memory it can't. */
static void note_talk(struct socket_chardev *s, int fd)
{
    struct socket_talk *t = malloc(sizeof(*t));

    if (t) {
        t->fd = fd;
        list_append(&s->talks, &t->link);
    }
}

void chardev_socket_forget(struct chardev *c, int fd)
{
    struct socket_chardev *s = container_of(c, struct socket_chardev, base);
    struct socket_talk *t;

    if (s->current == fd) {
        s->current = -1;
    }
    LIST_FOREACH (t, &s->talks, link) {
        if (t->fd == fd) {
            list_remove(&t->link);
            free(t);
            return;
        }
    }
}

void chardev_socket_cut(struct chardev *c)
{
    const struct socket_chardev *s = container_of(c, struct socket_chardev, base);
    const struct socket_talk *t;

    LIST_FOREACH (t, &s->talks, link) {
        shutdown(t->fd, SHUT_RDWR);
    }
}

int chardev_socket_co_talk(struct socket_chardev *s, int fd, struct error *err)
{
    struct chardev_ends ends = {.in = fd, .out = fd, .is_socket = true, .near = -1};
    int on = 1, r = 0;

    if (s->nodelay) {
        (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    }
    note_talk(s, fd);
    if (!s->creds && s->base.log_fd < 0) {
        s->current = fd;
        r = chardev_begin_client(&s->base, fd, err);
        if (r < 0) {
            chardev_socket_forget(&s->base, fd);
        }
        return r;
    }
    if (s->creds) {
        r = co_secure(s, fd, &ends.tls, err);
    }
    if (r >= 0) {
        s->current = fd;
        r = chardev_co_carry(&s->base, &ends, err);
    }
    chardev_socket_forget(&s->base, fd);
    tls_session_free(ends.tls);
    close(fd);
    return r;
}
