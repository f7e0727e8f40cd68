/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Making a lost connection again.
 *
 *            loss                                         delay over, or somebody waits
 *   IN USE --------> LOST: requests wait in their slots ------------------------------> LOST and FAILING: all fail at once
 *     ^                |                                                                  |
 *     +----------------+------------------------------------------------------------------+
 *        connected, the same export: kept writes are repeated, then what was in flight is sent again
 *
 * The receiver does all of it, in nbd_reconnect_co_recover(); the sender stands still meanwhile. A server that falls over the same
 * request again and again does not extend the time that requests wait: that begins anew only after an answer.
 *
 * A write that was acknowledged may still be in memory of the server only, and gone with it. So such writes are kept
 * until a flush that began later has succeeded, and are repeated in their order on the new connection. A flush there
 * covers them again. A write with FUA is stable itself, but is kept behind others: what they wrote before it in the
 * same place must not be what stays.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/log.h"
#include "nbd/client_internal.h"

/* Between two attempts to connect. */
#define RETRY_NS 100000000LL
/* Between two looks at whether requests may go on waiting. */
#define TICK_NS 20000000LL
/* What keeping a write costs beside its data. */
#define OVERHEAD 64
/* Commands that the server must still have. */
#define NEEDED_FLAGS                                                                               \
    (NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA | NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES |   \
     NBD_FLAG_SEND_FAST_ZERO | NBD_FLAG_SEND_CACHE)

/* --- writes that were not flushed ------------------------------------------------------------------ */

static void drop_unflushed(struct nbd_client *c, uint64_t up_to)
{
    uint64_t bytes = 0;

    while (!list_is_empty(&c->unflushed)) {
        struct nbd_unflushed *u = LIST_FIRST(&c->unflushed, struct nbd_unflushed, link);

        if (u->number > up_to) {
            break;
        }
        bytes += OVERHEAD + (u->rq.type == NBD_CMD_WRITE ? u->rq.length : 0);
        list_remove(&u->link);
        free(u);
    }
    pthread_mutex_lock(&c->lock);
    c->unflushed_bytes -= bytes;
    c->unflushed_missing &= up_to < c->unflushed_count;
    pthread_mutex_unlock(&c->lock);
}

static void keep_write(struct nbd_client *c, const struct nbd_call *call)
{
    size_t size = call->rq.type == NBD_CMD_WRITE ? call->rq.length : 0;
    struct nbd_unflushed *u = malloc(sizeof(*u) + size);

    pthread_mutex_lock(&c->lock);
    c->unflushed_count++;
    c->unflushed_bytes += u ? OVERHEAD + size : 0;
    c->unflushed_missing |= !u;
    pthread_mutex_unlock(&c->lock);
    if (!u) {
        return;
    }
    u->rq = call->rq;
    /* It has to be there, however slowly. */
    u->rq.flags &= (uint16_t)~NBD_CMD_FLAG_FAST_ZERO;
    u->number = c->unflushed_count;
    if (size > 0) {
        iov_copy_to_buf(call->data, 0, u->data, size);
    }
    list_append(&c->unflushed, &u->link);
}

void nbd_reconnect_note_answer(struct nbd_client *c, const struct nbd_call *call)
{
    uint16_t type = call->rq.type;

    c->progress = true;
    if (c->reconnect_ns == 0 || call->result < 0) {
        return;
    }
    if (type == NBD_CMD_FLUSH) {
        drop_unflushed(c, call->flush_mark);
    } else if ((type == NBD_CMD_WRITE || type == NBD_CMD_WRITE_ZEROES || type == NBD_CMD_TRIM) &&
               (c->agreed.flags & NBD_FLAG_SEND_FLUSH) &&
               (!(call->rq.flags & NBD_CMD_FLAG_FUA) || !list_is_empty(&c->unflushed))) {
        keep_write(c, call);
    }
}

