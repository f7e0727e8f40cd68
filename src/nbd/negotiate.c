/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The handshake: fixed newstyle, one option after the other, until the client chooses an export,
 * gives up, breaks the protocol or runs out of time.
 *
 * All of it runs on a reactor for handshakes, except what looks at exports or takes one: that is
 * the main reactor's.
 *
 * Nothing that a client sends here costs more memory than NBD_OPTION_DATA_MAX.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "nbd/server_internal.h"
#include "trace/events.h"

/* Options of one client that are answered as fast as they come, and the delay of each later one. */
#define OPTIONS_AT_FULL_SPEED 1024
#define OPTION_PAUSE_NS 1000000

/* What the handler of an option returns, unless it is negative: then the client is dropped. */
enum verdict {
    NEXT_OPTION,
    BEGIN_TRANSMISSION,
};

static ssize_t co_receive_bytes(struct nbd_connection *c, void *buf, size_t size)
{
    return c->tls ? tls_session_co_recv(c->tls, buf, size) : loop_co_recv(c->fd, buf, size);
}

/* Never more than is asked for: the bytes after STARTTLS belong to TLS. */
static int co_read_exactly(struct nbd_connection *c, void *buf, size_t size)
{
    uint8_t *p = buf;

    while (size > 0) {
        ssize_t n = co_receive_bytes(c, p, size);

        if (n <= 0) {
            return n < 0 ? (int)n : -ECONNRESET;
        }
        p += n;
        size -= (size_t)n;
    }
    return 0;
}

static int co_skip_bytes(struct nbd_connection *c, size_t size)
{
    uint8_t scrap[4096];

    while (size > 0) {
        ssize_t n = co_receive_bytes(c, scrap, MIN(size, sizeof(scrap)));

        if (n <= 0) {
            return n < 0 ? (int)n : -ECONNRESET;
        }
        size -= (size_t)n;
    }
    return 0;
}

static int co_write_bytes(struct nbd_connection *c, const void *buf, size_t size)
{
    struct iovec vec = {.iov_base = (void *)(uintptr_t)buf, .iov_len = size};
    struct msghdr msg = {.msg_iov = &vec, .msg_iovlen = 1};

    if (c->tls) {
        return tls_session_co_send(c->tls, &vec, 1);
    }
    while (vec.iov_len > 0) {
        ssize_t n = loop_co_sendmsg(c->fd, &msg, MSG_NOSIGNAL);

        if (n < 0) {
            return (int)n;
        }
        vec.iov_base = (uint8_t *)vec.iov_base + n;
        vec.iov_len -= (size_t)n;
    }
    return 0;
}

static int co_write_strbuf(struct nbd_connection *c, const struct strbuf *sb)
{
    return sb->failed ? -ENOMEM : co_write_bytes(c, sb->data, sb->len);
}

static void put_option_reply(struct strbuf *out, uint32_t option, uint32_t type, const void *data,
                             size_t size)
{
    uint8_t header[NBD_OPTION_REPLY_HEADER_SIZE];

    nbd_option_reply_encode(header, option, type, (uint32_t)size);
    strbuf_append(out, header, sizeof(header));
    if (size > 0) {
        strbuf_append(out, data, size);
    }
}

static int co_reply_to_option(struct nbd_connection *c, uint32_t option, uint32_t type)
{
    STRBUF_AUTO(out);

    put_option_reply(&out, option, type, NULL, 0);
    return co_write_strbuf(c, &out);
}

/* An error reply with a sentence. */
__attribute__((format(printf, 4, 5))) static int
co_refuse_option(struct nbd_connection *c, uint32_t option, uint32_t type, const char *fmt, ...)
{
    STRBUF_AUTO(out);
    char text[256];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    trace_nbd_server_refuse(c->fd, type, text);
    put_option_reply(&out, option, type, text, strlen(text));
    return co_write_strbuf(c, &out);
}

/* An option that takes no data came with some. */
static int co_refuse_data(struct nbd_connection *c, uint32_t option, const struct nbd_cursor *in)
{
    return co_refuse_option(c, option, NBD_REP_ERR_INVALID, "%s takes no data, and has %zu bytes",
                            nbd_option_name(option), in->left);
}

