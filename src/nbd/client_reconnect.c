/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Restoring a lost connection.
 *
 *             loss                         delay over, or requests are awaited
 *   IN USE ----------> LOST: requests wait -----------------------------------> LOST and FAILING:
 *     ^                  | in their slots                                           | all fail
 *     +------------------+----------------------------------------------------------+
 *       connected, the same export: kept writes are repeated, then requests in flight sent again
 *
 * The receiver does all of it, in nbd_reconnect_co_recover(); the sender stands still meanwhile. A
 * server that crashes on the same request again and again does not extend the time that requests
 * wait: that starts again only after a reply.
 *
 * A write that was acknowledged may be in the server's memory only, and be lost with it. So such
 * writes are kept until a flush that began later has succeeded, and are repeated in their order on
 * the new connection; a flush there covers them again. A write with FUA is on stable storage
 * itself, but is kept if others are kept that are older: when these are repeated, they must not
 * overwrite it for good.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/log.h"
#include "nbd/client_internal.h"

/* Between two attempts to connect. */
#define RETRY_NS 100000000LL
/* How often it is tested whether requests may go on waiting. */
#define TICK_NS 20000000LL
/* What keeping a write costs in addition to its data. Bytes. */
#define OVERHEAD 64
/* Commands that the server must still have. */
#define NEEDED_FLAGS                                                                               \
    ((unsigned)NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA | NBD_FLAG_SEND_TRIM |                      \
     NBD_FLAG_SEND_WRITE_ZEROES | NBD_FLAG_SEND_FAST_ZERO | NBD_FLAG_SEND_CACHE)

/* --- writes that were not flushed ----------------------------------------------------------- */

/* A write that was acknowledged and not flushed yet. */
struct nbd_unflushed {
    struct list link;
    /* They are counted from 1 on. */
    uint64_t number;
    struct nbd_request rq;
    uint8_t data[];
};

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
    /* The repetition has to succeed, however slowly. */
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

bool nbd_reconnect_wants_flush(struct nbd_client *c)
{
    bool many;

    if (c->reconnect_ns == 0) {
        return false;
    }
    pthread_mutex_lock(&c->lock);
    many = c->unflushed_bytes > NBD_CLIENT_UNFLUSHED_MAX;
    pthread_mutex_unlock(&c->lock);
    return many;
}

/* --- repeating them ------------------------------------------------------------------------- */

/* The header of the reply to a repeated write. */
static int co_read_header(struct nbd_wire *w, bool extended, struct nbd_chunk *ret_chunk,
                          bool *ret_simple, uint32_t *ret_error, struct error *err)
{
    uint8_t header[NBD_EXTENDED_CHUNK_HEADER_SIZE];
    size_t size = nbd_reply_size_min(extended);
    int n, r = nbd_wire_co_read(w, header, size, "reply", err);

    if (r < 0) {
        return r;
    }
    n = nbd_reply_decode(header, size, extended, ret_chunk, ret_simple, ret_error);
    if (n == 0) {
        r = nbd_wire_co_read(w, header + size, NBD_CHUNK_HEADER_SIZE - size, "reply", err);
        if (r < 0) {
            return r;
        }
        n = nbd_reply_decode(header, NBD_CHUNK_HEADER_SIZE, false, ret_chunk, ret_simple,
                             ret_error);
    }
    return n >= 0 ? 0
                  : error_set(err, EPROTO,
                              "a reply begins with 0x%08" PRIx32
                              ", not with the magic number of replies as they were negotiated",
                              load_be32(header));
}

/*
 * The reply to a repeated write: 0, the server's error as a positive errno, or -errno with `err`
 * set when the connection cannot be used.
 */
static int co_read_answer(struct nbd_wire *w, bool extended, const struct nbd_request *rq,
                          struct error *err)
{
    uint8_t text[NBD_CLIENT_ERROR_MAX];
    struct nbd_chunk chunk = {0};
    uint32_t error = 0;
    bool simple = false, fits;
    int r = co_read_header(w, extended, &chunk, &simple, &error, err);

