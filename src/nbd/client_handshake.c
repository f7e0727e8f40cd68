/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The client's side of the handshake: structured replies, metadata contexts, GO; EXPORT_NAME for servers that know no
 * better. What the server says is bounded before memory is taken for it.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "nbd/client_internal.h"

/* One answer to an option. */
struct reply {
    uint32_t type;
    uint8_t *data; /* owned */
    uint32_t length;
};

static void reply_clear(struct reply *r)
{
    free(r->data);
    *r = (struct reply){0};
}

static int co_send_option(struct nbd_wire *w, uint32_t option, const struct strbuf *data,
                          struct error *err)
{
    STRBUF_AUTO(out);
    uint8_t header[NBD_OPTION_HEADER_SIZE];
    size_t length = data ? data->len : 0;

    nbd_option_header_encode(header, option, (uint32_t)length);
    strbuf_append(&out, header, sizeof(header));
    if (length > 0) {
        strbuf_append(&out, data->data, length);
    }
    if (out.failed || (data && data->failed)) {
        return error_set(err, ENOMEM, "Out of memory");
    }
    return nbd_wire_co_write(w, out.data, out.len, "option request", err);
}

static int co_read_reply(struct nbd_wire *w, uint32_t option, struct reply *ret, struct error *err)
{
    uint8_t header[NBD_OPTION_REPLY_HEADER_SIZE];
    uint32_t of, type, length;
    int r = nbd_wire_co_read(w, header, sizeof(header), "option reply", err);

    if (r < 0) {
        return r;
    }
    if (!nbd_option_reply_decode(header, &of, &type, &length) || of != option) {
        return error_set(err, EPROTO, "The NBD server's answer to %s is malformed",
                         nbd_option_name(option));
    }
    if (length > NBD_CLIENT_REPLY_DATA_MAX) {
        return error_set(err, EPROTO, "The NBD server's answer to %s is too long: %u bytes",
                         nbd_option_name(option), length);
    }
    reply_clear(ret);
    ret->data = malloc(length + 1);
    if (!ret->data) {
        return error_set(err, ENOMEM, "Out of memory");
    }
    ret->type = type;
    ret->length = length;
    ret->data[length] = '\0';
    return nbd_wire_co_read(w, ret->data, length, "option reply data", err);
}

/* What an error reply says, as a sentence. */
static int refused(uint32_t option, const struct reply *r, struct error *err)
{
    const char *advice = "";

    switch (r->type) {
    case NBD_REP_ERR_UNKNOWN:
        error_set(err, ENOENT, "Requested export not available");
        break;
    case NBD_REP_ERR_TLS_REQD:
        error_set(err, EPERM, "TLS negotiation required before option %u (%s)", option,
                  nbd_option_word(option));
        advice = "Did you forget a valid tls-creds?";
        break;
    case NBD_REP_ERR_POLICY:
        error_set(err, EPERM, "Denied by server for option %u (%s)", option,
                  nbd_option_word(option));
        break;
    case NBD_REP_ERR_UNSUP:
        error_set(err, ENOTSUP, "The NBD server does not support %s", nbd_option_name(option));
        break;
    default:
        error_set(err, EINVAL, "The NBD server refused %s (%s)", nbd_option_name(option),
                  nbd_reply_name(r->type));
    }
    if (r->length > 0 && !memchr(r->data, 0, r->length)) {
        error_hint(err, "%s%sserver reported: %.*s", advice, advice[0] ? "\n" : "",
                   (int)MIN(r->length, NBD_STRING_MAX), (const char *)r->data);
    } else if (advice[0]) {
        error_hint(err, "%s", advice);
    }
    return err ? -err->code : -EINVAL;
}

static int unexpected(uint32_t option, const struct reply *r, struct error *err)
{
    return error_set(err, EPROTO, "Unexpected answer of the NBD server to %s: %s (0x%x)",
                     nbd_option_name(option), nbd_reply_name(r->type), r->type);
}

/* Go on in TLS, or not at all. Not a byte from before is looked at again. */
static int co_starttls(struct nbd_wire *w, const struct nbd_client_tls *tls, struct error *err)
{
    struct reply reply CLEANUP(reply_clear) = {0};
    int r = co_send_option(w, NBD_OPT_STARTTLS, NULL, err);

    if (r == 0) {
        r = co_read_reply(w, NBD_OPT_STARTTLS, &reply, err);
    }
    if (r < 0) {
        return r;
    }
    if (NBD_REP_IS_ERROR(reply.type)) {
        return refused(NBD_OPT_STARTTLS, &reply, err);
    }
    if (reply.type != NBD_REP_ACK || reply.length > 0) {
        return unexpected(NBD_OPT_STARTTLS, &reply, err);
    }
    r = tls_session_new(tls->creds, w->fd, tls->hostname, NULL, &w->tls, err);
    return r < 0 ? r : tls_session_co_handshake(w->tls, err);
}

