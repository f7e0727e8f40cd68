/* SPDX-License-Identifier: Apache-2.0 */
/* Listening on addresses, and connecting to them. */
#include <errno.h>
#include <linux/vm_sockets.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/inet.h"
#include "base/list.h"
#include "base/unix_socket.h"
#include "base/time_units.h"
#include "block/passed_fd.h"
#include "block/socket_address.h"
#include "loop/loop.h"

/* Silence of a TCP connection before it is probed, and between probes: two minutes in all. */
#define PEER_IDLE_S 60
#define PEER_PROBE_S 15
#define PEER_PROBES 4

/* How often a search for an address looks whether it was given up. */
#define GIVE_UP_LOOK_NS (250 * NS_PER_MS)

#ifndef IPPROTO_MPTCP
#define IPPROTO_MPTCP 262
#endif

static int new_socket(int family, int protocol)
{
    int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, protocol);

    return fd < 0 ? -errno : fd;
}

static int create_failed(int r, struct error *err)
{
    return error_set_errno(err, -r, "Failed to create a socket");
}

/* --- unix ------------------------------------------------------------------------------------- */

/* *ret_size: 0 lets the kernel choose a name. */
static int unix_name(const struct socket_address *a, struct sockaddr_un *ret_addr,
                     socklen_t *ret_size, struct error *err)
{
    size_t length = strlen(a->path), room = sizeof(ret_addr->sun_path) - a->abstract;

    *ret_addr = (struct sockaddr_un){.sun_family = AF_UNIX};
    if (length > room - !a->abstract) {
        error_set(err, EINVAL, "UNIX socket path '%s' is too long", a->path);
        error_hint(err, "Path must be less than %zu bytes", room);
        return -EINVAL;
    }
    memcpy(ret_addr->sun_path + a->abstract, a->path, length);
    *ret_size =
        (socklen_t)(a->abstract && !a->padded ? offsetof(struct sockaddr_un, sun_path) + 1 + length
                                              : sizeof(*ret_addr));
    return 0;
}

struct unix_bind {
    int fd;
    struct sockaddr_un addr;
};

/* The path can lead to a file system that hangs: for the offload pool. */
static int bind_path(void *arg)
{
    const struct unix_bind *b = arg;

    return unix_socket_bind(b->fd, &b->addr);
}

static int co_listen_unix_address(const struct socket_address *a, int backlog, int *ret_fd,
                                  struct error *err)
{
    AUTO_CLOSE int fd = new_socket(AF_UNIX, 0);
    struct unix_bind b = {.fd = fd};
    socklen_t size;
    int r = unix_name(a, &b.addr, &size, err);

    if (r < 0 || fd < 0) {
        return r < 0 ? r : create_failed(fd, err);
    }
    if (!a->abstract && !a->path[0]) {
        return error_set(err, EINVAL, "The path of a UNIX socket is empty");
    }
    if (a->abstract) {
        r = bind(fd, (const struct sockaddr *)&b.addr, size) < 0 ? -errno : 0;
    } else {
        r = loop_co_brief(bind_path, &b);
    }
    if (r < 0) {
        return error_set_errno(err, -r, "Failed to bind socket to %s", a->path);
    }
    if (listen(fd, backlog) < 0) {
        return error_set_errno(err, errno, "Failed to listen on socket %s", a->path);
    }
    *ret_fd = TAKE_FD(fd);
    return 0;
}

/* How to connect. */
struct dial {
    int buffer;
    int64_t timeout_ns;
};

/* A socket that connects, or the search for its address, which has no descriptor. */
struct dialing {
    struct list link;
    int fd;
    bool given_up;
};

/* Of all reactors. */
static struct list dialings = LIST_INIT(dialings);
static pthread_mutex_t dialings_lock = PTHREAD_MUTEX_INITIALIZER;

void socket_address_give_up_dials(void)
{
    struct dialing *d;

    pthread_mutex_lock(&dialings_lock);
    LIST_FOREACH (d, &dialings, link) {
        d->given_up = true;
        shutdown(d->fd, SHUT_RDWR);
    }
    pthread_mutex_unlock(&dialings_lock);
}

static void begin_dialing(struct dialing *d)
{
    pthread_mutex_lock(&dialings_lock);
    list_append(&dialings, &d->link);
    pthread_mutex_unlock(&dialings_lock);
}

static bool is_given_up(const struct dialing *d)
{
    bool given_up;

    pthread_mutex_lock(&dialings_lock);
    given_up = d->given_up;
    pthread_mutex_unlock(&dialings_lock);
    return given_up;
}