int nbd_reconnect_co_limit(struct nbd_client *c)
{
    bool many;

    if (c->reconnect_ns == 0) {
        return 0;
    }
    pthread_mutex_lock(&c->lock);
    many = c->unflushed_bytes > NBD_CLIENT_UNFLUSHED_MAX;
    pthread_mutex_unlock(&c->lock);
    return many ? nbd_client_co_flush(c) : 0;
}

/* The answer to a repeated write: 0, the server's error as a positive errno, or -errno when the connection is no good. */
static int co_read_answer(struct nbd_wire *w, uint64_t cookie)
{
    uint8_t header[NBD_CHUNK_HEADER_SIZE], text[6 + 8 + NBD_STRING_MAX];
    struct nbd_chunk chunk = {0};
    uint32_t error = 0;
    bool simple;
    int n, ret = nbd_wire_co_read(w, header, NBD_SIMPLE_REPLY_SIZE, "reply", NULL);

    if (ret < 0) {
        return ret;
    }
    n = nbd_reply_decode(header, NBD_SIMPLE_REPLY_SIZE, &chunk, &simple, &error);
    if (n == 0) {
        ret = nbd_wire_co_read(w, header + NBD_SIMPLE_REPLY_SIZE,
                               NBD_CHUNK_HEADER_SIZE - NBD_SIMPLE_REPLY_SIZE, "reply", NULL);
        if (ret < 0) {
            return ret;
        }
        n = nbd_reply_decode(header, sizeof(header), &chunk, &simple, &error);
    }
    if (n <= 0 || chunk.cookie != cookie) {
        return -EPROTO;
    }
    if (simple) {
        return error ? nbd_error_to_errno(error) : 0;
    }
    if (!(chunk.flags & NBD_CHUNK_FLAG_DONE) || chunk.length > sizeof(text)) {
        return -EPROTO;
    }
    ret = nbd_wire_co_read(w, text, chunk.length, "reply", NULL);
    if (ret < 0) {
        return ret;
    }
    if (NBD_CHUNK_IS_ERROR(chunk.type) && chunk.length >= 6) {
        return nbd_error_to_errno(load_be32(text));
    }
    return chunk.type == NBD_CHUNK_NONE && chunk.length == 0 ? 0 : -EPROTO;
}

/* Acknowledged writes that are not there, and can't be made so. */
static void note_lost_writes(struct nbd_client *c, const char *why)
{
    log_error("NBD export '%s': writes that the server had acknowledged are lost: %s; flushes fail "
              "from now on",
              c->target.export_name, why);
    pthread_mutex_lock(&c->lock);
    c->writes_lost = true;
    pthread_mutex_unlock(&c->lock);
}

/* Repeat the writes that are kept. What the server refuses is lost, which is no failure of the attempt. */
static int co_repeat_writes(struct nbd_client *c, struct nbd_wire *w)
{
    struct nbd_unflushed *u;

    LIST_FOREACH (u, &c->unflushed, link) {
        uint8_t header[NBD_REQUEST_SIZE];
        struct iovec vec[2] = {{.iov_base = header, .iov_len = sizeof(header)},
                               {.iov_base = u->data, .iov_len = u->rq.length}};
        int ret;

        u->rq.cookie = u->number;
        nbd_request_encode(header, &u->rq);
        ret = nbd_wire_co_send(w, vec, u->rq.type == NBD_CMD_WRITE ? 2 : 1);
        ret = ret < 0 ? ret : co_read_answer(w, u->rq.cookie);
        if (ret < 0) {
            return ret;
        }
        if (ret > 0 && u->rq.type != NBD_CMD_TRIM && !c->writes_lost) {
            note_lost_writes(c, strerror(ret));
        }
    }
    if (c->unflushed_missing && !c->writes_lost) {
        note_lost_writes(c, "there was no memory to keep them");
    }
    return 0;
}

/* --- one attempt ---------------------------------------------------------------------------------- */

