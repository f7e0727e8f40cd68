/* SPDX-License-Identifier: Apache-2.0 */
/* Accepting clients, their limits, and their way from handshake to transmission to the end. */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "nbd/server_internal.h"
#include "trace/events.h"

/*
 * When there is no room, a client that has spent this long in its handshake makes room for the
 * next. So idle connections cannot lock out honest ones, whose handshakes take milliseconds.
 */
#define HANDSHAKE_PATIENCE_NS 1000000000LL
/* Between two attempts to accept, while the system lacks descriptors or memory. */
#define ACCEPT_RETRY_NS 10000000LL

/* Between two messages about addresses that have too many clients. */
#define REFUSAL_PAUSE_NS 10000000000LL

static void room_timer_fired(struct loop_timer *timer);

int nbd_server_new(const struct nbd_server_config *config, struct nbd_server **ret_server,
                   struct error *err)
{
    struct nbd_server *s = calloc(1, sizeof(*s));

    if (!s) {
        return error_out_of_memory(err);
    }
    s->config = *config;
    s->listen_fd = -1;
    s->next_serial = 1;
    list_init(&s->prepared);
    list_init(&s->exports);
    list_init(&s->connections);
    loop_timer_init(&s->room_timer, room_timer_fired);
    nbd_goodbye_init(s);
    *ret_server = s;
    return 0;
}

size_t nbd_server_client_count(const struct nbd_server *s)
{
    return s->connection_count;
}

static void wake_acceptor(struct nbd_server *s)
{
    if (s->acceptor_waiter) {
        struct co *co = s->acceptor_waiter;

        s->acceptor_waiter = NULL;
        co_wake(co);
    }
}

static void wake_stopper(struct nbd_server *s)
{
    if (s->stop_waiter && s->connection_count == 0 && !s->acceptor_running) {
        struct co *co = s->stop_waiter;

        s->stop_waiter = NULL;
        co_wake(co);
    }
}

static void room_timer_fired(struct loop_timer *timer)
{
    wake_acceptor(container_of(timer, struct nbd_server, room_timer));
}

static bool server_is_full(const struct nbd_server *s)
{
    return s->config.max_connections > 0 && s->connection_count >= s->config.max_connections;
}

static struct nbd_connection *oldest_handshake(struct nbd_server *s)
{
    struct nbd_connection *c;

    LIST_FOREACH (c, &s->connections, link) {
        if (c->in_handshake) {
            return c;
        }
    }
    return NULL;
}

/* End a client that is in its handshake, if it has had its time. Whether it was ended. */
static bool push_out(struct nbd_connection *idle)
{
    if (!idle || idle->since_ns + HANDSHAKE_PATIENCE_NS > loop_now_ns()) {
        return false;
    }
    /* Do not choose it again. */
    idle->in_handshake = false;
    shutdown(idle->fd, SHUT_RDWR);
    return true;
}

/* A client waits in the backlog: return when there is room for it, or the server stops. */
static void co_make_room(struct nbd_server *s)
{
    while ((s->held || server_is_full(s)) && !s->stopping) {
        struct nbd_connection *idle = s->held ? NULL : oldest_handshake(s);

        if (idle && !push_out(idle)) {
            loop_timer_arm(&s->room_timer, idle->since_ns + HANDSHAKE_PATIENCE_NS);
        }
        s->acceptor_waiter = co_self();
        co_suspend();
    }
    loop_timer_disarm(&s->room_timer);
}

static void tune_socket(int fd)
{
    int receive = NBD_SOCKET_BUFFER, send = NBD_SEND_BUFFER_MIN;
    int on = 1;

    /* The socket works without any of these. */
    (void)setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &send, sizeof(send));
    (void)setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &receive, sizeof(receive));
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    (void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
}

/*
 * The system lacks descriptors or memory. Clients that only idle in a handshake must not keep
 * others from being served.
 */
static void co_wait_for_resources(struct nbd_server *s, int r)
{
    if (!s->accept_failed) {
        log_warning("NBD server: a client cannot be accepted: %s; it waits", strerror(-r));
        s->accept_failed = true;
    }
    (void)push_out(oldest_handshake(s));
    loop_co_sleep(ACCEPT_RETRY_NS);
}

/* Accept one client. False when the server stops. */
static bool co_accept_client(struct nbd_server *s)
{
    int r = loop_co_poll(s->listen_fd, POLLIN, -1);

    if (r < 0 && r != -EINTR) {
        log_error("NBD server: waiting for clients failed: %s; no more are accepted", strerror(-r));
        return false;
    }
    co_make_room(s);
    if (s->stopping) {
        return false;
    }
    r = loop_co_accept(s->listen_fd);
    if (r == -ECANCELED) {
        return false;
    }
    if (r < 0) {
        co_wait_for_resources(s, r);
        return true;
    }
    s->accept_failed = false;
    (void)nbd_server_add_client(s, r);
    return true;
}

static void co_acceptor(void *arg)
{
    struct nbd_server *s = arg;

    while (!s->stopping && co_accept_client(s)) {
    }
    close(s->listen_fd);
    s->listen_fd = -1;
    s->acceptor_running = false;
    wake_stopper(s);
}

int nbd_server_co_listen(struct nbd_server *s, int fd, struct error *err)
{
    int r;

    s->listen_fd = fd;
    nbd_workers_co_prepare();
    s->acceptor_running = true;
    r = reactor_spawn(reactor_main(), co_acceptor, s);
    if (r < 0) {
        s->listen_fd = -1;
        s->acceptor_running = false;
        return error_set_errno(err, -r, "Could not start to accept NBD clients");
    }
    return 0;
}

