/* SPDX-License-Identifier: Apache-2.0 */
/* The objects tls-creds-x509, tls-creds-psk and tls-creds-anon. */
#include <errno.h>
#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/secret_memory.h"
#include "schema/define.h"
#include "tls/internal.h"

/* The NBD specification asks for TLS 1.2 or later. */
#define DEFAULT_PRIORITY "NORMAL:-VERS-ALL:+VERS-TLS1.3:+VERS-TLS1.2"
/*
 * The ciphers of NORMAL, for processors that compute AES. NORMAL has ChaCha20 before AES-128, and
 * pre-shared keys of TLS 1.3, whose hash is SHA-256, exclude AES-256: so it would be ChaCha20, at a
 * fifth of the speed.
 */
#define AES_FIRST                                                                                  \
    ":-CIPHER-ALL:+AES-256-GCM:+AES-128-GCM:+CHACHA20-POLY1305:+AES-256-CCM:+AES-128-CCM"          \
    ":+AES-256-CBC:+AES-128-CBC:%SERVER_PRECEDENCE"
#define DEFAULT_USERNAME "qemu"

/* --- what all kinds have -------------------------------------------------------------------- */

void tls_creds_destroy(void *creds)
{
    struct tls_creds *c = creds;

    if (!c) {
        return;
    }
    if (c->x509) {
        gnutls_certificate_free_credentials(c->x509);
    }
    if (c->psk_server) {
        gnutls_psk_free_server_credentials(c->psk_server);
    }
    if (c->psk_client) {
        gnutls_psk_free_client_credentials(c->psk_client);
    }
    if (c->anon_server) {
        gnutls_anon_free_server_credentials(c->anon_server);
    }
    if (c->anon_client) {
        gnutls_anon_free_client_credentials(c->anon_client);
    }
    if (c->priority) {
        gnutls_priority_deinit(c->priority);
    }
    free(c);
}

static bool processor_has_aes(void)
{
#if defined(__x86_64__)
    unsigned a, b, c = 0, d;

    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_AES);
#elif defined(__aarch64__)
    return getauxval(AT_HWCAP) & HWCAP_AES;
#else
    return false;
#endif
}

static int set_priority(struct tls_creds *c, const char *text, struct error *err)
{
    static const char *const needed[] = {
        [TLS_ANON] = ":+ANON-DH:+ANON-ECDH",
        [TLS_PSK] = ":+ECDHE-PSK:+DHE-PSK:+PSK",
        [TLS_X509] = "",
    };
    AUTO_FREE char *priority = NULL;
    const char *position;
    int code;

    if (asprintf(&priority, "%s%s%s", text ? text : DEFAULT_PRIORITY,
                 !text && processor_has_aes() ? AES_FIRST : "", needed[c->kind]) < 0) {
        priority = NULL;
        return error_out_of_memory(err);
    }
    code = gnutls_priority_init(&c->priority, priority, &position);
    return code < 0 ? tls_error(err, code, "Unable to set TLS session priority %s", priority) : 0;
}

int tls_creds_alloc(enum tls_kind kind, enum tls_endpoint endpoint, bool verify_peer,
                    const char *priority, struct tls_creds **ret_creds, struct error *err)
{
    struct tls_creds *c = calloc(1, sizeof(*c));
    int r;

    if (!c) {
        return error_out_of_memory(err);
    }
    c->kind = kind;
    c->endpoint = endpoint;
    c->verify_peer = verify_peer;
    r = lazy_gnutls_load(err);
    UNLESS_FAILED(r, set_priority(c, priority, err));
    if (r < 0) {
        tls_creds_destroy(c);
        return r;
    }
    *ret_creds = c;
    return 0;
}

/* Credentials, with the options that all kinds have. */
static int creds_new(struct options *opts, enum tls_kind kind, struct tls_creds **ret_creds,
                     struct error *err)
{
    static const char *const endpoints[] = {"client", "server", NULL};
    AUTO_FREE char *priority = NULL;
    bool verify_peer = true, allow_kernel = false;
    int endpoint = 0;
    int r = options_take_enum(opts, "endpoint", endpoints, 0, &endpoint, err);

    UNLESS_FAILED(r, options_take_bool(opts, "verify-peer", true, &verify_peer, err));
    UNLESS_FAILED(r, options_take_str(opts, "priority", &priority, err));
    UNLESS_FAILED(r, options_take_bool(opts, "x-ktls", false, &allow_kernel, err));
    UNLESS_FAILED(r, tls_creds_alloc(kind, endpoint == 1 ? TLS_SERVER : TLS_CLIENT, verify_peer,
                                     priority, ret_creds, err));
    if (r == 0) {
        (*ret_creds)->allow_kernel = allow_kernel;
    }
    return r;
}

