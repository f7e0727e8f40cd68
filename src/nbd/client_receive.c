/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The coroutine that receives replies. Each part of each reply is checked against the request that
 * its cookie names. One that does not fit ends the connection, since nothing after it can be
 * trusted; the log then says what came and what was expected. Nothing is formatted before that.
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
#include "trace/events.h"

/* --- what the server got wrong -------------------------------------------------------------- */

/*
 * Note how the server broke the protocol. `call`: in the reply to it; NULL: in no known reply.
 * -EPROTO.
 */
__attribute__((format(printf, 3, 4), cold)) static int
breaks_protocol(struct nbd_client *c, const struct nbd_call *call, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    error_vset(&c->fault, EPROTO, fmt, ap);
    va_end(ap);
    if (call) {
        error_prepend(&c->fault, "reply to %s (offset %" PRIu64 ", length %" PRIu64 "): ",
                      nbd_command_name(call->rq.type), call->rq.offset, call->rq.length);
    }
    return -EPROTO;
}

/* A chunk of a type that the request cannot have. */
static int unfit_chunk(struct nbd_client *c, const struct nbd_call *call,
                       const struct nbd_chunk *chunk)
{
    return breaks_protocol(c, call, "a chunk of type %s (%u) is no reply to this command",
                           nbd_chunk_name(chunk->type), chunk->type);
}

/* --- bytes ---------------------------------------------------------------------------------- */

static size_t available(const struct nbd_client *c)
{
    return c->end - c->pos;
}

/* Have `needed` bytes in the buffer. 0 or -errno of the connection. */
static int client_co_fill(struct nbd_client *c, size_t needed)
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

/* Receive to memory; bytes of the buffer come first. */
static int client_co_receive(struct nbd_client *c, uint8_t *to, size_t size)
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
            int r = client_co_fill(c, 1);

            if (r < 0) {
                return r;
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
        int r;

        if (offset >= v->iov_len) {
            offset -= v->iov_len;
            continue;
        }
        part = MIN(size, v->iov_len - offset);
        r = client_co_receive(c, (uint8_t *)v->iov_base + offset, part);
        if (r < 0) {
            return r;
        }
        offset = 0;
        size -= part;
    }
    return 0;
}

/* --- calls ---------------------------------------------------------------------------------- */

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

/* The first error of a call is its result. */
static void note_result(struct nbd_call *call, int result)
{
    if (call->result == 0) {
        call->result = result;
    }
}

/*
 * A read that the server says is answered, and is not: it fails. The stream is in step
 * nevertheless.
 */
__attribute__((cold)) static void note_incomplete(const struct nbd_client *c, struct nbd_call *call)
{
    char who[512];

    log_warning("%s: reply to %s (offset %" PRIu64 ", length %" PRIu64 ") ended after %" PRIu64
                " bytes of data and holes",
                nbd_client_describe(c, who, sizeof(who)), nbd_command_name(call->rq.type),
                call->rq.offset, call->rq.length, nbd_pieces_bytes(&call->received));
    call->result = -EIO;
}

static void finish_call(struct nbd_client *c, struct nbd_call *call)
{
    if (call->rq.type == NBD_CMD_READ && call->result == 0 &&
        !nbd_pieces_cover(&call->received, call->rq.length)) {
        note_incomplete(c, call);
    }
    nbd_pieces_clear(&call->received);
    nbd_reconnect_note_answer(c, call);
    pthread_mutex_lock(&c->lock);
    c->newest_answer = MAX(c->newest_answer, call->number);
    c->slot[(uint32_t)call->rq.cookie] = NULL;
    pthread_mutex_unlock(&c->lock);
    nbd_call_drop(call);
}

static void fail_all_calls(struct nbd_client *c)
{
    struct nbd_call *lost[NBD_CLIENT_IN_FLIGHT];

    pthread_mutex_lock(&c->lock);
    c->broken = true;
    memcpy(lost, c->slot, sizeof(lost));
    memset(c->slot, 0, sizeof(c->slot));
    pthread_mutex_unlock(&c->lock);
    for (size_t i = 0; i < NBD_CLIENT_IN_FLIGHT; i++) {
        if (lost[i]) {
            note_result(lost[i], -EIO);
            nbd_pieces_clear(&lost[i]->received);
            nbd_call_drop(lost[i]);
        }
    }
}