/* The data of an option do not have its form. */
static int co_refuse_malformed(struct nbd_connection *c, uint32_t option, size_t size)
{
    return co_refuse_option(c, option, NBD_REP_ERR_INVALID,
                            "%s has %zu bytes of data that do not have its form, or a name of more "
                            "than %d bytes",
                            nbd_option_name(option), size, NBD_STRING_MAX);
}

/* Bytes of a name that a client gave, in answers to it. */
#define NAME_SHOWN_MAX 80

static int co_refuse_absent(struct nbd_connection *c, uint32_t option, const char *name)
{
    bool is_long = strlen(name) > NAME_SHOWN_MAX;

    return co_refuse_option(c, option, NBD_REP_ERR_UNKNOWN, "export '%.*s%s' not present",
                            NAME_SHOWN_MAX, name, is_long ? "..." : "");
}

static uint16_t flags_for(const struct nbd_connection *c, const struct nbd_export *e)
{
    return (uint16_t)(e->flags | (c->structured ? NBD_FLAG_SEND_DF : 0));
}

/* Whether a block status can name contexts; offered only to clients that have selected some. */
static uint16_t status_payload_flag(uint32_t option, const struct nbd_connection *c,
                                    const struct nbd_export *e)
{
    bool has_contexts = c->selection.selected > 0 && c->selection.export_serial == e->serial;

    return c->extended && (option == NBD_OPT_INFO || has_contexts) ? NBD_FLAG_BLOCK_STATUS_PAYLOAD
                                                                   : 0;
}

/* A selection holds only for the export that it was made for. */
static void drop_other_selection(struct nbd_connection *c)
{
    if (c->selection.export_serial != c->export->serial) {
        nbd_selection_clear(&c->selection);
    }
}

/*
 * The export of that name, unless it is hidden from the client; NULL: there is none. Valid until
 * the caller yields.
 */
static struct nbd_export *co_find_export_for(const struct nbd_connection *c, const char *name)
{
    struct nbd_export *e = nbd_server_find_export(c->server, name);
    uint64_t serial = e ? e->serial : 0;

    if (!e || nbd_exports_co_read_authz(c->server, e) < 0) {
        return NULL;
    }
    e = nbd_server_find_export(c->server, name);
    return e && e->serial == serial && nbd_export_admits(e, c) ? e : NULL;
}

static int co_option_export_name(struct nbd_connection *c, struct nbd_cursor *in)
{
    uint8_t reply[8 + 2 + NBD_EXPORT_NAME_ZEROES] = {0};
    size_t size = in->left;
    AUTO_FREE char *name = nbd_get_string_of(in, size);
    struct nbd_export *e = name ? co_find_export_for(c, name) : NULL;
    int r;

    /* There is no reply for a refusal: the specification says to drop the client. */
    if (!name) {
        return nbd_connection_breaks(
            c, "NBD_OPT_EXPORT_NAME with a name of %zu bytes, of which one is zero", size);
    }
    if (!e) {
        return nbd_connection_breaks(c, "NBD_OPT_EXPORT_NAME for '%s', which is not exported",
                                     name);
    }
    if (nbd_export_is_full(e)) {
        return error_set(&c->failure, EUSERS, "export '%s' has %u clients, as many as it may have",
                         e->name, e->max_clients);
    }
    if (c->extended) {
        return nbd_connection_breaks(
            c, "NBD_OPT_EXPORT_NAME after extended headers, which need NBD_OPT_GO");
    }
    c->any_length = true;
    store_be64(reply, e->size);
    store_be16(reply + 8, flags_for(c, e));
    nbd_connection_attach(c, e);
    drop_other_selection(c);
    r = co_write_bytes(c, reply, c->no_zeroes ? 10 : sizeof(reply));
    return r < 0 ? r : BEGIN_TRANSMISSION;
}

static int co_option_list(struct nbd_connection *c, struct nbd_cursor *in)
{
    STRBUF_AUTO(out);
    struct nbd_export *e;
    int r;

    if (in->left > 0) {
        return co_refuse_data(c, NBD_OPT_LIST, in);
    }
    r = nbd_exports_co_read_authz(c->server, NULL);
    if (r < 0) {
        return r;
    }
    LIST_FOREACH (e, &c->server->exports, link) {
        STRBUF_AUTO(data);

        if (!nbd_export_admits(e, c)) {
            continue;
        }
        nbd_put_string(&data, e->name);
        if (e->description) {
            strbuf_puts(&data, e->description);
        }
        if (data.failed) {
            return -ENOMEM;
        }
        put_option_reply(&out, NBD_OPT_LIST, NBD_REP_SERVER, data.data, data.len);
    }
    put_option_reply(&out, NBD_OPT_LIST, NBD_REP_ACK, NULL, 0);
    return co_write_strbuf(c, &out);
}

