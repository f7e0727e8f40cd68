/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The files of x509 credentials: the trusted authorities, the certificates that they have revoked,
 * our own certificate, and its key.
 */
#include <stdlib.h>

#include "base/cleanup.h"
#include "tls/internal.h"

struct files {
    /* Paths, owned; NULL: there is no such file. */
    char *ca, *crl, *cert, *key;
};

static void x509_files_clear(struct files *f)
{
    free(f->ca);
    free(f->crl);
    free(f->cert);
    free(f->key);
}

/* A client need not have a certificate; authorities are needed in any case. */
static int find_files(const struct tls_creds *creds, const char *dir, struct files *f,
                      struct error *err)
{
    bool server = creds->endpoint == TLS_SERVER;
    int r = tls_creds_file(dir, "ca-cert.pem", true, &f->ca, err);

    UNLESS_FAILED(r, tls_creds_file(dir, "ca-crl.pem", false, &f->crl, err));
    UNLESS_FAILED(r, tls_creds_file(dir, server ? "server-cert.pem" : "client-cert.pem", server,
                                    &f->cert, err));
    UNLESS_FAILED(r, tls_creds_file(dir, server ? "server-key.pem" : "client-key.pem",
                                    f->cert != NULL, &f->key, err));
    return r;
}

/* Trust whom the system trusts. */
static int load_system_trust(struct tls_creds *creds, struct error *err)
{
    int code = gnutls_certificate_allocate_credentials(&creds->x509);

    if (code == 0) {
        code = gnutls_certificate_set_x509_system_trust(creds->x509);
    }
    return code < 0 ? tls_error(err, code, "Cannot load the CA certificates of the system") : 0;
}

int tls_x509_load(struct tls_creds *creds, const char *dir, const char *password, bool sanity_check,
                  struct error *err)
{
    struct files f CLEANUP(x509_files_clear) = {0};
    int code = 0, r;

    if (!dir) {
        return load_system_trust(creds, err);
    }
    r = find_files(creds, dir, &f, err);
    if (r == 0 && sanity_check) {
        r = tls_x509_check(creds, f.ca, f.cert, err);
    }
    if (r < 0) {
        return r;
    }
    code = gnutls_certificate_allocate_credentials(&creds->x509);
    if (code < 0) {
        return tls_error(err, code, "Cannot allocate credentials");
    }
    code = gnutls_certificate_set_x509_trust_file(creds->x509, f.ca, GNUTLS_X509_FMT_PEM);
    if (code < 0) {
        return tls_error(err, code, "Cannot load CA certificate '%s'", f.ca);
    }
    if (f.cert) {
        code = gnutls_certificate_set_x509_key_file2(creds->x509, f.cert, f.key,
                                                     GNUTLS_X509_FMT_PEM, password, 0);
        if (code < 0) {
            return tls_error(err, code, "Cannot load certificate '%s' & key '%s'", f.cert, f.key);
        }
    }
    if (f.crl) {
        code = gnutls_certificate_set_x509_crl_file(creds->x509, f.crl, GNUTLS_X509_FMT_PEM);
        if (code < 0) {
            return tls_error(err, code, "Cannot load CRL '%s'", f.crl);
        }
    }
    if (creds->endpoint == TLS_SERVER) {
        code = gnutls_certificate_set_known_dh_params(creds->x509, GNUTLS_SEC_PARAM_MEDIUM);
    }
    return code < 0 ? tls_error(err, code, "Cannot set the parameters of the key exchange") : 0;
}
