/* SPDX-License-Identifier: Apache-2.0 */
/* The address of a server, from a filename or URI (doc/uri.md of the NBD project). */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/percent.h"
#include "nbd/client.h"

static int malformed_address(const char *uri, const char *why, struct error *err)
{
    return error_set(err, EINVAL, "Invalid NBD address '%s': %s", uri, why);
}

/* "host", "host:port", "[v6]:port". */
static int parse_nbd_authority(const char *uri, const char *text, size_t size,
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

/* The value of "socket=" in a query. */
static int parse_nbd_query(const char *uri, const char *query, struct socket_address *ret_address,
                           struct error *err)
{
    while (*query) {
        size_t size = strcspn(query, "&;");

        if (strncmp(query, "socket=", 7) == 0 && !ret_address->path) {
            ret_address->path = percent_decode(query + 7, size - 7);
            if (!ret_address->path) {
                return malformed_address(uri, "the socket is malformed", err);
            }
        } else {
            return malformed_address(uri, "only the parameter 'socket' is known", err);
        }
        query += size + (query[size] != '\0');
    }
    return 0;
}

static int parse_uri(const char *uri, const char *rest, bool is_unix,
                     struct socket_address *ret_address, char **ret_export, struct error *err)
{
    size_t authority = strcspn(rest, "/?#");
    const char *path = rest + authority;
    size_t path_size = strcspn(path, "?#");
    const char *query = path[path_size] == '?' ? path + path_size + 1 : "";
    int r = 0;

    if (is_unix) {
        if (authority > 0) {
            return malformed_address(uri, "nbd+unix has no host", err);
        }
        r = parse_nbd_query(uri, query, ret_address, err);
        if (r == 0 && (!ret_address->path || !ret_address->path[0])) {
            r = malformed_address(uri, "nbd+unix needs ?socket=PATH", err);
        }
    } else {
        if (*query) {
            return malformed_address(uri, "there are no parameters for TCP", err);
        }
        r = parse_nbd_authority(uri, rest, authority, ret_address, err);
    }
    if (r < 0) {
        return r;
    }
    /* The first slash is the separator; all others belong to the name. */
    *ret_export = path_size > 0 ? percent_decode(path + 1, path_size - 1) : strdup("");
    return *ret_export ? 0 : malformed_address(uri, "the export name is malformed", err);
}

/* The older form: "unix:PATH[:exportname=N]" or "HOST:PORT[:exportname=N]". */
static int parse_legacy(const char *uri, const char *rest, struct socket_address *ret_address,
                        char **ret_export, struct error *err)
{
    static const char marker[] = ":exportname=";
    const char *name = strstr(rest, marker);
    size_t size = name ? (size_t)(name - rest) : strlen(rest);
    int r = 0;

    if (strncmp(rest, "unix:", 5) == 0) {
        ret_address->path = size > 5 ? strndup(rest + 5, size - 5) : NULL;
        if (!ret_address->path) {
            return malformed_address(uri, "the path of the socket is missing", err);
        }
    } else {
        r = parse_nbd_authority(uri, rest, size, ret_address, err);
        if (r == 0 && !ret_address->port) {
            r = malformed_address(uri, "the port is missing", err);
        }
    }
    if (r < 0) {
        return r;
    }
    *ret_export = strdup(name ? name + sizeof(marker) - 1 : "");
    return *ret_export ? 0 : error_out_of_memory(err);
}

int nbd_address_parse(const char *uri, struct socket_address *ret_address, char **ret_export,
                      struct error *err)
{
    static const struct {
        const char *scheme;
        bool is_unix;
    } schemes[] = {{"nbd://", false}, {"nbd+tcp://", false}, {"nbd+unix://", true}};
    struct socket_address a = {0};
    bool known = false;
    int r = 0;

    for (size_t i = 0; i < 3 && !known; i++) {
        size_t size = strlen(schemes[i].scheme);

        if (strncmp(uri, schemes[i].scheme, size) == 0) {
            known = true;
            r = parse_uri(uri, uri + size, schemes[i].is_unix, &a, ret_export, err);
        }
    }
    if (!known) {
        r = strncmp(uri, "nbd:", 4) == 0
                ? parse_legacy(uri, uri + 4, &a, ret_export, err)
                : malformed_address(uri, "it begins with nbd:, nbd://, nbd+tcp:// or nbd+unix://",
                                    err);
    }
    if (r < 0) {
        socket_address_clear(&a);
        return r;
    }
    *ret_address = a;
    return 0;
}
