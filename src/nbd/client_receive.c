/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Answers of the server. Each part of each answer is checked against the request that its cookie names; one that doesn't
 * fit ends the connection, since nothing after it can be trusted.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "nbd/client_internal.h"

static size_t available(const struct nbd_client *c)
{
    return c->end - c->pos;
}

/* Have `needed` bytes in the buffer. */
static int co_fill(struct nbd_client *c, size_t needed)
{
    while (available(c) < needed) {
        ssize_t n;

        if (c->pos + needed > NBD_CLIENT_BUFFER || c->pos == c->end) {
            memmove(c->buffer, c->buffer + c->pos, available(c));
            c->end = available(c);
            c->pos = 0;
        }
        n = nbd_wire_co_recv(&c->wire, c->buffer + c->end, NBD_CLIENT_BUFFER - c->end);
        if (n <= 0) {
            return n < 0 ? (int)n : -ECONNRESET;
        }
        c->end += (size_t)n;
    }
    return 0;
}

/* Receive to memory, what the buffer has first. */
static int co_receive(struct nbd_client *c, uint8_t *to, size_t size)
{
    while (size > 0) {
        size_t part = MIN(size, available(c));

        if (part > 0) {
            memcpy(to, c->buffer + c->pos, part);
            c->pos += part;
        } else if (size >= NBD_CLIENT_BUFFER / 2) {
            ssize_t n = nbd_wire_co_recv(&c->wire, to, size);

            if (n <= 0) {
                return n < 0 ? (int)n : -ECONNRESET;
            }
            part = (size_t)n;
        } else {
            int ret = co_fill(c, 1);

            if (ret < 0) {
                return ret;
            }
        }
        to += part;
        size -= part;
    }
    return 0;
}

/* Receive to [offset, offset + size) of a read's memory. */
static int co_receive_data(struct nbd_client *c, struct nbd_call *call, size_t offset, size_t size)
{
    for (int i = 0; i < call->data.count && size > 0; i++) {
        const struct iovec *v = &call->data.vec[i];
        size_t part;
        int ret;

        if (offset >= v->iov_len) {
            offset -= v->iov_len;
            continue;
        }
        part = MIN(size, v->iov_len - offset);
        ret = co_receive(c, (uint8_t *)v->iov_base + offset, part);
        if (ret < 0) {
            return ret;
        }
        offset = 0;
        size -= part;
    }
    return 0;
}

/* --- calls ----------------------------------------------------------------------------------------- */

static struct nbd_call *find_call(struct nbd_client *c, uint64_t cookie)
{
    uint32_t i = (uint32_t)cookie;
    struct nbd_call *call = NULL;

    if (i < NBD_CLIENT_IN_FLIGHT) {
        pthread_mutex_lock(&c->lock);
        call = c->slot[i];
        pthread_mutex_unlock(&c->lock);
    }
    return call && call->rq.cookie == cookie ? call : NULL;
}

static void note(struct nbd_call *call, int result)
{
    if (call->result == 0) {
        call->result = result;
    }
}

static void finish(struct nbd_client *c, struct nbd_call *call)
{
    if (call->rq.type == NBD_CMD_READ && call->result == 0 &&
        !nbd_pieces_cover(&call->received, call->rq.length)) {
        call->result = -EIO;
    }
    nbd_pieces_clear(&call->received);
    nbd_reconnect_note_answer(c, call);
    pthread_mutex_lock(&c->lock);
    c->slot[(uint32_t)call->rq.cookie] = NULL;
    pthread_mutex_unlock(&c->lock);
    nbd_call_drop(call);
}

static void fail_all(struct nbd_client *c)
{
    struct nbd_call *lost[NBD_CLIENT_IN_FLIGHT];

    pthread_mutex_lock(&c->lock);
    c->broken = true;
    memcpy(lost, c->slot, sizeof(lost));
    memset(c->slot, 0, sizeof(c->slot));
    pthread_mutex_unlock(&c->lock);
    for (size_t i = 0; i < NBD_CLIENT_IN_FLIGHT; i++) {
        if (lost[i]) {
            note(lost[i], -EIO);
            nbd_pieces_clear(&lost[i]->received);
            nbd_call_drop(lost[i]);
        }
    }
}

