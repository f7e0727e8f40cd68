/* SPDX-License-Identifier: Apache-2.0 */
#include "backup/qmp_client.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "base/cleanup.h"
#include "base/time_units.h"
#include "loop/loop.h"

#define CONNECT_TIMEOUT_NS (10 * NS_PER_SECOND)
/*
 * Limit for an answer. A transaction waits for guest I/O in flight, which may take long on a slow
 * disk.
 */
#define ANSWER_TIMEOUT_NS (120 * NS_PER_SECOND)
#define MESSAGE_MAX (64ul * 1024 * 1024)
#define BUFFER_SIZE 16384

struct qmp_client {
    int fd;
    char *path;
    uint64_t next_id;
    bool broken; /* the stream cannot be used any more */
    struct json_tokener *tok;
    size_t message_size; /* bytes of the message that is parsed at the moment */
    char buf[BUFFER_SIZE];
    size_t start, end; /* received bytes that are not parsed yet */
};

void qmp_client_close(struct qmp_client *c)
{
    if (!c) {
        return;
    }
    if (c->fd >= 0) {
        close(c->fd);
    }
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

    if (getsockopt(c->fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0) {
        peer = (struct ucred){-1, (uid_t)-1, (gid_t)-1};
    }
    return peer;
}

static int broken(struct qmp_client *c, int errnum, struct error *err, const char *what)
{
    c->broken = true;
    return error_set(err, errnum, "The daemon at QMP socket '%s' %s", c->path, what);
}

static int co_receive_more(struct qmp_client *c, int64_t deadline, struct error *err)
{
    int64_t left = deadline - loop_now_ns();
    ssize_t n = left > 0 ? loop_co_poll(c->fd, POLLIN, left) : -ETIMEDOUT;

    if (n == -ETIMEDOUT) {
        return broken(c, ETIMEDOUT, err, "does not answer");
    }
    n = n < 0 ? n : loop_co_recv(c->fd, c->buf, sizeof(c->buf));
    if (n == 0 || n == -ECONNRESET) {
        return broken(c, ECONNRESET, err, "closed the connection");
    }
    if (n < 0) {
        c->broken = true;
        return error_set_errno(err, (int)-n, "Could not read from QMP socket '%s'", c->path);
    }
    c->start = 0;
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
        o = json_tokener_parse_ex(c->tok, c->buf + c->start, (int)(c->end - c->start));
        e = json_tokener_get_error(c->tok);
        if (e == json_tokener_success) {
            c->start += json_tokener_get_parse_end(c->tok);
            if (!json_object_is_type(o, json_type_object)) {
                json_object_put(o);
                return broken(c, EPROTO, err, "sent something that is no QMP message");
            }
            *ret_object = o;
            return 0;
        }
        c->message_size += c->end - c->start;
        c->start = c->end;
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
        ssize_t n = loop_co_sendmsg(c->fd, &msg, MSG_NOSIGNAL);

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
    uint64_t id = c->next_id++;
    const char *text;
    size_t size;
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
    text = json_object_to_json_string_length(o, JSON_C_TO_STRING_PLAIN, &size);
    r = text ? co_send(c, text, size, err) : error_out_of_memory(err);
    UNLESS_FAILED(r, co_send(c, "\n", 1, err));
    json_object_put(o);
    return r < 0 ? r : co_await_answer(c, id, command, ret_object, err);
}

static int co_take_greeting(struct qmp_client *c, struct error *err)
{
    struct json_object *greeting = NULL;
    int r = co_receive_message(c, loop_now_ns() + CONNECT_TIMEOUT_NS, &greeting, err);

    if (r < 0) {
        return r;
    }
    r = json_object_object_get_ex(greeting, "QMP", NULL)
            ? 0
            : error_set(err, EPROTO, "'%s' is no QMP socket", c->path);
    json_object_put(greeting);
    return r < 0 ? r : qmp_client_co_execute(c, "qmp_capabilities", NULL, NULL, err);
}

int qmp_client_co_connect(const char *path, struct qmp_client **ret_client, struct error *err)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    struct qmp_client *c AUTO_QMP = calloc(1, sizeof(*c));
    size_t len = strlen(path);
    int r;

    if (len >= sizeof(addr.sun_path)) {
        return error_set(err, ENAMETOOLONG, "The path of QMP socket '%s' is longer than %zu bytes",
                         path, sizeof(addr.sun_path) - 1);
    }
    memcpy(addr.sun_path, path, len + 1);
    if (!c) {
        return error_out_of_memory(err);
    }
    c->fd = -1;
    c->path = strdup(path);
    c->tok = json_tokener_new();
    if (!c->path || !c->tok) {
        return error_out_of_memory(err);
    }
    c->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (c->fd < 0) {
        return error_set_errno(err, errno, "Could not make a socket");
    }
    r = loop_co_connect(c->fd, (struct sockaddr *)&addr, sizeof(addr), CONNECT_TIMEOUT_NS);
    if (r < 0) {
        error_set_errno(err, -r, "Could not connect to QMP socket '%s'", path);
        error_hint(err, "Is the daemon running, with --chardev and --monitor for that socket?");
        return r;
    }
    r = co_take_greeting(c, err);
    if (r < 0) {
        return r;
    }
    *ret_client = TAKE_PTR(c);
    return 0;
}