/* Whether the export is still what it was: 0, or -ESTALE with err set. */
static int check_same(const struct nbd_client *c, const struct nbd_agreement *now,
                      struct error *err)
{
    const struct nbd_agreement *then = &c->agreed;
    unsigned missing = then->flags & ~now->flags & NEEDED_FLAGS;

    if (now->size < then->size) {
        return error_set(err, ESTALE, "it has %llu bytes, and had %llu",
                         (unsigned long long)now->size, (unsigned long long)then->size);
    }
    if ((now->flags & NBD_FLAG_READ_ONLY) && !(then->flags & NBD_FLAG_READ_ONLY)) {
        return error_set(err, ESTALE, "it is read-only now");
    }
    if (missing) {
        return error_set(err, ESTALE, "commands are missing that it had (transmission flags 0x%x)",
                         missing);
    }
    if (now->min_block > then->min_block || now->max_block < then->max_block) {
        return error_set(err, ESTALE, "its block sizes are %u to %u, and were %u to %u",
                         now->min_block, now->max_block, then->min_block, then->max_block);
    }
    for (size_t i = 0; i < c->context_count; i++) {
        if (then->granted[i] && !now->granted[i]) {
            return error_set(err, ESTALE, "metadata context '%s' is gone", c->target.contexts[i]);
        }
    }
    return 0;
}

/* Connect, and bring the server to where the last one was. -ESTALE: it is another export, and will stay so. */
static int co_attempt(struct nbd_client *c, struct nbd_wire *w, struct error *err)
{
    struct nbd_agreement now = {0};
    struct nbd_deadline deadline;
    int ret;

    c->attempt = w;
    ret = nbd_client_co_attempt(&c->target, w, &now, err);
    if (ret == 0) {
        ret = check_same(c, &now, err);
    }
    if (ret == 0) {
        nbd_deadline_begin(&deadline, &w->fd, c->target.timeout_ns);
        ret = co_repeat_writes(c, w);
        ret = nbd_deadline_end(&deadline, ret, NULL);
    }
    c->attempt = NULL;
    if (ret == 0) {
        c->agreed.structured = now.structured;
        memcpy(c->agreed.context_id, now.context_id, sizeof(now.context_id));
    }
    nbd_agreement_clear(&now);
    return ret;
}

/* --- requests that wait ---------------------------------------------------------------------------- */

/* All that wait fail, and so do others until the connection is there. The sender stands still. */
static void fail_waiting(struct nbd_client *c)
{
    struct nbd_call *calls[NBD_CLIENT_IN_FLIGHT];
    size_t count = 0;

    pthread_mutex_lock(&c->lock);
    c->failing = true;
    for (size_t i = 0; i < NBD_CLIENT_IN_FLIGHT; i++) {
        struct nbd_call *call = c->slot[i];

        c->slot[i] = NULL;
        if (!call) {
            continue;
        }
        calls[count++] = call;
        if (!call->sent) {
            list_remove(&call->link);
            atomic_fetch_sub(&call->pending, 1); /* the sender's share */
        }
    }
    pthread_mutex_unlock(&c->lock);
    for (size_t i = 0; i < count; i++) {
        nbd_pieces_clear(&calls[i]->received);
        calls[i]->result = -EIO;
        nbd_call_drop(calls[i]);
    }
}

/* What was in flight is sent again, from the beginning. */
static void resend_locked(struct nbd_client *c)
{
    c->progress = true; /* unless there is something to be answered first */
    for (size_t i = 0; i < NBD_CLIENT_IN_FLIGHT; i++) {
        struct nbd_call *call = c->slot[i];

        if (!call) {
            continue;
        }
        nbd_pieces_clear(&call->received);
        for (size_t k = 0; call->per_context && k < c->context_count; k++) {
            nbd_extents_clear(&call->per_context[k]);
        }
        call->result = 0;
        c->progress = false;
        if (call->sent) {
            call->sent = false;
            atomic_fetch_add(&call->pending, 1);
            list_append(&c->send_queue, &call->link);
        }
    }
}

