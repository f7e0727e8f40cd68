/* SPDX-License-Identifier: Apache-2.0 */
#include "qmp/chardev.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/inet.h"
#include "base/list.h"
#include "base/log.h"
#include "base/strbuf.h"
#include "base/unix_socket.h"
#include "block/passed_fd.h"
#include "loop/loop.h"
#include "qmp/dispatch.h"
#include "base/json_write.h"
#include "qmp/monitor.h"
#include "qmp/stdio_pair.h"

#define BACKLOG 16

struct chardev {
    struct list link;  /* in `chardevs` */
    char *id;          /* owned */
    char *unlink_path; /* owned; the socket file that was made; NULL: none */
    int fd;            /* listening socket, or one end of the pair that carries stdio; -1: in use */
    bool is_stdio;
    bool has_monitor;
    bool pretty;
    bool accepting; /* the coroutine that accepts clients runs */
    struct fd_names *fd_names;
};

static struct list chardevs = LIST_INIT(chardevs);
static bool closing;
/* the socket on whose first client the start of the daemon waits; -1: none */
static int waiting_fd = -1;

static struct chardev *find_chardev(const char *id)
{
    struct chardev *c;

    LIST_FOREACH (c, &chardevs, link) {
        if (strcmp(c->id, id) == 0) {
            return c;
        }
    }
    return NULL;
}

static void free_chardev(struct chardev *c)
{
    list_remove(&c->link);
    if (c->fd >= 0) {
        close(c->fd);
    }
    fd_names_unref(c->fd_names);
    free(c->unlink_path);
    free(c->id);
    free(c);
}

/* --- listening -------------------------------------------------------------------------------- */

static int chardev_listen_unix(const char *path, struct error *err)
{
    AUTO_CLOSE int fd = -1;
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    int r;

    if (strlen(path) >= sizeof(addr.sun_path)) {
        return error_set(err, ENAMETOOLONG, "UNIX socket path '%s' is too long: at most %zu bytes",
                         path, sizeof(addr.sun_path) - 1);
    }
    memcpy(addr.sun_path, path, strlen(path) + 1);
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
        return error_set_errno(err, errno, "Failed to create a socket");
    }
    r = unix_socket_bind(fd, &addr);
    if (r < 0) {
        return error_set_errno(err, -r, "Failed to bind socket to %s", path);
    }
    if (listen(fd, BACKLOG) < 0) {
        return error_set_errno(err, errno, "Failed to listen on socket %s", path);
    }
    return TAKE_FD(fd);
}

static int listen_on(const struct addrinfo *a)
{
    AUTO_CLOSE int fd =
        socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK, a->ai_protocol);
    int on = 1;

    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) < 0 ||
        bind(fd, a->ai_addr, a->ai_addrlen) < 0 || listen(fd, BACKLOG) < 0) {
        return -errno;
    }
    return TAKE_FD(fd);
}

static int listen_inet(const char *host, const char *port, struct error *err)
{
    struct addrinfo hints = {.ai_flags = AI_PASSIVE, .ai_socktype = SOCK_STREAM}, *list;
    int r = inet_lookup(host && *host ? host : NULL, port, &hints, &list), fd = -EADDRNOTAVAIL;

    if (r != 0) {
        return error_set(err, EINVAL, "address resolution failed for %s:%s: %s", host ?: "", port,
                         gai_strerror(r));
    }
    for (struct addrinfo *a = list; a && fd < 0; a = a->ai_next) {
        fd = listen_on(a);
    }
    freeaddrinfo(list);
    if (fd < 0) {
        return error_set_errno(err, -fd, "Failed to listen on %s:%s", host ?: "", port);
    }
    return fd;
}

static int listen_inherited(int fd, struct error *err)
{
    socklen_t size = sizeof(int);
    int listening = 0;

    if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &size) < 0 || !listening ||
        fcntl(fd, F_SETFL, O_NONBLOCK) < 0 || fcntl(fd, F_SETFD, FD_CLOEXEC) < 0) {
        return error_set(err, EINVAL, "%d is not the descriptor of a listening socket", fd);
    }
    return fd;
}

/* --- --chardev -------------------------------------------------------------------------------- */

struct socket_options {
    char *path, *host, *port;
    uint64_t fd;
    bool server, wait;
};

