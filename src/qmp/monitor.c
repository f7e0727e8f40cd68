/* SPDX-License-Identifier: Apache-2.0 */
#include "qmp/monitor.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/json_read.h"
#include "base/json_write.h"
#include "base/list.h"
#include "base/log.h"
#include "block/control_lock.h"
#include "block/passed_fd.h"
#include "chardev/chardev.h"
#include "co/sync.h"
#include "loop/loop.h"
#include "qmp/command_lock.h"
#include "qmp/dispatch.h"
#include "qmp/events.h"
#include "qmp/lease.h"
#include "qmp/request_kind.h"
#include "qmp/scope.h"
#include "trace/events.h"

#define READ_SIZE 4096
/* Requests that wait while another one runs, with execution out of band; as in QEMU. */
#define REQUESTS_MAX 8
#define END_WAIT_MS 1000
/* Of one message; as in QEMU. */
#define QMP_PASSED_FDS_MAX 16

/* A message that was received. */
struct request {
    struct list link;            /* in `requests` of its session */
    struct json_object *json;    /* a reference; NULL: the message is malformed */
    struct json_object *refusal; /* then the answer to it, a reference */
    int passed_fd;               /* that came before it, not taken yet; -1: none */
    bool given_up;               /* the client has its answer, and does not wait for the end */
};

struct session {
    struct list link;        /* in `sessions` */
    int fd;                  /* owned */
    struct chardev *chardev; /* borrowed; learns of the end */
    bool pretty;
    bool broken;  /* nothing more can be sent */
    bool closing; /* the reader has ended, and the writer has to end */
    bool sending; /* the writer has bytes that are not sent yet */
    struct qmp_call call;
    struct request *running;  /* that is not given up; borrowed; NULL: none */
    struct json_object *held; /* an answer that is sent at the end; NULL: none */
    struct json_reader *reader;
    struct strbuf out;    /* to be sent */
    size_t answer_bytes;  /* of these, in answers to commands that are not out of band */
    struct co *writer;    /* the writer, while it waits for output; else NULL */
    struct co *flusher;   /* who executes, while it waits until all is sent; else NULL */
    struct co_group ends; /* the writer */
    /*
     * With execution out of band the reader queues requests for another coroutine, and waits when
     * there are many.
     */
    struct list requests; /* struct request */
    unsigned request_count;
    unsigned executors;  /* that coroutine, and those whose requests were given up */
    struct co *executor; /* it, while it waits; else NULL */
    struct co *feeder;   /* the reader, while it waits; else NULL */
};

const struct json_limits qmp_json_limits = {
    .bytes = 64ul << 20,
    .tokens = 2ul << 20,
    .depth = 1024,
    .memory = 256ul << 20,
};

static struct list sessions = LIST_INIT(sessions);
static void (*quit_fn)(void);
static bool quit_is_answered_late;

/* --- sending: reader, writer and events all run on the main reactor, so nothing needs a lock -- */

/* Wake a coroutine that waits in one of the session's slots. */
static void wake(struct co **slot)
{
    struct co *co = *slot;

    if (co) {
        *slot = NULL;
        co_wake(co);
    }
}

static void co_wait_in(struct co **slot)
{
    *slot = co_self();
    co_suspend();
}

static void break_session(struct session *s)
{
    s->broken = true;
    shutdown(s->fd, SHUT_RDWR);
    wake(&s->writer);
    wake(&s->flusher);
    wake(&s->executor);
    wake(&s->feeder);
}

static void queue_message(struct session *s, struct json_object *message)
{
    if (s->broken) {
        return;
    }
    json_write(&s->out, message, s->pretty);
    strbuf_puts(&s->out, "\r\n");
    if (s->out.failed) {
        log_error("QMP: out of memory; a client is disconnected");
        break_session(s);
        return;
    }
    wake(&s->writer);
}

/* The next command waits for the client to read it, so it is not held against the client. */
static void queue_answer(struct session *s, struct json_object *answer)
{
    size_t before = s->out.len;

    queue_message(s, answer);
    s->answer_bytes += s->out.len - before;
}

