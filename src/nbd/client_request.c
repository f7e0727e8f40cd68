/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What users ask for, as requests that fit the server's limits.
 *
 *   requester (any reactor)          sender (home)                receiver (home)
 *   queue the call, suspend --lock--> send all that is queued      fill reads, note results
 *        ^                              |  drop                       |  drop
 *        +------ woken by the second ---+-----------------------------+
 */
#include <errno.h>
#include <stdlib.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "co/wait.h"
#include "nbd/client_internal.h"
#include "trace/events.h"

/* --- one request ---------------------------------------------------------------------------- */

static int enqueue_call(struct nbd_client *c, struct nbd_call *call)
{
    unsigned i = 0;

    pthread_mutex_lock(&c->lock);
    if (c->broken || (c->lost && c->failing) ||
        (c->writes_lost && call->rq.type == NBD_CMD_FLUSH)) {
        pthread_mutex_unlock(&c->lock);
        return -EIO;
    }
    call->flush_mark = c->unflushed_count;
    /* One is free: the semaphore counts them. */
    while (c->slot[i]) {
        i++;
    }
    c->slot[i] = call;
    call->number = ++c->requests;
    call->rq.cookie = (uint64_t)++c->generation << 32 | i;
    list_append(&c->send_queue, &call->link);
    nbd_client_wake_sender_locked(c);
    pthread_mutex_unlock(&c->lock);
    return 0;
}

static void trace_call_begin(const struct nbd_client *c, const struct nbd_request *rq)
{
    if (trace_nbd_client_request_begin_is_on()) {
        trace_nbd_client_request_begin(c->target.export_name, nbd_command_name(rq->type),
                                       rq->cookie, rq->offset, rq->length, rq->flags);
    }
}

static void trace_call_end(const struct nbd_client *c, const struct nbd_request *rq, int result)
{
    if (trace_nbd_client_request_end_is_on()) {
        trace_nbd_client_request_end(c->target.export_name, nbd_command_name(rq->type), rq->cookie,
                                     result);
    }
}

/* Send a request and wait for its reply. */
static int co_call(struct nbd_client *c, struct nbd_call *call)
{
    struct co_wait wait;
    int r;

    call->co = co_self();
    call->result = 0;
    call->received.list = NULL;
    call->received.count = call->received.capacity = 0;
    call->sent = false;
    atomic_init(&call->pending, 2);
    co_semaphore_take(&c->room, 1);
    r = enqueue_call(c, call);
    if (r == 0) {
        trace_call_begin(c, &call->rq);
        co_wait_begin(&wait, "a reply to the NBD client, for export", c->target.export_name, -1);
        co_suspend();
        co_wait_end(&wait);
        r = call->result;
        trace_call_end(c, &call->rq, r);
    }
    co_semaphore_give(&c->room, 1);
    return r;
}

static int co_command(struct nbd_client *c, uint16_t type, unsigned flags, uint64_t offset,
                      uint64_t length)
{
    struct nbd_call call = {
        .rq = {.type = type, .flags = (uint16_t)flags, .offset = offset, .length = length},
    };

    return co_call(c, &call);
}

/* --- in parts ------------------------------------------------------------------------------- */

/* The same command for each part of a range. */
static int co_command_in_parts(struct nbd_client *c, uint16_t type, unsigned flags, uint64_t offset,
                               uint64_t length, uint32_t max)
{
    if (!range_fits(offset, length, c->agreed.size)) {
        return -EIO;
    }
    while (length > 0) {
        uint64_t part = MIN(length, max);
        int r = co_command(c, type, flags, offset, part);

        if (r < 0) {
            return r;
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

/* Longest range of a block status. */
static uint64_t status_length_max(const struct nbd_client *c)
{
    return c->wide ? round_down(INT64_MAX, c->agreed.min_block) : length_max(c);
}

/* Longest request with data. */
static uint32_t data_max(const struct nbd_client *c)
{
    uint32_t max = MIN(c->agreed.max_block, (uint32_t)NBD_MAX_BLOCK_SIZE);

    return (uint32_t)round_down(max, c->agreed.min_block);
}

/* Read or write. */
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
            .rq = {.type = type, .flags = (uint16_t)flags, .offset = offset + done, .length = part},
            .data = iov,
        };
        AUTO_FREE struct iovec *slice = NULL;
        int r;

        if (part < iov.size) {
            slice = calloc((size_t)iov.count, sizeof(*slice));
            if (!slice) {
                return -ENOMEM;
            }
            call.data = (struct iov){.vec = slice, .size = part};
            call.data.count = iov_slice(iov, done, part, slice, iov.count);
        }
        r = co_call(c, &call);
        if (r < 0) {
            return r;
        }
        done += part;
    }
    return 0;
}

/* --- reads and writes ----------------------------------------------------------------------- */

int nbd_client_co_preadv(struct nbd_client *c, uint64_t offset, struct iov iov)
{
    return co_transfer(c, NBD_CMD_READ, 0, offset, iov);
}

int nbd_client_co_pread(struct nbd_client *c, uint64_t offset, void *buf, size_t size)
{
    struct iovec vec;

    return nbd_client_co_preadv(c, offset, iov_from_buf(&vec, buf, size));
}