static void put_text_info(struct strbuf *out, uint32_t option, uint16_t info, const char *text)
{
    STRBUF_AUTO(data);

    nbd_put_u16(&data, info);
    strbuf_puts(&data, text);
    if (data.failed) {
        out->failed = true;
        return;
    }
    put_option_reply(out, option, NBD_REP_INFO, data.data, data.len);
}

static void put_export_info(struct strbuf *out, uint32_t option, const struct nbd_connection *c,
                            const struct nbd_export *e, bool keeps_blocks)
{
    struct nbd_block_sizes sizes = nbd_export_block_sizes(e);
    uint8_t block_size[14], export[12];

    /*
     * A client that does not ask for block sizes does not keep to them. It gets the minimum that
     * is served anyway.
     */
    sizes.minimum = keeps_blocks ? sizes.minimum : 1;
    store_be16(block_size, NBD_INFO_BLOCK_SIZE);
    store_be32(block_size + 2, sizes.minimum);
    store_be32(block_size + 6, sizes.preferred);
    store_be32(block_size + 10, sizes.maximum);
    put_option_reply(out, option, NBD_REP_INFO, block_size, sizeof(block_size));

    store_be16(export, NBD_INFO_EXPORT);
    store_be64(export + 2, e->size);
    store_be16(export + 10, flags_for(c, e) | status_payload_flag(option, c, e));
    put_option_reply(out, option, NBD_REP_INFO, export, sizeof(export));
    put_option_reply(out, option, NBD_REP_ACK, NULL, 0);
}

/* INFO and GO. */
static int co_option_info(struct nbd_connection *c, uint32_t option, struct nbd_cursor *in)
{
    size_t size = in->left;
    AUTO_FREE char *name = nbd_get_string(in);
    unsigned requests = nbd_get_u16(in);
    bool want_name = false, keeps_blocks = false;
    struct nbd_export *e;
    uint32_t min_block;
    STRBUF_AUTO(out);
    int r;

    for (unsigned i = 0; i < requests && !in->failed; i++) {
        uint16_t info = nbd_get_u16(in);

        want_name |= info == NBD_INFO_NAME;
        keeps_blocks |= info == NBD_INFO_BLOCK_SIZE;
    }
    if (in->failed || in->left > 0) {
        return co_refuse_malformed(c, option, size);
    }
    e = co_find_export_for(c, name);
    if (!e) {
        return co_refuse_absent(c, option, name);
    }
    if (option == NBD_OPT_GO && nbd_export_is_full(e)) {
        return co_refuse_option(c, option, NBD_REP_ERR_POLICY,
                                "export '%s' has %u clients, as many as it may have", e->name,
                                e->max_clients);
    }
    min_block = nbd_export_block_sizes(e).minimum;
    if (option == NBD_OPT_INFO && !keeps_blocks && min_block > 1) {
        return co_refuse_option(c, option, NBD_REP_ERR_BLOCK_SIZE_REQD,
                                "export '%s' has blocks of %" PRIu32 " bytes: NBD_INFO_BLOCK_SIZE "
                                "has to be asked for",
                                e->name, min_block);
    }
    if (want_name) {
        put_text_info(&out, option, NBD_INFO_NAME, e->name);
    }
    if (e->description) {
        put_text_info(&out, option, NBD_INFO_DESCRIPTION, e->description);
    }
    put_export_info(&out, option, c, e, keeps_blocks);
    if (out.failed) {
        return -ENOMEM;
    }
    if (option == NBD_OPT_GO) {
        nbd_connection_attach(c, e);
        drop_other_selection(c);
    }
    r = co_write_strbuf(c, &out);
    if (r < 0) {
        return r;
    }
    return option == NBD_OPT_GO ? BEGIN_TRANSMISSION : NEXT_OPTION;
}

static int co_option_extended_headers(struct nbd_connection *c, struct nbd_cursor *in)
{
    if (in->left > 0) {
        return co_refuse_data(c, NBD_OPT_EXTENDED_HEADERS, in);
    }
    if (c->extended) {
        return co_refuse_option(c, NBD_OPT_EXTENDED_HEADERS, NBD_REP_ERR_INVALID,
                                "extended headers already negotiated");
    }
    c->extended = c->structured = true;
    return co_reply_to_option(c, NBD_OPT_EXTENDED_HEADERS, NBD_REP_ACK);
}