static int co_send_all(int fd, const char *data, size_t size)
{
    while (size > 0) {
        struct iovec vec = {.iov_base = (char *)data, .iov_len = size};
        struct msghdr msg = {.msg_iov = &vec, .msg_iovlen = 1};
        ssize_t sent = loop_co_sendmsg(fd, &msg, MSG_NOSIGNAL);

        if (sent < 0) {
            return (int)sent;
        }
        data += sent;
        size -= (size_t)sent;
    }
    return 0;
}

static void co_writer(void *arg)
{
    struct session *s = arg;

    for (;;) {
        struct strbuf data = s->out;
        int r;

        if (s->broken || (data.len == 0 && s->closing)) {
            break;
        }
        if (data.len == 0) {
            co_wait_in(&s->writer);
            continue;
        }
        s->out = STRBUF_INIT;
        s->answer_bytes = 0;
        s->sending = true;
        r = co_send_all(s->fd, data.data, data.len);
        s->sending = false;
        strbuf_clear(&data);
        if (r < 0 && !s->broken) {
            break_session(s);
        }
        if (s->out.len == 0) {
            wake(&s->flusher);
        }
    }
    wake(&s->flusher);
    co_group_done(&s->ends);
}

static void co_flush_session(struct session *s)
{
    while (!s->broken && (s->out.len > 0 || s->sending)) {
        co_wait_in(&s->flusher);
    }
}

/* Before the next command: one after the other, and none while too much waits for the client. */
static void co_pass_turn(struct session *s)
{
    if (s->call.quit_after_reply || s->out.len > QMP_UNREAD_MAX) {
        co_flush_session(s);
    } else {
        co_reschedule();
    }
}

/* --- requests --------------------------------------------------------------------------------- */

/* With the lock, if it is free soon: for commands that do not need it. */
static struct json_object *co_answer_look(struct session *s, struct json_object *request)
{
    struct json_object *answer;
    struct qmp_look *look;
    ERROR_AUTO(err);

    if (qmp_co_begin_look(&look, &err) < 0) {
        answer = qmp_refusal(request, &err);
    } else {
        answer = qmp_co_dispatch(&s->call, request);
    }
    qmp_end_look(look);
    return answer;
}

static struct json_object *co_answer_in_scope(struct session *s, struct json_object *request)
{
    struct json_object *answer;
    ERROR_AUTO(err);

    if (block_control_owner() && qmp_only_looks(request)) {
        return co_answer_look(s, request);
    }
    if (qmp_co_begin_command(&err) < 0) {
        return qmp_refusal(request, &err);
    }
    answer = qmp_co_dispatch(&s->call, request);
    block_control_unlock();
    return answer;
}

static struct json_object *co_answer(struct session *s, struct json_object *request)
{
    struct json_object *answer;
    struct qmp_scope scope;

    qmp_begin_scope(&scope, request);
    answer = co_answer_in_scope(s, request);
    qmp_end_scope(&scope);
    return answer;
}

static void log_given_up_end(struct json_object *request, struct json_object *answer)
{
    struct json_object *error = NULL;

    json_object_object_get_ex(answer, "error", &error);
    log_warning("QMP: the command '%s', which was given up, has ended: %s",
                qmp_get_str(request, "execute"), error ? qmp_get_str(error, "desc") : "no error");
}

/* Answer a request; frees it. Whether its client has waited for that. */
static bool co_execute_request(struct session *s, struct request *q)
{
    struct json_object *answer;
    bool given_up;
    int old = -1;

    if (q->passed_fd >= 0) {
        old = s->call.passed_fd;
        s->call.passed_fd = q->passed_fd;
    }
    s->running = q;
    answer = q->json ? co_answer(s, q->json) : json_object_get(q->refusal);
    given_up = q->given_up;
    if (!given_up) {
        s->running = NULL;
    }
    if (given_up) {
        log_given_up_end(q->json, answer);
    } else if (s->call.quit_after_reply && quit_is_answered_late && !s->held) {
        s->held = json_object_get(answer);
    } else {
        queue_answer(s, answer);
    }
    json_object_put(answer);
    json_object_put(q->json);
    json_object_put(q->refusal);
    free(q);
    if (old >= 0) {
        loop_co_close(old);
    }
    if (s->call.quit_after_reply && quit_fn) {
        quit_fn();
    }
    if (!given_up) {
        co_pass_turn(s);
    }
    return !given_up;
}

