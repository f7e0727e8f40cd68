/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The client's side of the handshake: structured replies, metadata contexts, GO; EXPORT_NAME for
 * servers that know no better option. What a server sends is limited before memory is taken for it.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "nbd/client_internal.h"
#include "nbd/client_option.h"

/*
 * Go on in TLS, or not at all. Bytes that came before the handshake of TLS are not looked at again.
 */
static int client_co_starttls(struct nbd_wire *w, const struct nbd_client_tls *tls,
                              struct error *err)
{
    struct nbd_option_answer answer CLEANUP(nbd_option_answer_clear) = {0};
    int r = nbd_option_co_send(w, NBD_OPT_STARTTLS, NULL, err);

    UNLESS_FAILED(r, nbd_option_co_receive(w, NBD_OPT_STARTTLS, &answer, err));
    if (r < 0) {
        return r;
    }
    if (NBD_REP_IS_ERROR(answer.type)) {
        return nbd_option_refused(NBD_OPT_STARTTLS, &answer, err);
    }
    if (answer.type != NBD_REP_ACK || answer.length > 0) {
        return nbd_option_unexpected(NBD_OPT_STARTTLS, &answer, "NBD_REP_ACK without data", err);
    }
    r = tls_session_new(tls->creds, w->fd, tls->hostname, NULL, &w->tls, err);
    UNLESS_FAILED(r, tls_session_co_handshake(w->tls, err));
    if (r == 0) {
        tls_session_co_use_kernel(w->tls);
    }
    return r;
}

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
        return error_set(err, EINVAL, "Bad initial magic received: 0x%016" PRIx64,
                         load_be64(hello));
    }
    if (load_be64(hello + 8) == NBD_OLDSTYLE_MAGIC) {
        return tls ? error_set(err, ENOTSUP, "The NBD server does not support STARTTLS") : 1;
    }
    if (load_be64(hello + 8) != NBD_OPTION_MAGIC) {
        return error_set(err, EINVAL, "Bad server magic received: 0x%016" PRIx64,
                         load_be64(hello + 8));
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
    return client_co_starttls(w, tls, err);
}

/* --- metadata contexts ---------------------------------------------------------------------- */

/* The contexts that are asked for, and where the grants go. */
struct context_request {
    const char *const *contexts;
    size_t count;
    struct nbd_agreement *agreement;
};

/* Take one NBD_REP_META_CONTEXT: an id, then a name. */
static int take_granted_context(const struct nbd_option_answer *answer, void *arg,
                                struct error *err)
{
    struct context_request *q = arg;
    const char *name = (const char *)answer->data + 4;

    if (answer->length <= 4) {
        return nbd_option_unexpected(NBD_OPT_SET_META_CONTEXT, answer,
                                     "NBD_REP_META_CONTEXT with more than 4 bytes", err);
    }
    for (size_t i = 0; i < q->count; i++) {
        if (strlen(q->contexts[i]) == answer->length - 4 &&
            memcmp(q->contexts[i], name, answer->length - 4) == 0) {
            q->agreement->granted[i] = true;
            q->agreement->context_id[i] = load_be32(answer->data);
        }
    }
    return 0;
}

static int co_set_contexts(struct nbd_wire *w, const char *name, const char *const *contexts,
                           size_t count, struct nbd_agreement *a, struct error *err)
{
    struct context_request q = {.contexts = contexts, .count = count, .agreement = a};
    struct nbd_option_answer last CLEANUP(nbd_option_answer_clear) = {0};
    STRBUF_AUTO(data);
    int r;

    nbd_put_string(&data, name);
    nbd_put_u32(&data, (uint32_t)count);
    for (size_t i = 0; i < count; i++) {
        nbd_put_string(&data, contexts[i]);
    }
    r = nbd_option_co_send(w, NBD_OPT_SET_META_CONTEXT, &data, err);
    UNLESS_FAILED(r, nbd_option_co_receive_all(w, NBD_OPT_SET_META_CONTEXT, NBD_REP_META_CONTEXT,
                                               "NBD_REP_META_CONTEXT or NBD_REP_ACK",
                                               take_granted_context, &q, &last, err));
    if (r == 0 && NBD_REP_IS_ERROR(last.type)) {
        /* Go on without contexts. That an export is not there is said by GO. */
        memset(a->granted, 0, sizeof(a->granted));
    }
    return r;
}

