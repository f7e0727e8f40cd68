/* SPDX-License-Identifier: Apache-2.0 */
/* The coroutine that sends requests: all that are queued leave together. */
#include <errno.h>
#include <sys/socket.h>

#include "nbd/client_internal.h"

/* Elements per sendmsg(). */
#define GATHER_MAX 256

/* Elements that are to leave together. */
struct outbox {
    const struct nbd_client *client;
    const struct nbd_wire *wire;
    /* Sending has failed: the rest is dropped. */
    int error;
    int count;
    struct iovec vec[GATHER_MAX];
};

static void co_send_outbox(struct outbox *o)
{
    if (!o->error) {
        o->error = nbd_wire_co_send(o->wire, o->vec, o->count);
    }
    o->count = 0;
}

static void co_put_element(struct outbox *o, void *base, size_t size)
{
    if (o->count == GATHER_MAX) {
        co_send_outbox(o);
    }
    o->vec[o->count++] = (struct iovec){.iov_base = base, .iov_len = size};
}

static void co_send_batch(struct outbox *o, struct list *batch)
{
    struct nbd_call *call, *next;

    LIST_FOREACH (call, batch, link) {
        co_put_element(o, call->header,
                       nbd_client_encode(&o->client->agreed, &call->rq, call->header));
        for (int i = 0; call->rq.type == NBD_CMD_WRITE && i < call->data.count; i++) {
            co_put_element(o, call->data.vec[i].iov_base, call->data.vec[i].iov_len);
        }
    }
    co_send_outbox(o);
    LIST_FOREACH_SAFE (call, next, batch, link) {
        list_remove(&call->link);
        call->sent = true;
        nbd_call_drop(call);
    }
}

/* Wait for something to send. False when the client is closing and all has been sent. */
static bool co_take_batch(struct nbd_client *c, struct list *batch)
{
    for (;;) {
        bool closing;

        pthread_mutex_lock(&c->lock);
        closing = c->closing;
        if (!c->lost || closing) {
            list_splice(batch, &c->send_queue);
        }
        if (list_is_empty(batch) && !closing) {
            c->idle_sender = co_self();
        }
        pthread_mutex_unlock(&c->lock);
        if (!list_is_empty(batch) || closing) {
            return !list_is_empty(batch);
        }
        co_suspend();
    }
}

/*
 * The server hangs up after NBD_CMD_DISC, which ends the receiver. `error`: sending failed before.
 */
static void co_say_goodbye(struct nbd_client *c, int error)
{
    struct nbd_request goodbye = {.type = NBD_CMD_DISC};
    uint8_t header[NBD_EXTENDED_REQUEST_SIZE];
    struct iovec vec = {.iov_base = header};

    vec.iov_len = nbd_client_encode(&c->agreed, &goodbye, header);
    if (!error && nbd_wire_co_send(&c->wire, &vec, 1) == 0 && c->wire.tls) {
        tls_session_bye(c->wire.tls);
    }
    shutdown(c->wire.fd, SHUT_WR);
}

void nbd_client_co_sender(void *arg)
{
    struct nbd_client *c = arg;
    struct outbox o = {.client = c, .wire = &c->wire};
    struct list batch = LIST_INIT(batch);

    while (co_take_batch(c, &batch)) {
        c->sender_busy = true;
        o.error = c->wire.fd < 0 ? -EPIPE : 0;
        co_send_batch(&o, &batch);
        if (o.error && c->wire.fd >= 0) {
            /* The receiver notices, and takes care of all calls that wait for a reply. */
            shutdown(c->wire.fd, SHUT_RDWR);
        }
        c->sender_busy = false;
        if (c->sender_waiter) {
            struct co *co = c->sender_waiter;

            c->sender_waiter = NULL;
            co_wake(co);
        }
    }
    if (c->wire.fd >= 0) {
        co_say_goodbye(c, o.error);
    }
    co_group_done(&c->group);
}