static int take_dir(struct options *opts, char **ret_dir, struct error *err)
{
    int r = options_take_str(opts, "dir", ret_dir, err);

    return r < 0 || *ret_dir ? r : error_set(err, EINVAL, "Missing 'dir' property value");
}

/* The end of a creation: the object, or its release. */
static int finish_creds(struct tls_creds *c, int result, void **ret_data)
{
    if (result < 0) {
        tls_creds_destroy(c);
        return result;
    }
    *ret_data = c;
    return 0;
}

/* --- x509 ----------------------------------------------------------------------------------- */

static int x509_create(const char *id, struct options *opts, void **ret_data, struct error *err)
{
    AUTO_FREE char *dir = NULL, *password_id = NULL;
    AUTO_SECRET char *password = NULL;
    bool sanity_check = true;
    struct tls_creds *c = NULL;
    size_t size;
    int r = creds_new(opts, TLS_X509, &c, err);

    if (r < 0 || !c) {
        return r;
    }
    r = take_dir(opts, &dir, err);
    UNLESS_FAILED(r, options_take_bool(opts, "sanity-check", true, &sanity_check, err));
    UNLESS_FAILED(r, options_take_str(opts, "passwordid", &password_id, err));
    if (r == 0 && password_id) {
        r = secret_get(password_id, &password, &size, err);
    }
    UNLESS_FAILED(r, tls_x509_load(c, dir, password, sanity_check, err));
    return finish_creds(c, r, ret_data);
}

/* --- psk ------------------------------------------------------------------------------------ */

/* The key of a user in a file of lines "USER:HEX"; the caller frees it. */
static int find_key(const char *path, const char *username, char **ret_key, struct error *err)
{
    FILE *f = fopen(path, "re");
    size_t length = strlen(username), room = 0;
    AUTO_FREE char *line = NULL;
    bool found = false;

    if (!f) {
        return error_set_errno(err, errno, "Cannot open file %s", path);
    }
    while (!found && getline(&line, &room, f) >= 0) {
        found = strncmp(line, username, length) == 0 && line[length] == ':';
    }
    fclose(f);
    if (!found) {
        return error_set(err, EINVAL, "Username %s not found in PSK file %s", username, path);
    }
    line[strcspn(line, "\r\n")] = '\0';
    *ret_key = strdup(line + length + 1);
    return *ret_key ? 0 : error_out_of_memory(err);
}

int tls_psk_load_client(struct tls_creds *c, const char *path, const char *username,
                        struct error *err)
{
    AUTO_FREE char *key = NULL;
    gnutls_datum_t datum;
    int r = find_key(path, username, &key, err), code;

    if (r < 0 || !key) {
        return r;
    }
    datum = (gnutls_datum_t){.data = (unsigned char *)key, .size = (unsigned)strlen(key)};
    code = gnutls_psk_allocate_client_credentials(&c->psk_client);
    if (code == 0) {
        code =
            gnutls_psk_set_client_credentials(c->psk_client, username, &datum, GNUTLS_PSK_KEY_HEX);
    }
    return code < 0 ? tls_error(err, code, "Cannot use the key of %s in %s", username, path) : 0;
}

static int psk_load_server(struct tls_creds *c, const char *path, struct error *err)
{
    int code = gnutls_psk_allocate_server_credentials(&c->psk_server);

    if (code == 0) {
        code = gnutls_psk_set_server_credentials_file(c->psk_server, path);
    }
    if (code == 0) {
        code = gnutls_psk_set_server_known_dh_params(c->psk_server, GNUTLS_SEC_PARAM_MEDIUM);
    }
    return code < 0 ? tls_error(err, code, "Cannot use the keys in %s", path) : 0;
}

static int psk_create(const char *id, struct options *opts, void **ret_data, struct error *err)
{
    AUTO_FREE char *dir = NULL, *username = NULL, *path = NULL;
    struct tls_creds *c = NULL;
    int r = creds_new(opts, TLS_PSK, &c, err);

    if (r < 0 || !c) {
        return r;
    }
    r = take_dir(opts, &dir, err);
    UNLESS_FAILED(r, options_take_str(opts, "username", &username, err));
    if (r == 0 && username && c->endpoint == TLS_SERVER) {
        r = error_set(err, EINVAL, "username should not be set when endpoint=server");
    }
    UNLESS_FAILED(r, tls_creds_file(dir, "keys.psk", true, &path, err));
    if (r == 0 && path) {
        r = c->endpoint == TLS_SERVER
                ? psk_load_server(c, path, err)
                : tls_psk_load_client(c, path, username ? username : DEFAULT_USERNAME, err);
    }
    return finish_creds(c, r, ret_data);
}