    if (r < 0) {
        return r;
    }
    if (chunk.cookie != rq->cookie) {
        return error_set(err, EPROTO,
                         "the reply to a repeated %s has the cookie 0x%016" PRIx64
                         ", not 0x%016" PRIx64,
                         nbd_command_name(rq->type), chunk.cookie, rq->cookie);
    }
    if (simple) {
        return error ? nbd_error_to_errno(error) : 0;
    }
    fits = NBD_CHUNK_IS_ERROR(chunk.type)
               ? chunk.length >= NBD_CLIENT_ERROR_MIN && chunk.length <= NBD_CLIENT_ERROR_MAX
               : chunk.type == NBD_CHUNK_NONE && chunk.length == 0;
    if (!fits || !(chunk.flags & NBD_CHUNK_FLAG_DONE)) {
        return error_set(err, EPROTO,
                         "a chunk of type %s (%u) with %" PRIu64
                         " bytes and flags 0x%x is no reply "
                         "to %s",
                         nbd_chunk_name(chunk.type), chunk.type, chunk.length, chunk.flags,
                         nbd_command_name(rq->type));
    }
    r = nbd_wire_co_read(w, text, chunk.length, "reply", err);
    if (r < 0) {
        return r;
    }
    return NBD_CHUNK_IS_ERROR(chunk.type) ? nbd_error_to_errno(load_be32(text)) : 0;
}

/* Acknowledged writes that the server has lost, and that cannot be repeated. */
static void note_lost_writes(struct nbd_client *c, const char *why)
{
    char who[512];

    log_error("%s: writes that the server had acknowledged are lost: %s; flushes fail from now on",
              nbd_client_describe(c, who, sizeof(who)), why);
    pthread_mutex_lock(&c->lock);
    c->writes_lost = true;
    pthread_mutex_unlock(&c->lock);
}

/*
 * A write that the server refuses is lost; the attempt goes on nevertheless. There may be very many
 * of them: the time limit is for each.
 */
static int co_repeat_writes(struct nbd_client *c, struct nbd_wire *w,
                            const struct nbd_agreement *now, struct nbd_deadline *deadline,
                            struct error *err)
{
    struct nbd_unflushed *u;

    LIST_FOREACH (u, &c->unflushed, link) {
        uint8_t header[NBD_EXTENDED_REQUEST_SIZE];
        struct iovec vec[2] = {{.iov_base = header},
                               {.iov_base = u->data, .iov_len = u->rq.length}};
        int r;

        u->rq.cookie = u->number;
        vec[0].iov_len = nbd_client_encode(now, &u->rq, header);
        r = nbd_wire_co_send(w, vec, u->rq.type == NBD_CMD_WRITE ? 2 : 1);
        if (r < 0) {
            return error_set_errno(err, -r, "Failed to send a repeated write");
        }
        r = co_read_answer(w, now->extended, &u->rq, err);
        if (r < 0) {
            return r;
        }
        nbd_deadline_renew(deadline, c->target.timeout_ns);
        if (r > 0 && u->rq.type != NBD_CMD_TRIM && !c->writes_lost) {
            note_lost_writes(c, strerror(r));
        }
    }
    if (c->unflushed_missing && !c->writes_lost) {
        note_lost_writes(c, "there was no memory to keep them");
    }
    return 0;
}

/* --- one attempt ---------------------------------------------------------------------------- */

/* Whether the export is still what it was: 0, or -ESTALE with `err` set. */
static int check_same(const struct nbd_client *c, const struct nbd_agreement *now,
                      struct error *err)
{
    const struct nbd_agreement *then = &c->agreed;
    unsigned missing = then->flags & ~now->flags & NEEDED_FLAGS;

    if (now->size < then->size) {
        return error_set(err, ESTALE, "it has %" PRIu64 " bytes, and had %" PRIu64, now->size,
                         then->size);
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
    if (c->wide && !now->extended) {
        return error_set(err, ESTALE, "the server has no extended headers any more");
    }
    for (size_t i = 0; i < c->context_count; i++) {
        if (then->granted[i] && !now->granted[i]) {
            return error_set(err, ESTALE, "metadata context '%s' is gone", c->target.contexts[i]);
        }
    }
    return 0;
}

/*
 * Connect, and bring the server to the state that the lost one had. -ESTALE: the export is another
 * one, and will stay that.
 */
static int co_attempt(struct nbd_client *c, struct nbd_wire *w, struct error *err)
{
    struct nbd_agreement now = {0};
    struct nbd_deadline deadline;
    int r;

    c->attempt = w;
    r = nbd_co_attempt(&c->target, w, &now, err);
    UNLESS_FAILED(r, check_same(c, &now, err));
    if (r == 0) {
        nbd_deadline_begin(&deadline, &w->fd, c->target.timeout_ns);
        r = co_repeat_writes(c, w, &now, &deadline, err);
        r = nbd_deadline_end(&deadline, r, err);
    }
    c->attempt = NULL;
    if (r == 0) {
        c->agreed.structured = now.structured;
        c->agreed.extended = now.extended;
        memcpy(c->agreed.context_id, now.context_id, sizeof(now.context_id));
    }
    nbd_agreement_clear(&now);
    return r;
}

/* --- requests that wait --------------------------------------------------------------------- */

/*
 * All requests that wait fail, and so do others until the connection is restored. The sender stands
 * still.
 */
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
            /* The sender's share. */
            atomic_fetch_sub(&call->pending, 1);
        }
    }
    pthread_mutex_unlock(&c->lock);
    for (size_t i = 0; i < count; i++) {
        nbd_pieces_clear(&calls[i]->received);
        calls[i]->result = -EIO;
        nbd_call_drop(calls[i]);
    }
}

