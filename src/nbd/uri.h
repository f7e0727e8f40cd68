/* SPDX-License-Identifier: Apache-2.0 */
/*
 * URIs of exports (doc/uri.md of the NBD project, libnbd's parameters), and the older addresses of
 * QEMU. Nothing here yields; main reactor.
 *
 *   nbd://HOST[:PORT]/EXPORT    nbd+unix:///EXPORT?socket=PATH    nbd+vsock://[CID[:PORT]]/EXPORT
 *
 * and with "nbds" instead of "nbd", over TLS. "nbd+tcp" and "nbds+tcp" are the same as "nbd" and
 * "nbds". A socket that begins with %00 is a name in the abstract namespace.
 */
#ifndef TIDEMARK_NBD_URI_H
#define TIDEMARK_NBD_URI_H

#include <stdbool.h>

#include "base/error.h"
#include "block/socket_address.h"
#include "tls/tls.h"

/* How a client uses TLS. Strings are owned; NULL: not given. */
struct nbd_tls_params {
    /* The object with the credentials (tls-creds); then only `hostname` is used besides. */
    char *creds;
    /* The name that the server's certificate has to be for (tls-hostname). */
    char *hostname;
    /* Without an object: the members of struct tls_client_params, if `own` is set. */
    bool own;
    char *type;
    char *dir;
    char *psk_file;
    char *username;
    bool verify_peer;
};

/* Release what it owns, and empty it. */
void nbd_tls_params_clear(struct nbd_tls_params *p);
/*
 * The credentials, as a reference for tls_creds_unref(); NULL: in the clear. Errors of
 * tls_creds_ref() and tls_creds_new_client(). Reads files.
 */
int nbd_tls_params_get(const struct nbd_tls_params *p, struct tls_creds **ret_creds,
                       struct error *err);

struct nbd_uri {
    /* Without a port if the text has none, which means 10809. */
    struct socket_address address;
    /* Owned. "" if the text names none. */
    char *export_name;
    struct nbd_tls_params tls;
};

/* Release what it owns, and empty it. */
void nbd_uri_clear(struct nbd_uri *u);
/* On failure nothing is owned. -EINVAL: the sentence has the text; -ENOMEM. */
int nbd_uri_parse(const char *text, struct nbd_uri *ret_uri, struct error *err);

#endif