static void tick(struct loop_timer *timer)
{
    struct nbd_client *c = container_of(timer, struct nbd_client, tick_timer);
    int64_t now = loop_now_ns();

    if (!c->failing && (now >= c->hold_until_ns || c->is_awaited(c->is_awaited_arg))) {
        fail_waiting(c);
    }
    loop_timer_arm(timer, now + TICK_NS);
}

static void end_pause(struct nbd_client *c)
{
    if (c->pauser) {
        struct co *co = c->pauser;

        c->pauser = NULL;
        co_wake(co);
    }
}

static void pause_over(struct loop_timer *timer)
{
    end_pause(container_of(timer, struct nbd_client, pause_timer));
}

static void co_pause(struct nbd_client *c)
{
    loop_timer_arm(&c->pause_timer, loop_now_ns() + RETRY_NS);
    c->pauser = co_self();
    co_suspend();
    loop_timer_disarm(&c->pause_timer);
}

/* --- all of it -------------------------------------------------------------------------------------- */

/* The connection is gone: stop the sender, and let requests wait. False if the client is closing. */
static bool co_begin_loss(struct nbd_client *c)
{
    bool closing;

    pthread_mutex_lock(&c->lock);
    closing = c->closing;
    c->lost = !closing;
    pthread_mutex_unlock(&c->lock);
    if (closing) {
        return false;
    }
    while (c->sender_busy) {
        c->sender_waiter = co_self();
        co_suspend();
    }
    nbd_wire_close(&c->wire);
    if (c->progress || c->hold_until_ns == 0) {
        c->hold_until_ns = loop_now_ns() + c->reconnect_ns;
    }
    return true;
}

/* Requests go on: to the new server, or to fail. */
static void end_loss(struct nbd_client *c, bool connected)
{
    pthread_mutex_lock(&c->lock);
    c->lost = c->failing = false;
    c->broken = !connected;
    if (connected) {
        resend_locked(c);
    }
    nbd_client_wake_sender_locked(c);
    pthread_mutex_unlock(&c->lock);
}

bool nbd_reconnect_co_recover(struct nbd_client *c, int why)
{
    bool connected = false, first = true;

    if (c->reconnect_ns == 0 || why == -EPROTO || !co_begin_loss(c)) {
        return false;
    }
    loop_timer_arm(&c->tick_timer, loop_now_ns() + TICK_NS);
    while (!c->closing) {
        struct nbd_wire fresh = {.fd = -1};
        ERROR_AUTO(err);
        int ret = co_attempt(c, &fresh, &err);

        connected = ret == 0 && !c->closing;
        if (connected) {
            c->wire = fresh;
            break;
        }
        nbd_wire_close(&fresh);
        if (ret == -ESTALE) {
            log_error("NBD export '%s' came back as another one, and is not used: %s",
                      c->target.export_name, error_message(&err));
            break;
        }
        if (first) {
            log_info("NBD export '%s': the connection is lost: %s", c->target.export_name,
                     error_message(&err));
            first = false;
        }
        if (!c->closing) {
            co_pause(c);
        }
    }
    loop_timer_disarm(&c->tick_timer);
    end_loss(c, connected);
    return connected;
}

void nbd_reconnect_abort(struct nbd_client *c)
{
    if (c->attempt && c->attempt->fd >= 0) {
        shutdown(c->attempt->fd, SHUT_RDWR);
    }
    end_pause(c);
}

void nbd_reconnect_init(struct nbd_client *c)
{
    list_init(&c->unflushed);
    loop_timer_init(&c->pause_timer, pause_over);
    loop_timer_init(&c->tick_timer, tick);
}

void nbd_reconnect_destroy(struct nbd_client *c)
{
    drop_unflushed(c, UINT64_MAX);
}

void nbd_client_set_reconnect(struct nbd_client *c, int64_t delay_ns, bool (*is_awaited)(void *arg),
                              void *arg)
{
    c->is_awaited = is_awaited;
    c->is_awaited_arg = arg;
    c->reconnect_ns = delay_ns;
}