static int co_option_structured_reply(struct nbd_connection *c, struct nbd_cursor *in)
{
    if (in->left > 0) {
        return co_refuse_data(c, NBD_OPT_STRUCTURED_REPLY, in);
    }
    if (c->extended) {
        return co_refuse_option(c, NBD_OPT_STRUCTURED_REPLY, NBD_REP_ERR_EXT_HEADER_REQD,
                                "extended headers already negotiated");
    }
    if (c->structured) {
        return co_refuse_option(c, NBD_OPT_STRUCTURED_REPLY, NBD_REP_ERR_INVALID,
                                "structured replies are negotiated already");
    }
    c->structured = true;
    return co_reply_to_option(c, NBD_OPT_STRUCTURED_REPLY, NBD_REP_ACK);
}

/* Queries of LIST/SET_META_CONTEXT into a selection. False if the data are malformed. */
static bool parse_queries(struct nbd_cursor *in, const struct nbd_export *e, bool list,
                          struct nbd_selection *sel)
{
    uint32_t queries = nbd_get_u32(in);

    if (list && queries == 0 && !in->failed) {
        nbd_selection_all(sel);
    }
    for (uint32_t i = 0; i < queries && !in->failed; i++) {
        AUTO_FREE char *query = nbd_get_string(in);

        if (query) {
            nbd_selection_add(sel, e, query, list);
        }
    }
    return !in->failed && in->left == 0;
}

static int put_contexts(struct strbuf *out, uint32_t option, const struct nbd_selection *sel,
                        const struct nbd_export *e)
{
    STRBUF_AUTO(data);

    for (size_t i = 0; i < e->context_count; i++) {
        if (!sel->contexts || !sel->contexts[i]) {
            continue;
        }
        strbuf_clear(&data);
        nbd_put_u32(&data, option == NBD_OPT_SET_META_CONTEXT ? (uint32_t)i : 0);
        strbuf_puts(&data, e->contexts[i].name);
        if (data.failed) {
            return -ENOMEM;
        }
        put_option_reply(out, option, NBD_REP_META_CONTEXT, data.data, data.len);
    }
    put_option_reply(out, option, NBD_REP_ACK, NULL, 0);
    return 0;
}

static int co_option_meta_context(struct nbd_connection *c, uint32_t option, struct nbd_cursor *in)
{
    bool list = option == NBD_OPT_LIST_META_CONTEXT;
    size_t size = in->left;
    AUTO_FREE char *name = NULL;
    struct nbd_selection sel = {0};
    struct nbd_export *e;
    STRBUF_AUTO(out);
    int r;

    if (!list) {
        /* An earlier selection is void even if this option is refused. */
        nbd_selection_clear(&c->selection);
    }
    if (!list && !c->structured) {
        return co_refuse_option(c, option, NBD_REP_ERR_INVALID,
                                "%s needs structured replies to be negotiated first",
                                nbd_option_name(option));
    }
    name = nbd_get_string(in);
    if (!name) {
        return co_refuse_malformed(c, option, size);
    }
    e = co_find_export_for(c, name);
    if (!e) {
        return co_refuse_absent(c, option, name);
    }
    r = nbd_selection_init(&sel, e);
    if (r == 0 && !parse_queries(in, e, list, &sel)) {
        nbd_selection_clear(&sel);
        return co_refuse_malformed(c, option, size);
    }
    if (r == 0) {
        r = put_contexts(&out, option, &sel, e);
    }
    if (r == 0 && !list) {
        c->selection = sel;
        sel = (struct nbd_selection){0};
    }
    nbd_selection_clear(&sel);
    return r < 0 ? r : co_write_strbuf(c, &out);
}

static int co_option_abort(struct nbd_connection *c)
{
    if (co_reply_to_option(c, NBD_OPT_ABORT, NBD_REP_ACK) == 0 && c->tls) {
        tls_session_bye(c->tls);
    }
    return -ECONNABORTED;
}

