/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A connection to a server and the requests on it.
 *
 *   requester (any reactor)          sender (home)                receiver (home)
 *   queue the call, suspend --lock--> send all that is queued      fill reads, note results
 *        ^                              |  drop                       |  drop
 *        +------ woken by the second ---+-----------------------------+
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "nbd/client_internal.h"

#define GATHER_MAX 256 /* elements per sendmsg() */
/* How long a server may take to hang up after the client has said goodbye. */
#define GOODBYE_NS 1000000000LL

/* --- sending ------------------------------------------------------------------------------------- */

/* Elements that are to leave together. */
struct outbox {
    const struct nbd_wire *wire;
    int error; /* sending has failed: the rest is dropped */
    int count;
    struct iovec vec[GATHER_MAX];
};

static void co_send_out(struct outbox *o)
{
    if (!o->error) {
        o->error = nbd_wire_co_send(o->wire, o->vec, o->count);
    }
    o->count = 0;
}

static void co_put(struct outbox *o, void *base, size_t size)
{
    if (o->count == GATHER_MAX) {
        co_send_out(o);
    }
    o->vec[o->count++] = (struct iovec){.iov_base = base, .iov_len = size};
}

void nbd_call_drop(struct nbd_call *call)
{
    struct co *co = call->co;

    if (atomic_fetch_sub(&call->pending, 1) == 1) {
        co_wake(co);
    }
}

static void co_send_batch(struct outbox *o, struct list *batch)
{
    struct nbd_call *call, *next;

    LIST_FOREACH (call, batch, link) {
        co_put(o, call->header, sizeof(call->header));
        for (int i = 0; call->rq.type == NBD_CMD_WRITE && i < call->data.count; i++) {
            co_put(o, call->data.vec[i].iov_base, call->data.vec[i].iov_len);
        }
    }
    co_send_out(o);
    LIST_FOREACH_SAFE (call, next, batch, link) {
        list_remove(&call->link);
        call->sent = true;
        nbd_call_drop(call);
    }
}

/* What is to be sent now; waits for it. False when the client is closing and all has been sent. */
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

/* Say goodbye; the server hangs up, and ends the receiver by that. `error`: sending has failed before. */
static void co_say_goodbye(struct nbd_client *c, int error)
{
    struct nbd_request goodbye = {.type = NBD_CMD_DISC};
    uint8_t header[NBD_REQUEST_SIZE];
    struct iovec vec = {.iov_base = header, .iov_len = sizeof(header)};

    nbd_request_encode(header, &goodbye);
    if (!error && nbd_wire_co_send(&c->wire, &vec, 1) == 0 && c->wire.tls) {
        tls_session_bye(c->wire.tls);
    }
    shutdown(c->wire.fd, SHUT_WR);
}