/* --- chunks: 0, or -errno when the connection has to end ------------------------------------ */

/*
 * Note that [offset, offset + length) is answered. It has to be a part of the read that was not
 * before.
 */
static int answer_read(struct nbd_client *c, struct nbd_call *call, uint64_t offset,
                       uint64_t length)
{
    int r;

    if (length == 0 || offset < call->rq.offset ||
        !range_fits(offset - call->rq.offset, length, call->rq.length)) {
        return breaks_protocol(c, call,
                               "range of a structured reply is outside of the request: offset "
                               "%" PRIu64 ", length %" PRIu64,
                               offset, length);
    }
    r = nbd_pieces_add(&call->received, offset - call->rq.offset, length);
    if (r == -EEXIST) {
        return breaks_protocol(c, call,
                               "a part of the request was answered twice: in offset %" PRIu64
                               ", length %" PRIu64,
                               offset, length);
    }
    if (r == -E2BIG) {
        return breaks_protocol(c, call, "it came in more than %d pieces apart from each other",
                               NBD_CLIENT_PIECES_MAX);
    }
    return r;
}

static int co_take_data(struct nbd_client *c, struct nbd_call *call, const struct nbd_chunk *chunk)
{
    uint64_t offset, length;
    int r;

    if (call->rq.type != NBD_CMD_READ) {
        return unfit_chunk(c, call, chunk);
    }
    if (chunk->length <= 8) {
        return breaks_protocol(c, call, "a chunk of type %s has %" PRIu64 " bytes, not more than 8",
                               nbd_chunk_name(chunk->type), chunk->length);
    }
    r = client_co_fill(c, 8);
    if (r < 0) {
        return r;
    }
    offset = load_be64(c->buffer + c->pos);
    c->pos += 8;
    length = chunk->length - 8;
    r = answer_read(c, call, offset, length);
    return r < 0 ? r : co_receive_data(c, call, offset - call->rq.offset, length);
}

static int co_take_hole(struct nbd_client *c, struct nbd_call *call, const struct nbd_chunk *chunk)
{
    uint64_t offset, length;
    int r;

    if (call->rq.type != NBD_CMD_READ) {
        return unfit_chunk(c, call, chunk);
    }
    if (chunk->length != 12) {
        return breaks_protocol(c, call, "a chunk of type %s has %" PRIu64 " bytes, not 12",
                               nbd_chunk_name(chunk->type), chunk->length);
    }
    r = client_co_fill(c, 12);
    if (r < 0) {
        return r;
    }
    offset = load_be64(c->buffer + c->pos);
    length = load_be32(c->buffer + c->pos + 8);
    c->pos += 12;
    r = answer_read(c, call, offset, length);
    if (r < 0) {
        return r;
    }
    iov_fill(call->data, offset - call->rq.offset, 0, length);
    return 0;
}

/* Where the extents of a context belong; NULL: the context was not negotiated. */
static struct nbd_extents *extents_of(struct nbd_client *c, struct nbd_call *call, uint32_t id)
{
    for (size_t i = 0; i < c->context_count; i++) {
        if (c->agreed.granted[i] && c->agreed.context_id[i] == id) {
            return &call->per_context[i];
        }
    }
    return NULL;
}

/* Size on the wire of an extent, and of what precedes the extents in their chunk. Bytes. */
static size_t extent_size(const struct nbd_client *c)
{
    return c->agreed.extended ? NBD_EXTENDED_EXTENT_SIZE : NBD_EXTENT_SIZE;
}

static size_t extents_head(const struct nbd_client *c)
{
    return c->agreed.extended ? 8 : 4;
}

