/* SPDX-License-Identifier: Apache-2.0 */
/*
 * TLS over connected sockets, with GnuTLS: credentials and authorization as user objects, and
 * sessions (tls/session.h).
 *
 * The objects are those of QEMU's tools: tls-creds-x509, tls-creds-psk, tls-creds-anon;
 * authz-simple, authz-list, authz-list-file.
 *
 * Main reactor, except as noted. Nothing here yields.
 */
#ifndef TIDEMARK_TLS_TLS_H
#define TIDEMARK_TLS_TLS_H

#include <stdbool.h>

#include "base/error.h"

/* Add the object types. Once, at start. */
void tls_register_types(void);

/* --- credentials (creds.c) ------------------------------------------------------------------ */

struct tls_creds;

enum tls_endpoint {
    TLS_CLIENT,
    TLS_SERVER,
};

/*
 * A reference to the credentials of this id. -ENOENT: there are none. -EINVAL: they are for the
 * other end, or the object is of another type. Credentials do not change after they were made, so
 * sessions of any thread use them.
 */
int tls_creds_ref(const char *id, enum tls_endpoint endpoint, struct tls_creds **ret_creds,
                  struct error *err);
/* Give a reference back. NULL is fine. */
void tls_creds_unref(struct tls_creds *creds);
/* Whether a session with these credentials knows who the peer is, which authorization needs. */
bool tls_creds_identify_peer(const struct tls_creds *creds);

/* --- authorization (authz.c) ---------------------------------------------------------------- */

struct tls_authz;

/* A reference. -ENOENT: there is no object of this id. -EINVAL: it is of another type. */
int tls_authz_ref(const char *id, struct tls_authz **ret_authz, struct error *err);
/* Give a reference back. NULL is fine. */
void tls_authz_unref(struct tls_authz *authz);
/*
 * Whether a peer of this identity is allowed. May block to read a file: on any thread except that
 * of a reactor.
 */
bool tls_authz_allows(const struct tls_authz *authz, const char *identity);

#endif