static void sender(void *arg)
{
    struct nbd_client *c = arg;
    struct outbox o = {.wire = &c->wire};
    struct list batch = LIST_INIT(batch);

    while (co_take_batch(c, &batch)) {
        c->sender_busy = true;
        o.error = c->wire.fd < 0 ? -EPIPE : 0;
        co_send_batch(&o, &batch);
        if (o.error && c->wire.fd >= 0) {
            /* The receiver notices, and sees to all that wait for an answer. */
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

void nbd_client_wake_sender_locked(struct nbd_client *c)
{
    if (c->idle_sender) {
        struct co *co = c->idle_sender;

        c->idle_sender = NULL;
        co_wake(co);
    }
}

/* --- calls --------------------------------------------------------------------------------------- */

static int enqueue(struct nbd_client *c, struct nbd_call *call)
{
    unsigned i = 0;

    pthread_mutex_lock(&c->lock);
    if (c->broken || (c->lost && c->failing) ||
        (c->writes_lost && call->rq.type == NBD_CMD_FLUSH)) {
        pthread_mutex_unlock(&c->lock);
        return -EIO;
    }
    call->flush_mark = c->unflushed_count;
    /* The semaphore has made sure that one is free. */
    while (c->slot[i]) {
        i++;
    }
    c->slot[i] = call;
    call->rq.cookie = (uint64_t)++c->generation << 32 | i;
    nbd_request_encode(call->header, &call->rq);
    list_append(&c->send_queue, &call->link);
    nbd_client_wake_sender_locked(c);
    pthread_mutex_unlock(&c->lock);
    return 0;
}

/* Send a request and wait for its answer. */
static int co_call(struct nbd_client *c, struct nbd_call *call)
{
    int ret;

    call->co = co_self();
    call->result = 0;
    call->received.list = NULL;
    call->received.count = call->received.capacity = 0;
    call->sent = false;
    atomic_init(&call->pending, 2);
    co_semaphore_take(&c->room, 1);
    ret = enqueue(c, call);
    if (ret == 0) {
        co_suspend();
        ret = call->result;
    }
    co_semaphore_give(&c->room, 1);
    return ret;
}

static int co_command(struct nbd_client *c, uint16_t type, unsigned flags, uint64_t offset,
                      uint64_t length)
{
    struct nbd_call call = {
        .rq = {.type = type,
               .flags = (uint16_t)flags,
               .offset = offset,
               .length = (uint32_t)length},
    };

    return co_call(c, &call);
}

/* The same command for each part of a range. */
static int co_ranged(struct nbd_client *c, uint16_t type, unsigned flags, uint64_t offset,
                     uint64_t length, uint32_t max)
{
    if (!range_fits(offset, length, c->agreed.size)) {
        return -EIO;
    }
    while (length > 0) {
        uint64_t part = MIN(length, max);
        int ret = co_command(c, type, flags, offset, part);

        if (ret < 0) {
            return ret;
        }
        offset += part;
        length -= part;
    }
    return 0;
}

/* Longest request that has no data, a multiple of the server's minimum block. */
static uint32_t length_max(const struct nbd_client *c)
{
    return (uint32_t)round_down(NBD_CLIENT_LENGTH_MAX, c->agreed.min_block);
}

/* Longest request with data. */
static uint32_t data_max(const struct nbd_client *c)
{
    uint32_t max = MIN(c->agreed.max_block, NBD_MAX_BLOCK_SIZE);

    return (uint32_t)round_down(max, c->agreed.min_block);
}

/* Read or write, in parts. */
static int co_transfer(struct nbd_client *c, uint16_t type, unsigned flags, uint64_t offset,
                       struct iov iov)
{
    size_t done = 0;

    if (!range_fits(offset, iov.size, c->agreed.size)) {
        return -EIO;
    }
    while (done < iov.size) {
        size_t part = MIN(iov.size - done, data_max(c));
        struct nbd_call call = {
            .rq = {.type = type,
                   .flags = (uint16_t)flags,
                   .offset = offset + done,
                   .length = (uint32_t)part},
            .data = iov,
        };
        AUTO_FREE struct iovec *slice = NULL;
        int ret;

        if (part < iov.size) {
            slice = calloc((size_t)iov.count, sizeof(*slice));
            if (!slice) {
                return -ENOMEM;
            }
            call.data = (struct iov){.vec = slice, .size = part};
            call.data.count = iov_slice(iov, done, part, slice, iov.count);
        }
        ret = co_call(c, &call);
        if (ret < 0) {
            return ret;
        }
        done += part;
    }
    return 0;
}

int nbd_client_co_preadv(struct nbd_client *c, uint64_t offset, struct iov iov)
{
    return co_transfer(c, NBD_CMD_READ, 0, offset, iov);
}

int nbd_client_co_pread(struct nbd_client *c, uint64_t offset, void *buf, size_t size)
{
    struct iovec vec;

    return nbd_client_co_preadv(c, offset, iov_from_buf(&vec, buf, size));
}

static int check_writable(const struct nbd_client *c)
{
    return c->agreed.flags & NBD_FLAG_READ_ONLY ? -EROFS : 0;
}

/* An export can't grow: to a format above it that is a want of space. */
static int check_room(const struct nbd_client *c, uint64_t offset, uint64_t length)
{
    int ret = check_writable(c);

    return ret == 0 && !range_fits(offset, length, c->agreed.size) ? -ENOSPC : ret;
}

static unsigned fua_flag(const struct nbd_client *c, bool fua)
{
    return fua && (c->agreed.flags & NBD_FLAG_SEND_FUA) ? NBD_CMD_FLAG_FUA : 0;
}

int nbd_client_co_pwritev(struct nbd_client *c, uint64_t offset, struct iov iov, bool fua)
{
    unsigned flags = fua_flag(c, fua);
    int ret = check_room(c, offset, iov.size);

    if (ret == 0) {
        ret = nbd_reconnect_co_limit(c);
    }
    if (ret == 0) {
        ret = co_transfer(c, NBD_CMD_WRITE, flags, offset, iov);
    }
    return ret == 0 && fua && !flags ? nbd_client_co_flush(c) : ret;
}

int nbd_client_co_flush(struct nbd_client *c)
{
    return c->agreed.flags & NBD_FLAG_SEND_FLUSH ? co_command(c, NBD_CMD_FLUSH, 0, 0, 0) : 0;
}

int nbd_client_co_trim(struct nbd_client *c, uint64_t offset, uint64_t length)
{
    int ret = check_writable(c);

    if (ret < 0) {
        return ret;
    }
    if (!(c->agreed.flags & NBD_FLAG_SEND_TRIM)) {
        return -ENOTSUP;
    }
    ret = nbd_reconnect_co_limit(c);
    return ret < 0 ? ret : co_ranged(c, NBD_CMD_TRIM, 0, offset, length, length_max(c));
}

int nbd_client_co_write_zeroes(struct nbd_client *c, uint64_t offset, uint64_t length,
                               unsigned cmd_flags)
{
    bool fua = cmd_flags & NBD_CMD_FLAG_FUA;
    int ret = check_room(c, offset, length);

    if (ret < 0) {
        return ret;
    }
    if (!(c->agreed.flags & NBD_FLAG_SEND_WRITE_ZEROES)) {
        return -ENOTSUP;
    }
    if (!(c->agreed.flags & NBD_FLAG_SEND_FAST_ZERO)) {
        cmd_flags &= ~NBD_CMD_FLAG_FAST_ZERO;
    }
    cmd_flags = (cmd_flags & ~NBD_CMD_FLAG_FUA) | fua_flag(c, fua);
    ret = nbd_reconnect_co_limit(c);
    if (ret == 0) {
        ret = co_ranged(c, NBD_CMD_WRITE_ZEROES, cmd_flags, offset, length, data_max(c));
    }
    return ret == 0 && fua && !(cmd_flags & NBD_CMD_FLAG_FUA) ? nbd_client_co_flush(c) : ret;
}

int nbd_client_co_cache(struct nbd_client *c, uint64_t offset, uint64_t length)
{
    if (!(c->agreed.flags & NBD_FLAG_SEND_CACHE)) {
        return -ENOTSUP;
    }
    return co_ranged(c, NBD_CMD_CACHE, 0, offset, length, data_max(c));
}

void nbd_extents_clear(struct nbd_extents *e)
{
    free(e->list);
    *e = (struct nbd_extents){0};
}

int nbd_client_co_block_status(struct nbd_client *c, uint64_t offset, uint64_t length, bool one,
                               struct nbd_extents *per_context)
{
    struct nbd_call call = {
        .rq = {.type = NBD_CMD_BLOCK_STATUS,
               .flags = one ? NBD_CMD_FLAG_REQ_ONE : 0,
               .offset = offset,
               .length = (uint32_t)MIN(length, length_max(c))},
        .per_context = per_context,
    };
    bool any = false;
    int ret;

    for (size_t i = 0; i < c->context_count; i++) {
        per_context[i] = (struct nbd_extents){0};
        any |= c->agreed.granted[i];
    }
    if (!any) {
        return -ENOTSUP;
    }
    if (length == 0 || !range_fits(offset, length, c->agreed.size)) {
        return -EIO;
    }
    ret = co_call(c, &call);
    for (size_t i = 0; i < c->context_count && ret == 0; i++) {
        if (c->agreed.granted[i] && per_context[i].count == 0) {
            ret = -EIO;
        }
    }
    for (size_t i = 0; i < c->context_count && ret < 0; i++) {
        nbd_extents_clear(&per_context[i]);
    }
    return ret;
}

/* --- what was agreed ------------------------------------------------------------------------------- */

uint64_t nbd_client_size(const struct nbd_client *c)
{
    return c->agreed.size;
}

unsigned nbd_client_flags(const struct nbd_client *c)
{
    return c->agreed.flags;
}

uint32_t nbd_client_min_block(const struct nbd_client *c)
{
    return c->agreed.min_block;
}

uint32_t nbd_client_preferred_block(const struct nbd_client *c)
{
    return c->agreed.preferred_block;
}

uint32_t nbd_client_max_block(const struct nbd_client *c)
{
    return data_max(c);
}

const char *nbd_client_description(const struct nbd_client *c)
{
    return c->agreed.description;
}

bool nbd_client_context(const struct nbd_client *c, size_t i)
{
    return i < c->context_count && c->agreed.granted[i];
}

/* --- life ---------------------------------------------------------------------------------------- */

static void deadline_passed(struct loop_timer *timer)
{
    struct nbd_deadline *d = container_of(timer, struct nbd_deadline, timer);

    d->passed = true;
    shutdown(*d->fd, SHUT_RDWR);
}

void nbd_deadline_begin(struct nbd_deadline *d, const int *fd, int64_t timeout_ns)
{
    *d = (struct nbd_deadline){.fd = fd};
    loop_timer_init(&d->timer, deadline_passed);
    if (timeout_ns >= 0) {
        loop_timer_arm(&d->timer, loop_now_ns() + timeout_ns);
    }
}

int nbd_deadline_end(struct nbd_deadline *d, int ret, struct error *err)
{
    loop_timer_disarm(&d->timer);
    if (d->passed) {
        error_clear(err);
        return error_set(err, ETIMEDOUT, "The NBD server took too long to negotiate");
    }
    return ret;
}

static void target_clear(struct nbd_target *t)
{
    nbd_address_clear(&t->address);
    free((char *)(uintptr_t)t->tls.hostname);
    free(t->export_name);
    for (size_t i = 0; i < t->context_count; i++) {
        free(t->contexts[i]);
    }
}

/* A copy, NULL of NULL. False if out of memory. */
static bool copy_string(const char *from, char **ret)
{
    *ret = from ? strdup(from) : NULL;
    return !from || *ret;
}

static int target_init(struct nbd_target *t, const struct nbd_address *address,
                       const struct nbd_client_tls *tls, const char *export_name,
                       const char *const *contexts, size_t context_count)
{
    /* The name that the server's certificate has to be for. */
    const char *name = !tls ? NULL : tls->hostname || address->path ? tls->hostname : address->host;
    char *hostname = NULL;
    bool ok = copy_string(address->path, &t->address.path) &&
              copy_string(address->host, &t->address.host) &&
              copy_string(address->port, &t->address.port) && copy_string(name, &hostname) &&
              copy_string(export_name, &t->export_name);

    t->tls = (struct nbd_client_tls){.creds = tls ? tls->creds : NULL, .hostname = hostname};
    for (; ok && t->context_count < context_count; t->context_count++) {
        ok = copy_string(contexts[t->context_count], &t->contexts[t->context_count]);
        if (!ok) {
            break;
        }
    }
    return ok ? 0 : -ENOMEM;
}

static void release(struct nbd_client *c)
{
    nbd_wire_close(&c->wire);
    nbd_reconnect_destroy(c);
    target_clear(&c->target);
    nbd_agreement_clear(&c->agreed);
    co_semaphore_destroy(&c->room);
    co_group_destroy(&c->group);
    pthread_mutex_destroy(&c->lock);
    free(c->buffer);
    free(c);
}

static struct nbd_client *client_new(size_t context_count)
{
    struct nbd_client *c = calloc(1, sizeof(*c));

    if (!c) {
        return NULL;
    }
    c->wire.fd = -1;
    c->home = reactor_current();
    c->context_count = context_count;
    co_semaphore_init(&c->room, NBD_CLIENT_IN_FLIGHT);
    co_group_init(&c->group);
    pthread_mutex_init(&c->lock, NULL);
    list_init(&c->send_queue);
    nbd_reconnect_init(c);
    c->buffer = malloc(NBD_CLIENT_BUFFER);
    if (!c->buffer) {
        release(c);
        return NULL;
    }
    return c;
}

static int start(struct nbd_client *c, struct error *err)
{
    int ret;

    co_group_add(&c->group);
    ret = reactor_spawn(c->home, nbd_client_receiver, c);
    if (ret == 0) {
        co_group_add(&c->group);
        ret = reactor_spawn(c->home, sender, c);
        if (ret < 0) {
            co_group_done(&c->group);
            shutdown(c->wire.fd, SHUT_RDWR);
            co_group_wait(&c->group);
        }
    }
    return ret < 0 ? error_set_errno(err, -ret, "Could not start the NBD client") : 0;
}

int nbd_client_co_attempt(const struct nbd_target *t, struct nbd_wire *w, struct nbd_agreement *ret,
                          struct error *err)
{
    const char *contexts[NBD_CLIENT_CONTEXT_MAX];
    struct nbd_deadline deadline;
    ERROR_AUTO(local);
    int r = nbd_co_dial(&t->address, t->timeout_ns, &w->fd, err);

    if (r < 0) {
        return r;
    }
    for (size_t i = 0; i < t->context_count; i++) {
        contexts[i] = t->contexts[i];
    }
    nbd_deadline_begin(&deadline, &w->fd, t->timeout_ns);
    r = nbd_handshake_co_choose(w, t->tls.creds ? &t->tls : NULL, t->export_name, contexts,
                                t->context_count, ret, &local);
    r = nbd_deadline_end(&deadline, r, &local);
    if (r < 0) {
        error_move(err, &local);
    }
    return r;
}

int nbd_client_co_connect(const struct nbd_address *address, const struct nbd_client_tls *tls,
                          const char *export_name, const char *const *contexts,
                          size_t context_count, int64_t timeout_ns, struct nbd_client **ret,
                          struct error *err)
{
    struct nbd_client *c;
    int r;

    if (context_count > NBD_CLIENT_CONTEXT_MAX) {
        return error_set(err, EINVAL, "More than %d metadata contexts were asked for",
                         NBD_CLIENT_CONTEXT_MAX);
    }
    c = client_new(context_count);
    if (!c) {
        return error_set(err, ENOMEM, "Out of memory");
    }
    c->target.timeout_ns = timeout_ns;
    r = target_init(&c->target, address, tls, export_name, contexts, context_count);
    r = r < 0 ? error_set(err, ENOMEM, "Out of memory")
              : nbd_client_co_attempt(&c->target, &c->wire, &c->agreed, err);
    if (r == 0) {
        r = start(c, err);
    }
    if (r < 0) {
        release(c);
        return r;
    }
    *ret = c;
    return 0;
}

void nbd_client_co_close(struct nbd_client *c)
{
    struct nbd_deadline deadline;

    if (!c) {
        return;
    }
    pthread_mutex_lock(&c->lock);
    c->closing = true;
    nbd_client_wake_sender_locked(c);
    pthread_mutex_unlock(&c->lock);
    nbd_reconnect_abort(c);
    nbd_deadline_begin(&deadline, &c->wire.fd, GOODBYE_NS);
    co_group_wait(&c->group);
    loop_timer_disarm(&deadline.timer);
    release(c);
}

int nbd_client_co_list(const struct nbd_address *address, const struct nbd_client_tls *tls,
                       int64_t timeout_ns, struct nbd_export_info **ret, size_t *ret_count,
                       struct error *err)
{
    struct nbd_wire wire CLEANUP(nbd_wire_close) = {.fd = -1};
    struct nbd_client_tls named;
    struct nbd_deadline deadline;
    ERROR_AUTO(local);
    int r = nbd_co_dial(address, timeout_ns, &wire.fd, err);

    if (r < 0) {
        return r;
    }
    if (tls) {
        named = *tls;
        named.hostname = named.hostname || address->path ? named.hostname : address->host;
    }
    nbd_deadline_begin(&deadline, &wire.fd, timeout_ns);
    r = nbd_handshake_co_list(&wire, tls ? &named : NULL, ret, ret_count, &local);
    r = nbd_deadline_end(&deadline, r, &local);
    if (r < 0) {
        error_move(err, &local);
    }
    return r;
}