/* 1: the server speaks the protocol without options; what follows the 16 bytes of magic is still to be read. */
int nbd_handshake_co_open(struct nbd_wire *w, const struct nbd_client_tls *tls, bool *ret_fixed,
                          bool *ret_no_zeroes, struct error *err)
{
    uint8_t hello[NBD_SERVER_HELLO_SIZE], answer[4];
    uint16_t flags;
    int r = nbd_wire_co_read(w, hello, 16, "initial magic", err);

    if (r < 0) {
        return r;
    }
    if (load_be64(hello) != NBD_MAGIC) {
        return error_set(err, EINVAL, "Bad initial magic received: 0x%016llx",
                         (unsigned long long)load_be64(hello));
    }
    if (load_be64(hello + 8) == NBD_OLDSTYLE_MAGIC) {
        return tls ? error_set(err, ENOTSUP, "The NBD server does not support STARTTLS") : 1;
    }
    if (load_be64(hello + 8) != NBD_OPTION_MAGIC) {
        return error_set(err, EINVAL, "Bad server magic received: 0x%016llx",
                         (unsigned long long)load_be64(hello + 8));
    }
    r = nbd_wire_co_read(w, hello + 16, 2, "server flags", err);
    if (r < 0) {
        return r;
    }
    flags = load_be16(hello + 16);
    *ret_fixed = flags & NBD_FLAG_FIXED_NEWSTYLE;
    *ret_no_zeroes = flags & NBD_FLAG_NO_ZEROES;
    store_be32(answer, flags & (NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES));
    r = nbd_wire_co_write(w, answer, sizeof(answer), "client flags", err);
    if (r < 0 || !tls) {
        return r;
    }
    if (!*ret_fixed) {
        return error_set(err, ENOTSUP, "The NBD server does not support STARTTLS");
    }
    return co_starttls(w, tls, err);
}

/* STRUCTURED_REPLY or EXTENDED_HEADERS: *ret is whether the server agreed; one that doesn't know it is fine. */
static int co_ask(struct nbd_wire *w, uint32_t option, bool *ret, struct error *err)
{
    struct reply reply CLEANUP(reply_clear) = {0};
    int r = co_send_option(w, option, NULL, err);

    if (r == 0) {
        r = co_read_reply(w, option, &reply, err);
    }
    if (r < 0) {
        return r;
    }
    if (reply.type != NBD_REP_ACK && !NBD_REP_IS_ERROR(reply.type)) {
        return unexpected(option, &reply, err);
    }
    *ret = reply.type == NBD_REP_ACK;
    return 0;
}

static void grant(const struct reply *reply, const char *const *contexts, size_t count,
                  struct nbd_agreement *a)
{
    const char *name = (const char *)reply->data + 4;

    for (size_t i = 0; i < count; i++) {
        if (strlen(contexts[i]) == reply->length - 4 &&
            memcmp(contexts[i], name, reply->length - 4) == 0) {
            a->granted[i] = true;
            a->context_id[i] = load_be32(reply->data);
        }
    }
}

static int co_set_contexts(struct nbd_wire *w, const char *name, const char *const *contexts,
                           size_t count, struct nbd_agreement *a, struct error *err)
{
    struct reply reply CLEANUP(reply_clear) = {0};
    STRBUF_AUTO(data);
    int r;

    nbd_put_string(&data, name);
    nbd_put_u32(&data, (uint32_t)count);
    for (size_t i = 0; i < count; i++) {
        nbd_put_string(&data, contexts[i]);
    }
    r = co_send_option(w, NBD_OPT_SET_META_CONTEXT, &data, err);
    if (r < 0) {
        return r;
    }
    for (unsigned n = 0; n < NBD_CLIENT_REPLIES_MAX; n++) {
        r = co_read_reply(w, NBD_OPT_SET_META_CONTEXT, &reply, err);
        if (r < 0) {
            return r;
        }
        if (reply.type == NBD_REP_META_CONTEXT && reply.length > 4) {
            grant(&reply, contexts, count, a);
            continue;
        }
        if (reply.type == NBD_REP_ACK) {
            return 0;
        }
        if (NBD_REP_IS_ERROR(reply.type)) {
            /* No contexts then; an export that isn't there will be told about by GO. */
            memset(a->granted, 0, sizeof(a->granted));
            return 0;
        }
        break;
    }
    return unexpected(NBD_OPT_SET_META_CONTEXT, &reply, err);
}

