/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The client's side of one option: send it, receive the replies, word what is wrong with them. Used
 * by the handshake and by the listing.
 *
 * `co_` functions yield; the others do not. All return 0 or -errno with `err` set; -EPROTO: the
 * server broke the protocol.
 */
#ifndef TIDEMARK_NBD_CLIENT_OPTION_H
#define TIDEMARK_NBD_CLIENT_OPTION_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "base/strbuf.h"

struct nbd_wire;

/* One reply to an option; {0}: none yet. */
struct nbd_option_answer {
    /* enum nbd_option_reply */
    uint32_t type;
    /* `length` bytes and a NUL; owned. */
    uint8_t *data;
    uint32_t length;
};

/* Release what it owns, and empty it. */
void nbd_option_answer_clear(struct nbd_option_answer *a);

/* Send an option. data NULL: without data. */
int nbd_option_co_send(struct nbd_wire *w, uint32_t option, const struct strbuf *data,
                       struct error *err);
/* Receive the next reply to `option`; *ret_answer is cleared before. */
int nbd_option_co_receive(struct nbd_wire *w, uint32_t option, struct nbd_option_answer *ret_answer,
                          struct error *err);
/*
 * Send an option without data that the server may not know: *ret_agreed is whether it acknowledged.
 * A refusal is no error.
 */
int nbd_option_co_ask(struct nbd_wire *w, uint32_t option, bool *ret_agreed, struct error *err);

/* The error of a reply that is an error itself, with the server's text as a hint. */
int nbd_option_refused(uint32_t option, const struct nbd_option_answer *a, struct error *err);
/* -EPROTO: the reply is none that can come here. `expected`: what can. */
int nbd_option_unexpected(uint32_t option, const struct nbd_option_answer *a, const char *expected,
                          struct error *err);
/* -EPROTO: there was no end of replies. */
int nbd_option_endless(uint32_t option, struct error *err);

#endif
