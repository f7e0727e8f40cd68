/* SPDX-License-Identifier: Apache-2.0 */
/* The address of an export, from a filename or URI. */
#include "nbd/uri.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/percent.h"
#include "nbd/client.h"

/* The host of the hypervisor, as seen by a guest: VMADDR_CID_HOST. */
#define VSOCK_HOST "2"

enum transport { TRANSPORT_TCP, TRANSPORT_UNIX, TRANSPORT_VSOCK };

static const struct scheme {
    const char *prefix;
    enum transport transport;
    bool tls;
} schemes[] = {
    {"nbd://", TRANSPORT_TCP, false},       {"nbd+tcp://", TRANSPORT_TCP, false},
    {"nbd+unix://", TRANSPORT_UNIX, false}, {"nbd+vsock://", TRANSPORT_VSOCK, false},
    {"nbds://", TRANSPORT_TCP, true},       {"nbds+tcp://", TRANSPORT_TCP, true},
    {"nbds+unix://", TRANSPORT_UNIX, true}, {"nbds+vsock://", TRANSPORT_VSOCK, true},
};

void nbd_tls_params_clear(struct nbd_tls_params *p)
{
    free(p->creds);
    free(p->hostname);
    free(p->type);
    free(p->dir);
    free(p->psk_file);
    free(p->username);
    *p = (struct nbd_tls_params){0};
}

int nbd_tls_params_get(const struct nbd_tls_params *p, struct tls_creds **ret_creds,
                       struct error *err)
{
    struct tls_client_params params = {
        .type = p->type,
        .dir = p->dir,
        .psk_file = p->psk_file,
        .username = p->username,
        .verify_peer = p->verify_peer,
    };

    if (p->creds) {
        return tls_creds_ref(p->creds, TLS_CLIENT, ret_creds, err);
    }
    if (p->own) {
        return tls_creds_new_client(&params, ret_creds, err);
    }
    *ret_creds = NULL;
    return 0;
}

void nbd_uri_clear(struct nbd_uri *u)
{
    socket_address_clear(&u->address);
    free(u->export_name);
    nbd_tls_params_clear(&u->tls);
    *u = (struct nbd_uri){0};
}

static int malformed_address(const char *uri, const char *why, struct error *err)
{
    return error_set(err, EINVAL, "Invalid NBD address '%s': %s", uri, why);
}

/* "host", "host:port", "[v6]:port". */
static int parse_host_and_port(const char *uri, const char *text, size_t size,
                               struct socket_address *ret_address, struct error *err)
{
    const char *end = text + size, *colon;

    if (size > 0 && text[0] == '[') {
        const char *bracket = memchr(text, ']', size);

        if (!bracket || (bracket + 1 < end && bracket[1] != ':')) {
            return malformed_address(uri, "an IPv6 address ends with ']'", err);
        }
        ret_address->host = strndup(text + 1, (size_t)(bracket - text - 1));
        colon = bracket + 1 < end ? bracket + 1 : NULL;
    } else {
        colon = memchr(text, ':', size);
        ret_address->host = percent_decode(text, colon ? (size_t)(colon - text) : size);
    }
    if (colon && colon + 1 < end) {
        ret_address->port = strndup(colon + 1, (size_t)(end - colon - 1));
    }
    if (!ret_address->host) {
        return malformed_address(uri, "the host is malformed", err);
    }
    return ret_address->host[0] ? 0 : malformed_address(uri, "the host is missing", err);
}

/* The authority of a vsock: "", "CID", "CID:PORT". */
static int parse_vsock_authority(const char *uri, const char *text, size_t size,
                                 struct socket_address *ret_address, struct error *err)
{
    const char *colon = memchr(text, ':', size);
    size_t cid = colon ? (size_t)(colon - text) : size;

    if (strspn(text, "0123456789") < cid) {
        return malformed_address(uri, "a vsock has a number (CID) as its host", err);
    }
    ret_address->cid = cid > 0 ? strndup(text, cid) : strdup(VSOCK_HOST);
    if (!ret_address->cid) {
        return error_out_of_memory(err);
    }
    if (colon && size > cid + 1) {
        ret_address->port = strndup(colon + 1, size - cid - 1);
    }
    return 0;
}