static struct request *new_request(struct json_object *json, const struct error *err)
{
    struct request *q = calloc(1, sizeof(*q));

    if (!q) {
        return NULL;
    }
    list_init(&q->link);
    q->passed_fd = -1;
    q->json = err ? NULL : json_object_get(json);
    q->refusal = err ? qmp_error_answer(err) : NULL;
    return q;
}

/* --- execution out of band -------------------------------------------------------------------- */

static struct request *take_request(struct session *s)
{
    struct request *q = LIST_FIRST(&s->requests, struct request, link);

    list_remove(&q->link);
    s->request_count--;
    wake(&s->feeder);
    return q;
}

static void co_drop_requests(struct session *s)
{
    while (!list_is_empty(&s->requests)) {
        struct request *q = take_request(s);

        if (q->passed_fd >= 0) {
            loop_co_close(q->passed_fd);
        }
        json_object_put(q->json);
        json_object_put(q->refusal);
        free(q);
    }
}

static void co_executor(void *arg)
{
    struct session *s = arg;
    bool goes_on = true;

    while (goes_on && !s->broken && !s->closing) {
        if (list_is_empty(&s->requests)) {
            co_wait_in(&s->executor);
        } else {
            goes_on = co_execute_request(s, take_request(s));
        }
    }
    s->executors--;
    wake(&s->feeder);
}

static bool begin_executor(struct session *s)
{
    s->executors++;
    if (reactor_spawn(reactor_main(), co_executor, s) < 0) {
        s->executors--;
        return false;
    }
    return true;
}

/* Leave a request to the other coroutine. */
static void co_queue_request(struct session *s, struct request *q)
{
    if (s->executors == 0 && !begin_executor(s)) {
        co_execute_request(s, q);
        return;
    }
    /* A descriptor belongs to the first request that comes after it. */
    q->passed_fd = s->call.passed_fd;
    s->call.passed_fd = -1;
    list_append(&s->requests, &q->link);
    s->request_count++;
    wake(&s->executor);
    while (s->request_count >= REQUESTS_MAX && !s->broken) {
        co_wait_in(&s->feeder);
    }
}

/* The reader has ended: so does the other coroutine, after the request that it executes. */
static void co_end_executor(struct session *s)
{
    co_drop_requests(s);
    while (s->executors > 0) {
        wake(&s->executor);
        co_wait_in(&s->feeder);
    }
}

static bool has_id(const struct request *q, struct json_object *id)
{
    struct json_object *own;

    return q->json && json_object_object_get_ex(q->json, "id", &own) && json_object_equal(own, id);
}

/* The request of this id that runs, or waits for its turn; NULL: none. */
static struct request *find_request(const struct session *s, struct json_object *id)
{
    struct request *q;

    if (s->running && has_id(s->running, id)) {
        return s->running;
    }
    LIST_FOREACH (q, &s->requests, link) {
        if (has_id(q, id)) {
            return q;
        }
    }
    return NULL;
}

static void answer_given_up(struct session *s, const struct request *q, const char *what)
{
    struct json_object *answer;
    ERROR_AUTO(err);

    error_set(&err, ECANCELED, "The command '%s' was given up%s",
              qmp_get_str(q->json, "execute") ?: "", what);
    answer = qmp_refusal(q->json, &err);
    queue_answer(s, answer);
    json_object_put(answer);
}

/*
 * The request of this id gets its answer now. If it runs, the coroutine that executes it ends with
 * it, and another one takes the next requests.
 */
