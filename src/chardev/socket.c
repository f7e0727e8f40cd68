/* SPDX-License-Identifier: Apache-2.0 */
/* The type socket: its options, TLS, how it is shown. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "base/strbuf.h"
#include "chardev/internal.h"
#include "loop/loop.h"
#include "tls/tls.h"

#define BACKLOG 16

static struct socket_chardev *socket_of(const struct chardev *c)
{
    return container_of(c, struct socket_chardev, base);
}

/* --- options ---------------------------------------------------------------------------------- */

/* Options that exclude each other, and protocols that are not there. */
static int check_socket_options(struct json_object *data, bool server, struct error *err)
{
    static const char *const protocols[] = {"telnet", "tn3270", "websocket"};
    int64_t reconnect = chardev_number(data, "reconnect", 0);
    int64_t reconnect_ms = chardev_number(data, "reconnect-ms", 0);
    struct json_object *wait;

    for (size_t i = 0; i < 3; i++) {
        if (chardev_flag(data, protocols[i], false)) {
            return error_set(err, ENOTSUP, "chardev: socket: '%s' is not supported", protocols[i]);
        }
    }
    if (reconnect && reconnect_ms) {
        return error_set(err, EINVAL, "'reconnect' and 'reconnect-ms' are mutually exclusive");
    }
    if (reconnect < 0 || reconnect > INT32_MAX || reconnect_ms < 0) {
        return error_set(err, EINVAL, "Parameter 'reconnect%s' expects a non-negative number",
                         reconnect_ms < 0 ? "-ms" : "");
    }
    if (server && (reconnect || reconnect_ms)) {
        return error_set(err, EINVAL,
                         "'reconnect' option is incompatible with socket in server listen mode");
    }
    if (!server && json_object_object_get_ex(data, "wait", &wait)) {
        return error_set(err, EINVAL,
                         "'wait' option is incompatible with socket in client connect mode");
    }
    if (chardev_text(data, "tls-authz") && !chardev_text(data, "tls-creds")) {
        return error_set(err, EINVAL, "'tls_authz' option requires 'tls_creds' option");
    }
    if (chardev_text(data, "tls-authz") && !server) {
        return error_set(err, EINVAL,
                         "'tls_authz' option is incompatible with socket in client connect mode");
    }
    return 0;
}

static int take_socket_tls(struct socket_chardev *s, struct json_object *data, struct error *err)
{
    const char *creds = chardev_text(data, "tls-creds"), *authz = chardev_text(data, "tls-authz");
    int r = creds ? tls_creds_ref(creds, s->server ? TLS_SERVER : TLS_CLIENT, &s->creds, err) : 0;

    if (r < 0) {
        return r;
    }
    if (authz && !tls_creds_identify_peer(s->creds)) {
        return error_set(err, EINVAL,
                         "tls-authz needs TLS credentials by which clients identify themselves: "
                         "'%s' are anonymous, or have verify-peer=off",
                         creds);
    }
    if (authz && !(s->authz = strdup(authz))) {
        return error_out_of_memory(err);
    }
    return 0;
}

static int co_listen(struct socket_chardev *s, struct error *err)
{
    int r = socket_address_co_listen(&s->address, BACKLOG, &s->fd, err);

    s->makes_file = r >= 0 && socket_address_is_file(&s->address);
    return r;
}

static int co_open_socket(struct chardev *c, struct json_object *data, struct error *err)
{
    struct socket_chardev *s = socket_of(c);
    struct json_object *addr, *members;
    int r;

    s->fd = s->current = -1;
    list_init(&s->talks);
    s->server = chardev_flag(data, "server", true);
    s->nodelay = chardev_flag(data, "nodelay", false);
    s->reconnect_ms = chardev_number(data, "reconnect", 0) * 1000;
    s->reconnect_ms = s->reconnect_ms ?: chardev_number(data, "reconnect-ms", 0);
    json_object_object_get_ex(data, "addr", &addr);
    json_object_object_get_ex(addr, "data", &members);
    r = check_socket_options(data, s->server, err);
    UNLESS_FAILED(r, socket_address_from_json(members, &s->address, err));
    if (r >= 0 && s->address.to && !s->server) {
        r = error_set(err, EINVAL,
                      "'to' option is incompatible with socket in client connect mode");
    }
    if (r >= 0 && s->address.fd && s->reconnect_ms) {
        r = error_set(err, EINVAL, "'reconnect' option is incompatible with 'fd' address type");
    }
    UNLESS_FAILED(r, take_socket_tls(s, data, err));
    if (r < 0 || s->reconnect_ms) {
        return r;
    }
    return s->server ? co_listen(s, err)
                     : socket_address_co_connect(&s->address, 0, -1, &s->fd, err);
}

static void co_free_socket(struct chardev *c)
{
    struct socket_chardev *s = socket_of(c);

    while (!list_is_empty(&s->talks)) {
        chardev_socket_forget(c, LIST_FIRST(&s->talks, struct socket_talk, link)->fd);
    }
    if (s->fd >= 0) {
        close(s->fd);
    }
    if (s->makes_file && !c->stopped) {
        (void)loop_co_unlink_soon(s->address.path);
    }
    tls_creds_unref(s->creds);
    free(s->authz);
    socket_address_clear(&s->address);
}

/* --- query-chardev ---------------------------------------------------------------------------- */

static char *socket_filename(const struct chardev *c)
{
    const struct socket_chardev *s = socket_of(c);
    bool talks = c->clients > 0;
    AUTO_FREE char *own = NULL, *peer = NULL;
    STRBUF_AUTO(text);

    strbuf_puts(&text, talks ? "" : "disconnected:");
    if (s->address.path) {
        strbuf_printf(&text, "unix:%s%s%s", s->address.path,
                      s->address.abstract ? ",abstract=on" : "",
                      s->address.abstract && !s->address.padded ? ",tight=on" : "");
    } else {
        /* A socket tells its port; one that is not open yet, where it will connect. */
        int fd = talks && s->current >= 0 ? s->current : s->fd;

        own = fd >= 0 ? socket_address_of_fd(fd, false) : NULL;
        if (own) {
            strbuf_puts(&text, own);
        } else {
            strbuf_printf(&text, "%s:%s:%s", s->address.cid ? "vsock" : "tcp",
                          s->address.cid ?: s->address.host ?: "", s->address.port ?: "");
        }
    }
    strbuf_puts(&text, s->server ? ",server=on" : "");
    if (talks && !s->address.path && s->current >= 0) {
        peer = socket_address_of_fd(s->current, true);
        strbuf_printf(&text, " <-> %s", peer ? strchr(peer, ':') + 1 : "");
    }
    return strbuf_take(&text);
}

const struct chardev_ops chardev_socket_ops = {
    .name = "socket",
    .size = sizeof(struct socket_chardev),
    .co_open = co_open_socket,
    .start = chardev_socket_start,
    .co_stop = chardev_socket_co_stop,
    .left = chardev_socket_forget,
    .cut = chardev_socket_cut,
    .co_free = co_free_socket,
    .filename = socket_filename,
};
