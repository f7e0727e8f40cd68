/* SPDX-License-Identifier: Apache-2.0 */
#include "backup/qmp_client.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/list.h"
#include "base/time_units.h"
#include "block/socket_address.h"
#include "loop/loop.h"
#include "ssh/tunnel.h"
#include "tls/session.h"

#define CONNECT_TIMEOUT_NS (10 * NS_PER_SECOND)
/*
 * Limit for a greeting, which a server that waits for TLS never sends: it closes the connection
 * after 10 s, and says more by that than our limit would.
 */
#define FIRST_TIMEOUT_NS (12 * NS_PER_SECOND)
/* Limit for a greeting after something else. */
#define GREETING_TIMEOUT_NS NS_PER_SECOND
/*
 * Limit for an answer. A transaction waits for guest I/O in flight, which may take long on a slow
 * disk.
 */
#define ANSWER_TIMEOUT_NS (120 * NS_PER_SECOND)
/* Limit for what is awaited when the user stops, and how often that is looked for. */
#define STOPPED_TIMEOUT_NS (5 * NS_PER_SECOND)
#define LOOK_FOR_STOP_NS (NS_PER_SECOND / 2)
#define MESSAGE_MAX (64ul * 1024 * 1024)
#define BUFFER_SIZE 16384

struct qmp_client {
    int fd;
    struct tls_session *tls; /* NULL: in the clear */
    char *path;
    char *host;                  /* NULL: this machine */
    struct ssh_target ssh;       /* host NULL: not by SSH */
    volatile sig_atomic_t *stop; /* NULL: nobody stops */
    int64_t stopped_ns;          /* when the wait for this answer saw the stop; 0: not yet */
    uint64_t next_id;
    bool broken; /* the stream cannot be used any more */
    struct json_tokener *tok;
    size_t message_size; /* bytes of the message that is parsed at the moment */
    char buf[BUFFER_SIZE];
    size_t start, end; /* received bytes that are not parsed yet */
    size_t begin;      /* of what is parsed of the message in `buf` */
    bool line_ended;   /* that in which the message begins, before `buf` */
};

void qmp_client_close(struct qmp_client *c)
{
    if (!c) {
        return;
    }
    if (c->tls) {
        tls_session_bye(c->tls);
        tls_session_free(c->tls);
    }
    if (c->fd >= 0) {
        close(c->fd);
    }
    ssh_target_clear(&c->ssh);
    free(c->host);
    if (c->tok) {
        json_tokener_free(c->tok);
    }
    free(c->path);
    free(c);
}

const char *qmp_client_path(const struct qmp_client *c)
{
    return c->path;
}

struct ucred qmp_client_peer(const struct qmp_client *c)
{
    struct ucred peer;
    socklen_t size = sizeof(peer);

