/* SPDX-License-Identifier: Apache-2.0 */
/* The files of x509 credentials: the authorities trusted, what they revoked, our own certificate and its key. */
#include <stdlib.h>

#include "base/cleanup.h"
#include "tls/internal.h"

struct files {
    char *ca, *crl, *cert, *key; /* owned; NULL: not there */
};

static void files_clear(struct files *f)
{
    free(f->ca);
    free(f->crl);
    free(f->cert);
    free(f->key);
}

/* A client can do without a certificate; authorities are needed in any case. */
static int find_files(const struct tls_creds *creds, const char *dir, struct files *f,
                      struct error *err)
{
    bool server = creds->endpoint == TLS_SERVER;
    int r = tls_creds_file(dir, "ca-cert.pem", true, &f->ca, err);

    if (r == 0) {
        r = tls_creds_file(dir, "ca-crl.pem", false, &f->crl, err);
    }
    if (r == 0) {
        r = tls_creds_file(dir, server ? "server-cert.pem" : "client-cert.pem", server, &f->cert,
                           err);
    }
    if (r == 0) {
        r = tls_creds_file(dir, server ? "server-key.pem" : "client-key.pem", f->cert != NULL,
                           &f->key, err);
    }
    return r;
}

int tls_x509_load(struct tls_creds *creds, const char *dir, const char *password, bool sanity_check,
                  struct error *err)
{
    struct files f CLEANUP(files_clear) = {0};
    int rc = 0, r = find_files(creds, dir, &f, err);

    if (r == 0 && sanity_check) {
        r = tls_x509_check(creds, f.ca, f.cert, err);
    }
    if (r < 0) {
        return r;
    }
    rc = gnutls_certificate_allocate_credentials(&creds->x509);
    if (rc < 0) {
        return tls_error(err, rc, "Cannot allocate credentials");
    }
    rc = gnutls_certificate_set_x509_trust_file(creds->x509, f.ca, GNUTLS_X509_FMT_PEM);
    if (rc < 0) {
        return tls_error(err, rc, "Cannot load CA certificate '%s'", f.ca);
    }
    if (f.cert) {
        rc = gnutls_certificate_set_x509_key_file2(creds->x509, f.cert, f.key, GNUTLS_X509_FMT_PEM,
                                                   password, 0);
        if (rc < 0) {
            return tls_error(err, rc, "Cannot load certificate '%s' & key '%s'", f.cert, f.key);
        }
    }
    if (f.crl) {
        rc = gnutls_certificate_set_x509_crl_file(creds->x509, f.crl, GNUTLS_X509_FMT_PEM);
        if (rc < 0) {
            return tls_error(err, rc, "Cannot load CRL '%s'", f.crl);
        }
    }
    if (creds->endpoint == TLS_SERVER) {
        rc = gnutls_certificate_set_known_dh_params(creds->x509, GNUTLS_SEC_PARAM_MEDIUM);
    }
    return rc < 0 ? tls_error(err, rc, "Cannot set the parameters of the key exchange") : 0;
}
