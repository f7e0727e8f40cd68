/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of this layer share. Nothing here yields. */
#ifndef TIDEMARK_TLS_INTERNAL_H
#define TIDEMARK_TLS_INTERNAL_H

#include "base/checked.h"
#include "block/options.h"
#include "block/user_object.h"
#include "tls/gnutls_lazy.h"
#include "tls/tls.h"

enum tls_kind {
    TLS_ANON,
    TLS_PSK,
    TLS_X509,
};

struct tls_creds {
    /* The object whose data this is, set by tls_creds_ref(); NULL: of tls_creds_new_client(). */
    struct user_object *object;
    enum tls_kind kind;
    enum tls_endpoint endpoint;
    bool verify_peer;
    /* The kernel may make records (kTLS). */
    bool allow_kernel;
    gnutls_priority_t priority;
    /* The one of the kind and endpoint; the others are NULL. */
    gnutls_certificate_credentials_t x509;
    gnutls_psk_server_credentials_t psk_server;
    gnutls_psk_client_credentials_t psk_client;
    gnutls_anon_server_credentials_t anon_server;
    gnutls_anon_client_credentials_t anon_client;
};

/* --- creds.c -------------------------------------------------------------------------------- */

/*
 * Credentials of a kind, without keys; `priority` NULL: the default. Loads the library. -EINVAL,
 * -ENOMEM, errors of loading.
 */
int tls_creds_alloc(enum tls_kind kind, enum tls_endpoint endpoint, bool verify_peer,
                    const char *priority, struct tls_creds **ret_creds, struct error *err);
/* Release them. NULL is fine. */
void tls_creds_destroy(void *creds);
/* Load the key of a client: that of `username` in the file `path`. -EINVAL, -ENOENT, -EACCES. */
int tls_psk_load_client(struct tls_creds *creds, const char *path, const char *username,
                        struct error *err);
/* -EINVAL, -ENOMEM. */
int tls_anon_load_client(struct tls_creds *creds, struct error *err);

/* --- error.c -------------------------------------------------------------------------------- */

/* -EINVAL, with a sentence that ends in the words of GnuTLS. */
int tls_error(struct error *err, int gnutls_code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/*
 * The path DIR/NAME of a file that can be read; the caller frees it. An absent file that is not
 * `needed`: 0 with *ret_path NULL. -ENOENT, -EACCES, -ENOMEM.
 */
int tls_creds_file(const char *dir, const char *name, bool needed, char **ret_path,
                   struct error *err);

/* Plaintext in a record: RFC 8446, section 5.1. Bytes. */
#define TLS_RECORD_MAX (16 * KiB)

/* --- kernel.c ------------------------------------------------------------------------------- */

/*
 * Give the keys of a session whose handshake is over to its socket: the kernel makes the records of
 * all that is written there from now on. No record of the session may be waiting to be sent, and
 * what GnuTLS sends meanwhile, and after success, has to be dropped. 0; or -errno, and session and
 * socket are as they were: the kernel has no kTLS (-ENOENT), or not for this cipher, or this kind
 * of socket, or the peer takes only shorter records. May block while the kernel loads a module.
 */
int tls_kernel_take_over(gnutls_session_t gnutls, int fd);
/*
 * Have TCP send what it holds. Of a socket for which the former returned 0, which is full: up to
 * Linux 6.4, records of a splice() that ends with -EAGAIN between two of them wait for the next
 * record, and so for room, which comes only when some of them have left.
 */
void tls_kernel_push(int fd);
/* Close the session towards the peer; 0 or -errno. Of a socket as for the former. */
int tls_kernel_send_close(int fd);

/* --- x509.c --------------------------------------------------------------------------------- */

/*
 * Load the files of `dir` (NULL, of a client: the authorities that the system trusts) into
 * creds->x509. -EINVAL, -ENOENT, -EACCES: the sentence names the file.
 */
int tls_x509_load(struct tls_creds *creds, const char *dir, const char *password, bool sanity_check,
                  struct error *err);

/* --- sanity.c ------------------------------------------------------------------------------- */

/*
 * Check that the certificates in the files `ca` and `cert` (NULL: none) are fit for their use, and
 * that the second is trusted by the first. -EINVAL.
 */
int tls_x509_check(const struct tls_creds *creds, const char *ca, const char *cert,
                   struct error *err);

/* The finding of gnutls_certificate_verify_peers(), as a sentence. A static string. */
const char *tls_x509_fault(unsigned status);

/* --- authz.c -------------------------------------------------------------------------------- */

/* Add the object types of authorization. Once, at start. */
void tls_authz_register_types(void);

#endif
