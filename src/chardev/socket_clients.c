/* SPDX-License-Identifier: Apache-2.0 */
/* How clients come to a socket: they are accepted, or it connects, and connects again. */
#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/log.h"
#include "chardev/internal.h"
#include "loop/loop.h"

/* Between two clients when one was refused, so that trying again at once does not fill the log. */
#define REFUSED_NS (50 * NS_PER_MS)
/* TLS handshakes of all chardevs at the same time; further clients wait to be accepted. */
#define TALKS_MAX 512

static unsigned carried; /* talks that have a coroutine of their own */

static struct socket_chardev *socket_of_clients(const struct chardev *c)
{
    return container_of(c, struct socket_chardev, base);
}

/* --- listening -------------------------------------------------------------------------------- */

struct accepted {
    struct socket_chardev *s;
    int fd;
};

static void co_talk_with_accepted(void *arg)
{
    struct accepted *a = arg;
    struct socket_chardev *s = a->s;
    ERROR_AUTO(err);

    if (chardev_socket_co_talk(s, a->fd, &err) < 0) {
        log_warning("chardev '%s': %s", s->base.id, error_message(&err));
    }
    free(a);
    carried--;
    chardev_ran(&s->base);
}

/* A talk that is carried has a coroutine of its own, so that others can come meanwhile. */
static int start_carried(struct socket_chardev *s, int fd)
{
    struct accepted *a = malloc(sizeof(*a));
    int r = a ? 0 : -ENOMEM;

    if (a) {
        *a = (struct accepted){s, fd};
        r = reactor_spawn(reactor_main(), co_talk_with_accepted, a);
    }
    if (r < 0) {
        free(a);
        close(fd);
        return r;
    }
    s->base.running++;
    carried++;
    return 0;
}

static int co_serve(struct socket_chardev *s, int fd)
{
    ERROR_AUTO(err);
    int r;

    if (s->creds || s->base.log_fd >= 0) {
        return start_carried(s, fd);
    }
    r = chardev_socket_co_talk(s, fd, &err);
    if (r < 0) {
        log_warning("chardev '%s': a client is refused: %s", s->base.id, error_message(&err));
    }
    return r;
}

static void co_accept_clients(void *arg)
{
    struct socket_chardev *s = arg;

    while (!s->base.stopped) {
        int fd = carried < TALKS_MAX ? loop_co_accept(s->fd) : -EAGAIN;

        if (fd == -ECANCELED || (fd < 0 && s->base.stopped)) {
            break;
        }
        if (fd >= 0) {
            socket_watch_peer(fd);
        }
        /* Out of descriptors, or the client left before it was accepted; or it is refused. */
        if (fd < 0 || co_serve(s, fd) < 0) {
            loop_co_sleep(REFUSED_NS);
        }
    }
    chardev_ran(&s->base);
}

/* --- connecting ------------------------------------------------------------------------------- */

/* Wait, unless the chardev is stopped meanwhile. */
static void co_pause(const struct chardev *c, int64_t ms)
{
    int64_t end = loop_now_ns() + ms * NS_PER_MS;

    while (!c->stopped && loop_now_ns() < end) {
        int64_t left = end - loop_now_ns();

        loop_co_sleep(left < REFUSED_NS ? left : REFUSED_NS);
    }
}

/* Connect, if that is not done yet, and talk until the connection is lost. */
static int co_connect_and_talk(struct socket_chardev *s, struct error *err)
{
    int fd = s->fd, r = 0;

    s->fd = -1;
    if (fd < 0) {
        r = socket_address_co_connect(&s->address, 0, -1, &fd, err);
        error_prepend(err, "Unable to connect character device %s: ", s->base.id);
    }
    if (r >= 0 && s->base.stopped) {
        close(fd);
        return 0;
    }
    UNLESS_FAILED(r, chardev_socket_co_talk(s, fd, err));
    if (r >= 0) {
        chardev_co_wait_left(&s->base);
    }
    return r;
}

static void co_keep_connected(void *arg)
{
    struct socket_chardev *s = arg;
    bool told = false;

    do {
        ERROR_AUTO(err);
        int r = co_connect_and_talk(s, &err);

        if (r < 0 && !told) {
            log_warning("%s", error_message(&err));
        }
        told = r < 0;
        co_pause(&s->base, s->reconnect_ms);
    } while (s->reconnect_ms && !s->base.stopped);
    chardev_ran(&s->base);
}

/* --- both ------------------------------------------------------------------------------------- */

int chardev_socket_start(struct chardev *c, struct error *err)
{
    return chardev_spawn(c, socket_of_clients(c)->server ? co_accept_clients : co_keep_connected,
                         err);
}

void chardev_socket_co_stop(struct chardev *c)
{
    struct socket_chardev *s = socket_of_clients(c);

    if (s->server && s->fd >= 0) {
        shutdown(s->fd, SHUT_RDWR);
    }
    if (s->makes_file) {
        (void)loop_co_unlink_soon(s->address.path);
    }
}
