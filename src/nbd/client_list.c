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

/* A list that grows. */
struct export_list {
    struct nbd_export_info *list;
    size_t count;
};

/* Take one NBD_REP_SERVER: a name, then a description. */
static int take_listed_export(const struct nbd_option_answer *answer, void *arg, struct error *err)
{
    struct export_list *l = arg;
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
    larger = realloc(l->list, (l->count + 1) * sizeof(*larger));
    if (!larger) {
        free(e.name);
        free(e.description);
        return error_out_of_memory(err);
    }
    l->list = larger;
    larger[l->count++] = e;
    return 0;
}

static int co_list_names(struct nbd_wire *w, struct export_list *l, struct error *err)
{
    struct nbd_option_answer last CLEANUP(nbd_option_answer_clear) = {0};
    int r = nbd_option_co_send(w, NBD_OPT_LIST, NULL, err);

    UNLESS_FAILED(r, nbd_option_co_receive_all(w, NBD_OPT_LIST, NBD_REP_SERVER,
                                               "NBD_REP_SERVER or NBD_REP_ACK", take_listed_export,
                                               l, &last, err));
    if (r < 0) {
        return r;
    }
    return NBD_REP_IS_ERROR(last.type) ? nbd_option_refused(NBD_OPT_LIST, &last, err) : 0;
}

/* Take one NBD_REP_META_CONTEXT: an id, then a name. */
static int take_listed_context(const struct nbd_option_answer *answer, void *arg, struct error *err)
{
    struct nbd_export_info *e = arg;
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
        return error_out_of_memory(err);
    }
    e->contexts = larger;
    e->contexts[e->context_count++] = name;
    return 0;
}

/* A server that refuses to list contexts is fine. */
static int co_list_contexts(struct nbd_wire *w, struct nbd_export_info *e, struct error *err)
{
    struct nbd_option_answer last CLEANUP(nbd_option_answer_clear) = {0};
    STRBUF_AUTO(data);
    int r;

    nbd_put_string(&data, e->name);
    nbd_put_u32(&data, 0);
    r = nbd_option_co_send(w, NBD_OPT_LIST_META_CONTEXT, &data, err);
    UNLESS_FAILED(r, nbd_option_co_receive_all(w, NBD_OPT_LIST_META_CONTEXT, NBD_REP_META_CONTEXT,
                                               "NBD_REP_META_CONTEXT or NBD_REP_ACK",
                                               take_listed_context, e, &last, err));
    return r;
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

/* The exports, after the hellos. */
static int co_list_exports(struct nbd_wire *w, struct export_list *l, struct error *err)
{
    bool structured = false, extended = false;
    int r = nbd_handshake_co_ask_headers(w, &structured, &extended, err);

    UNLESS_FAILED(r, co_list_names(w, l, err));
    for (size_t i = 0; i < l->count && r == 0; i++) {
        l->list[i].extended = extended;
        r = co_describe(w, &l->list[i], structured, err);
    }
    return r;
}

int nbd_handshake_co_list(struct nbd_wire *w, const struct nbd_client_tls *tls,
                          struct nbd_export_info **ret_list, size_t *ret_count, struct error *err)
{
    struct export_list l = {0};
    bool fixed = false, no_zeroes = false;
    int r = nbd_handshake_co_open(w, tls, &fixed, &no_zeroes, err);

    if (r < 0) {
        return r;
    }
    if (r == 1 || !fixed) {
        return error_set(err, ENOTSUP, "The NBD server can't list its exports");
    }
    r = co_list_exports(w, &l, err);
    if (r < 0) {
        nbd_export_list_free(l.list, l.count);
        return r;
    }
    (void)nbd_option_co_send(w, NBD_OPT_ABORT, NULL, NULL);
    if (w->tls) {
        tls_session_bye(w->tls);
    }
    *ret_list = l.list;
    *ret_count = l.count;
    return 0;
}