/* Whether it was given up. */
static bool end_dialing(struct dialing *d)
{
    pthread_mutex_lock(&dialings_lock);
    list_remove(&d->link);
    pthread_mutex_unlock(&dialings_lock);
    return d->given_up;
}

static int co_connect_socket(int fd, const void *addr, socklen_t size, int64_t timeout_ns)
{
    struct dialing d = {.fd = fd};
    int r;

    begin_dialing(&d);
    r = loop_co_connect(fd, addr, size, timeout_ns);
    return end_dialing(&d) ? -ECANCELED : r;
}

/* Connect a new socket. */
static int co_dial(int fd, const void *addr, socklen_t size, const struct dial *d, int *ret_fd)
{
    AUTO_CLOSE int owned = fd;
    int r;

    if (fd >= 0 && d->buffer > 0) {
        (void)setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &d->buffer, sizeof(d->buffer));
        (void)setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &d->buffer, sizeof(d->buffer));
    }
    r = fd < 0 ? fd : co_connect_socket(fd, addr, size, d->timeout_ns);
    if (r == 0) {
        *ret_fd = TAKE_FD(owned);
    }
    return r;
}

static int co_dial_unix(const struct socket_address *a, const struct dial *d, int *ret_fd,
                        struct error *err)
{
    struct sockaddr_un addr;
    socklen_t size;
    int r = unix_name(a, &addr, &size, err);

    if (r < 0) {
        return r;
    }
    r = co_dial(new_socket(AF_UNIX, 0), &addr, size, d, ret_fd);
    return r < 0 ? error_set_errno(err, -r, "Failed to connect to '%s'", a->path) : 0;
}

/* --- vsock ------------------------------------------------------------------------------------ */

static struct sockaddr_vm vsock_name(const struct socket_address *a)
{
    return (struct sockaddr_vm){.svm_family = AF_VSOCK,
                                .svm_cid = (unsigned)strtoul(a->cid, NULL, 0),
                                .svm_port = (unsigned)strtoul(a->port, NULL, 0)};
}

static int listen_vsock(const struct socket_address *a, int backlog, int *ret_fd, struct error *err)
{
    AUTO_CLOSE int fd = new_socket(AF_VSOCK, 0);
    struct sockaddr_vm addr = vsock_name(a);

    if (fd < 0) {
        return create_failed(fd, err);
    }
    if (bind(fd, (const struct sockaddr *)&addr, sizeof(addr)) < 0) {
        return error_set_errno(err, errno, "Failed to bind socket");
    }
    if (listen(fd, backlog) < 0) {
        return error_set_errno(err, errno, "Failed to listen on socket");
    }
    *ret_fd = TAKE_FD(fd);
    return 0;
}

static int co_dial_vsock(const struct socket_address *a, const struct dial *d, int *ret_fd,
                         struct error *err)
{
    struct sockaddr_vm addr = vsock_name(a);
    int r = co_dial(new_socket(AF_VSOCK, 0), &addr, sizeof(addr), d, ret_fd);

    return r < 0 ? error_set_errno(err, -r, "Failed to connect to '%s:%s'", a->cid, a->port) : 0;
}

/* --- internet --------------------------------------------------------------------------------- */

/*
 * Name resolution asks servers: for the offload pool. A search that is given up goes on, and then
 * owns itself.
 */
struct resolving {
    char *host, *port;
    struct addrinfo hints;
    struct addrinfo *result;
    int r; /* 0, or an error of getaddrinfo(3) */
    bool is_late;
    struct loop_answer answer;
};

static void resolving_free(struct resolving *q)
{
    if (q->result) {
        freeaddrinfo(q->result);
    }
    free(q->host);
    free(q->port);
    free(q);
}

static int wanted_family(const struct socket_address *a)
{
    if (a->ipv4 == SOCKET_FAMILY_YES && a->ipv6 == SOCKET_FAMILY_YES) {
        return AF_UNSPEC;
    }
    if (a->ipv6 == SOCKET_FAMILY_YES || a->ipv4 == SOCKET_FAMILY_NO) {
        return AF_INET6;
    }
    return a->ipv4 == SOCKET_FAMILY_YES || a->ipv6 == SOCKET_FAMILY_NO ? AF_INET : AF_UNSPEC;
}

static struct resolving *resolving_new(const struct socket_address *a, int flags)
{
    struct resolving *q = calloc(1, sizeof(*q));
    bool any = !a->host || !a->host[0];