/* Put a call into a list that is sorted by age. */
static void insert_by_age(struct list *sorted, struct nbd_call *call)
{
    struct nbd_call *other;

    LIST_FOREACH (other, sorted, link) {
        if (call->number < other->number) {
            /* A list ends before its head: so this one ends up before `other`. */
            list_append(&other->link, &call->link);
            return;
        }
    }
    list_append(sorted, &call->link);
}

/*
 * Requests that were in flight are sent again, from the beginning: in their order, and before those
 * that were made later.
 */
static void resend_locked(struct nbd_client *c)
{
    struct list again = LIST_INIT(again);

    /* Unless a reply has to come first. */
    c->progress = true;
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
            insert_by_age(&again, call);
        }
    }
    list_splice(&again, &c->send_queue);
    list_splice(&c->send_queue, &again);
}

static void reconnect_tick(struct loop_timer *timer)
{
    struct nbd_client *c = container_of(timer, struct nbd_client, tick_timer);
    int64_t now = loop_now_ns();

    if (!c->failing && (c->cut || now >= c->hold_until_ns || c->is_awaited(c->is_awaited_arg))) {
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

static void reconnect_co_pause(struct nbd_client *c)
{
    loop_timer_arm(&c->pause_timer, loop_now_ns() + RETRY_NS);
    c->pauser = co_self();
    co_suspend();
    loop_timer_disarm(&c->pause_timer);
}

/* --- all of it ------------------------------------------------------------------------------ */

/*
 * The connection is gone: stop the sender, and let requests wait. False if the client is closing.
 */
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
    struct nbd_server_id server = nbd_server_id_of(c->wire.fd);

    pthread_mutex_lock(&c->lock);
    c->lost = c->failing = false;
    c->broken = !connected;
    if (connected) {
        c->server = server;
        c->reconnects++;
        resend_locked(c);
    }
    nbd_client_wake_sender_locked(c);
    pthread_mutex_unlock(&c->lock);
}

/*
 * Try until there is a connection. False if the client closes or is cut, or the export is another
 * one.
 */
static bool co_try_to_connect(struct nbd_client *c)
{
    bool first = true;
    char who[512];

    nbd_client_describe(c, who, sizeof(who));
    while (!c->closing && !c->cut) {
        struct nbd_wire fresh = {.fd = -1};
        ERROR_AUTO(err);
        int r = co_attempt(c, &fresh, &err);

        if (r == 0 && !c->closing && !c->cut) {
            c->wire = fresh;
            log_notice("%s: connected again", who);
            return true;
        }
        nbd_wire_close(&fresh);
        if (r == -ESTALE) {
            log_error("%s: came back as another export, and is not used: %s", who,
                      error_message(&err));
            return false;
        }
        if (first && r < 0) {
            log_notice("%s: the connection is lost, and cannot be restored yet: %s", who,
                       error_message(&err));
            first = false;
        }
        if (!c->closing && !c->cut) {
            reconnect_co_pause(c);
        }
    }
    return false;
}

bool nbd_reconnect_co_recover(struct nbd_client *c, int why)
{
    bool connected;

    if (c->reconnect_ns == 0 || why == -EPROTO || c->cut || !co_begin_loss(c)) {
        return false;
    }
    loop_timer_arm(&c->tick_timer, loop_now_ns() + TICK_NS);
    connected = co_try_to_connect(c);
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
    loop_timer_init(&c->tick_timer, reconnect_tick);
}

void nbd_reconnect_destroy(struct nbd_client *c)
{
    drop_unflushed(c, UINT64_MAX);
}

void nbd_client_set_reconnect(struct nbd_client *c, int64_t delay_ns, int64_t attempt_ns,
                              bool (*is_awaited)(void *arg), void *arg)
{
    c->target.timeout_ns = attempt_ns;
    c->is_awaited = is_awaited;
    c->is_awaited_arg = arg;
    c->reconnect_ns = delay_ns;
}