/* Decode extents that are in the buffer, from there on. False: one has length 0. */
static bool decode_extents(struct nbd_client *c, struct nbd_extent *list, size_t count)
{
    const uint8_t *at = c->buffer + c->pos;
    bool extended = c->agreed.extended, valid = true;

    for (size_t i = 0; i < count; i++) {
        if (extended) {
            list[i] = (struct nbd_extent){.length = load_be64(at), .flags = load_be64(at + 8)};
            at += NBD_EXTENDED_EXTENT_SIZE;
        } else {
            list[i] = (struct nbd_extent){.length = load_be32(at), .flags = load_be32(at + 4)};
            at += NBD_EXTENT_SIZE;
        }
        valid &= list[i].length > 0;
    }
    c->pos += count * extent_size(c);
    return valid;
}

/*
 * Cut off what lies beyond `length`, the end of the request, and join neighbours that a server
 * might have joined.
 */
static void settle_extents(struct nbd_extents *extents, uint64_t length)
{
    struct nbd_extent *list = extents->list;
    size_t count = 0;

    for (size_t i = 0; i < extents->count && length > 0; i++) {
        uint64_t part = MIN(list[i].length, length);

        length -= part;
        if (count > 0 && list[count - 1].flags == list[i].flags) {
            list[count - 1].length += part;
        } else {
            list[count++] = (struct nbd_extent){.length = part, .flags = list[i].flags};
        }
    }
    extents->count = count;
}

/* Extents from the wire. */
static int co_take_extents(struct nbd_client *c, const struct nbd_call *call, size_t count,
                           struct nbd_extents *ret_extents)
{
    ret_extents->list = malloc(count * sizeof(*ret_extents->list));
    if (!ret_extents->list) {
        return -ENOMEM;
    }
    while (ret_extents->count < count) {
        size_t part;
        int r = client_co_fill(c, extent_size(c));

        if (r < 0) {
            return r;
        }
        part = MIN(available(c) / extent_size(c), count - ret_extents->count);
        if (!decode_extents(c, ret_extents->list + ret_extents->count, part)) {
            return breaks_protocol(c, call, "one of %zu extents has length 0", count);
        }
        ret_extents->count += part;
    }
    settle_extents(ret_extents, call->rq.length);
    return 0;
}

/* How many extents a chunk has: *ret_count. */
static int check_extents_chunk(struct nbd_client *c, const struct nbd_call *call,
                               const struct nbd_chunk *chunk, size_t *ret_count)
{
    uint64_t head = extents_head(c), size = extent_size(c);

    if (call->rq.type != NBD_CMD_BLOCK_STATUS) {
        return unfit_chunk(c, call, chunk);
    }
    if (chunk->length < head + size || (chunk->length - head) % size != 0) {
        return breaks_protocol(c, call,
                               "a chunk of type %s has %" PRIu64 " bytes, not %" PRIu64
                               " and %" PRIu64 " for each extent",
                               nbd_chunk_name(chunk->type), chunk->length, head, size);
    }
    if ((chunk->length - head) / size > NBD_CLIENT_EXTENTS_MAX) {
        return breaks_protocol(c, call, "it has %" PRIu64 " extents; at most %d are accepted",
                               (chunk->length - head) / size, NBD_CLIENT_EXTENTS_MAX);
    }
    *ret_count = (size_t)((chunk->length - head) / size);
    return 0;
}

static int co_take_status(struct nbd_client *c, struct nbd_call *call,
                          const struct nbd_chunk *chunk)
{
    struct nbd_extents *extents;
    uint32_t id, said;
    size_t count = 0;
    int r = check_extents_chunk(c, call, chunk, &count);

    UNLESS_FAILED(r, client_co_fill(c, extents_head(c)));
    if (r < 0) {
        return r;
    }
    id = load_be32(c->buffer + c->pos);
    said = c->agreed.extended ? load_be32(c->buffer + c->pos + 4) : (uint32_t)count;
    c->pos += extents_head(c);
    if (said != count) {
        return breaks_protocol(c, call,
                               "a chunk of type %s has %zu extents, and says that it has %" PRIu32,
                               nbd_chunk_name(chunk->type), count, said);
    }
    extents = extents_of(c, call, id);
    if (!extents) {
        return breaks_protocol(
            c, call, "extents of the metadata context %" PRIu32 ", which was not negotiated", id);
    }
    if (extents->list) {
        return breaks_protocol(c, call, "extents of the metadata context %" PRIu32 " came twice",
                               id);
    }
    return co_take_extents(c, call, count, extents);
}