    if (c->host || getsockopt(c->fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0) {
        peer = (struct ucred){-1, (uid_t)-1, (gid_t)-1};
    }
    return peer;
}

const char *qmp_client_host(const struct qmp_client *c)
{
    return c->host;
}

bool qmp_client_uses_ssh(const struct qmp_client *c)
{
    return c->ssh.host != NULL;
}

static int broken(struct qmp_client *c, int errnum, struct error *err, const char *what)
{
    c->broken = true;
    return error_set(err, errnum, "The daemon at QMP socket '%s' %s", c->path, what);
}

static bool user_has_stopped(const struct qmp_client *c)
{
    return c->stop && *c->stop;
}

/* Wait until there is something to receive. -ETIMEDOUT; -EINTR: the user does not wait longer. */
static int co_await_qmp_bytes(struct qmp_client *c, int64_t deadline)
{
    for (;;) {
        int64_t now = loop_now_ns(), left = deadline - now;
        int r;

        if (user_has_stopped(c)) {
            c->stopped_ns = c->stopped_ns ?: now;
            if (now - c->stopped_ns >= STOPPED_TIMEOUT_NS) {
                return -EINTR;
            }
        }
        r = left > 0 ? loop_co_poll(c->fd, POLLIN, c->stop ? MIN(left, LOOK_FOR_STOP_NS) : left)
                     : -ETIMEDOUT;
        if (r != -ETIMEDOUT || left <= LOOK_FOR_STOP_NS || !c->stop) {
            return r;
        }
    }
}

/* Receive what comes until then. Bytes, or -errno. */
static ssize_t co_receive_qmp_bytes(struct qmp_client *c, int64_t deadline)
{
    /* Decrypted bytes may be there already. */
    ssize_t n = c->tls ? tls_session_recv(c->tls, c->buf, sizeof(c->buf)) : -EAGAIN;

    while (n == -EAGAIN) {
        int r = co_await_qmp_bytes(c, deadline);

        if (r < 0) {
            return r;
        }
        n = c->tls ? tls_session_recv(c->tls, c->buf, sizeof(c->buf))
                   : loop_co_recv(c->fd, c->buf, sizeof(c->buf));
    }
    return n;
}

static int co_receive_more(struct qmp_client *c, int64_t deadline, struct error *err)
{
    bool ended = memchr(c->buf + c->begin, '\n', c->end - c->begin);
    ssize_t n = co_receive_qmp_bytes(c, deadline);

    if (n == -ETIMEDOUT) {
        return broken(c, ETIMEDOUT, err, "does not answer");
    }
    if (n == -EINTR) {
        return broken(c, EINTR, err, "did not answer before the stop");
    }
    if (n == 0 || n == -ECONNRESET) {
        return broken(c, ECONNRESET, err, "closed the connection");
    }
    if (n < 0) {
        c->broken = true;
        return error_set_errno(err, (int)-n, "Could not read from QMP socket '%s'", c->path);
    }
    c->line_ended |= ended;
    c->start = c->begin = 0;
    c->end = (size_t)n;
    return 0;
}

/* The next message, an object. */
static int co_receive_message(struct qmp_client *c, int64_t deadline,
                              struct json_object **ret_object, struct error *err)
{
    c->message_size = 0;
    json_tokener_reset(c->tok);
    for (;;) {
        enum json_tokener_error e;
        struct json_object *o;

        while (c->start < c->end && c->message_size == 0 && strchr(" \t\r\n", c->buf[c->start])) {
            c->start++;
        }
        if (c->start == c->end) {
            int r = co_receive_more(c, deadline, err);
            if (r < 0) {
                return r;
            }
            continue;
        }
        if (c->message_size == 0) {
            c->begin = c->start;
            c->line_ended = false;
        }
        o = json_tokener_parse_ex(c->tok, c->buf + c->start, (int)(c->end - c->start));
        e = json_tokener_get_error(c->tok);
        if (e == json_tokener_success) {
            c->start += json_tokener_get_parse_end(c->tok);
            c->message_size = 0;
            if (!json_object_is_type(o, json_type_object)) {
                json_object_put(o);
                return broken(c, EPROTO, err, "sent something that is no QMP message");
            }
            *ret_object = o;
            return 0;
        }
        c->message_size += c->end - c->start;
        c->start =
            e == json_tokener_continue ? c->end : c->start + json_tokener_get_parse_end(c->tok);
        if (e != json_tokener_continue || c->message_size > MESSAGE_MAX) {
            return broken(c, EPROTO, err, "sent something that is no QMP message");
        }
    }
}

static int co_send(struct qmp_client *c, const char *text, size_t size, struct error *err)
{
    while (size > 0) {
        struct iovec iov = {(void *)text, size};
        struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
        int r = c->tls ? tls_session_co_send(c->tls, &iov, 1) : 0;
        ssize_t n = !c->tls ? loop_co_sendmsg(c->fd, &msg, MSG_NOSIGNAL)
                    : r < 0 ? r
                            : (ssize_t)size;

        if (n <= 0) {
            c->broken = true;
            return error_set_errno(err, n < 0 ? (int)-n : EPIPE,
                                   "Could not write to QMP socket '%s'", c->path);
        }
        text += n;
        size -= (size_t)n;
    }
    return 0;
}

static int take_error(struct json_object *error, const char *command, struct error *err)
{
    struct json_object *v;
    const char *class = "", *desc = "no reason given";

    if (json_object_object_get_ex(error, "class", &v)) {
        class = json_object_get_string(v);
    }
    if (json_object_object_get_ex(error, "desc", &v)) {
        desc = json_object_get_string(v);
    }
    if (class && strcmp(class, "CommandNotFound") == 0) {
        return error_set(err, ENOSYS, "The daemon refused '%s': %s", command, desc);
    }
    return error_set(err, EIO, "The daemon refused '%s': %s", command, desc);
}

/*
 * The answer to command number `id`. Messages before it are events, or answers to commands that
 * timed out.
 */
static int co_await_answer(struct qmp_client *c, uint64_t id, const char *command,
                           struct json_object **ret_object, struct error *err)
{
    int64_t deadline = loop_now_ns() + ANSWER_TIMEOUT_NS;