/*
 * Before a change of [offset, offset + length). An export cannot grow: to a format above it, a
 * change beyond its end is a lack of space.
 */
static int check_change(const struct nbd_client *c, uint64_t offset, uint64_t length)
{
    if (c->agreed.flags & NBD_FLAG_READ_ONLY) {
        return -EROFS;
    }
    return range_fits(offset, length, c->agreed.size) ? 0 : -ENOSPC;
}

static unsigned fua_flag(const struct nbd_client *c, bool fua)
{
    return fua && (c->agreed.flags & NBD_FLAG_SEND_FUA) ? NBD_CMD_FLAG_FUA : 0;
}

/* Before a write: flush if many writes are kept for a repetition. */
static int co_limit_unflushed(struct nbd_client *c)
{
    return nbd_reconnect_wants_flush(c) ? nbd_client_co_flush(c) : 0;
}

int nbd_client_co_pwritev(struct nbd_client *c, uint64_t offset, struct iov iov, bool fua)
{
    unsigned flags = fua_flag(c, fua);
    int r = check_change(c, offset, iov.size);

    UNLESS_FAILED(r, co_limit_unflushed(c));
    UNLESS_FAILED(r, co_transfer(c, NBD_CMD_WRITE, flags, offset, iov));
    if (r < 0) {
        return r;
    }
    return fua && !flags ? nbd_client_co_flush(c) : 0;
}

int nbd_client_co_flush(struct nbd_client *c)
{
    return c->agreed.flags & NBD_FLAG_SEND_FLUSH ? co_command(c, NBD_CMD_FLUSH, 0, 0, 0) : 0;
}

int nbd_client_co_trim(struct nbd_client *c, uint64_t offset, uint64_t length)
{
    int r;

    if (c->agreed.flags & NBD_FLAG_READ_ONLY) {
        return -EROFS;
    }
    if (!(c->agreed.flags & NBD_FLAG_SEND_TRIM)) {
        return -ENOTSUP;
    }
    r = co_limit_unflushed(c);
    return r < 0 ? r : co_command_in_parts(c, NBD_CMD_TRIM, 0, offset, length, length_max(c));
}

int nbd_client_co_write_zeroes(struct nbd_client *c, uint64_t offset, uint64_t length,
                               unsigned cmd_flags)
{
    bool fua = cmd_flags & NBD_CMD_FLAG_FUA;
    int r = check_change(c, offset, length);

    if (r < 0) {
        return r;
    }
    if (!(c->agreed.flags & NBD_FLAG_SEND_WRITE_ZEROES)) {
        return -ENOTSUP;
    }
    if (!(c->agreed.flags & NBD_FLAG_SEND_FAST_ZERO)) {
        cmd_flags &= ~(unsigned)NBD_CMD_FLAG_FAST_ZERO;
    }
    cmd_flags = (cmd_flags & ~(unsigned)NBD_CMD_FLAG_FUA) | fua_flag(c, fua);
    r = co_limit_unflushed(c);
    UNLESS_FAILED(
        r, co_command_in_parts(c, NBD_CMD_WRITE_ZEROES, cmd_flags, offset, length, data_max(c)));
    if (r < 0) {
        return r;
    }
    return fua && !(cmd_flags & NBD_CMD_FLAG_FUA) ? nbd_client_co_flush(c) : 0;
}

int nbd_client_co_cache(struct nbd_client *c, uint64_t offset, uint64_t length)
{
    if (!(c->agreed.flags & NBD_FLAG_SEND_CACHE)) {
        return -ENOTSUP;
    }
    return co_command_in_parts(c, NBD_CMD_CACHE, 0, offset, length, data_max(c));
}

/* --- block status --------------------------------------------------------------------------- */

/* Whether each granted context has been answered; else -EIO. */
static int check_extents(const struct nbd_client *c, const struct nbd_call *call)
{
    char who[512];

    for (size_t i = 0; i < c->context_count; i++) {
        if (c->agreed.granted[i] && call->per_context[i].count == 0) {
            log_warning("%s: reply to %s (offset %llu, length %llu) has no extents for the context "
                        "'%s', which was negotiated",
                        nbd_client_describe(c, who, sizeof(who)), nbd_command_name(call->rq.type),
                        (unsigned long long)call->rq.offset, (unsigned long long)call->rq.length,
                        c->target.contexts[i]);
            return -EIO;
        }
    }
    return 0;
}

int nbd_client_co_block_status(struct nbd_client *c, uint64_t offset, uint64_t length, bool one,
                               struct nbd_extents *per_context)
{
    struct nbd_call call = {
        .rq = {.type = NBD_CMD_BLOCK_STATUS,
               .flags = one ? NBD_CMD_FLAG_REQ_ONE : 0,
               .offset = offset,
               .length = MIN(length, status_length_max(c))},
        .per_context = per_context,
    };
    bool any = false;
    int r;

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
    r = co_call(c, &call);
    UNLESS_FAILED(r, check_extents(c, &call));
    for (size_t i = 0; i < c->context_count && r < 0; i++) {
        nbd_extents_clear(&per_context[i]);
    }
    return r;
}

/* --- what was agreed ------------------------------------------------------------------------ */

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
