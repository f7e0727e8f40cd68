/* SPDX-License-Identifier: Apache-2.0 */
#include "nbd/client_option.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/cleanup.h"
#include "nbd/client_internal.h"

void nbd_option_answer_clear(struct nbd_option_answer *a)
{
    free(a->data);
    *a = (struct nbd_option_answer){0};
}

int nbd_option_co_send(struct nbd_wire *w, uint32_t option, const struct strbuf *data,
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
        return error_out_of_memory(err);
    }
    return nbd_wire_co_write(w, out.data, out.len, "option request", err);
}

int nbd_option_co_receive(struct nbd_wire *w, uint32_t option, struct nbd_option_answer *ret_answer,
                          struct error *err)
{
    uint8_t header[NBD_OPTION_REPLY_HEADER_SIZE];
    uint32_t of, type, length;
    int r = nbd_wire_co_read(w, header, sizeof(header), "option reply", err);

    if (r < 0) {
        return r;
    }
    if (!nbd_option_reply_decode(header, &of, &type, &length)) {
        return error_set(err, EPROTO,
                         "The NBD server's reply to %s begins with 0x%016" PRIx64
                         ", not with the magic number 0x%016" PRIx64,
                         nbd_option_name(option), load_be64(header),
                         (uint64_t)NBD_OPTION_REPLY_MAGIC);
    }
    if (of != option) {
        return error_set(err, EPROTO,
                         "The NBD server replied to option %" PRIu32 " (%s) when %" PRIu32
                         " (%s) was asked",
                         of, nbd_option_name(of), option, nbd_option_name(option));
    }
    if (length > NBD_CLIENT_REPLY_DATA_MAX) {
        return error_set(err, EPROTO,
                         "The NBD server's reply to %s is too long: %" PRIu32
                         " bytes; at most %d are accepted",
                         nbd_option_name(option), length, NBD_CLIENT_REPLY_DATA_MAX);
    }
    nbd_option_answer_clear(ret_answer);
    ret_answer->data = malloc(length + 1);
    if (!ret_answer->data) {
        return error_out_of_memory(err);
    }
    ret_answer->type = type;
    ret_answer->length = length;
    ret_answer->data[length] = '\0';
    return nbd_wire_co_read(w, ret_answer->data, length, "option reply data", err);
}

int nbd_option_co_ask(struct nbd_wire *w, uint32_t option, bool *ret_agreed, struct error *err)
{
    struct nbd_option_answer answer CLEANUP(nbd_option_answer_clear) = {0};
    int r = nbd_option_co_send(w, option, NULL, err);

    UNLESS_FAILED(r, nbd_option_co_receive(w, option, &answer, err));
    if (r < 0) {
        return r;
    }
    if (answer.type != NBD_REP_ACK && !NBD_REP_IS_ERROR(answer.type)) {
        return nbd_option_unexpected(option, &answer, "NBD_REP_ACK or an error", err);
    }
    *ret_agreed = answer.type == NBD_REP_ACK;
    return 0;
}

int nbd_option_refused(uint32_t option, const struct nbd_option_answer *a, struct error *err)
{
    const char *advice = "";
    int r;

    switch (a->type) {
    case NBD_REP_ERR_UNKNOWN:
        r = error_set(err, ENOENT, "Requested export not available");
        break;
    case NBD_REP_ERR_TLS_REQD:
        r = error_set(err, EPERM, "TLS negotiation required before option %u (%s)", option,
                      nbd_option_word(option));
        advice = "Did you forget a valid tls-creds?";
        break;
    case NBD_REP_ERR_POLICY:
        r = error_set(err, EPERM, "Denied by server for option %u (%s)", option,
                      nbd_option_word(option));
        break;
    case NBD_REP_ERR_UNSUP:
        r = error_set(err, ENOTSUP, "The NBD server does not support %s", nbd_option_name(option));
        break;
    default:
        r = error_set(err, EINVAL, "The NBD server refused %s (%s)", nbd_option_name(option),
                      nbd_reply_name(a->type));
    }
    if (a->length > 0 && !memchr(a->data, 0, a->length)) {
        char text[NBD_STRING_MAX];
        size_t length = MIN(a->length, sizeof(text));

        memcpy(text, a->data, length);
        nbd_replace_control_bytes(text, length);
        error_hint(err, "%s%sserver reported: %.*s", advice, advice[0] ? "\n" : "", (int)length,
                   text);
    } else if (advice[0]) {
        error_hint(err, "%s", advice);
    }
    return r;
}

int nbd_option_unexpected(uint32_t option, const struct nbd_option_answer *a, const char *expected,
                          struct error *err)
{
    return error_set(err, EPROTO,
                     "Unexpected answer of the NBD server to %s: %s (0x%" PRIx32 ") with %" PRIu32
                     " bytes of data; expected is %s",
                     nbd_option_name(option), nbd_reply_name(a->type), a->type, a->length,
                     expected);
}

int nbd_option_co_receive_all(struct nbd_wire *w, uint32_t option, uint32_t type,
                              const char *expected, nbd_option_take_fn *take, void *arg,
                              struct nbd_option_answer *ret_last, struct error *err)
{
    for (unsigned n = 0; n < NBD_CLIENT_REPLIES_MAX; n++) {
        int r = nbd_option_co_receive(w, option, ret_last, err);

        if (r < 0) {
            return r;
        }
        if (ret_last->type == NBD_REP_ACK || NBD_REP_IS_ERROR(ret_last->type)) {
            return 0;
        }
        if (ret_last->type != type) {
            return nbd_option_unexpected(option, ret_last, expected, err);
        }
        r = take(ret_last, arg, err);
        if (r < 0) {
            return r;
        }
    }
    return error_set(err, EPROTO, "The NBD server sent %d replies to %s, and none was the last",
                     NBD_CLIENT_REPLIES_MAX, nbd_option_name(option));
}