/* Before '@': the user of a pre-shared key. *text and *size become what is behind it. */
static int take_user(const char *uri, bool tls, const char **text, size_t *size,
                     struct nbd_tls_params *params, struct error *err)
{
    const char *at = memchr(*text, '@', *size);
    size_t length = at ? (size_t)(at - *text) : 0;

    if (!at) {
        return 0;
    }
    if (!tls) {
        return malformed_address(uri, "a user needs TLS (nbds)", err);
    }
    params->username = percent_decode(*text, length);
    if (!params->username) {
        return malformed_address(uri, "the user is malformed", err);
    }
    *text += length + 1;
    *size -= length + 1;
    return 0;
}

static int take_socket(const char *uri, const char *value, size_t size,
                       struct socket_address *ret_address, struct error *err)
{
    if (size > 3 && strncmp(value, "%00", 3) == 0) {
        ret_address->abstract = true;
        value += 3;
        size -= 3;
    }
    ret_address->path = percent_decode(value, size);
    return ret_address->path ? 0 : malformed_address(uri, "the socket is malformed", err);
}

static int take_verify_peer(const char *uri, const char *value, size_t size, bool *ret_verify,
                            struct error *err)
{
    static const char *const words[] = {"0", "false", "no", "off", "1", "true", "yes", "on"};

    for (size_t i = 0; i < ARRAY_SIZE(words); i++) {
        if (strlen(words[i]) == size && strncasecmp(words[i], value, size) == 0) {
            *ret_verify = i >= ARRAY_SIZE(words) / 2;
            return 0;
        }
    }
    return malformed_address(uri, "tls-verify-peer is 0 or 1", err);
}

/* One parameter about TLS. -ENOENT: it is none. */
static int take_tls_parameter(const char *uri, const char *name, size_t name_size,
                              const char *value, size_t size, struct nbd_tls_params *params,
                              struct error *err)
{
    const struct {
        const char *name;
        char **to;
    } texts[] = {
        {"tls-certificates", &params->dir},  {"tls-psk-file", &params->psk_file},
        {"tls-hostname", &params->hostname}, {"tls-username", &params->username},
        {"tls-type", &params->type},         {"tls-creds", &params->creds},
    };

    if (strncmp(name, "tls-verify-peer", name_size) == 0 && name_size == 15) {
        return take_verify_peer(uri, value, size, &params->verify_peer, err);
    }
    for (size_t i = 0; i < ARRAY_SIZE(texts); i++) {
        if (strlen(texts[i].name) == name_size && strncmp(texts[i].name, name, name_size) == 0) {
            if (*texts[i].to) {
                return malformed_address(uri, "a parameter is given twice", err);
            }
            *texts[i].to = percent_decode(value, size);
            return *texts[i].to ? 0 : malformed_address(uri, "a parameter is malformed", err);
        }
    }
    return -ENOENT;
}

static int parse_nbd_query(const char *uri, const char *query, const struct scheme *scheme,
                           struct nbd_uri *u, struct error *err)
{
    while (*query && *query != '#') {
        size_t size = strcspn(query, "&;#"), name = strcspn(query, "=&;#");
        const char *value = query + name + (query[name] == '=');
        size_t value_size = (size_t)(query + size - value);
        int r = -ENOENT;

        if (scheme->transport == TRANSPORT_UNIX && name == 6 && !u->address.path &&
            strncmp(query, "socket=", 7) == 0) {
            r = take_socket(uri, value, value_size, &u->address, err);
        } else if (scheme->tls) {
            r = take_tls_parameter(uri, query, name, value, value_size, &u->tls, err);
        }
        if (r == -ENOENT) {
            r = malformed_address(uri,
                                  scheme->tls ? "the parameters are 'socket' of a unix socket, "
                                                "tls-certificates, -psk-file, -hostname, "
                                                "-username, -type, -verify-peer and tls-creds"
                                  : scheme->transport == TRANSPORT_UNIX
                                      ? "only the parameter 'socket' is known"
                                      : "there are no parameters without TLS (nbds)",
                                  err);
        }
        if (r < 0) {
            return r;
        }
        query += size + (query[size] == '&' || query[size] == ';');
    }
    return 0;
}

