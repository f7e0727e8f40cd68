/* SPDX-License-Identifier: Apache-2.0 */
#include "block/socket_address.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/vm_sockets.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>

#include "base/strbuf.h"

void socket_address_clear(struct socket_address *a)
{
    free(a->path);
    free(a->fd);
    free(a->cid);
    free(a->host);
    free(a->port);
    *a = (struct socket_address){0};
}

/* Replace a borrowed string by a copy. */
static bool own(char **text)
{
    *text = *text ? strdup(*text) : NULL;
    return *text;
}

int socket_address_copy(const struct socket_address *a, struct socket_address *ret_copy)
{
    struct socket_address copy = *a;
    char **const strings[] = {&copy.path, &copy.fd, &copy.cid, &copy.host, &copy.port};
    bool complete = true;

    for (size_t i = 0; i < sizeof(strings) / sizeof(strings[0]); i++) {
        bool wanted = *strings[i];

        complete &= own(strings[i]) || !wanted;
    }
    if (!complete) {
        socket_address_clear(&copy);
        *ret_copy = copy;
        return -ENOMEM;
    }
    *ret_copy = copy;
    return 0;
}

/* --- JSON ------------------------------------------------------------------------------------- */

static char *borrow_text(struct json_object *json, const char *name)
{
    struct json_object *value = NULL;

    json_object_object_get_ex(json, name, &value);
    return value ? (char *)(uintptr_t)json_object_get_string(value) : NULL;
}

static bool get_flag(struct json_object *json, const char *name, bool dflt)
{
    struct json_object *value;

    return json_object_object_get_ex(json, name, &value) ? json_object_get_boolean(value) : dflt;
}

static enum socket_family get_family(struct json_object *json, const char *name)
{
    struct json_object *value;

    if (!json_object_object_get_ex(json, name, &value)) {
        return SOCKET_FAMILY_ANY;
    }
    return json_object_get_boolean(value) ? SOCKET_FAMILY_YES : SOCKET_FAMILY_NO;
}

static bool is_number(const char *text)
{
    unsigned long long value;
    char *end;

    errno = 0;
    value = strtoull(text, &end, 0);
    return text[0] >= '0' && text[0] <= '9' && !*end && errno == 0 && value <= UINT32_MAX;
}

static int check_address(const struct socket_address *a, struct error *err)
{
    if (a->ipv4 == SOCKET_FAMILY_NO && a->ipv6 == SOCKET_FAMILY_NO) {
        return error_set(err, EINVAL, "Cannot disable IPv4 and IPv6 at same time");
    }
    if (a->padded && !a->abstract) {
        return error_set(err, EINVAL, "'tight' is for abstract addresses (abstract=on)");
    }
    if (a->cid && !is_number(a->cid)) {
        return error_set(err, EINVAL, "Failed to parse cid '%s'", a->cid);
    }
    if (a->cid && (!a->port || !is_number(a->port))) {
        return error_set(err, EINVAL, "Failed to parse port '%s'", a->port ?: "");
    }
    return 0;
}

int socket_address_from_json(struct json_object *json, struct socket_address *ret_address,
                             struct error *err)
{
    struct json_object *to = NULL;
    struct socket_address a = {
        .path = borrow_text(json, "path"),
        .abstract = get_flag(json, "abstract", false),
        .padded = !get_flag(json, "tight", true),
        .fd = borrow_text(json, "str"),
        .cid = borrow_text(json, "cid"),
        .host = borrow_text(json, "host"),
        .port = borrow_text(json, "port"),
        .ipv4 = get_family(json, "ipv4"),
        .ipv6 = get_family(json, "ipv6"),
        .numeric = get_flag(json, "numeric", false),
        .keep_alive = get_flag(json, "keep-alive", false),
        .mptcp = get_flag(json, "mptcp", false),
    };
    int r;

    if (json_object_object_get_ex(json, "to", &to)) {
        a.to = (unsigned)json_object_get_int64(to);
    }
    r = check_address(&a, err);
    if (r < 0) {
        return r;
    }
    return socket_address_copy(&a, ret_address) < 0 ? error_out_of_memory(err) : 0;
}

/* --- options ---------------------------------------------------------------------------------- */

static int take_family(struct options *opts, const char *key, enum socket_family *ret_family,
                       struct error *err)
{
    bool given = options_has(opts, key), wanted;
    int r = options_take_bool(opts, key, false, &wanted, err);

    if (r >= 0) {
        *ret_family = !given ? SOCKET_FAMILY_ANY : wanted ? SOCKET_FAMILY_YES : SOCKET_FAMILY_NO;
    }
    return r;
}

static int take_inet(struct options *opts, struct socket_address *a, struct error *err)
{
    uint64_t to = 0;
    int r = options_take_text(opts, "host", &a->host, err);

    UNLESS_FAILED(r, options_take_text(opts, "port", &a->port, err));
    UNLESS_FAILED(r, options_take_uint(opts, "to", 0, UINT16_MAX, &to, err));
    UNLESS_FAILED(r, take_family(opts, "ipv4", &a->ipv4, err));
    UNLESS_FAILED(r, take_family(opts, "ipv6", &a->ipv6, err));
    UNLESS_FAILED(r, options_take_bool(opts, "numeric", false, &a->numeric, err));
    UNLESS_FAILED(r, options_take_bool(opts, "keep-alive", false, &a->keep_alive, err));
    UNLESS_FAILED(r, options_take_bool(opts, "mptcp", false, &a->mptcp, err));
    a->to = (unsigned)to;
    return r;
}

