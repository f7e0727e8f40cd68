/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of this layer share. */
#ifndef TIDEMARK_TLS_INTERNAL_H
#define TIDEMARK_TLS_INTERNAL_H

#include "block/options.h"
#include "block/user_object.h"
#include "tls/gnutls_lazy.h"
#include "tls/tls.h"

enum tls_kind { TLS_ANON, TLS_PSK, TLS_X509 };

struct tls_creds {
    struct user_object *object; /* that this is the data of; set by tls_creds_ref() */
    enum tls_kind kind;
    enum tls_endpoint endpoint;
    bool verify_peer;
    gnutls_priority_t priority;
    /* That of the kind and endpoint; others NULL. */
    gnutls_certificate_credentials_t x509;
    gnutls_psk_server_credentials_t psk_server;
    gnutls_psk_client_credentials_t psk_client;
    gnutls_anon_server_credentials_t anon_server;
    gnutls_anon_client_credentials_t anon_client;
};

/* A sentence with GnuTLS's own words behind it. Returns -EINVAL. */
int tls_error(struct error *err, int gnutls_code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* DIR/NAME, malloc'ed; *ret is NULL if there is no such file and `needed` is not set. -ENOENT else; -EACCES. */
int tls_creds_file(const char *dir, const char *name, bool needed, char **ret, struct error *err);

/* x509.c: what dir has, into creds->x509. */
int tls_x509_load(struct tls_creds *creds, const char *dir, const char *password, bool sanity_check,
                  struct error *err);

/* sanity.c: whether certificates are fit for what they are to be used for. `cert` may be NULL. */
int tls_x509_check(const struct tls_creds *creds, const char *ca, const char *cert,
                   struct error *err);

/* What gnutls_certificate_verify_peers() found, a sentence. */
const char *tls_x509_fault(unsigned status);

/* authz.c */
void tls_authz_register_types(void);

#endif
