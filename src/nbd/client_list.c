/* SPDX-License-Identifier: Apache-2.0 */
/* The listing of a server's exports. */
#include <errno.h>
#include <stdlib.h>

#include "base/cleanup.h"
#include "nbd/client_internal.h"
#include "nbd/client_option.h"

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

/* Take one NBD_REP_SERVER: a name, then a description. */
static int take_server_reply(const struct nbd_option_answer *answer, struct nbd_export_info **list,
                             size_t *count, struct error *err)
{
    struct nbd_cursor in = {.data = answer->data, .left = answer->length};
    struct nbd_export_info e = {.name = nbd_get_string(&in)};
    struct nbd_export_info *larger;

    if (!e.name) {
        return nbd_option_unexpected(
            NBD_OPT_LIST, answer,
            "a length, and a name of as many bytes, at most 4096 and none of them zero", err);
    }
    if (in.left > 0) {
        e.description = nbd_get_string_of(&in, in.left);
    }
    larger = realloc(*list, (*count + 1) * sizeof(**list));
    if (!larger) {
        free(e.name);
        free(e.description);
        return error_set(err, ENOMEM, "Out of memory");
    }
    *list = larger;
    larger[(*count)++] = e;
    return 0;
}

static int co_list_names(struct nbd_wire *w, struct nbd_export_info **list, size_t *count,
                         struct error *err)
{
    struct nbd_option_answer answer CLEANUP(nbd_option_answer_clear) = {0};
    int r = nbd_option_co_send(w, NBD_OPT_LIST, NULL, err);

    if (r < 0) {
        return r;
    }
    for (unsigned n = 0; n < NBD_CLIENT_REPLIES_MAX; n++) {
        r = nbd_option_co_receive(w, NBD_OPT_LIST, &answer, err);
        if (r < 0) {
            return r;
        }
        if (answer.type == NBD_REP_ACK) {
            return 0;
        }
        if (NBD_REP_IS_ERROR(answer.type)) {
            return nbd_option_refused(NBD_OPT_LIST, &answer, err);
        }
        if (answer.type != NBD_REP_SERVER) {
            return nbd_option_unexpected(NBD_OPT_LIST, &answer, "NBD_REP_SERVER or NBD_REP_ACK",
                                         err);
        }
        r = take_server_reply(&answer, list, count, err);
        if (r < 0) {
            return r;
        }
    }
    return nbd_option_endless(NBD_OPT_LIST, err);
}

/* Take one NBD_REP_META_CONTEXT: an id, then a name. */
static int take_context_reply(const struct nbd_option_answer *answer, struct nbd_export_info *e,
                              struct error *err)
{
    struct nbd_cursor in = {.data = answer->data, .left = answer->length};
    char **larger, *name;

    nbd_get_u32(&in);
    name = nbd_get_string_of(&in, in.left);
    if (!name) {
        return nbd_option_unexpected(NBD_OPT_LIST_META_CONTEXT, answer,
                                     "4 bytes, and a name of at most 4096, none of them zero", err);
    }
    larger = realloc(e->contexts, (e->context_count + 1) * sizeof(*larger));
    if (!larger) {
        free(name);
        return error_set(err, ENOMEM, "Out of memory");
    }
    e->contexts = larger;
    e->contexts[e->context_count++] = name;
    return 0;
}

static int co_list_contexts(struct nbd_wire *w, struct nbd_export_info *e, struct error *err)
{
    const uint32_t option = NBD_OPT_LIST_META_CONTEXT;
    struct nbd_option_answer answer CLEANUP(nbd_option_answer_clear) = {0};
    STRBUF_AUTO(data);
    int r;

    nbd_put_string(&data, e->name);
    nbd_put_u32(&data, 0);
    r = nbd_option_co_send(w, option, &data, err);
    if (r < 0) {
        return r;
    }
    for (unsigned n = 0; n < NBD_CLIENT_REPLIES_MAX; n++) {
        r = nbd_option_co_receive(w, option, &answer, err);
        if (r < 0) {
            return r;
        }
        if (answer.type == NBD_REP_ACK || NBD_REP_IS_ERROR(answer.type)) {
            return 0;
        }
        if (answer.type != NBD_REP_META_CONTEXT) {
            return nbd_option_unexpected(option, &answer, "NBD_REP_META_CONTEXT or NBD_REP_ACK",
                                         err);
        }
        r = take_context_reply(&answer, e, err);
        if (r < 0) {
            return r;
        }
    }
    return nbd_option_endless(option, err);
}

/* Size, flags and contexts of an export. A server that refuses to tell them is fine. */
static int co_describe(struct nbd_wire *w, struct nbd_export_info *e, bool structured,
                       struct error *err)
{
    struct nbd_agreement a = {0};
    ERROR_AUTO(local);
    int r = nbd_handshake_co_info(w, NBD_OPT_INFO, e->name, &a, &local);

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

/* Names and descriptions, after the hellos. */
static int co_list_exports(struct nbd_wire *w, struct nbd_export_info **list, size_t *count,
                           struct error *err)
{
    bool structured, extended = false;
    int r = nbd_option_co_ask(w, NBD_OPT_EXTENDED_HEADERS, &extended, err);

    structured = extended;
    if (r == 0 && !extended) {
        r = nbd_option_co_ask(w, NBD_OPT_STRUCTURED_REPLY, &structured, err);
    }
    UNLESS_FAILED(r, co_list_names(w, list, count, err));
    for (size_t i = 0; i < *count && r == 0; i++) {
        (*list)[i].extended = extended;
        r = co_describe(w, &(*list)[i], structured, err);
    }
    return r;
}

int nbd_handshake_co_list(struct nbd_wire *w, const struct nbd_client_tls *tls,
                          struct nbd_export_info **ret_list, size_t *ret_count, struct error *err)
{
    struct nbd_export_info *list = NULL;
    bool fixed = false, no_zeroes = false;
    size_t count = 0;
    int r = nbd_handshake_co_open(w, tls, &fixed, &no_zeroes, err);

    if (r < 0) {
        return r;
    }
    if (r == 1 || !fixed) {
        return error_set(err, ENOTSUP, "The NBD server can't list its exports");
    }
    r = co_list_exports(w, &list, &count, err);
    if (r < 0) {
        nbd_export_list_free(list, count);
        return r;
    }
    (void)nbd_option_co_send(w, NBD_OPT_ABORT, NULL, NULL);
    if (w->tls) {
        tls_session_bye(w->tls);
    }
    *ret_list = list;
    *ret_count = count;
    return 0;
}