/* Nothing that was negotiated in the clear holds for the session. */
static int co_option_starttls(struct nbd_connection *c, struct nbd_cursor *in)
{
    const struct nbd_server_config *config = &c->server->config;
    int r;

    if (in->left > 0) {
        return co_refuse_data(c, NBD_OPT_STARTTLS, in);
    }
    r = co_reply_to_option(c, NBD_OPT_STARTTLS, NBD_REP_ACK);
    if (r < 0) {
        return r;
    }
    c->structured = c->extended = false;
    nbd_selection_clear(&c->selection);
    r = tls_session_new(config->tls_creds, c->fd, NULL, config->tls_authz, &c->tls, &c->failure);
    UNLESS_FAILED(r, tls_session_co_handshake(c->tls, &c->failure));
    if (r == 0) {
        tls_session_co_use_kernel(c->tls);
    }
    return r;
}

/* A server that has credentials accepts nothing else in the clear (FORCEDTLS). */
static int co_option_before_tls(struct nbd_connection *c, uint32_t option, struct nbd_cursor *in)
{
    switch (option) {
    case NBD_OPT_STARTTLS:
        return co_option_starttls(c, in);
    case NBD_OPT_ABORT:
        return co_option_abort(c);
    case NBD_OPT_EXPORT_NAME:
        return error_set(&c->failure, EPERM, "Option 0x%x not permitted before TLS", option);
    default:
        return co_refuse_option(c, option, NBD_REP_ERR_TLS_REQD,
                                "Option 0x%x not permitted before TLS", option);
    }
}

/* An option that is about exports. */
struct export_option {
    struct nbd_connection *conn;
    uint32_t option;
    struct nbd_cursor *in;
    int result;
};

static int co_option_of_exports(struct nbd_connection *c, uint32_t option, struct nbd_cursor *in)
{
    switch (option) {
    case NBD_OPT_EXPORT_NAME:
        return co_option_export_name(c, in);
    case NBD_OPT_LIST:
        return co_option_list(c, in);
    case NBD_OPT_INFO:
    case NBD_OPT_GO:
        return co_option_info(c, option, in);
    default:
        return co_option_meta_context(c, option, in);
    }
}

static void co_option_on_main(void *arg)
{
    struct export_option *o = arg;

    o->result = co_option_of_exports(o->conn, o->option, o->in);
}

static int co_option(struct nbd_connection *c, uint32_t option, struct nbd_cursor *in)
{
    struct export_option of_exports = {.conn = c, .option = option, .in = in};

    if (c->server->config.tls_creds && !c->tls) {
        return co_option_before_tls(c, option, in);
    }
    switch (option) {
    case NBD_OPT_EXPORT_NAME:
    case NBD_OPT_LIST:
    case NBD_OPT_INFO:
    case NBD_OPT_GO:
    case NBD_OPT_LIST_META_CONTEXT:
    case NBD_OPT_SET_META_CONTEXT:
        loop_co_call_on(reactor_main(), co_option_on_main, &of_exports);
        return of_exports.result;
    case NBD_OPT_ABORT:
        return co_option_abort(c);
    case NBD_OPT_STRUCTURED_REPLY:
        return co_option_structured_reply(c, in);
    case NBD_OPT_EXTENDED_HEADERS:
        return co_option_extended_headers(c, in);
    case NBD_OPT_STARTTLS:
        return c->tls ? co_refuse_option(c, option, NBD_REP_ERR_INVALID, "TLS already enabled")
                      : co_refuse_option(c, option, NBD_REP_ERR_POLICY, "TLS not configured");
    default:
        return co_refuse_option(c, option, NBD_REP_ERR_UNSUP, "Unsupported option %u", option);
    }
}

/* An end of a TLS session without a goodbye is logged, unlike that of a plain connection. */
static void note_lost_session(struct nbd_connection *c)
{
    const char *why = tls_session_failure(c->tls);

    if (why[0]) {
        error_set(&c->failure, EIO, "Failed to read opts magic: Cannot read from TLS channel: %s",
                  why);
    } else {
        error_set(&c->failure, EIO,
                  "Failed to read opts magic: Unexpected end-of-file before all data were read");
    }
}