static int take_unix(struct options *opts, struct socket_address *a, struct error *err)
{
    bool tight = true;
    int r = options_take_str(opts, "path", &a->path, err);

    UNLESS_FAILED(r, options_take_bool(opts, "abstract", false, &a->abstract, err));
    UNLESS_FAILED(r, options_take_bool(opts, "tight", true, &tight, err));
    a->padded = !tight;
    return r;
}

enum address_type { ADDRESS_INET, ADDRESS_UNIX, ADDRESS_VSOCK, ADDRESS_FD };

static int take_members(struct options *opts, int type, struct socket_address *a, struct error *err)
{
    int r;

    switch (type) {
    case ADDRESS_INET:
        return take_inet(opts, a, err);
    case ADDRESS_UNIX:
        return take_unix(opts, a, err);
    case ADDRESS_FD:
        return options_take_text(opts, "str", &a->fd, err);
    default:
        r = options_take_text(opts, "cid", &a->cid, err);
        return r < 0 ? r : options_take_text(opts, "port", &a->port, err);
    }
}

/* The first mandatory member that is not there; NULL: all are. */
static const char *missing_member(const struct socket_address *a, int type)
{
    switch (type) {
    case ADDRESS_INET:
        return !a->host ? "host" : !a->port ? "port" : NULL;
    case ADDRESS_UNIX:
        return a->path ? NULL : "path";
    case ADDRESS_FD:
        return a->fd ? NULL : "str";
    default:
        return !a->cid ? "cid" : !a->port ? "port" : NULL;
    }
}

int socket_address_take(struct options *opts, const char *name, struct socket_address *ret_address,
                        struct error *err)
{
    static const char *const types[] = {"inet", "unix", "vsock", "fd", NULL};
    struct socket_address a = {0};
    const char *missing = NULL;
    int type = 0, r = 0;

    if (!options_has(opts, "type")) {
        return error_set(err, EINVAL, "Parameter '%s.type' is missing", name);
    }
    r = options_take_enum(opts, "type", types, 0, &type, err);
    UNLESS_FAILED(r, take_members(opts, type, &a, err));
    missing = r < 0 ? NULL : missing_member(&a, type);
    if (missing) {
        r = error_set(err, EINVAL, "Parameter '%s.%s' is missing", name, missing);
    }
    UNLESS_FAILED(r, check_address(&a, err));
    UNLESS_FAILED(r, options_check_empty(opts, "the address of a server", err));
    if (r < 0) {
        socket_address_clear(&a);
        return r;
    }
    *ret_address = a;
    return 0;
}

/* --- back to JSON ----------------------------------------------------------------------------- */

static void put_address_text(struct json_object *to, const char *name, const char *value)
{
    json_object_object_add(to, name, json_object_new_string(value ?: ""));
}

static void put_flag(struct json_object *to, const char *name, bool value)
{
    if (value) {
        json_object_object_add(to, name, json_object_new_boolean(true));
    }
}

struct json_object *socket_address_to_json(const struct socket_address *a)
{
    struct json_object *json = json_object_new_object();

    if (a->path) {
        put_address_text(json, "type", "unix");
        put_address_text(json, "path", a->path);
        put_flag(json, "abstract", a->abstract);
    } else if (a->fd) {
        put_address_text(json, "type", "fd");
        put_address_text(json, "str", a->fd);
    } else if (a->cid) {
        put_address_text(json, "type", "vsock");
        put_address_text(json, "cid", a->cid);
        put_address_text(json, "port", a->port);
    } else {
        put_address_text(json, "type", "inet");
        put_address_text(json, "host", a->host);
        put_address_text(json, "port", a->port);
    }
    return json;
}

bool socket_address_is_file(const struct socket_address *a)
{
    return a->path && !a->abstract;
}

/* --- text ------------------------------------------------------------------------------------- */

static void describe_unix(struct strbuf *text, const struct sockaddr_un *addr, size_t size)
{
    size_t length = size > offsetof(struct sockaddr_un, sun_path)
                        ? size - offsetof(struct sockaddr_un, sun_path)
                        : 0;

    if (length > 0 && addr->sun_path[0] == '\0') {
        strbuf_printf(text, "unix:%.*s,abstract=on", (int)(length - 1), addr->sun_path + 1);
        if (length < sizeof(addr->sun_path)) {
            strbuf_puts(text, ",tight=on");
        }
    } else {
        strbuf_printf(text, "unix:%.*s", (int)length, addr->sun_path);
    }
}

char *socket_address_of_fd(int fd, bool peer)
{
    struct sockaddr_storage addr = {0};
    socklen_t size = sizeof(addr);
    char host[INET6_ADDRSTRLEN] = "";
    STRBUF_AUTO(text);
    int r = peer ? getpeername(fd, (struct sockaddr *)&addr, &size)
                 : getsockname(fd, (struct sockaddr *)&addr, &size);

    if (r < 0) {
        return NULL;
    }
    if (addr.ss_family == AF_INET) {
        const struct sockaddr_in *in = (const struct sockaddr_in *)&addr;

        inet_ntop(AF_INET, &in->sin_addr, host, sizeof(host));
        strbuf_printf(&text, "tcp:%s:%u", host, ntohs(in->sin_port));
    } else if (addr.ss_family == AF_INET6) {
        const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)&addr;

        inet_ntop(AF_INET6, &in6->sin6_addr, host, sizeof(host));
        strbuf_printf(&text, "tcp:[%s]:%u", host, ntohs(in6->sin6_port));
    } else if (addr.ss_family == AF_VSOCK) {
        const struct sockaddr_vm *vm = (const struct sockaddr_vm *)&addr;

        strbuf_printf(&text, "vsock:%u:%u", vm->svm_cid, vm->svm_port);
    } else {
        describe_unix(&text, (const struct sockaddr_un *)&addr, size);
    }
    return strdup(strbuf_str(&text));
}
