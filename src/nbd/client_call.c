/* SPDX-License-Identifier: Apache-2.0 */
/* What requester, sender and receiver share about a call. */
#include <stdio.h>
#include <stdlib.h>

#include "nbd/client_internal.h"

void nbd_call_drop(struct nbd_call *call)
{
    /* The call may be gone as soon as the count is lower. */
    struct co *co = call->co;

    if (atomic_fetch_sub(&call->pending, 1) == 1) {
        co_wake(co);
    }
}

void nbd_client_wake_sender_locked(struct nbd_client *c)
{
    if (c->idle_sender) {
        struct co *co = c->idle_sender;

        c->idle_sender = NULL;
        co_wake(co);
    }
}

void nbd_extents_clear(struct nbd_extents *e)
{
    free(e->list);
    *e = (struct nbd_extents){0};
}

const char *nbd_client_describe(const struct nbd_client *c, char *buf, size_t size)
{
    const struct socket_address *a = &c->target.address;

    if (a->path) {
        snprintf(buf, size, "NBD server unix:%s, export '%s'", a->path, c->target.export_name);
    } else if (a->fd) {
        snprintf(buf, size, "NBD server on a passed descriptor, export '%s'",
                 c->target.export_name);
    } else {
        snprintf(buf, size, "NBD server %s:%s, export '%s'", a->cid ?: a->host,
                 a->port ? a->port : NBD_DEFAULT_PORT, c->target.export_name);
    }
    return buf;
}

size_t nbd_client_encode(const struct nbd_agreement *a, const struct nbd_request *rq,
                         uint8_t buf[static NBD_EXTENDED_REQUEST_SIZE])
{
    if (a->extended) {
        nbd_extended_request_encode(buf, rq);
        return NBD_EXTENDED_REQUEST_SIZE;
    }
    nbd_request_encode(buf, rq);
    return NBD_REQUEST_SIZE;
}