static void clear_socket_options(struct socket_options *s)
{
    free(s->path);
    free(s->host);
    free(s->port);
}

static int take_socket_options(struct options *opts, struct socket_options *s, struct error *err)
{
    bool nowait = false;

    if (options_take_str(opts, "path", &s->path, err) < 0 ||
        options_take_str(opts, "host", &s->host, err) < 0 ||
        options_take_str(opts, "port", &s->port, err) < 0 ||
        options_take_uint(opts, "fd", UINT64_MAX, INT32_MAX, &s->fd, err) < 0 ||
        options_take_bool(opts, "server", false, &s->server, err) < 0 ||
        options_take_bool(opts, "nowait", false, &nowait, err) < 0 ||
        options_take_bool(opts, "wait", !nowait, &s->wait, err) < 0) {
        return -EINVAL;
    }
    if (!s->server) {
        return error_set(err, ENOTSUP,
                         "chardev sockets can only listen here: say server=on (and wait=off)");
    }
    if (!s->path && !s->port && s->fd == UINT64_MAX) {
        return error_set(err, EINVAL, "chardev: socket: no path, port or fd given");
    }
    return 0;
}

static int co_add_socket(struct chardev *c, struct options *opts, struct error *err)
{
    __attribute__((cleanup(clear_socket_options))) struct socket_options s = {0};
    int r = take_socket_options(opts, &s, err);

    if (r >= 0) {
        r = options_check_empty(opts, "chardev socket", err);
    }
    if (r < 0) {
        return r;
    }
    c->fd = s.path   ? chardev_listen_unix(s.path, err)
            : s.port ? listen_inet(s.host, s.port, err)
                     : listen_inherited((int)s.fd, err);
    if (c->fd < 0) {
        return c->fd;
    }
    c->unlink_path = TAKE_PTR(s.path);
    if (s.wait) {
        log_notice("waiting for a client of chardev '%s'", c->id);
        waiting_fd = c->fd;
        r = loop_co_poll(c->fd, POLLIN, -1);
        r = waiting_fd < 0 ? -ECANCELED : r;
        waiting_fd = -1;
    }
    return r < 0 ? error_set_errno(err, -r, "Waiting for a client of chardev '%s' failed", c->id)
                 : 0;
}

static int add_stdio(struct chardev *c, struct options *opts, struct error *err)
{
    int r;

    c->is_stdio = true;
    options_drop(opts, "signal");
    r = options_check_empty(opts, "chardev stdio", err);
    if (r >= 0) {
        r = qmp_stdio_open(err);
    }
    if (r >= 0) {
        c->fd = r;
    }
    return r < 0 ? r : 0;
}

static int co_add(struct options *opts, const char *backend, const char *id, struct error *err)
{
    struct chardev *c;
    int r;

    if (find_chardev(id)) {
        return error_set(err, EEXIST, "Chardev with id '%s' already exists", id);
    }
    c = calloc(1, sizeof(*c));
    if (!c || !(c->id = strdup(id)) || !(c->fd_names = fd_names_new())) {
        if (c) {
            free(c->id);
        }
        free(c);
        return error_out_of_memory(err);
    }
    c->fd = -1;
    list_init(&c->link);
    if (strcmp(backend, "socket") == 0) {
        r = co_add_socket(c, opts, err);
    } else if (strcmp(backend, "stdio") == 0) {
        r = add_stdio(c, opts, err);
    } else {
        r = error_set(err, EINVAL, "'%s' is not a valid char driver name (socket and stdio are)",
                      backend);
    }
    if (r < 0) {
        free_chardev(c);
        return r;
    }
    list_append(&chardevs, &c->link);
    return 0;
}

int qmp_co_chardev_add(struct options *opts_, struct error *err)
{
    AUTO_OPTIONS struct options *opts = opts_;
    AUTO_FREE char *backend = NULL, *id = NULL;

    if (options_take_str(opts, "backend", &backend, err) < 0 ||
        options_take_str(opts, "id", &id, err) < 0) {
        return -EINVAL;
    }
    if (!backend || !id) {
        return error_set(err, EINVAL, "chardev: %s missing",
                         backend ? "no id given: 'id'" : "backend");
    }
    return co_add(opts, backend, id, err);
}

/* --- --monitor -------------------------------------------------------------------------------- */