static int check_agreement(const struct nbd_agreement *a, struct error *err)
{
    if (a->size > INT64_MAX) {
        return error_set(err, EPROTO, "The NBD server's export has an impossible size: %llu bytes",
                         (unsigned long long)a->size);
    }
    if (!(a->flags & NBD_FLAG_HAS_FLAGS)) {
        return error_set(err, EPROTO, "The NBD server's transmission flags 0x%x are invalid",
                         a->flags);
    }
    if (!is_power_of_2(a->min_block) || a->min_block > 64 * KiB ||
        !is_power_of_2(a->preferred_block) || a->preferred_block < a->min_block ||
        a->max_block < a->min_block) {
        return error_set(err, EPROTO,
                         "The NBD server's block sizes are invalid: minimum %u, preferred %u, "
                         "maximum %u",
                         a->min_block, a->preferred_block, a->max_block);
    }
    if (!is_aligned(a->size, a->min_block)) {
        return error_set(err, EINVAL,
                         "The NBD server's export has %llu bytes, which is no multiple of its "
                         "minimum block size %u",
                         (unsigned long long)a->size, a->min_block);
    }
    return 0;
}

static void no_block_sizes(struct nbd_agreement *a)
{
    a->has_block_sizes = false;
    a->min_block = 1;
    a->preferred_block = 4096;
    a->max_block = NBD_MAX_BLOCK_SIZE;
}

/* Take one NBD_REP_INFO in. Unknown kinds are ignored, as the specification asks. */
static int take_info(const struct reply *reply, struct nbd_agreement *a, bool *has_export)
{
    struct nbd_cursor in = {.data = reply->data, .left = reply->length};

    switch (nbd_get_u16(&in)) {
    case NBD_INFO_EXPORT:
        a->size = nbd_get_u64(&in);
        a->flags = nbd_get_u16(&in);
        *has_export = true;
        break;
    case NBD_INFO_BLOCK_SIZE:
        a->min_block = nbd_get_u32(&in);
        a->preferred_block = nbd_get_u32(&in);
        a->max_block = nbd_get_u32(&in);
        a->has_block_sizes = true;
        break;
    case NBD_INFO_DESCRIPTION:
        free(a->description);
        a->description = nbd_get_string_of(&in, in.left);
        break;
    default:
        in.left = 0;
    }
    return in.failed || in.left > 0 ? -EPROTO : 0;
}

/* INFO or GO. 1: the server doesn't know the option. */
static int co_info(struct nbd_wire *w, uint32_t option, const char *name, struct nbd_agreement *a,
                   struct error *err)
{
    struct reply reply CLEANUP(reply_clear) = {0};
    bool has_export = false;
    STRBUF_AUTO(data);
    int r;

    nbd_put_string(&data, name);
    nbd_put_u16(&data, 2);
    nbd_put_u16(&data, NBD_INFO_BLOCK_SIZE);
    nbd_put_u16(&data, NBD_INFO_DESCRIPTION);
    no_block_sizes(a);
    r = co_send_option(w, option, &data, err);
    if (r < 0) {
        return r;
    }
    for (unsigned n = 0; n < NBD_CLIENT_REPLIES_MAX; n++) {
        r = co_read_reply(w, option, &reply, err);
        if (r < 0) {
            return r;
        }
        if (reply.type == NBD_REP_ERR_UNSUP) {
            return 1;
        }
        if (NBD_REP_IS_ERROR(reply.type)) {
            return refused(option, &reply, err);
        }
        if (reply.type == NBD_REP_ACK && has_export) {
            return check_agreement(a, err);
        }
        if (reply.type != NBD_REP_INFO || take_info(&reply, a, &has_export) < 0) {
            break;
        }
    }
    return unexpected(option, &reply, err);
}

static int co_export_name(struct nbd_wire *w, const char *name, bool no_zeroes,
                          struct nbd_agreement *a, struct error *err)
{
    uint8_t reply[8 + 2 + NBD_EXPORT_NAME_ZEROES];
    STRBUF_AUTO(data);
    int r;

