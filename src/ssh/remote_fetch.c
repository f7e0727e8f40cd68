/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libssh waits for the answer to each request. So this speaks SFTP by itself, over a second channel
 * of the connection. Each slot has one request in flight, whose number is that of the slot.
 */
#include "ssh/remote_fetch.h"

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/strbuf.h"
#include "ssh/libssh_lazy.h"
#include "ssh/remote_internal.h"

#define SLOTS 64u
#define SFTP_VERSION 3u
/* Bytes of a request to read, of the longest answer, and of a handle (section 6.3). */
#define FETCH_PART (32 * KiB)
#define ANSWER_MAX (64 * KiB)
#define HANDLE_MAX 256u

/* Section 3. */
enum packet_type {
    PACKET_INIT = 1,
    PACKET_VERSION = 2,
    PACKET_OPEN = 3,
    PACKET_CLOSE = 4,
    PACKET_READ = 5,
    PACKET_FSTAT = 8,
    PACKET_STATUS = 101,
    PACKET_HANDLE = 102,
    PACKET_DATA = 103,
    PACKET_ATTRS = 105,
};

enum slot_state { SLOT_IDLE, SLOT_OPENS, SLOT_ASKS, SLOT_READS, SLOT_CLOSES };

struct slot {
    enum slot_state state;
    size_t index; /* of the file */
    int result;
    char handle[HANDLE_MAX];
    uint32_t handle_size;
    struct strbuf text;
};

struct fetcher {
    struct remote_dir *dir;
    const struct remote_fetch *fetch;
    ssh_channel channel;
    struct slot slots[SLOTS];
    size_t next; /* file */
    size_t busy; /* slots */
    uint8_t answer[ANSWER_MAX];
    struct error *err;
};

/* What is left of an answer. */
struct answer {
    const uint8_t *data;
    size_t size;
    bool cut; /* something was missing */
};

/* --- packets --- */

static void put_u32(struct strbuf *sb, uint32_t n)
{
    uint8_t buf[4];

    store_be32(buf, n);
    strbuf_append(sb, buf, sizeof(buf));
}

static void put_u64(struct strbuf *sb, uint64_t n)
{
    put_u32(sb, (uint32_t)(n >> 32));
    put_u32(sb, (uint32_t)n);
}

static void put_wire_string(struct strbuf *sb, const void *data, uint32_t size)
{
    put_u32(sb, size);
    strbuf_append(sb, data, size);
}

static uint32_t take_u32(struct answer *a)
{
    uint32_t n = 0;

    a->cut = a->cut || a->size < sizeof(n);
    if (!a->cut) {
        n = load_be32(a->data);
        a->data += sizeof(n);
        a->size -= sizeof(n);
    }
    return n;
}

static uint64_t take_u64(struct answer *a)
{
    uint64_t high = take_u32(a);

    return high << 32 | take_u32(a);
}

/* Borrowed; the size is 0 if something is missing. */
static const uint8_t *take_bytes(struct answer *a, uint32_t *ret_size)
{
    uint32_t size = take_u32(a);
    const uint8_t *data = a->data;

    a->cut = a->cut || size > a->size;
    *ret_size = a->cut ? 0 : size;
    a->data += *ret_size;
    a->size -= *ret_size;
    return data;
}

/* `n`: what libssh has returned; 0 is an end, of which its message says nothing. */
static int connection_error(const struct fetcher *f, int n)
{
    return error_set(f->err, EIO, "Could not read from the server: %s",
                     n == 0 ? "it has ended the connection"
                            : ssh_get_error(f->dir->connection.session));
}

static int protocol_error(const struct fetcher *f)
{
    return error_set(f->err, EIO, "The server answers otherwise than SFTP has it");
}

/* The body of a packet: all after the length (section 3). */
static int send_packet(const struct fetcher *f, struct strbuf *body)
{
    STRBUF_AUTO(packet);
    size_t done = 0;

    put_wire_string(&packet, body->data, (uint32_t)body->len);
    if (body->failed || packet.failed) {
        return error_out_of_memory(f->err);
    }
    while (done < packet.len) {
        int n = ssh_channel_write(f->channel, packet.data + done, (uint32_t)(packet.len - done));

        if (n <= 0) {
            return connection_error(f, n);
        }
        done += (size_t)n;
    }
    return 0;
}