static int parse_nbd_authority(const char *uri, const struct scheme *scheme, const char *text,
                               size_t size, struct nbd_uri *u, struct error *err)
{
    int r = take_user(uri, scheme->tls, &text, &size, &u->tls, err);

    if (r < 0) {
        return r;
    }
    switch (scheme->transport) {
    case TRANSPORT_UNIX:
        return size > 0 ? malformed_address(uri, "nbd+unix has no host", err) : 0;
    case TRANSPORT_VSOCK:
        return parse_vsock_authority(uri, text, size, &u->address, err);
    default:
        return parse_host_and_port(uri, text, size, &u->address, err);
    }
}

static int parse_uri(const char *uri, const struct scheme *scheme, struct nbd_uri *u,
                     struct error *err)
{
    const char *rest = uri + strlen(scheme->prefix);
    size_t authority = strcspn(rest, "/?#");
    const char *path = rest + authority;
    size_t path_size = strcspn(path, "?#");
    const char *query = path[path_size] == '?' ? path + path_size + 1 : "";
    int r = parse_nbd_authority(uri, scheme, rest, authority, u, err);

    u->tls.own = scheme->tls;
    u->tls.verify_peer = true;
    UNLESS_FAILED(r, parse_nbd_query(uri, query, scheme, u, err));
    if (r == 0 && scheme->transport == TRANSPORT_UNIX &&
        (!u->address.path || !u->address.path[0])) {
        r = malformed_address(uri, "nbd+unix needs ?socket=PATH", err);
    }
    if (r == 0 && u->tls.creds &&
        (u->tls.type || u->tls.dir || u->tls.psk_file || u->tls.username)) {
        r = malformed_address(uri, "tls-creds names credentials, which have all the rest", err);
    }
    if (r < 0) {
        return r;
    }
    /* The first slash is the separator; all others belong to the name. */
    u->export_name = path_size > 0 ? percent_decode(path + 1, path_size - 1) : strdup("");
    return u->export_name ? 0 : malformed_address(uri, "the export name is malformed", err);
}

/* The older form: "unix:PATH[:exportname=N]" or "HOST:PORT[:exportname=N]". */
static int parse_legacy(const char *uri, const char *rest, struct nbd_uri *u, struct error *err)
{
    static const char marker[] = ":exportname=";
    const char *name = strstr(rest, marker);
    size_t size = name ? (size_t)(name - rest) : strlen(rest);
    int r = 0;

    if (strncmp(rest, "unix:", 5) == 0) {
        u->address.path = size > 5 ? strndup(rest + 5, size - 5) : NULL;
        if (!u->address.path) {
            return malformed_address(uri, "the path of the socket is missing", err);
        }
    } else {
        r = parse_host_and_port(uri, rest, size, &u->address, err);
        if (r == 0 && !u->address.port) {
            r = malformed_address(uri, "the port is missing", err);
        }
    }
    if (r < 0) {
        return r;
    }
    u->export_name = strdup(name ? name + sizeof(marker) - 1 : "");
    return u->export_name ? 0 : error_out_of_memory(err);
}

static int parse_any(const char *text, struct nbd_uri *u, struct error *err)
{
    for (size_t i = 0; i < ARRAY_SIZE(schemes); i++) {
        if (strncmp(text, schemes[i].prefix, strlen(schemes[i].prefix)) == 0) {
            return parse_uri(text, &schemes[i], u, err);
        }
    }
    return strncmp(text, "nbd:", 4) == 0
               ? parse_legacy(text, text + 4, u, err)
               : malformed_address(text,
                                   "it begins with nbd:, or with nbd:// or nbds://, which may have "
                                   "+tcp, +unix or +vsock",
                                   err);
}

int nbd_uri_parse(const char *text, struct nbd_uri *ret_uri, struct error *err)
{
    struct nbd_uri u = {0};
    int r = parse_any(text, &u, err);

    if (r < 0) {
        nbd_uri_clear(&u);
        return r;
    }
    *ret_uri = u;
    return 0;
}

int nbd_address_parse(const char *uri, struct socket_address *ret_address, char **ret_export,
                      struct error *err)
{
    struct nbd_uri u;
    int r = nbd_uri_parse(uri, &u, err);

    if (r == 0 && u.tls.own) {
        nbd_uri_clear(&u);
        r = malformed_address(uri, "TLS is not possible here", err);
    }
    if (r == 0) {
        *ret_address = u.address;
        *ret_export = u.export_name;
    }
    return r;
}