    if (!q) {
        return NULL;
    }
    q->hints = (struct addrinfo){
        .ai_family = wanted_family(a),
        .ai_socktype = SOCK_STREAM,
        .ai_flags = flags | (a->numeric ? AI_NUMERICHOST | AI_NUMERICSERV : 0),
    };
    q->host = any ? NULL : strdup(a->host);
    q->port = strdup(a->port && a->port[0] ? a->port : "0");
    loop_answer_init(&q->answer);
    if (!q->port || (!any && !q->host)) {
        resolving_free(q);
        return NULL;
    }
    return q;
}

static int resolve_address(void *arg)
{
    struct resolving *q = arg;

    q->r = inet_lookup(q->host, q->port, &q->hints, &q->result);
    q->result = q->r == 0 ? q->result : NULL;
    return 0;
}

static void co_resolve_name(void *arg)
{
    struct resolving *q = arg;

    loop_co_offload(resolve_address, q);
    if (q->is_late) {
        resolving_free(q);
    } else {
        loop_answer_give(&q->answer);
    }
}

/* Whether it has ended; false: it was given up, and belongs to itself now. */
static bool co_wait_for_address(struct resolving *q)
{
    struct dialing d = {.fd = -1};
    bool ended;

    if (reactor_spawn(reactor_current(), co_resolve_name, q) < 0) {
        loop_co_offload(resolve_address, q);
        return true;
    }
    begin_dialing(&d);
    do {
        ended = loop_co_answer_wait(&q->answer, GIVE_UP_LOOK_NS);
    } while (!ended && !is_given_up(&d));
    end_dialing(&d);
    q->is_late = !ended;
    return ended;
}

/* The addresses, at least one, which are to be released with freeaddrinfo(3). -ECANCELED */
static int co_resolve_host(const struct socket_address *a, int flags, struct addrinfo **ret_list,
                           struct error *err)
{
    struct resolving *q = resolving_new(a, flags);
    int r = 0;

    if (!q) {
        return error_out_of_memory(err);
    }
    if (!co_wait_for_address(q)) {
        return error_set_errno(err, ECANCELED, "address resolution failed for %s:%s", a->host ?: "",
                               a->port ?: "");
    }
    if (q->r == 0) {
        *ret_list = TAKE_PTR(q->result);
    } else {
        r = error_set(err, EINVAL, "address resolution failed for %s:%s: %s", a->host ?: "",
                      a->port ?: "", gai_strerror(q->r));
    }
    resolving_free(q);
    return r;
}

static int protocol_of_address(const struct socket_address *a)
{
    return a->mptcp ? IPPROTO_MPTCP : 0;
}

static void set_tcp_port(struct sockaddr *addr, unsigned port)
{
    if (addr->sa_family == AF_INET6) {
        ((struct sockaddr_in6 *)addr)->sin6_port = htons((uint16_t)port);
    } else {
        ((struct sockaddr_in *)addr)->sin_port = htons((uint16_t)port);
    }
}

static unsigned tcp_port(const struct sockaddr *addr)
{
    return ntohs(addr->sa_family == AF_INET6 ? ((const struct sockaddr_in6 *)addr)->sin6_port
                                             : ((const struct sockaddr_in *)addr)->sin_port);
}