static int give_up_request(struct qmp_call *call, struct json_object *id, struct error *err)
{
    struct session *s = container_of(call, struct session, call);
    struct request *q = find_request(s, id);
    const char *name = q ? qmp_get_str(q->json, "execute") : NULL;

    /* In band this command finds itself. */
    if (!q || (name && strcmp(name, "x-tidemark-give-up") == 0)) {
        return error_set(err, ENOENT, "No command with this id is running on this monitor");
    }
    if (q->passed_fd >= 0) {
        return error_set(err, EBUSY,
                         "A file descriptor came with the command: it can't be given up");
    }
    if (q != s->running) {
        list_remove(&q->link);
        s->request_count--;
        wake(&s->feeder);
        answer_given_up(s, q, " before it began");
        json_object_put(q->json);
        free(q);
        return 0;
    }
    if (!begin_executor(s)) {
        return error_out_of_memory(err);
    }
    q->given_up = true;
    s->running = NULL;
    log_warning("QMP: the command '%s' is given up by its client, and goes on", name ?: "");
    answer_given_up(s, q, ", and goes on");
    return 0;
}

/* --- messages --------------------------------------------------------------------------------- */

static void co_accept_message(struct session *s, struct json_object *json, const struct error *err)
{
    struct request *q;

    if (!err && qmp_is_oob(&s->call, json)) {
        struct json_object *answer = qmp_co_dispatch(&s->call, json);

        queue_message(s, answer);
        json_object_put(answer);
        return;
    }
    q = new_request(json, err);
    if (!q) {
        log_error("QMP: out of memory; a client is disconnected");
        break_session(s);
    } else if (s->call.oob) {
        co_queue_request(s, q);
    } else {
        co_execute_request(s, q);
    }
}

/* Execute the messages in the received bytes, which are erased: some have passwords. */
static void co_execute_received(struct session *s, char *data, size_t size)
{
    while (size > 0 && !s->broken) {
        struct json_object *json = NULL;
        ERROR_AUTO(err);
        size_t used;
        int r = json_reader_feed(s->reader, data, size, &used, &json, &err);

        explicit_bzero(data, used);
        data += used;
        size -= used;
        if (r > 0 && !json_object_is_type(json, json_type_object)) {
            r = error_set(&err, EINVAL, "QMP input must be a JSON object");
        }
        if (r != 0) {
            co_accept_message(s, json, r < 0 ? &err : NULL);
        }
        json_object_put(json);
    }
}

static void free_session(struct session *s)
{
    trace_qmp_session_end(s->fd);
    list_remove(&s->link);
    close(s->fd);
    fd_names_unref(s->call.fd_names);
    json_reader_free(s->reader);
    json_object_put(s->held);
    strbuf_clear(&s->out);
    co_group_destroy(&s->ends);
    free(s);
}

/* Keep the first of the descriptors that came with a message, in place of an older one. */
static void co_take_descriptors(struct session *s, const struct msghdr *msg)
{
    for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR((struct msghdr *)msg, c)) {
        size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);

        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) {
            continue;
        }
        for (size_t i = 0; i < count; i++) {
            int fd, unused;

            memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
            unused = i == 0 ? s->call.passed_fd : fd;
            if (i == 0) {
                s->call.passed_fd = fd;
            }
            if (unused >= 0) {
                loop_co_close(unused);
            }
        }
    }
}

static ssize_t co_receive(struct session *s, char *buf)
{
    /* The kernel closes what has no room here. */
    _Alignas(struct cmsghdr) char control[CMSG_SPACE(QMP_PASSED_FDS_MAX * sizeof(int))];
    struct iovec vec = {.iov_base = buf, .iov_len = READ_SIZE};
    struct msghdr msg = {.msg_iov = &vec,
                         .msg_iovlen = 1,
                         .msg_control = control,
                         .msg_controllen = sizeof(control)};
    ssize_t n = loop_co_recvmsg(s->fd, &msg);

    if (n >= 0) {
        co_take_descriptors(s, &msg);
    }
    return n;
}

