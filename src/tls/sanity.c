/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Checks that certificates are fit for their use, when they are loaded: a certificate that no peer
 * accepts is better refused here, with its file named, than by every peer later. RFC 5280, sections
 * 4.1.2.5, 4.2.1.3, 4.2.1.9, 4.2.1.12.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "tls/internal.h"

enum role { ROLE_CA, ROLE_SERVER, ROLE_CLIENT };

static const char *const role_names[] = {"CA", "server", "client"};

struct certs {
    gnutls_x509_crt_t *list;
    unsigned count;
};

static void certs_clear(struct certs *c)
{
    for (unsigned i = 0; i < c->count; i++) {
        gnutls_x509_crt_deinit(c->list[i]);
    }
    gnutls_free(c->list);
}

static int load_certs(const char *path, struct certs *ret_certs, struct error *err)
{
    gnutls_datum_t data;
    int code = gnutls_load_file(path, &data);

    if (code < 0) {
        return tls_error(err, code, "Cannot load CA cert list %s", path);
    }
    code = gnutls_x509_crt_list_import2(&ret_certs->list, &ret_certs->count, &data,
                                        GNUTLS_X509_FMT_PEM, 0);
    gnutls_free(data.data);
    return code < 0 ? tls_error(err, code, "Unable to import certificate %s", path) : 0;
}

static int check_times(gnutls_x509_crt_t cert, const char *path, enum role role, struct error *err)
{
    time_t now = time(NULL);

    if (gnutls_x509_crt_get_expiration_time(cert) < now) {
        return error_set(err, EINVAL, "The %s certificate %s has expired", role_names[role], path);
    }
    if (gnutls_x509_crt_get_activation_time(cert) > now) {
        return error_set(err, EINVAL, "The %s certificate %s is not yet active", role_names[role],
                         path);
    }
    return 0;
}

static int check_constraints(gnutls_x509_crt_t cert, const char *path, enum role role,
                             struct error *err)
{
    int code = gnutls_x509_crt_get_basic_constraints(cert, NULL, NULL, NULL);

    if (code > 0 && role != ROLE_CA) {
        return error_set(err, EINVAL,
                         "The certificate %s basic constraints show a CA, but we need one for a %s",
                         path, role_names[role]);
    }
    if (code == 0 && role == ROLE_CA) {
        return error_set(err, EINVAL, "The certificate %s basic constraints do not show a CA",
                         path);
    }
    if (code == GNUTLS_E_REQUESTED_DATA_NOT_AVAILABLE) {
        return role == ROLE_CA ? error_set(err, EINVAL,
                                           "The certificate %s is missing basic constraints for a "
                                           "CA",
                                           path)
                               : 0;
    }
    return code < 0 ? tls_error(err, code, "Unable to query certificate %s basic constraints", path)
                    : 0;
}

/* A usage that is not marked as critical is only a hint. */
static int check_usage(gnutls_x509_crt_t cert, const char *path, enum role role, struct error *err)
{
    unsigned usage = 0, critical = 0;
    int code = gnutls_x509_crt_get_key_usage(cert, &usage, &critical);

    if (code < 0 || !critical) {
        return 0;
    }
    if (role == ROLE_CA && !(usage & GNUTLS_KEY_KEY_CERT_SIGN)) {
        return error_set(err, EINVAL, "Certificate %s usage does not permit certificate signing",
                         path);
    }
    if (role != ROLE_CA && !(usage & GNUTLS_KEY_DIGITAL_SIGNATURE)) {
        return error_set(err, EINVAL, "Certificate %s usage does not permit digital signature",
                         path);
    }
    return 0;
}

static int check_purpose(gnutls_x509_crt_t cert, const char *path, enum role role,
                         struct error *err)
{
    const char *wanted = role == ROLE_SERVER ? GNUTLS_KP_TLS_WWW_SERVER : GNUTLS_KP_TLS_WWW_CLIENT;

    if (role == ROLE_CA || gnutls_x509_crt_check_key_purpose(cert, wanted, 0)) {
        return 0;
    }
    return error_set(err, EINVAL, "Certificate %s purpose does not allow use with a TLS %s", path,
                     role_names[role]);
}

static int check_cert(gnutls_x509_crt_t cert, const char *path, enum role role, struct error *err)
{
    int r = check_times(cert, path, role, err);

    UNLESS_FAILED(r, check_constraints(cert, path, role, err));
    UNLESS_FAILED(r, check_usage(cert, path, role, err));
    UNLESS_FAILED(r, check_purpose(cert, path, role, err));
    return r;
}

const char *tls_x509_fault(unsigned status)
{
    static const struct {
        unsigned bit;
        const char *text;
    } faults[] = {
        {GNUTLS_CERT_INSECURE_ALGORITHM, "The certificate uses an insecure algorithm"},
        {GNUTLS_CERT_REVOKED, "The certificate has been revoked"},
        {GNUTLS_CERT_SIGNER_NOT_FOUND, "The certificate hasn't got a known issuer"},
        {GNUTLS_CERT_EXPIRED, "The certificate has expired"},
        {GNUTLS_CERT_NOT_ACTIVATED, "The certificate is not yet activated"},
        {GNUTLS_CERT_PURPOSE_MISMATCH, "The certificate is for another purpose"},
    };

    for (size_t i = 0; i < ARRAY_SIZE(faults); i++) {
        if (status & faults[i].bit) {
            return faults[i].text;
        }
    }
    return "The certificate is not trusted";
}

int tls_x509_check(const struct tls_creds *creds, const char *ca, const char *cert,
                   struct error *err)
{
    enum role role = creds->endpoint == TLS_SERVER ? ROLE_SERVER : ROLE_CLIENT;
    struct certs cas CLEANUP(certs_clear) = {0};
    struct certs own CLEANUP(certs_clear) = {0};
    unsigned status = 0;
    int code, r = load_certs(ca, &cas, err);

    for (unsigned i = 0; i < cas.count && r == 0; i++) {
        r = check_cert(cas.list[i], ca, ROLE_CA, err);
    }
    if (r < 0 || !cert) {
        return r;
    }
    r = load_certs(cert, &own, err);
    if (r == 0 && own.count > 0) {
        r = check_cert(own.list[0], cert, role, err);
    }
    if (r < 0) {
        return r;
    }
    code = gnutls_x509_crt_list_verify(own.list, (int)own.count, cas.list, (int)cas.count, NULL, 0,
                                       0, &status);
    if (code < 0) {
        return tls_error(err, code, "Unable to verify certificate %s against %s", cert, ca);
    }
    return status
               ? error_set(err, EINVAL, "Our own certificate %s failed validation against %s: %s",
                           cert, ca, tls_x509_fault(status))
               : 0;
}
