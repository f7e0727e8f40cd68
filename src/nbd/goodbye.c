/* SPDX-License-Identifier: Apache-2.0 */
/* The end of connections that the server wants to end. */
#include <sys/socket.h>

#include "nbd/server_internal.h"

static void cut_connections_off(struct loop_timer *timer)
{
    struct nbd_server *s = container_of(timer, struct nbd_server, cut_timer);
    struct nbd_connection *c;

    LIST_FOREACH (c, &s->connections, link) {
        if (atomic_load(&c->ending)) {
            shutdown(c->fd, SHUT_RDWR);
        }
    }
}

void nbd_connection_begin_end(struct nbd_connection *c)
{
    atomic_store(&c->ending, true);
    shutdown(c->fd, c->in_transmission ? SHUT_RD : SHUT_RDWR);
    loop_timer_arm(&c->server->cut_timer, loop_now_ns() + NBD_GOODBYE_NS);
}

void nbd_goodbye_init(struct nbd_server *s)
{
    loop_timer_init(&s->cut_timer, cut_connections_off);
}