    c->stopped_ns = 0;
    for (;;) {
        struct json_object *o = NULL, *v, *value;
        int r = co_receive_message(c, deadline, &o, err);

        if (r < 0) {
            return r;
        }
        if (!json_object_object_get_ex(o, "id", &v) || json_object_get_uint64(v) != id) {
            json_object_put(o);
            continue;
        }
        if (json_object_object_get_ex(o, "return", &value)) {
            if (ret_object) {
                *ret_object = json_object_get(value);
            }
            r = 0;
        } else if (json_object_object_get_ex(o, "error", &value)) {
            r = take_error(value, command, err);
        } else {
            r = broken(c, EPROTO, err, "sent an answer that is none");
        }
        json_object_put(o);
        return r;
    }
}

int qmp_client_co_execute(struct qmp_client *c, const char *command, struct json_object *arguments,
                          struct json_object **ret_object, struct error *err)
{
    struct json_object *o = json_object_new_object();
    char *line AUTO_FREE = NULL;
    uint64_t id = c->next_id++;
    int r;

    json_object_object_add(o, "execute", json_object_new_string(command));
    if (arguments) {
        json_object_object_add(o, "arguments", arguments);
    }
    json_object_object_add(o, "id", json_object_new_uint64(id));
    if (c->broken) {
        json_object_put(o);
        return error_set(err, ECONNRESET, "The connection to QMP socket '%s' is lost", c->path);
    }
    /* With the end of the line, so that the daemon wakes up once. */
    if (asprintf(&line, "%s\n", json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN)) < 0) {
        line = NULL;
    }
    r = line ? co_send(c, line, strlen(line), err) : error_out_of_memory(err);
    json_object_put(o);
    return r < 0 ? r : co_await_answer(c, id, command, ret_object, err);
}

/*
 * Drop the line in which what was parsed last begins. The parser may have gone on: what begins with
 * the second quotation mark of a string ends with the first one of the next line.
 */
static int co_skip_line(struct qmp_client *c, int64_t deadline, struct error *err)
{
    c->start = c->begin;
    while (!c->line_ended) {
        char *newline = memchr(c->buf + c->start, '\n', c->end - c->start);
        int r;

        if (newline) {
            c->start = (size_t)(newline - c->buf) + 1;
            return 0;
        }
        r = co_receive_more(c, deadline, err);
        if (r < 0) {
            return r;
        }
    }
    return 0;
}

/*
 * Receive the greeting. A monitor of QEMU that has lost its client sends the next one what it still
 * had for the former: a part of a line, events, answers. That is dropped; the greeting comes right
 * after it.
 */