/* Whether an option can be read at all: 0 or -EPROTO. */
static int check_option_header(struct nbd_connection *c, uint32_t option, uint32_t length,
                               bool fixed)
{
    uint32_t max = option == NBD_OPT_EXPORT_NAME ? NBD_STRING_MAX : NBD_OPTION_SKIP_MAX;

    if (!fixed && option != NBD_OPT_EXPORT_NAME) {
        return nbd_connection_breaks(c,
                                     "option %" PRIu32
                                     " (%s) without the flag for fixed newstyle, which leaves "
                                     "NBD_OPT_EXPORT_NAME alone",
                                     option, nbd_option_name(option));
    }
    if (length > max) {
        return nbd_connection_breaks(c,
                                     "option %" PRIu32 " (%s) with %" PRIu32
                                     " bytes of data; at most %" PRIu32 " are possible",
                                     option, nbd_option_name(option), length, max);
    }
    return 0;
}

/* Read the data of an option and reply to it. */
static int co_read_option(struct nbd_connection *c, uint32_t option, uint32_t length)
{
    AUTO_FREE uint8_t *data = malloc(length + 1);
    struct nbd_cursor in = {.data = data, .left = length};
    int r;

    if (!data) {
        return -ENOMEM;
    }
    r = co_read_exactly(c, data, length);
    return r < 0 ? r : co_option(c, option, &in);
}

/* Read one option with its data and reply to it. */
static int co_next_option(struct nbd_connection *c, bool fixed)
{
    uint8_t header[NBD_OPTION_HEADER_SIZE];
    uint32_t option, length;
    int r = co_read_exactly(c, header, sizeof(header));

    if (r < 0 && c->tls) {
        note_lost_session(c);
    }
    if (r < 0) {
        return r;
    }
    if (!nbd_option_header_decode(header, &option, &length)) {
        return nbd_connection_breaks(
            c, "an option begins with 0x%016" PRIx64 ", not with the magic number 0x%016" PRIx64,
            load_be64(header), (uint64_t)NBD_OPTION_MAGIC);
    }
    if (trace_nbd_server_option_is_on()) {
        trace_nbd_server_option(c->fd, nbd_option_name(option), length);
    }
    r = check_option_header(c, option, length, fixed);
    if (r < 0) {
        return r;
    }
    if (length > NBD_OPTION_DATA_MAX) {
        r = co_skip_bytes(c, length);
        return r < 0
                   ? r
                   : co_refuse_option(c, option, NBD_REP_ERR_TOO_BIG,
                                      "%s with %" PRIu32 " bytes of data; at most %d are accepted",
                                      nbd_option_name(option), length, NBD_OPTION_DATA_MAX);
    }
    return co_read_option(c, option, length);
}

/*
 * Other handshakes run on this reactor, too, and monitors on the one that knows the exports. No
 * honest client sends more than OPTIONS_AT_FULL_SPEED options.
 */
static void co_yield_to_others(unsigned options)
{
    if (options < OPTIONS_AT_FULL_SPEED) {
        co_reschedule();
    } else {
        loop_co_sleep(OPTION_PAUSE_NS);
    }
}

/* 0 with an export, or -errno. On the reactor for handshakes. */
static int co_negotiate(struct nbd_connection *c)
{
    uint8_t hello[NBD_SERVER_HELLO_SIZE], answer[4];
    uint32_t flags;
    int r;

    store_be64(hello, NBD_MAGIC);
    store_be64(hello + 8, NBD_OPTION_MAGIC);
    store_be16(hello + 16, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
    r = co_write_bytes(c, hello, sizeof(hello));
    if (r == 0) {
        r = co_read_exactly(c, answer, sizeof(answer));
    }
    if (r < 0) {
        return r;
    }
    flags = load_be32(answer);
    if (flags & ~(uint32_t)(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES)) {
        return nbd_connection_breaks(c, "the client flags are 0x%08" PRIx32 "; they may have 0x3",
                                     flags);
    }
    c->no_zeroes = flags & NBD_FLAG_NO_ZEROES;
    for (unsigned options = 0;; options++) {
        r = co_next_option(c, flags & NBD_FLAG_FIXED_NEWSTYLE);
        if (r != NEXT_OPTION) {
            break;
        }
        co_yield_to_others(options);
    }
    return r < 0 ? r : 0;
}

struct negotiation {
    struct nbd_connection *conn;
    int result;
};

static void co_negotiate_entry(void *arg)
{
    struct negotiation *n = arg;

    n->result = co_negotiate(n->conn);
}

int nbd_connection_co_negotiate(struct nbd_connection *c)
{
    struct negotiation n = {.conn = c};

    loop_co_call_on(nbd_handshake_reactor(), co_negotiate_entry, &n);
    return n.result;
}