static int receive_bytes(const struct fetcher *f, void *buf, size_t size)
{
    for (size_t done = 0; done < size;) {
        int n = ssh_channel_read(f->channel, (char *)buf + done, (uint32_t)(size - done), 0);

        if (n <= 0) {
            return connection_error(f, n);
        }
        done += (size_t)n;
    }
    return 0;
}

static int receive_packet(struct fetcher *f, uint8_t *ret_type, struct answer *ret_answer)
{
    uint8_t length[4];
    int r = receive_bytes(f, length, sizeof(length));
    uint32_t size = r == 0 ? load_be32(length) : 0;

    if (r == 0 && (size == 0 || size > sizeof(f->answer))) {
        return protocol_error(f);
    }
    UNLESS_FAILED(r, receive_bytes(f, f->answer, size));
    if (r == 0) {
        *ret_type = f->answer[0];
        *ret_answer = (struct answer){.data = f->answer + 1, .size = size - 1};
    }
    return r;
}

/* --- requests --- */

static uint32_t request_number(const struct fetcher *f, const struct slot *s)
{
    return (uint32_t)(s - f->slots);
}

static void begin_packet(struct strbuf *body, enum packet_type type, uint32_t number)
{
    const uint8_t byte = (uint8_t)type;

    strbuf_append(body, &byte, 1);
    put_u32(body, number);
}

/* Let an idle slot begin with the next file, if there is one (section 6.3). */
static int open_next(struct fetcher *f, struct slot *s)
{
    const uint32_t for_reading = 1, no_attributes = 0;
    char *path AUTO_FREE = NULL;
    STRBUF_AUTO(body);

    s->state = SLOT_IDLE;
    if (f->next == f->fetch->count) {
        return 0;
    }
    path = remote_dir_path_of(f->dir, f->fetch->names[f->next]);
    if (!path) {
        return error_out_of_memory(f->err);
    }
    s->index = f->next++;
    s->state = SLOT_OPENS;
    s->result = 0;
    strbuf_reset(&s->text);
    f->busy++;
    begin_packet(&body, PACKET_OPEN, request_number(f, s));
    put_wire_string(&body, path, (uint32_t)strlen(path));
    put_u32(&body, for_reading);
    put_u32(&body, no_attributes);
    return send_packet(f, &body);
}

/* A request about the open file. */
static int ask(const struct fetcher *f, struct slot *s, enum packet_type type,
               enum slot_state state)
{
    STRBUF_AUTO(body);

    s->state = state;
    begin_packet(&body, type, request_number(f, s));
    put_wire_string(&body, s->handle, s->handle_size);
    if (type == PACKET_READ) {
        put_u64(&body, s->text.len);
        put_u32(&body, FETCH_PART);
    }
    return send_packet(f, &body);
}

static int close_with(const struct fetcher *f, struct slot *s, int result)
{
    s->result = result;
    return ask(f, s, PACKET_CLOSE, SLOT_CLOSES);
}

/* --- answers --- */

static int finish_fetch(struct fetcher *f, struct slot *s)
{
    int r = s->text.failed ? error_out_of_memory(f->err)
                           : f->fetch->take(f->fetch->arg, s->index, s->result,
                                            strbuf_str(&s->text), s->text.len, f->err);

    f->busy--;
    return r < 0 ? r : open_next(f, s);
}

static int take_open(struct fetcher *f, struct slot *s, uint8_t type, struct answer *a)
{
    const uint8_t *handle;

    if (type == PACKET_STATUS) {
        s->result = take_u32(a) == SSH_FX_PERMISSION_DENIED ? -EACCES : -EINVAL;
        return a->cut ? protocol_error(f) : finish_fetch(f, s);
    }
    handle = take_bytes(a, &s->handle_size);
    if (type != PACKET_HANDLE || a->cut || s->handle_size > HANDLE_MAX) {
        return protocol_error(f);
    }
    memcpy(s->handle, handle, s->handle_size);
    return ask(f, s, PACKET_FSTAT, SLOT_ASKS);
}

