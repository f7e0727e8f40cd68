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

/* Take one reply, of the type that was asked for. 0 or -errno with `err` set: go on, or end. */
typedef int nbd_option_take_fn(const struct nbd_option_answer *a, void *arg, struct error *err);

/*
 * Receive the replies to `option` up to the last, which is *ret_last: NBD_REP_ACK or an error.
 * `take` gets those before it, which have to be of the type `type`; `expected` says what can come,
 * for the error.
 */
int nbd_option_co_receive_all(struct nbd_wire *w, uint32_t option, uint32_t type,
                              const char *expected, nbd_option_take_fn *take, void *arg,
                              struct nbd_option_answer *ret_last, struct error *err);

/* The error of a reply that is an error itself, with the server's text as a hint. */
int nbd_option_refused(uint32_t option, const struct nbd_option_answer *a, struct error *err);
/* -EPROTO: the reply is none that can come here. `expected`: what can. */
int nbd_option_unexpected(uint32_t option, const struct nbd_option_answer *a, const char *expected,
                          struct error *err);

#endif
