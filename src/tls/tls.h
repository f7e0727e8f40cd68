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

/* Credentials of a client that are no object. Strings are borrowed; NULL: not given. */
struct tls_client_params {
    /* "x509", "psk" or "anon"; NULL: "psk" if there is a file of keys or a user, else "x509". */
    const char *type;
    /* Of x509: ca-cert.pem and the rest; NULL: the authorities that the system trusts. */
    const char *dir;
    /* Of psk: lines "USER:KEY"; NULL: keys.psk in `dir`. */
    const char *psk_file;
    /* Of psk; NULL: the name of the user that runs this process. */
    const char *username;
    /* Of x509: refuse servers whose certificate does not prove who they are. */
    bool verify_peer;
};

/*
 * Make such credentials, with one reference. -EINVAL: what is given does not go together, or a file
 * is malformed; -ENOENT, -EACCES of a file; -ENOMEM.
 */
int tls_creds_new_client(const struct tls_client_params *params, struct tls_creds **ret_creds,
                         struct error *err);
/* Give a reference back. NULL is fine. */
void tls_creds_unref(struct tls_creds *creds);
/* Whether a session with these credentials knows who the peer is, which authorization needs. */
bool tls_creds_identify_peer(const struct tls_creds *creds);

/* --- authorization (authz.c) ---------------------------------------------------------------- */

struct tls_authz;

/* A reference. -ENOENT: there is no object of this id. -EINVAL: it is of another type. */
int tls_authz_ref(const char *id, struct tls_authz **ret_authz, struct error *err);
/* Another reference. */
void tls_authz_hold(struct tls_authz *authz);
/* Give a reference back. NULL is fine. */
void tls_authz_unref(struct tls_authz *authz);
/*
 * Whether a peer of this identity is allowed. May block to read a file: on any thread except that
 * of a reactor.
 */
bool tls_authz_allows(const struct tls_authz *authz, const char *identity);

/* Whether what it allows is in a file, which is read again for each peer. */
bool tls_authz_is_in_file(const struct tls_authz *authz);
/*
 * Read that file again; nothing if there is none. After an error no peer is allowed, which is
 * logged. The caller has a reference. Yields; the reactor does not wait for the file.
 */
void tls_authz_co_refresh(struct tls_authz *authz);
/* As tls_authz_allows(), by the file as tls_authz_co_refresh() has read it. Does not block. */
bool tls_authz_allows_as_read(const struct tls_authz *authz, const char *identity);

#endif
