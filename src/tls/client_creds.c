/* SPDX-License-Identifier: Apache-2.0 */
/* Credentials of a client that are no object: what a URI says. */
#include <errno.h>
#include <pwd.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "tls/internal.h"

/* Choose the kind, and refuse what does not belong to it. */
static int choose_kind(const struct tls_client_params *p, enum tls_kind *ret_kind,
                       struct error *err)
{
    static const char *const names[] = {
        [TLS_ANON] = "anon", [TLS_PSK] = "psk", [TLS_X509] = "x509"};
    bool has_key = p->psk_file || p->username;
    int kind = has_key ? TLS_PSK : TLS_X509;

    if (p->type) {
        for (kind = 0; kind <= TLS_X509 && strcmp(names[kind], p->type) != 0; kind++) {
        }
    }
    if (kind > TLS_X509) {
        return error_set(err, EINVAL, "TLS of the type '%s' is unknown: x509, psk and anon are",
                         p->type);
    }
    if (has_key && kind != TLS_PSK) {
        return error_set(err, EINVAL, "TLS of the type '%s' has no pre-shared key and no user",
                         names[kind]);
    }
    if (p->dir && (kind == TLS_ANON || p->psk_file)) {
        return error_set(err, EINVAL, "Certificates are of no use for TLS of the type '%s'",
                         names[kind]);
    }
    if (kind == TLS_PSK && !p->psk_file && !p->dir) {
        return error_set(err, EINVAL, "TLS with a pre-shared key needs the file of the key");
    }
    *ret_kind = (enum tls_kind)kind;
    return 0;
}

static int load_client_key(struct tls_creds *c, const struct tls_client_params *p,
                           struct error *err)
{
    const char *username = p->username;
    struct passwd self, *found = NULL;
    AUTO_FREE char *path = NULL;
    char names[4096];
    int r = 0;

    if (!username && getpwuid_r(geteuid(), &self, names, sizeof(names), &found) == 0 && found) {
        username = found->pw_name;
    }
    if (!username) {
        return error_set(err, EINVAL, "The user of the pre-shared key has to be given");
    }
    if (!p->psk_file) {
        r = tls_creds_file(p->dir, "keys.psk", true, &path, err);
    }
    UNLESS_FAILED(r, tls_psk_load_client(c, path ? path : p->psk_file, username, err));
    return r;
}

int tls_creds_new_client(const struct tls_client_params *p, struct tls_creds **ret_creds,
                         struct error *err)
{
    enum tls_kind kind = TLS_X509;
    struct tls_creds *c = NULL;
    int r = choose_kind(p, &kind, err);

    UNLESS_FAILED(r, tls_creds_alloc(kind, TLS_CLIENT, p->verify_peer, NULL, &c, err));
    if (r < 0 || !c) {
        return r;
    }
    r = kind == TLS_X509  ? tls_x509_load(c, p->dir, NULL, true, err)
        : kind == TLS_PSK ? load_client_key(c, p, err)
                          : tls_anon_load_client(c, err);
    if (r < 0) {
        tls_creds_destroy(c);
        return r;
    }
    *ret_creds = c;
    return 0;
}