/* Section 5: of the attributes only those that are flagged are there. */
static int take_attributes(const struct fetcher *f, struct slot *s, uint8_t type, struct answer *a)
{
    uint32_t flags = type == PACKET_ATTRS ? take_u32(a) : 0, mode = S_IFREG;
    uint64_t size = 0;

    if (type != PACKET_ATTRS) {
        return type == PACKET_STATUS ? close_with(f, s, -EINVAL) : protocol_error(f);
    }
    if (flags & SSH_FILEXFER_ATTR_SIZE) {
        size = take_u64(a);
    }
    if (flags & SSH_FILEXFER_ATTR_UIDGID) {
        take_u64(a);
    }
    if (flags & SSH_FILEXFER_ATTR_PERMISSIONS) {
        mode = take_u32(a);
    }
    if (a->cut) {
        return protocol_error(f);
    }
    return S_ISREG(mode) && size <= f->fetch->max ? ask(f, s, PACKET_READ, SLOT_READS)
                                                  : close_with(f, s, -EINVAL);
}

static int take_data(const struct fetcher *f, struct slot *s, uint8_t type, struct answer *a)
{
    const uint8_t *data;
    uint32_t size;

    if (type == PACKET_STATUS) {
        return take_u32(a) == SSH_FX_EOF
                   ? close_with(f, s, 0)
                   : error_set(f->err, EIO, "Could not read '%s' on the server",
                               f->fetch->names[s->index]);
    }
    data = take_bytes(a, &size);
    if (type != PACKET_DATA || a->cut || size == 0 || size > FETCH_PART) {
        return protocol_error(f);
    }
    if (s->text.len + size > f->fetch->max) {
        return close_with(f, s, -EINVAL);
    }
    strbuf_append(&s->text, data, size);
    return s->text.failed ? error_out_of_memory(f->err) : ask(f, s, PACKET_READ, SLOT_READS);
}

static int take_answer(struct fetcher *f)
{
    struct answer a = {0};
    struct slot *s;
    uint32_t number;
    uint8_t type = 0;
    int r = receive_packet(f, &type, &a);

    if (r < 0) {
        return r;
    }
    number = take_u32(&a);
    s = a.cut || number >= SLOTS ? NULL : &f->slots[number];
    switch (s ? s->state : SLOT_IDLE) {
    case SLOT_OPENS:
        return take_open(f, s, type, &a);
    case SLOT_ASKS:
        return take_attributes(f, s, type, &a);
    case SLOT_READS:
        return take_data(f, s, type, &a);
    case SLOT_CLOSES:
        return type == PACKET_STATUS ? finish_fetch(f, s) : protocol_error(f);
    default:
        return protocol_error(f);
    }
}

/* --- all of them --- */

/* Sections 4 and 6: the first packets have versions in the place of numbers of requests. */
static int open_channel_to_fetch(struct fetcher *f)
{
    STRBUF_AUTO(body);
    struct answer a;
    uint8_t type = 0;

    f->channel = ssh_channel_new(f->dir->connection.session);
    if (!f->channel || ssh_channel_open_session(f->channel) != SSH_OK ||
        ssh_channel_request_sftp(f->channel) != SSH_OK) {
        return -EOPNOTSUPP;
    }
    begin_packet(&body, PACKET_INIT, SFTP_VERSION);
    return send_packet(f, &body) == 0 && receive_packet(f, &type, &a) == 0 && type == PACKET_VERSION
               ? 0
               : -EOPNOTSUPP;
}

static int fetch_all(struct fetcher *f, struct error *err)
{
    int r = open_channel_to_fetch(f);

    f->err = err;
    for (size_t i = 0; r == 0 && i < SLOTS; i++) {
        r = open_next(f, &f->slots[i]);
    }
    while (r == 0 && f->busy > 0) {
        r = take_answer(f);
    }
    return r;
}

int remote_dir_fetch(struct remote_dir *d, const struct remote_fetch *fetch, struct error *err)
{
    struct fetcher *f;
    int r;

    if (fetch->count == 0) {
        return 0;
    }
    f = calloc(1, sizeof(*f));
    if (!f) {
        return error_out_of_memory(err);
    }
    f->dir = d;
    f->fetch = fetch;
    r = fetch_all(f, err);
    if (f->channel) {
        ssh_channel_free(f->channel);
    }
    for (size_t i = 0; i < SLOTS; i++) {
        strbuf_clear(&f->slots[i].text);
    }
    free(f);
    return r;
}