static int co_take_error(struct nbd_client *c, struct nbd_call *call, const struct nbd_chunk *chunk)
{
    char who[512];
    uint32_t wire;
    size_t text;
    int r;

    if (chunk->length < NBD_CLIENT_ERROR_MIN || chunk->length > NBD_CLIENT_ERROR_MAX) {
        return breaks_protocol(c, call, "an error chunk has %" PRIu64 " bytes, not %d to %d",
                               chunk->length, NBD_CLIENT_ERROR_MIN, NBD_CLIENT_ERROR_MAX);
    }
    r = client_co_fill(c, chunk->length);
    if (r < 0) {
        return r;
    }
    wire = load_be32(c->buffer + c->pos);
    text = load_be16(c->buffer + c->pos + 4);
    if (wire == 0) {
        return breaks_protocol(c, call, "an error chunk has the error value 0");
    }
    if (text > chunk->length - NBD_CLIENT_ERROR_MIN) {
        return breaks_protocol(c, call,
                               "an error chunk of %" PRIu64 " bytes has a text of %zu bytes",
                               chunk->length, text);
    }
    nbd_replace_control_bytes((char *)c->buffer + c->pos + 6, text);
    log_debug("%s: %s (offset %" PRIu64 ", length %" PRIu64 ") failed with error %" PRIu32 ": %.*s",
              nbd_client_describe(c, who, sizeof(who)), nbd_command_name(call->rq.type),
              call->rq.offset, call->rq.length, wire, (int)text,
              (const char *)c->buffer + c->pos + 6);
    c->pos += chunk->length;
    note_result(call, -nbd_error_to_errno(wire));
    return 0;
}

/* The end of a reply that has no more to say. */
static int take_none(struct nbd_client *c, struct nbd_call *call, const struct nbd_chunk *chunk)
{
    if (chunk->length > 0) {
        return breaks_protocol(c, call, "a chunk of type %s has %" PRIu64 " bytes, not 0",
                               nbd_chunk_name(chunk->type), chunk->length);
    }
    if (!(chunk->flags & NBD_CHUNK_FLAG_DONE)) {
        return breaks_protocol(c, call,
                               "a chunk of type %s has the flags 0x%x: the flag 'done' is "
                               "missing",
                               nbd_chunk_name(chunk->type), chunk->flags);
    }
    return 0;
}

static int co_take_chunk(struct nbd_client *c, struct nbd_call *call, const struct nbd_chunk *chunk)
{
    if (NBD_CHUNK_IS_ERROR(chunk->type)) {
        return co_take_error(c, call, chunk);
    }
    switch (chunk->type) {
    case NBD_CHUNK_NONE:
        return take_none(c, call, chunk);
    case NBD_CHUNK_OFFSET_DATA:
        return co_take_data(c, call, chunk);
    case NBD_CHUNK_OFFSET_HOLE:
        return co_take_hole(c, call, chunk);
    case NBD_CHUNK_BLOCK_STATUS:
    case NBD_CHUNK_BLOCK_STATUS_EXT:
        if (c->agreed.extended == (chunk->type == NBD_CHUNK_BLOCK_STATUS_EXT)) {
            return co_take_status(c, call, chunk);
        }
        return unfit_chunk(c, call, chunk);
    default:
        return unfit_chunk(c, call, chunk);
    }
}

/* --- replies -------------------------------------------------------------------------------- */

static int co_take_simple(struct nbd_client *c, struct nbd_call *call, uint32_t error)
{
    int r;

    if (error) {
        note_result(call, -nbd_error_to_errno(error));
        return 0;
    }
    if (call->rq.type == NBD_CMD_BLOCK_STATUS ||
        (c->agreed.structured && call->rq.type == NBD_CMD_READ)) {
        return breaks_protocol(c, call,
                               "a simple reply without an error, where chunks were "
                               "negotiated");
    }
    if (call->rq.type != NBD_CMD_READ) {
        return 0;
    }
    r = answer_read(c, call, call->rq.offset, call->rq.length);
    return r < 0 ? r : co_receive_data(c, call, 0, call->rq.length);
}