/* --- chunks: 0, or -errno when the connection has to end --------------------------------------------- */

/* Note that [offset, offset + length) is answered: a part of the read that was not before. */
static int answer_read(struct nbd_call *call, uint64_t offset, uint64_t length)
{
    if (call->rq.type != NBD_CMD_READ || length == 0 || offset < call->rq.offset ||
        !range_fits(offset - call->rq.offset, length, call->rq.length)) {
        return -EPROTO;
    }
    return nbd_pieces_add(&call->received, offset - call->rq.offset, length);
}

static int co_take_data(struct nbd_client *c, struct nbd_call *call, const struct nbd_chunk *chunk)
{
    uint64_t offset, length;
    int ret = chunk->length > 8 ? co_fill(c, 8) : -EPROTO;

    if (ret < 0) {
        return ret;
    }
    offset = load_be64(c->buffer + c->pos);
    c->pos += 8;
    length = chunk->length - 8;
    ret = answer_read(call, offset, length);
    if (ret < 0) {
        return ret;
    }
    return co_receive_data(c, call, offset - call->rq.offset, length);
}

static int co_take_hole(struct nbd_client *c, struct nbd_call *call, const struct nbd_chunk *chunk)
{
    uint64_t offset, length;
    int ret = chunk->length == 12 ? co_fill(c, 12) : -EPROTO;

    if (ret < 0) {
        return ret;
    }
    offset = load_be64(c->buffer + c->pos);
    length = load_be32(c->buffer + c->pos + 8);
    c->pos += 12;
    ret = answer_read(call, offset, length);
    if (ret == 0) {
        iov_fill(call->data, offset - call->rq.offset, 0, length);
    }
    return ret;
}

static struct nbd_extents *extents_of(struct nbd_client *c, struct nbd_call *call, uint32_t id)
{
    for (size_t i = 0; i < c->context_count; i++) {
        if (c->agreed.granted[i] && c->agreed.context_id[i] == id) {
            return &call->per_context[i];
        }
    }
    return NULL;
}

/* Extents from the wire; what reaches beyond the request is cut off. */
static int co_take_extents(struct nbd_client *c, const struct nbd_call *call, size_t count,
                           struct nbd_extents *ret)
{
    uint64_t left = call->rq.length;

    ret->list = malloc(count * sizeof(*ret->list));
    if (!ret->list) {
        return -ENOMEM;
    }
    for (size_t i = 0; i < count; i++) {
        struct nbd_extent e;
        int r = co_fill(c, NBD_EXTENT_SIZE);

        if (r < 0) {
            return r;
        }
        e.length = load_be32(c->buffer + c->pos);
        e.flags = load_be32(c->buffer + c->pos + 4);
        c->pos += NBD_EXTENT_SIZE;
        if (e.length == 0) {
            return -EPROTO;
        }
        e.length = MIN(e.length, left);
        left -= e.length;
        if (e.length > 0) {
            ret->list[ret->count++] = e;
        }
    }
    return 0;
}

static int co_take_status(struct nbd_client *c, struct nbd_call *call,
                          const struct nbd_chunk *chunk)
{
    struct nbd_extents *extents;
    size_t count;
    int ret;

    if (call->rq.type != NBD_CMD_BLOCK_STATUS || chunk->length < 4 + NBD_EXTENT_SIZE ||
        (chunk->length - 4) % NBD_EXTENT_SIZE != 0) {
        return -EPROTO;
    }
    count = (chunk->length - 4) / NBD_EXTENT_SIZE;
    if (count > NBD_CLIENT_EXTENTS_MAX) {
        return -EPROTO;
    }
    ret = co_fill(c, 4);
    if (ret < 0) {
        return ret;
    }
    extents = extents_of(c, call, load_be32(c->buffer + c->pos));
    c->pos += 4;
    if (!extents || extents->list) {
        return -EPROTO;
    }
    return co_take_extents(c, call, count, extents);
}

