/* SPDX-License-Identifier: Apache-2.0 */
/*
 * TLS over connected sockets, with GnuTLS: credentials and authorization as user objects, and sessions.
 *
 * The objects are those of QEMU's tools: tls-creds-x509, tls-creds-psk, tls-creds-anon; authz-simple, authz-list,
 * authz-list-file.
 */
#ifndef TIDEMARK_TLS_TLS_H
#define TIDEMARK_TLS_TLS_H

#include <stdbool.h>

#include "base/error.h"

/* Add the object types. Once, at start. Does not yield. */
void tls_register_types(void);

/* --- credentials (creds.c). Main reactor; none yields. --- */

struct tls_creds;

enum tls_endpoint { TLS_CLIENT, TLS_SERVER };

/*
 * The credentials of this id, which have to be for this end; a reference. -ENOENT, -EINVAL. They are not changed after
 * they were made, so sessions of any thread use them.
 */
int tls_creds_ref(const char *id, enum tls_endpoint endpoint, struct tls_creds **ret,
                  struct error *err);
void tls_creds_unref(struct tls_creds *creds); /* NULL is fine */
/* Whether a session with them knows who the peer is: needed for authorization. */
bool tls_creds_identify_peer(const struct tls_creds *creds);

/* --- authorization (authz.c) --- */

struct tls_authz;

/* A reference. -ENOENT, -EINVAL. Main reactor; does not yield. */
int tls_authz_ref(const char *id, struct tls_authz **ret, struct error *err);
void tls_authz_unref(struct tls_authz *authz); /* NULL is fine */
/* Whether this peer may come in. May block to read a file: any thread but a reactor's. */
bool tls_authz_allows(const struct tls_authz *authz, const char *identity);

#endif