/* --- anon ----------------------------------------------------------------------------------- */

int tls_anon_load_client(struct tls_creds *c, struct error *err)
{
    int code = gnutls_anon_allocate_client_credentials(&c->anon_client);

    return code < 0 ? tls_error(err, code, "Cannot allocate credentials") : 0;
}

/* Encryption without knowledge of who the peer is. */
static int anon_create(const char *id, struct options *opts, void **ret_data, struct error *err)
{
    struct tls_creds *c = NULL;
    int r = creds_new(opts, TLS_ANON, &c, err), code;

    if (r < 0 || !c) {
        return r;
    }
    options_drop(opts, "dir");
    if (c->endpoint == TLS_SERVER) {
        code = gnutls_anon_allocate_server_credentials(&c->anon_server);
        if (code == 0) {
            code = gnutls_anon_set_server_known_dh_params(c->anon_server, GNUTLS_SEC_PARAM_MEDIUM);
        }
        r = code < 0 ? tls_error(err, code, "Cannot allocate credentials") : 0;
    } else {
        r = tls_anon_load_client(c, err);
    }
    return finish_creds(c, r, ret_data);
}

/* --- use ------------------------------------------------------------------------------------ */

ENUM(endpoint_type, "QCryptoTLSCredsEndpoint", "client", "server");
#define COMMON_PROPERTIES                                                                          \
    OPT("verify-peer", schema_bool, .dflt = "true",                                                \
        .help = "refuse peers without a valid certificate"),                                       \
        OPT("dir", schema_str, .help = "the directory of keys and certificates"),                  \
        OPT("endpoint", endpoint_type, .dflt = "client"),                                          \
        OPT("priority", schema_str, .help = "algorithms, in the form of GnuTLS"),                  \
        OPT("x-ktls", schema_bool, .dflt = "false", UNSTABLE,                                      \
            .help = "let the kernel make records where it can (NBD over TCP)")
OBJECT(anon_properties, "TlsCredsAnonProperties", COMMON_PROPERTIES);
OBJECT(psk_properties, "TlsCredsPskProperties", COMMON_PROPERTIES,
       OPT("username", schema_str, .dflt = DEFAULT_USERNAME, .help = "of a client"));
OBJECT(x509_properties, "TlsCredsX509Properties", COMMON_PROPERTIES,
       OPT("sanity-check", schema_bool, .dflt = "true",
           .help = "check the certificates before they are used"),
       OPT("passwordid", schema_str, .help = "id of the secret that the key is encrypted with"));

static const struct user_object_type creds_types[] = {
    {.name = "tls-creds-anon",
     .parent = "tls-creds",
     .create = anon_create,
     .destroy = tls_creds_destroy,
     .properties = &anon_properties,
     .help = "TLS without knowledge of who the other end is"},
    {.name = "tls-creds-psk",
     .parent = "tls-creds",
     .create = psk_create,
     .reads_files = true,
     .destroy = tls_creds_destroy,
     .properties = &psk_properties,
     .help = "TLS with keys that both ends know"},
    {.name = "tls-creds-x509",
     .parent = "tls-creds",
     .create = x509_create,
     .reads_files = true,
     .destroy = tls_creds_destroy,
     .properties = &x509_properties,
     .help = "TLS with certificates"},
};

void tls_register_types(void)
{
    for (size_t i = 0; i < ARRAY_SIZE(creds_types); i++) {
        user_object_register_type(&creds_types[i]);
    }
    tls_authz_register_types();
}

int tls_creds_ref(const char *id, enum tls_endpoint endpoint, struct tls_creds **ret_creds,
                  struct error *err)
{
    struct user_object *o = user_object_ref(id);
    struct tls_creds *c = NULL;
    int r;

    if (!o) {
        return error_set(err, ENOENT, "No TLS credentials with id '%s'", id);
    }
    if (user_object_type_of(o)->destroy != tls_creds_destroy) {
        r = error_set(err, EINVAL, "Object with id '%s' is not TLS credentials", id);
        user_object_unref(o);
        return r;
    }
    c = user_object_data(o);
    if (c->endpoint != endpoint) {
        r = error_set(err, EINVAL, "Expected TLS credentials for a %s endpoint",
                      endpoint == TLS_SERVER ? "server" : "client");
        user_object_unref(o);
        return r;
    }
    c->object = o;
    *ret_creds = c;
    return 0;
}

void tls_creds_unref(struct tls_creds *creds)
{
    if (creds && creds->object) {
        user_object_unref(creds->object);
    } else {
        tls_creds_destroy(creds);
    }
}

bool tls_creds_identify_peer(const struct tls_creds *creds)
{
    return creds->kind == TLS_PSK || (creds->kind == TLS_X509 && creds->verify_peer);
}