static int co_take_error(struct nbd_client *c, struct nbd_call *call, const struct nbd_chunk *chunk)
{
    uint32_t wire;
    size_t text;
    int ret;

    if (chunk->length < 6 || chunk->length > 6 + 8 + NBD_STRING_MAX) {
        return -EPROTO;
    }
    ret = co_fill(c, chunk->length);
    if (ret < 0) {
        return ret;
    }
    wire = load_be32(c->buffer + c->pos);
    text = load_be16(c->buffer + c->pos + 4);
    if (wire == 0 || text > chunk->length - 6) {
        return -EPROTO;
    }
    log_debug("NBD server: %s: %.*s", nbd_command_name(call->rq.type), (int)text,
              (const char *)c->buffer + c->pos + 6);
    c->pos += chunk->length;
    note(call, -nbd_error_to_errno(wire));
    return 0;
}

static int co_take_chunk(struct nbd_client *c, struct nbd_call *call, const struct nbd_chunk *chunk)
{
    if (NBD_CHUNK_IS_ERROR(chunk->type)) {
        return co_take_error(c, call, chunk);
    }
    switch (chunk->type) {
    case NBD_CHUNK_NONE:
        return chunk->length == 0 && (chunk->flags & NBD_CHUNK_FLAG_DONE) ? 0 : -EPROTO;
    case NBD_CHUNK_OFFSET_DATA:
        return co_take_data(c, call, chunk);
    case NBD_CHUNK_OFFSET_HOLE:
        return co_take_hole(c, call, chunk);
    case NBD_CHUNK_BLOCK_STATUS:
        return co_take_status(c, call, chunk);
    default:
        return -EPROTO;
    }
}

static int co_take_simple(struct nbd_client *c, struct nbd_call *call, uint32_t error)
{
    int ret = 0;

    if (call->rq.type == NBD_CMD_BLOCK_STATUS ||
        (c->agreed.structured && call->rq.type == NBD_CMD_READ)) {
        /* These are answered in chunks; only an error may come like this. */
        if (!error) {
            return -EPROTO;
        }
    }
    if (error) {
        note(call, -nbd_error_to_errno(error));
    } else if (call->rq.type == NBD_CMD_READ) {
        ret = answer_read(call, call->rq.offset, call->rq.length);
        ret = ret < 0 ? ret : co_receive_data(c, call, 0, call->rq.length);
    }
    return ret;
}

/* One simple reply or chunk. */
static int co_take_reply(struct nbd_client *c)
{
    struct nbd_chunk chunk;
    struct nbd_call *call;
    uint32_t error;
    bool simple;
    int n, ret = co_fill(c, NBD_SIMPLE_REPLY_SIZE);

    if (ret < 0) {
        return ret;
    }
    n = nbd_reply_decode(c->buffer + c->pos, available(c), &chunk, &simple, &error);
    if (n == 0) {
        ret = co_fill(c, NBD_CHUNK_HEADER_SIZE);
        if (ret < 0) {
            return ret;
        }
        n = nbd_reply_decode(c->buffer + c->pos, available(c), &chunk, &simple, &error);
    }
    if (n <= 0 || (!simple && !c->agreed.structured)) {
        return -EPROTO;
    }
    c->pos += (size_t)n;
    call = find_call(c, chunk.cookie);
    if (!call) {
        return -EPROTO;
    }
    ret = simple ? co_take_simple(c, call, error) : co_take_chunk(c, call, &chunk);
    if (ret < 0) {
        return ret;
    }
    if (simple || (chunk.flags & NBD_CHUNK_FLAG_DONE)) {
        finish(c, call);
    }
    return 0;
}

void nbd_client_receiver(void *arg)
{
    struct nbd_client *c = arg;
    int ret;

    do {
        c->pos = c->end = 0;
        ret = 0;
        while (ret == 0) {
            ret = co_take_reply(c);
        }
        if (ret == -EPROTO) {
            log_warning("NBD server: broke the protocol; disconnected");
        }
        shutdown(c->wire.fd, SHUT_RDWR);
    } while (nbd_reconnect_co_recover(c, ret));
    fail_all(c);
    co_group_done(&c->group);
}