__attribute__((cold)) static int bad_magic(struct nbd_client *c)
{
    uint32_t magic = load_be32(c->buffer + c->pos);

    if (c->agreed.extended) {
        return breaks_protocol(
            c, NULL, "a reply begins with 0x%08" PRIx32 ", not with the magic number 0x%08x", magic,
            NBD_EXTENDED_CHUNK_MAGIC);
    }
    return breaks_protocol(
        c, NULL, "a reply begins with 0x%08" PRIx32 ", not with the magic number 0x%08x or 0x%08x",
        magic, NBD_SIMPLE_REPLY_MAGIC, NBD_CHUNK_MAGIC);
}

/* Receive and decode the header of a reply. */
static int co_take_header(struct nbd_client *c, struct nbd_chunk *ret_chunk, bool *ret_simple,
                          uint32_t *ret_error)
{
    bool extended = c->agreed.extended;
    int n, r = client_co_fill(c, nbd_reply_size_min(extended));

    if (r < 0) {
        return r;
    }
    n = nbd_reply_decode(c->buffer + c->pos, available(c), extended, ret_chunk, ret_simple,
                         ret_error);
    if (n == 0) {
        r = client_co_fill(c, NBD_CHUNK_HEADER_SIZE);
        if (r < 0) {
            return r;
        }
        n = nbd_reply_decode(c->buffer + c->pos, available(c), extended, ret_chunk, ret_simple,
                             ret_error);
    }
    if (n < 0) {
        return bad_magic(c);
    }
    c->pos += (size_t)n;
    return 0;
}

/* One simple reply or chunk. */
static int co_take_reply(struct nbd_client *c)
{
    struct nbd_chunk chunk;
    struct nbd_call *call;
    uint32_t error;
    bool simple;
    int r = co_take_header(c, &chunk, &simple, &error);

    if (r < 0) {
        return r;
    }
    call = find_call(c, chunk.cookie);
    if (!call) {
        return breaks_protocol(
            c, NULL, "a reply has the cookie 0x%016" PRIx64 ", which is no request's in flight",
            chunk.cookie);
    }
    if (c->agreed.extended && chunk.offset != call->rq.offset) {
        return breaks_protocol(c, call, "a chunk of type %s (%u) is for the offset %" PRIu64,
                               nbd_chunk_name(chunk.type), chunk.type, chunk.offset);
    }
    if (!simple && !c->agreed.structured) {
        return breaks_protocol(c, call,
                               "a chunk of type %s (%u), but structured replies were not "
                               "negotiated",
                               nbd_chunk_name(chunk.type), chunk.type);
    }
    r = simple ? co_take_simple(c, call, error) : co_take_chunk(c, call, &chunk);
    if (r < 0) {
        return r;
    }
    if (simple || (chunk.flags & NBD_CHUNK_FLAG_DONE)) {
        finish_call(c, call);
    }
    return 0;
}

static void report_end(struct nbd_client *c, int r)
{
    char who[512];

    if (error_is_set(&c->fault)) {
        log_warning("%s: %s; disconnected", nbd_client_describe(c, who, sizeof(who)),
                    error_message(&c->fault));
    } else if (r == -ENOMEM) {
        log_error("%s: no memory for a reply; disconnected",
                  nbd_client_describe(c, who, sizeof(who)));
    } else {
        /* Also the answer to a goodbye. */
        log_info("%s: disconnected: %s", nbd_client_describe(c, who, sizeof(who)), strerror(-r));
    }
    error_clear(&c->fault);
}

void nbd_client_co_receiver(void *arg)
{
    struct nbd_client *c = arg;
    int r;

    do {
        c->pos = c->end = 0;
        do {
            r = co_take_reply(c);
        } while (r == 0);
        trace_nbd_client_disconnect(c->target.export_name, r);
        report_end(c, r);
        shutdown(c->wire.fd, SHUT_RDWR);
    } while (nbd_reconnect_co_recover(c, r));
    fail_all_calls(c);
    co_group_done(&c->group);
}
