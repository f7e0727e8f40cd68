/* SPDX-License-Identifier: Apache-2.0 */
#include "stats/listen.h"

#include <errno.h>
#include <netdb.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/inet.h"
#include "base/unix_socket.h"

#define BACKLOG 16
#define LOOPBACK "127.0.0.1"

static int listen_unix(const char *path, int *ret_fd, char **ret_path, struct error *err)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    AUTO_FREE char *copy = strdup(path);
    AUTO_CLOSE int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    int r;

    if (strlen(path) >= sizeof(addr.sun_path)) {
        return error_set(err, EINVAL, "The path of the socket has more than %zu bytes",
                         sizeof(addr.sun_path) - 1);
    }
    memcpy(addr.sun_path, path, strlen(path) + 1);
    if (fd < 0 || !copy) {
        return error_set_errno(err, fd < 0 ? errno : ENOMEM, "Could not make a socket");
    }
    r = unix_socket_bind(fd, &addr);
    if (r < 0) {
        return error_set_errno(err, -r, "Could not bind the socket");
    }
    if (listen(fd, BACKLOG) < 0) {
        return error_set_errno(err, errno, "Could not listen");
    }
    *ret_fd = TAKE_FD(fd);
    *ret_path = TAKE_PTR(copy);
    return 0;
}

/*
 * Split into host and port; both are parts of `text`, which is changed. *ret_host is NULL for all
 * addresses.
 */
static int split(char *text, const char **ret_host, const char **ret_port)
{
    char *colon = strrchr(text, ':');
    size_t length;

    if (!colon) {
        *ret_host = LOOPBACK;
        *ret_port = text;
        return text[0] ? 0 : -EINVAL;
    }
    *colon = '\0';
    *ret_port = colon + 1;
    length = strlen(text);
    if (length == 0) {
        *ret_host = LOOPBACK;
    } else if (strcmp(text, "*") == 0) {
        *ret_host = NULL;
    } else if (text[0] == '[' && text[length - 1] == ']') {
        text[length - 1] = '\0';
        *ret_host = text + 1;
    } else if (strchr(text, ':')) {
        return -EINVAL; /* an IPv6 address without brackets */
    } else {
        *ret_host = text;
    }
    return colon[1] ? 0 : -EINVAL;
}

static int bind_metrics_address(const struct addrinfo *a)
{
    AUTO_CLOSE int fd =
        socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, a->ai_protocol);
    int on = 1;

    if (fd < 0) {
        return -errno;
    }
    (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (bind(fd, a->ai_addr, a->ai_addrlen) < 0 || listen(fd, BACKLOG) < 0) {
        return -errno;
    }
    return TAKE_FD(fd);
}

static int listen_tcp(const char *address, int *ret_fd, struct error *err)
{
    struct addrinfo hints = {
        .ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE};
    AUTO_FREE char *text = strdup(address);
    const char *host, *port;
    struct addrinfo *list;
    int fd = -EADDRNOTAVAIL, r;

    if (!text) {
        return error_set(err, ENOMEM, "Out of memory");
    }
    if (split(text, &host, &port) < 0) {
        return error_set(err, EINVAL, "Expected PORT, HOST:PORT, or the path of a unix socket");
    }
    if (port[strspn(port, "0")] == '\0') {
        return error_set(err, EINVAL, "The port has to be a number from 1 to 65535");
    }
    r = inet_lookup(host, port, &hints, &list);
    if (r != 0) {
        return error_set(err, EINVAL, "Could not look the address up: %s", gai_strerror(r));
    }
    for (const struct addrinfo *a = list; a && fd < 0; a = a->ai_next) {
        fd = bind_metrics_address(a);
    }
    freeaddrinfo(list);
    if (fd < 0) {
        return error_set_errno(err, -fd, "Could not bind the socket");
    }
    *ret_fd = fd;
    return 0;
}

int metrics_listen(const char *address, int *ret_fd, char **ret_path, struct error *err)
{
    int r;

    *ret_path = NULL;
    r = strchr(address, '/') ? listen_unix(address, ret_fd, ret_path, err)
                             : listen_tcp(address, ret_fd, err);
    error_prepend(err, "Metrics at '%s': ", address);
    return r;
}