/* --- what is agreed ------------------------------------------------------------------------- */

static int check_agreement(const struct nbd_agreement *a, struct error *err)
{
    if (a->size > INT64_MAX) {
        return error_set(err, EPROTO,
                         "The NBD server's export has an impossible size: %" PRIu64
                         " bytes, more than 2^63 - 1",
                         a->size);
    }
    if (!(a->flags & NBD_FLAG_HAS_FLAGS)) {
        return error_set(err, EPROTO,
                         "The NBD server's transmission flags 0x%x are invalid: the lowest bit, "
                         "NBD_FLAG_HAS_FLAGS, has to be set",
                         a->flags);
    }
    if (!is_power_of_2(a->min_block) || a->min_block > 64 * KiB ||
        !is_power_of_2(a->preferred_block) || a->preferred_block < a->min_block ||
        a->max_block < a->min_block) {
        return error_set(err, EPROTO,
                         "The NBD server's block sizes are invalid: minimum %u, preferred %u, "
                         "maximum %u; the first two have to be powers of two, the minimum at most "
                         "65536, and none of the others smaller",
                         a->min_block, a->preferred_block, a->max_block);
    }
    if (!is_aligned(a->size, a->min_block)) {
        return error_set(err, EINVAL,
                         "The NBD server's export has %" PRIu64
                         " bytes, which is no multiple of its minimum block size %u",
                         a->size, a->min_block);
    }
    return 0;
}

/* Sizes for a server that does not send any. */
static void set_default_block_sizes(struct nbd_agreement *a)
{
    a->has_block_sizes = false;
    a->min_block = 1;
    a->preferred_block = 4096;
    a->max_block = NBD_MAX_BLOCK_SIZE;
}

/* The replies to NBD_OPT_INFO or NBD_OPT_GO so far. */
struct info_request {
    uint32_t option;
    struct nbd_agreement *agreement;
    bool has_export;
};