static void refuse_client(struct chardev *c, int fd)
{
    struct json_object *answer;
    STRBUF_AUTO(text);
    ERROR_AUTO(err);

    error_set(&err, EAGAIN, "There are %d monitor clients already", QMP_SESSION_MAX);
    log_warning("chardev '%s': a client is refused: %s", c->id, error_message(&err));
    answer = qmp_error_answer(&err);
    json_write(&text, answer, false);
    strbuf_puts(&text, "\r\n");
    json_object_put(answer);
    /* The socket's buffer is empty, so this does not block. */
    if (send(fd, strbuf_str(&text), text.len, MSG_NOSIGNAL | MSG_DONTWAIT) < 0) {
        log_warning("chardev '%s': %s", c->id, strerror(errno));
    }
    close(fd);
}

/* Accept clients until the listening socket is shut down. */
static void co_accept(void *arg)
{
    struct chardev *c = arg;

    while (!closing) {
        ERROR_AUTO(err);
        int fd;

        fd = loop_co_accept(c->fd);
        if (fd == -ECANCELED || (fd == -EINVAL && closing)) {
            break;
        }
        if (fd < 0) {
            /* Out of descriptors, or the client left before it was accepted. */
            loop_co_sleep(50 * NS_PER_MS);
            continue;
        }
        if (qmp_session_count() >= QMP_SESSION_MAX) {
            refuse_client(c, fd);
            /* Wait, so that a client that tries again at once does not fill the log. */
            loop_co_sleep(50 * NS_PER_MS);
        } else if (qmp_session_start(fd, c->pretty, c->fd_names, &err) < 0) {
            log_error("chardev '%s': %s", c->id, error_message(&err));
        }
    }
    c->accepting = false;
}

static int start_monitor(struct chardev *c, struct error *err)
{
    int r;

    if (c->is_stdio) {
        int fd = c->fd;

        c->fd = -1;
        return qmp_session_start(fd, c->pretty, c->fd_names, err);
    }
    c->accepting = true;
    r = reactor_spawn(reactor_main(), co_accept, c);
    if (r < 0) {
        c->accepting = false;
        return error_set_errno(err, -r, "chardev '%s' cannot be served", c->id);
    }
    return 0;
}

int qmp_monitor_add(struct options *opts_, struct error *err)
{
    static const char *const modes[] = {"control", NULL};
    AUTO_OPTIONS struct options *opts = opts_;
    AUTO_FREE char *name = NULL, *id = NULL;
    struct chardev *c;
    bool pretty;
    int mode;

    if (options_take_str(opts, "chardev", &name, err) < 0 ||
        options_take_str(opts, "id", &id, err) < 0 ||
        options_take_enum(opts, "mode", modes, 0, &mode, err) < 0 ||
        options_take_bool(opts, "pretty", false, &pretty, err) < 0 ||
        options_check_empty(opts, "monitor", err) < 0) {
        return -EINVAL;
    }
    if (!name) {
        return error_set(err, EINVAL, "Parameter 'chardev' is missing");
    }
    c = find_chardev(name);
    if (!c) {
        return error_set(err, ENOENT, "chardev \"%s\" not found", name);
    }
    if (c->has_monitor) {
        return error_set(err, EBUSY, "Device '%s' is in use", name);
    }
    c->has_monitor = true;
    c->pretty = pretty;
    return start_monitor(c, err);
}

void qmp_chardevs_stop_waiting(void)
{
    if (waiting_fd >= 0) {
        shutdown(waiting_fd, SHUT_RDWR);
        waiting_fd = -1;
    }
}

/* --- the end ---------------------------------------------------------------------------------- */

void qmp_co_chardevs_close(void)
{
    struct chardev *c, *next;

    closing = true;
    LIST_FOREACH (c, &chardevs, link) {
        if (c->fd >= 0) {
            shutdown(c->fd, SHUT_RDWR);
        }
        if (c->unlink_path) {
            unlink(c->unlink_path);
        }
    }
    LIST_FOREACH_SAFE (c, next, &chardevs, link) {
        while (c->accepting) {
            loop_co_sleep(NS_PER_MS);
        }
        free_chardev(c);
    }
}

void qmp_co_chardevs_release(void)
{
    qmp_co_stdio_flush();
}