    strbuf_puts(&data, name);
    r = co_send_option(w, NBD_OPT_EXPORT_NAME, &data, err);
    if (r == 0) {
        r = nbd_wire_co_read(w, reply, no_zeroes ? 10 : sizeof(reply), "export length and flags",
                             err);
    }
    if (r < 0) {
        return r;
    }
    no_block_sizes(a);
    a->size = load_be64(reply);
    a->flags = load_be16(reply + 8);
    /* Servers that know no better option may be as old as to have no flags. */
    a->flags = a->flags & NBD_FLAG_HAS_FLAGS ? a->flags : NBD_FLAG_HAS_FLAGS;
    return check_agreement(a, err);
}

/* What a server without options says: its only export. */
static int co_oldstyle(struct nbd_wire *w, const char *name, struct nbd_agreement *a,
                       struct error *err)
{
    uint8_t rest[8 + 4 + NBD_EXPORT_NAME_ZEROES];
    int r;

    if (name[0]) {
        return error_set(err, EINVAL,
                         "The NBD server speaks the oldstyle protocol, which has no export names: "
                         "'%s' can't be asked for",
                         name);
    }
    r = nbd_wire_co_read(w, rest, sizeof(rest), "export length and flags", err);
    if (r < 0) {
        return r;
    }
    no_block_sizes(a);
    a->size = load_be64(rest);
    if (load_be32(rest + 8) > UINT16_MAX) {
        return error_set(err, EPROTO, "The NBD server's transmission flags 0x%x are invalid",
                         load_be32(rest + 8));
    }
    /* Those servers need not say that there are flags. */
    a->flags = load_be32(rest + 8) | NBD_FLAG_HAS_FLAGS;
    return check_agreement(a, err);
}

int nbd_handshake_co_choose(struct nbd_wire *w, const struct nbd_client_tls *tls,
                            const char *export_name, const char *const *contexts,
                            size_t context_count, struct nbd_agreement *ret, struct error *err)
{
    bool fixed = false, no_zeroes = false;
    int r;

    if (strlen(export_name) > NBD_STRING_MAX) {
        return error_set(err, EINVAL, "export name '%.40s...' too long", export_name);
    }
    r = nbd_handshake_co_open(w, tls, &fixed, &no_zeroes, err);
    if (r == 1) {
        return co_oldstyle(w, export_name, ret, err);
    }
    if (r == 0 && fixed) {
        r = co_ask(w, NBD_OPT_STRUCTURED_REPLY, &ret->structured, err);
    }
    if (r == 0 && ret->structured && context_count > 0) {
        r = co_set_contexts(w, export_name, contexts, context_count, ret, err);
    }
    if (r == 0) {
        r = fixed ? co_info(w, NBD_OPT_GO, export_name, ret, err) : 1;
    }
    return r <= 0 ? r : co_export_name(w, export_name, no_zeroes, ret, err);
}

void nbd_agreement_clear(struct nbd_agreement *a)
{
    free(a->description);
    a->description = NULL;
}

/* --- listing ------------------------------------------------------------------------------------- */

void nbd_export_list_free(struct nbd_export_info *list, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        for (size_t j = 0; j < list[i].context_count; j++) {
            free(list[i].contexts[j]);
        }
        free(list[i].contexts);
        free(list[i].name);
        free(list[i].description);
    }
    free(list);
}

static int take_server(const struct reply *reply, struct nbd_export_info **list, size_t *count)
{
    struct nbd_cursor in = {.data = reply->data, .left = reply->length};
    struct nbd_export_info e = {.name = nbd_get_string(&in)};
    struct nbd_export_info *larger;

    if (!e.name) {
        return -EPROTO;
    }
    if (in.left > 0) {
        e.description = nbd_get_string_of(&in, in.left);
    }
    larger = realloc(*list, (*count + 1) * sizeof(**list));
    if (!larger) {
        free(e.name);
        free(e.description);
        return -ENOMEM;
    }
    *list = larger;
    larger[(*count)++] = e;
    return 0;
}

static int co_list_names(struct nbd_wire *w, struct nbd_export_info **list, size_t *count,
                         struct error *err)
{
    struct reply reply CLEANUP(reply_clear) = {0};
    int r = co_send_option(w, NBD_OPT_LIST, NULL, err);