/* Take one NBD_REP_INFO. Unknown kinds are ignored, as the specification asks. */
static int take_info(const struct nbd_option_answer *answer, void *arg, struct error *err)
{
    struct info_request *q = arg;
    struct nbd_agreement *a = q->agreement;
    struct nbd_cursor in = {.data = answer->data, .left = answer->length};
    uint16_t kind = nbd_get_u16(&in);

    switch (kind) {
    case NBD_INFO_EXPORT:
        a->size = nbd_get_u64(&in);
        a->flags = nbd_get_u16(&in);
        q->has_export = true;
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
    if (in.failed || in.left > 0) {
        return error_set(err, EPROTO,
                         "Unexpected answer of the NBD server to %s: NBD_REP_INFO of kind %u with "
                         "%" PRIu32 " bytes; the kinds 0, 3 and 2 have 12, 14, and 2 to %d without "
                         "a zero byte in the text",
                         nbd_option_name(q->option), kind, answer->length, 2 + NBD_STRING_MAX);
    }
    return 0;
}

int nbd_handshake_co_info(struct nbd_wire *w, uint32_t option, const char *name,
                          struct nbd_agreement *a, struct error *err)
{
    static const char expected[] = "NBD_REP_INFO, and NBD_REP_ACK after that of NBD_INFO_EXPORT";
    struct info_request q = {.option = option, .agreement = a};
    struct nbd_option_answer last CLEANUP(nbd_option_answer_clear) = {0};
    STRBUF_AUTO(data);
    int r;

    nbd_put_string(&data, name);
    nbd_put_u16(&data, 2);
    nbd_put_u16(&data, NBD_INFO_BLOCK_SIZE);
    nbd_put_u16(&data, NBD_INFO_DESCRIPTION);
    set_default_block_sizes(a);
    r = nbd_option_co_send(w, option, &data, err);
    UNLESS_FAILED(
        r, nbd_option_co_receive_all(w, option, NBD_REP_INFO, expected, take_info, &q, &last, err));
    if (r < 0) {
        return r;
    }
    if (last.type == NBD_REP_ERR_UNSUP) {
        return 1;
    }
    if (NBD_REP_IS_ERROR(last.type)) {
        return nbd_option_refused(option, &last, err);
    }
    return q.has_export ? check_agreement(a, err)
                        : nbd_option_unexpected(option, &last, expected, err);
}

/* --- servers that know no better option ----------------------------------------------------- */

static int client_co_export_name(struct nbd_wire *w, const char *name, bool no_zeroes,
                                 struct nbd_agreement *a, struct error *err)
{
    uint8_t reply[8 + 2 + NBD_EXPORT_NAME_ZEROES];
    STRBUF_AUTO(data);
    int r;

    strbuf_puts(&data, name);
    r = nbd_option_co_send(w, NBD_OPT_EXPORT_NAME, &data, err);
    UNLESS_FAILED(r, nbd_wire_co_read(w, reply, no_zeroes ? 10 : sizeof(reply),
                                      "export length and flags", err));
    if (r < 0) {
        return r;
    }
    set_default_block_sizes(a);
    a->size = load_be64(reply);
    a->flags = load_be16(reply + 8);
    /* Such a server may be so old that it has no flags. */
    a->flags = a->flags & NBD_FLAG_HAS_FLAGS ? a->flags : NBD_FLAG_HAS_FLAGS;
    return check_agreement(a, err);
}

/* A server without options describes its only export. */
static int co_oldstyle(struct nbd_wire *w, const char *name, struct nbd_agreement *a,
                       struct error *err)
{
    uint8_t rest[8 + 4 + NBD_EXPORT_NAME_ZEROES];
    uint32_t flags;
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
    set_default_block_sizes(a);
    a->size = load_be64(rest);
    flags = load_be32(rest + 8);
    if (flags > UINT16_MAX) {
        return error_set(err, EPROTO,
                         "The NBD server's transmission flags 0x%" PRIx32
                         " are invalid: they have 16 bits",
                         flags);
    }
    /* Such a server need not set the flag that says that there are flags. */
    a->flags = flags | NBD_FLAG_HAS_FLAGS;
    return check_agreement(a, err);
}

int nbd_handshake_co_ask_headers(struct nbd_wire *w, bool *ret_structured, bool *ret_extended,
                                 struct error *err)
{
    int r = nbd_option_co_ask(w, NBD_OPT_EXTENDED_HEADERS, ret_extended, err);

    if (r == 0 && !*ret_extended) {
        return nbd_option_co_ask(w, NBD_OPT_STRUCTURED_REPLY, ret_structured, err);
    }
    *ret_structured = true;
    return r;
}

/* --- all of it ------------------------------------------------------------------------------ */

int nbd_handshake_co_choose(struct nbd_wire *w, const struct nbd_client_tls *tls,
                            const char *export_name, const char *const *contexts,
                            size_t context_count, struct nbd_agreement *ret_agreement,
                            struct error *err)
{
    struct nbd_agreement *a = ret_agreement;
    bool fixed = false, no_zeroes = false;
    int r;

    if (strlen(export_name) > NBD_STRING_MAX) {
        return error_set(err, EINVAL, "export name '%.40s...' too long", export_name);
    }
    r = nbd_handshake_co_open(w, tls, &fixed, &no_zeroes, err);
    if (r < 0) {
        return r;
    }
    if (r == 1) {
        return co_oldstyle(w, export_name, a, err);
    }
    if (!fixed) {
        return client_co_export_name(w, export_name, no_zeroes, a, err);
    }
    r = nbd_handshake_co_ask_headers(w, &a->structured, &a->extended, err);
    if (r == 0 && a->structured && context_count > 0) {
        r = co_set_contexts(w, export_name, contexts, context_count, a, err);
    }
    UNLESS_FAILED(r, nbd_handshake_co_info(w, NBD_OPT_GO, export_name, a, err));
    return r <= 0 ? r : client_co_export_name(w, export_name, no_zeroes, a, err);
}

void nbd_agreement_clear(struct nbd_agreement *a)
{
    free(a->description);
    a->description = NULL;
}