static int co_receive_greeting(struct qmp_client *c, struct error *err)
{
    int64_t deadline = loop_now_ns() + FIRST_TIMEOUT_NS;
    ERROR_AUTO(first);
    int first_r = 0;

    for (;;) {
        struct json_object *o = NULL;
        ERROR_AUTO(why);
        int r = co_receive_message(c, deadline, &o, &why);
        bool found = r == 0 && json_object_object_get_ex(o, "QMP", NULL);

        json_object_put(o);
        if (found) {
            return 0;
        }
        if (r == 0) {
            r = error_set(&why, EPROTO, "'%s' is no QMP socket", c->path);
        }
        if (!error_is_set(&first)) {
            error_move(&first, &why);
            first_r = r;
            deadline = MIN(deadline, loop_now_ns() + GREETING_TIMEOUT_NS);
        }
        if (r == -EPROTO) {
            c->broken = false;
            r = co_skip_line(c, deadline, NULL);
        }
        if (r < 0) {
            c->broken = true;
            error_move(err, &first);
            return first_r;
        }
    }
}

static int co_take_greeting(struct qmp_client *c, struct error *err)
{
    int r = co_receive_greeting(c, err);

    if (r == -ETIMEDOUT) {
        error_hint(err, "A monitor of QEMU serves one client at a time: another backup, or the "
                        "program that manages the machine, may be connected. Give backups a "
                        "monitor of their own.");
    }
    return r < 0 ? r : qmp_client_co_execute(c, "qmp_capabilities", NULL, NULL, err);
}

/* --- connecting --- */

static int co_connect_unix(struct qmp_client *c, struct error *err)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    size_t len = strlen(c->path);
    int r;

    if (len >= sizeof(addr.sun_path)) {
        return error_set(err, ENAMETOOLONG, "The path of QMP socket '%s' is longer than %zu bytes",
                         c->path, sizeof(addr.sun_path) - 1);
    }
    memcpy(addr.sun_path, c->path, len + 1);
    c->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (c->fd < 0) {
        return error_set_errno(err, errno, "Could not make a socket");
    }
    r = loop_co_connect(c->fd, (struct sockaddr *)&addr, sizeof(addr), CONNECT_TIMEOUT_NS);
    return r < 0 ? error_set_errno(err, -r, "Could not connect to QMP socket '%s'", c->path) : 0;
}

/* "HOST:PORT", "[V6]:PORT" */
static int co_connect_tcp(struct qmp_client *c, const char *text, struct error *err)
{
    const char *colon = strrchr(text, ':');
    size_t size = colon ? (size_t)(colon - text) : 0;
    bool bracketed = size > 2 && text[0] == '[' && text[size - 1] == ']';
    struct socket_address address = {.watched = true};
    int r;

    if (size == 0 || !colon[1] || (!bracketed && memchr(text, ':', size))) {
        return error_set(err, EINVAL, "'%s' is no address: expected tcp:HOST:PORT", c->path);
    }
    c->host = strndup(text + bracketed, size - 2 * (size_t)bracketed);
    address.host = c->host;
    address.port = (char *)colon + 1;
    r = c->host ? socket_address_co_connect(&address, 0, CONNECT_TIMEOUT_NS, &c->fd, err)
                : error_out_of_memory(err);
    return r;
}

struct tunnel_job {
    const struct ssh_target *target;
    int fd;
    struct error *err;
};

static int tunnel_job_run(void *arg)
{
    struct tunnel_job *job = arg;

    return ssh_tunnel_open(job->target, &job->fd, job->err);
}

int qmp_client_co_tunnel(const struct qmp_client *c, const char *path, int *ret_fd,
                         struct error *err)
{
    struct ssh_target target = c->ssh;
    struct tunnel_job job = {.target = &target, .err = err};
    int r;

    target.path = (char *)path;
    r = loop_co_offload(tunnel_job_run, &job);
    if (r == 0) {
        *ret_fd = job.fd;
    }
    return r;
}