/* `both`: an IPv6 socket that clients can also reach by IPv4. The socket, or -errno. */
static int bind_one(const struct socket_address *a, const struct addrinfo *info, bool both,
                    int backlog)
{
    AUTO_CLOSE int fd = new_socket(info->ai_family, protocol_of_address(a));
    int on = 1, off = 0;

    if (fd < 0) {
        return fd;
    }
    if (both && setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off)) < 0) {
        return -errno;
    }
    (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (a->keep_alive) {
        (void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
    }
    if (bind(fd, info->ai_addr, info->ai_addrlen) < 0 || listen(fd, backlog) < 0) {
        return -errno;
    }
    return TAKE_FD(fd);
}

/* The first address of a family that can be bound, at `port`. The socket, or -errno. */
static int bind_family(const struct socket_address *a, const struct addrinfo *list, unsigned port,
                       bool v6, bool both, int backlog)
{
    int r = -EADDRNOTAVAIL;

    for (const struct addrinfo *i = list; i && r < 0; i = i->ai_next) {
        if ((i->ai_family == AF_INET6) == v6) {
            set_tcp_port(i->ai_addr, port);
            r = bind_one(a, i, both, backlog);
        }
    }
    return r;
}

static int bind_port(const struct socket_address *a, const struct addrinfo *list, unsigned port,
                     int backlog)
{
    bool any = !a->host || !a->host[0];
    bool both = any && a->ipv4 != SOCKET_FAMILY_NO &&
                (a->ipv6 != SOCKET_FAMILY_YES || a->ipv4 == SOCKET_FAMILY_YES);
    /*
     * One socket: without a host an IPv6 one for both families, or on a system without IPv6 an IPv4
     * one. A host that has addresses of both families is most often asked for by IPv4.
     */
    int fd = bind_family(a, list, port, any, both, backlog);

    return fd >= 0 || fd == -EADDRINUSE ? fd : bind_family(a, list, port, !any, false, backlog);
}

static int co_listen_inet(const struct socket_address *a, int backlog, int *ret_fd,
                          struct error *err)
{
    struct addrinfo *list;
    int r = co_resolve_host(a, AI_PASSIVE, &list, err), fd = -EADDRINUSE;
    unsigned first;

    if (r < 0) {
        return r;
    }
    first = tcp_port(list->ai_addr);
    if (a->to && a->to < first) {
        freeaddrinfo(list);
        return error_set(err, EINVAL, "The last port (to=%u) is below the first one (port=%u)",
                         a->to, first);
    }
    for (unsigned port = first; fd == -EADDRINUSE && port <= (a->to ? a->to : first); port++) {
        fd = bind_port(a, list, port, backlog);
    }
    freeaddrinfo(list);
    if (fd == -EADDRINUSE) {
        return error_set_errno(err, EADDRINUSE, "Failed to find an available port");
    }
    if (fd < 0) {
        return error_set_errno(err, -fd, "Failed to bind socket");
    }
    *ret_fd = fd;
    return 0;
}

static int co_dial_inet(const struct socket_address *a, const struct dial *d, int *ret_fd,
                        struct error *err)
{
    struct addrinfo *list;
    int r = co_resolve_host(a, 0, &list, err), on = 1;

    if (r < 0) {
        return r;
    }
    r = -EADDRNOTAVAIL;
    for (struct addrinfo *i = list; i && r < 0 && r != -ECANCELED; i = i->ai_next) {
        r = co_dial(new_socket(i->ai_family, protocol_of_address(a)), i->ai_addr, i->ai_addrlen, d,
                    ret_fd);
    }
    freeaddrinfo(list);
    if (r < 0) {
        return error_set_errno(err, -r, "Failed to connect to '%s:%s'", a->host ?: "",
                               a->port ?: "");
    }
    if (a->keep_alive) {
        (void)setsockopt(*ret_fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
    }
    if (a->watched) {
        socket_watch_peer(*ret_fd);
    }
    return 0;
}

void socket_watch_peer(int fd)
{
    int on = 1, idle = PEER_IDLE_S, interval = PEER_PROBE_S, count = PEER_PROBES;
    unsigned unanswered_ms = 1000 * (PEER_IDLE_S + PEER_PROBE_S * PEER_PROBES);

    /* The connection works without any of these. */
    (void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof(idle));
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof(interval));
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof(count));
    (void)setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &unanswered_ms, sizeof(unanswered_ms));
}

/* --- descriptors ------------------------------------------------------------------------------ */

static int listen_passed(const struct socket_address *a, int *ret_fd, struct error *err)
{
    AUTO_CLOSE int fd = passed_socket(a->fd, err);
    socklen_t size = sizeof(int);
    int listening = 0;

    if (fd < 0) {
        return fd;
    }
    if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &size) < 0 || !listening) {
        return error_set(err, EINVAL, "'%s' is not the descriptor of a listening socket", a->fd);
    }
    *ret_fd = TAKE_FD(fd);
    return 0;
}

/* --- any -------------------------------------------------------------------------------------- */

int socket_address_co_listen(const struct socket_address *a, int backlog, int *ret_fd,
                             struct error *err)
{
    if (a->path) {
        return co_listen_unix_address(a, backlog, ret_fd, err);
    }
    if (a->fd) {
        return listen_passed(a, ret_fd, err);
    }
    return a->cid ? listen_vsock(a, backlog, ret_fd, err) : co_listen_inet(a, backlog, ret_fd, err);
}

int socket_address_co_connect(const struct socket_address *a, int buffer, int64_t timeout_ns,
                              int *ret_fd, struct error *err)
{
    const struct dial d = {buffer, timeout_ns};

    if (a->path) {
        return co_dial_unix(a, &d, ret_fd, err);
    }
    if (a->fd) {
        int fd = passed_socket(a->fd, err);

        if (fd >= 0) {
            *ret_fd = fd;
        }
        return fd < 0 ? fd : 0;
    }
    return a->cid ? co_dial_vsock(a, &d, ret_fd, err) : co_dial_inet(a, &d, ret_fd, err);
}