static void co_reader(void *arg)
{
    struct session *s = arg;
    struct chardev *chardev = s->chardev;
    int fd = s->fd;
    struct json_object *greeting = qmp_greeting();
    char *buf = malloc(READ_SIZE);
    ssize_t r;

    co_group_add(&s->ends);
    if (reactor_spawn(reactor_main(), co_writer, s) < 0) {
        s->broken = true;
        co_group_done(&s->ends);
    }
    queue_message(s, greeting);
    json_object_put(greeting);
    while (buf && !s->broken && (r = co_receive(s, buf)) > 0) {
        co_execute_received(s, buf, (size_t)r);
    }
    free(buf);
    s->closing = true;
    co_end_executor(s);
    qmp_end_leases(&s->call);
    wake(&s->writer);
    co_group_wait(&s->ends);
    if (s->call.passed_fd >= 0) {
        loop_co_close(s->call.passed_fd); /* the end of the daemon sees a session that hangs */
    }
    free_session(s);
    if (chardev) {
        chardev_client_left(chardev, fd);
    }
}

int qmp_session_start(int fd, bool pretty, struct fd_names *fd_names, struct chardev *chardev,
                      struct error *err)
{
    struct session *s = calloc(1, sizeof(*s));
    int r = -ENOMEM;

    if (!s) {
        close(fd);
        return error_set(err, ENOMEM, "Out of memory for a QMP session");
    }
    trace_qmp_session_begin(fd);
    s->fd = fd;
    s->pretty = pretty;
    s->call.takes_text = !pretty;
    s->chardev = chardev;
    s->call.passed_fd = -1;
    s->call.give_up = give_up_request;
    s->call.fd_names = fd_names ? fd_names_ref(fd_names) : NULL;
    list_init(&s->link);
    list_init(&s->requests);
    co_group_init(&s->ends);
    s->reader = json_reader_new(&qmp_json_limits);
    if (s->reader) {
        r = reactor_spawn(reactor_main(), co_reader, s);
    }
    if (r < 0) {
        free_session(s);
        return error_set_errno(err, -r, "A QMP session cannot start");
    }
    list_append(&sessions, &s->link);
    return 0;
}

size_t qmp_session_count(void)
{
    struct session *s;
    size_t count = 0;

    LIST_FOREACH (s, &sessions, link) {
        count++;
    }
    return count;
}

/* --- events ----------------------------------------------------------------------------------- */

void qmp_send_event(struct json_object *event)
{
    struct session *s;

    LIST_FOREACH (s, &sessions, link) {
        if (!s->call.negotiated) {
            continue;
        }
        if (s->out.len - s->answer_bytes > QMP_OUT_MAX && !s->broken) {
            log_warning("QMP: a client that does not read its events is disconnected");
            break_session(s);
        }
        queue_message(s, event);
    }
}

/* --- the end ---------------------------------------------------------------------------------- */

void qmp_set_quit_fn(void (*fn)(void))
{
    quit_fn = fn;
}

void qmp_answer_quit_late(void)
{
    quit_is_answered_late = true;
}

static bool all_sent(void)
{
    struct session *s;

    LIST_FOREACH (s, &sessions, link) {
        if (!s->broken && (s->out.len > 0 || s->sending)) {
            return false;
        }
    }
    return true;
}

static void tell_what_runs(const struct session *s)
{
    struct json_object *request = s->running ? s->running->json : NULL;
    const char *name = request ? qmp_get_str(request, "execute") : NULL;

    if (name) {
        log_warning("QMP: the command '%s' has not come to its end, and is given up", name);
    }
}

bool qmp_co_end_sessions(void)
{
    struct session *s;

    qmp_event_limits_release();
    LIST_FOREACH (s, &sessions, link) {
        if (s->held) {
            queue_message(s, s->held);
        }
    }
    for (int ms = 0; ms < END_WAIT_MS && !all_sent(); ms++) {
        loop_co_sleep(NS_PER_MS);
    }
    LIST_FOREACH (s, &sessions, link) {
        break_session(s);
    }
    for (int ms = 0; ms < END_WAIT_MS && !list_is_empty(&sessions); ms++) {
        loop_co_sleep(NS_PER_MS);
    }
    LIST_FOREACH (s, &sessions, link) {
        tell_what_runs(s);
    }
    return list_is_empty(&sessions);
}