static void handshake_timed_out(struct loop_timer *timer)
{
    struct nbd_connection *c = container_of(timer, struct nbd_connection, handshake_timer);

    shutdown(c->fd, SHUT_RDWR);
}

static void connection_gone(struct nbd_connection *c)
{
    struct nbd_server *s = c->server;
    bool was_client = c->export != NULL;

    trace_nbd_server_client_end(c->fd);
    nbd_connection_detach(c);
    list_remove(&c->link);
    s->connection_count--;
    /* Before the client can notice that it was disconnected. */
    if (was_client && s->config.on_disconnect) {
        s->config.on_disconnect(s->config.arg, s->connection_count);
    }
    tls_session_free(c->tls);
    close(c->fd);
    nbd_selection_clear(&c->selection);
    error_clear(&c->failure);
    free(c);
    wake_acceptor(s);
    wake_stopper(s);
}

static void co_serve_entry(void *arg)
{
    nbd_connection_co_serve(arg);
}

/* The life of a client; where it goes, it comes back to the main reactor. */
static void co_connection(void *arg)
{
    struct nbd_connection *c = arg;
    struct nbd_server *s = c->server;
    ERROR_AUTO(err);
    bool is_view;
    int r;

    if (s->config.handshake_seconds > 0) {
        loop_timer_arm(&c->handshake_timer,
                       loop_now_ns() + (int64_t)s->config.handshake_seconds * 1000000000LL);
    }
    r = nbd_connection_co_negotiate(c);
    trace_nbd_server_handshake_end(c->fd, c->export ? c->export->name : "", r);
    c->in_handshake = false;
    loop_timer_disarm(&c->handshake_timer);
    if (r == 0 && !s->stopping) {
        log_info("NBD client %s, export '%s': connected%s", c->peer, c->export->name,
                 tls_session_words(c->tls));
        is_view = block_node_is_frozen_view(block_edge_node(c->export->edge));
        c->worker = nbd_worker_co_pick(c->export->reactor, is_view, &err);
        if (c->worker) {
            nbd_slow_begin(c->worker);
            c->in_transmission = true;
            loop_co_call_on(c->worker->reactor, co_serve_entry, c);
            nbd_slow_end(c->worker);
        } else {
            log_error("NBD client %s, export '%s': cannot be served: %s", c->peer, c->export->name,
                      error_message(&err));
        }
    }
    /* Clients that are cut off by the stop of the server have done nothing wrong. */
    if (!s->stopping) {
        nbd_connection_report_end(c);
    }
    connection_gone(c);
}

/* Whether an address has as many clients as it may have. */
static bool origin_is_full(const struct nbd_server *s, const struct nbd_origin *o)
{
    const struct nbd_connection *c;
    unsigned count = 0;

    if (s->config.max_per_address == 0 || o->family == 0) {
        return false;
    }
    LIST_FOREACH (c, &s->connections, link) {
        count += c->origin.family == o->family &&
                 memcmp(c->origin.bytes, o->bytes, sizeof(o->bytes)) == 0;
    }
    return count >= s->config.max_per_address;
}

/* An address that has too many clients may try again without end: it is logged now and then. */
static void report_refusal(struct nbd_server *s, int fd)
{
    int64_t now = loop_now_ns();
    char peer[NBD_PEER_SIZE];

    if (s->refusal_logged_ns == 0 || now - s->refusal_logged_ns >= REFUSAL_PAUSE_NS) {
        s->refusal_logged_ns = now;
        nbd_peer_name(fd, peer);
        log_warning("NBD client %s: refused, since its address has %u connections already", peer,
                    s->config.max_per_address);
    }
}

int nbd_server_add_client(struct nbd_server *s, int fd)
{
    struct nbd_origin origin = nbd_peer_origin(fd);
    struct nbd_connection *c = NULL;
    int r;

    if (origin_is_full(s, &origin)) {
        report_refusal(s, fd);
        close(fd);
        return -EUSERS;
    }
    if (!s->stopping) {
        c = calloc(1, sizeof(*c));
    }
    if (!c) {
        close(fd);
        return -ENOMEM;
    }
    c->origin = origin;
    trace_nbd_server_client_begin(fd);
    tune_socket(fd);
    c->server = s;
    c->fd = fd;
    c->serial = ++s->next_client;
    nbd_peer_name(fd, c->peer);
    c->since_ns = loop_now_ns();
    c->in_handshake = true;
    list_init(&c->export_link);
    loop_timer_init(&c->handshake_timer, handshake_timed_out);
    list_append(&s->connections, &c->link);
    s->connection_count++;
    r = reactor_spawn(reactor_main(), co_connection, c);
    if (r < 0) {
        connection_gone(c);
    }
    return r;
}

void nbd_server_hold(struct nbd_server *s, bool held)
{
    s->held = held;
    wake_acceptor(s);
}

void nbd_server_stop_accepting(struct nbd_server *s)
{
    s->stopping = true;
    if (s->listen_fd >= 0) {
        shutdown(s->listen_fd, SHUT_RDWR);
    }
    wake_acceptor(s);
}

void nbd_server_co_disconnect_all(struct nbd_server *s)
{
    struct nbd_export *e;
    struct nbd_connection *c;

    nbd_server_stop_accepting(s);
    LIST_FOREACH (e, &s->exports, link) {
        block_root_begin_end(e->root);
    }
    LIST_FOREACH (c, &s->connections, link) {
        nbd_connection_begin_end(c);
    }
    while (s->connection_count > 0 || s->acceptor_running) {
        s->stop_waiter = co_self();
        co_suspend();
    }
}

void nbd_server_free(struct nbd_server *s)
{
    if (s) {
        loop_timer_disarm(&s->room_timer);
        loop_timer_disarm(&s->cut_timer);
        free(s);
    }
}