    if (r < 0) {
        return r;
    }
    for (unsigned n = 0; n < NBD_CLIENT_REPLIES_MAX; n++) {
        r = co_read_reply(w, NBD_OPT_LIST, &reply, err);
        if (r < 0) {
            return r;
        }
        if (reply.type == NBD_REP_ACK) {
            return 0;
        }
        if (NBD_REP_IS_ERROR(reply.type)) {
            return refused(NBD_OPT_LIST, &reply, err);
        }
        if (reply.type != NBD_REP_SERVER || take_server(&reply, list, count) < 0) {
            break;
        }
    }
    return unexpected(NBD_OPT_LIST, &reply, err);
}

static int take_context(const struct reply *reply, struct nbd_export_info *e)
{
    struct nbd_cursor in = {.data = reply->data, .left = reply->length};
    char **larger, *name;

    nbd_get_u32(&in);
    name = nbd_get_string_of(&in, in.left);
    if (!name) {
        return -EPROTO;
    }
    larger = realloc(e->contexts, (e->context_count + 1) * sizeof(*larger));
    if (!larger) {
        free(name);
        return -ENOMEM;
    }
    e->contexts = larger;
    e->contexts[e->context_count++] = name;
    return 0;
}

static int co_list_contexts(struct nbd_wire *w, struct nbd_export_info *e, struct error *err)
{
    struct reply reply CLEANUP(reply_clear) = {0};
    STRBUF_AUTO(data);
    int r;

    nbd_put_string(&data, e->name);
    nbd_put_u32(&data, 0);
    r = co_send_option(w, NBD_OPT_LIST_META_CONTEXT, &data, err);
    if (r < 0) {
        return r;
    }
    for (unsigned n = 0; n < NBD_CLIENT_REPLIES_MAX; n++) {
        r = co_read_reply(w, NBD_OPT_LIST_META_CONTEXT, &reply, err);
        if (r < 0) {
            return r;
        }
        if (reply.type == NBD_REP_ACK || NBD_REP_IS_ERROR(reply.type)) {
            return 0;
        }
        if (reply.type != NBD_REP_META_CONTEXT || take_context(&reply, e) < 0) {
            break;
        }
    }
    return unexpected(NBD_OPT_LIST_META_CONTEXT, &reply, err);
}

static int co_describe(struct nbd_wire *w, struct nbd_export_info *e, bool structured,
                       struct error *err)
{
    struct nbd_agreement a = {0};
    ERROR_AUTO(local);
    int r = co_info(w, NBD_OPT_INFO, e->name, &a, &local);

    if (r < 0 && (local.code == EPROTO || local.code == ECONNRESET)) {
        error_move(err, &local);
        nbd_agreement_clear(&a);
        return r;
    }
    if (r == 0) {
        e->has_info = true;
        e->size = a.size;
        e->flags = a.flags;
        e->has_block_sizes = a.has_block_sizes;
        e->min_block = a.min_block;
        e->preferred_block = a.preferred_block;
        e->max_block = a.max_block;
        if (a.description && !e->description) {
            e->description = TAKE_PTR(a.description);
        }
    }
    nbd_agreement_clear(&a);
    return structured ? co_list_contexts(w, e, err) : 0;
}

int nbd_handshake_co_list(struct nbd_wire *w, const struct nbd_client_tls *tls,
                          struct nbd_export_info **ret, size_t *ret_count, struct error *err)
{
    struct nbd_export_info *list = NULL;
    bool fixed = false, no_zeroes = false, structured = false, extended = false;
    size_t count = 0;
    int r = nbd_handshake_co_open(w, tls, &fixed, &no_zeroes, err);

    if (r == 1 || (r == 0 && !fixed)) {
        r = error_set(err, ENOTSUP, "The NBD server can't list its exports");
    }
    if (r == 0) {
        r = co_ask(w, NBD_OPT_EXTENDED_HEADERS, &extended, err);
        structured = extended;
    }
    if (r == 0 && !extended) {
        r = co_ask(w, NBD_OPT_STRUCTURED_REPLY, &structured, err);
    }
    if (r == 0) {
        r = co_list_names(w, &list, &count, err);
    }
    for (size_t i = 0; i < count && r == 0; i++) {
        list[i].extended = extended;
        r = co_describe(w, &list[i], structured, err);
    }
    if (r < 0) {
        nbd_export_list_free(list, count);
        return r;
    }
    (void)co_send_option(w, NBD_OPT_ABORT, NULL, NULL);
    if (w->tls) {
        tls_session_bye(w->tls);
    }
    *ret = list;
    *ret_count = count;
    return 0;
}
