/* SPDX-License-Identifier: Apache-2.0 */
/* Who a client is, and what it did wrong: for the log. */
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include <linux/vm_sockets.h>

#include "base/log.h"
#include "nbd/server_internal.h"

static void name_unix_peer(int fd, char *ret_name)
{
    struct ucred cred = {0};
    socklen_t len = sizeof(cred);

    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) == 0 && cred.pid > 0) {
        snprintf(ret_name, NBD_PEER_SIZE, "unix:%d", (int)cred.pid);
    } else {
        snprintf(ret_name, NBD_PEER_SIZE, "unix");
    }
}

void nbd_peer_name(int fd, char *ret_name)
{
    struct sockaddr_storage addr = {0};
    socklen_t len = sizeof(addr);
    char host[NI_MAXHOST], port[NI_MAXSERV];

    if (getpeername(fd, (struct sockaddr *)&addr, &len) < 0) {
        snprintf(ret_name, NBD_PEER_SIZE, "unknown");
    } else if (addr.ss_family == AF_UNIX) {
        name_unix_peer(fd, ret_name);
    } else if (getnameinfo((struct sockaddr *)&addr, len, host, sizeof(host), port, sizeof(port),
                           NI_NUMERICHOST | NI_NUMERICSERV) != 0) {
        snprintf(ret_name, NBD_PEER_SIZE, "unknown");
    } else {
        snprintf(ret_name, NBD_PEER_SIZE,
                 addr.ss_family == AF_INET6 ? "[%.54s]:%.5s" : "%.54s:%.5s", host, port);
    }
}

struct nbd_origin nbd_peer_origin(int fd)
{
    union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
        struct sockaddr_vm vm;
        struct sockaddr_storage storage;
    } addr = {0};
    socklen_t len = sizeof(addr);
    struct nbd_origin o = {0};

    if (getpeername(fd, &addr.any, &len) < 0) {
        return o;
    }
    o.family = addr.any.sa_family;
    if (o.family == AF_INET6 && IN6_IS_ADDR_V4MAPPED(&addr.v6.sin6_addr)) {
        o.family = AF_INET;
        memcpy(o.bytes, addr.v6.sin6_addr.s6_addr + 12, 4);
    } else if (o.family == AF_INET6) {
        memcpy(o.bytes, addr.v6.sin6_addr.s6_addr, 8);
    } else if (o.family == AF_INET) {
        memcpy(o.bytes, &addr.v4.sin_addr, 4);
    } else if (o.family == AF_VSOCK) {
        memcpy(o.bytes, &addr.vm.svm_cid, 4);
    } else {
        o.family = 0;
    }
    return o;
}

int nbd_connection_breaks(struct nbd_connection *c, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    error_vset(&c->failure, EPROTO, fmt, ap);
    va_end(ap);
    return -EPROTO;
}

void nbd_connection_report_end(struct nbd_connection *c)
{
    char who[NBD_PEER_SIZE + NBD_STRING_MAX + 32];

    if (c->export) {
        snprintf(who, sizeof(who), "NBD client %s, export '%s'", c->peer, c->export->name);
    } else {
        snprintf(who, sizeof(who), "NBD client %s", c->peer);
    }
    if (!error_is_set(&c->failure)) {
        log_info("%s: disconnected", who);
        return;
    }
    if (c->failure.message) {
        nbd_replace_control_bytes(c->failure.message, strlen(c->failure.message));
    }
    if (c->failure.code == EPROTO) {
        log_warning("%s: %s; disconnected", who, error_message(&c->failure));
    } else {
        /* The words of QEMU's server. */
        log_error("option negotiation failed: %s", error_message(&c->failure));
    }
}