static int co_connect_ssh(struct qmp_client *c, struct error *err)
{
    struct options *opts = options_new();
    int r = opts ? ssh_target_parse_filename(c->path, opts, err) : error_out_of_memory(err);

    UNLESS_FAILED(r, ssh_target_take(opts, &c->ssh, err));
    options_free(opts);
    if (r == 0) {
        c->host = strdup(c->ssh.host);
        r = c->host ? qmp_client_co_tunnel(c, c->ssh.path, &c->fd, err) : error_out_of_memory(err);
    }
    return r;
}

/* The time of a handshake is limited by shutting the socket down. */
struct handshake_limit {
    struct loop_timer timer;
    int fd;
};

static void end_handshake(struct loop_timer *timer)
{
    shutdown(container_of(timer, struct handshake_limit, timer)->fd, SHUT_RDWR);
}

static int co_start_tls(struct qmp_client *c, const struct nbd_client_tls *tls, struct error *err)
{
    const char *hostname = tls->hostname ? tls->hostname : c->host;
    struct handshake_limit limit = {.fd = c->fd};
    int r = tls_session_new(tls->creds, c->fd, hostname, NULL, &c->tls, err);

    if (r < 0) {
        return r;
    }
    loop_timer_init(&limit.timer, end_handshake);
    loop_timer_arm(&limit.timer, loop_now_ns() + CONNECT_TIMEOUT_NS);
    r = tls_session_co_handshake(c->tls, err);
    loop_timer_disarm(&limit.timer);
    if (r < 0) {
        error_prepend(err, "TLS with '%s': ", c->path);
    }
    return r;
}

/* What to do about a socket that is not reached. */
static void hint_at_reach(const struct qmp_client *c, int r, struct error *err)
{
    if (c->ssh.host && r == -ECONNREFUSED) {
        error_hint(err, "Do an SSH server and the daemon run there, the daemon with --chardev and "
                        "--monitor for that socket?");
    } else if (c->ssh.host && (r == -EACCES || r == -EPERM)) {
        error_prepend(err, "'%s': ", c->path);
        error_hint(err,
                   "'ssh %s%s%s -p %s' has to work without a question first: the same keys and "
                   "the same known_hosts are used.",
                   c->ssh.user ?: "", c->ssh.user ? "@" : "", c->ssh.host, c->ssh.port);
    } else if (!c->ssh.host && r != -EINVAL && r != -ENAMETOOLONG) {
        error_hint(err, "Is the daemon running, with --chardev and --monitor for that socket?");
    }
}

int qmp_client_co_connect(const char *address, const struct nbd_client_tls *tls,
                          volatile sig_atomic_t *stop, struct qmp_client **ret_client,
                          struct error *err)
{
    struct qmp_client *c AUTO_QMP = calloc(1, sizeof(*c));
    int r;

    if (!c) {
        return error_out_of_memory(err);
    }
    c->fd = -1;
    c->stop = stop;
    c->path = strdup(address);
    c->tok = json_tokener_new();
    if (!c->path || !c->tok) {
        return error_out_of_memory(err);
    }
    if (strncmp(address, "ssh:", 4) == 0) {
        r = co_connect_ssh(c, err);
    } else if (strncmp(address, "tcp:", 4) == 0) {
        r = co_connect_tcp(c, address + 4, err);
    } else {
        r = co_connect_unix(c, err);
    }
    if (r < 0) {
        hint_at_reach(c, r, err);
        return r;
    }
    UNLESS_FAILED(r, tls ? co_start_tls(c, tls, err) : 0);
    UNLESS_FAILED(r, co_take_greeting(c, err));
    if (r < 0) {
        if (c->host && !tls && !c->ssh.host) {
            error_hint(err, "If that socket speaks TLS, name credentials with --qmp-tls-creds.");
        }
        return r;
    }
    *ret_client = TAKE_PTR(c);
    return 0;
}
