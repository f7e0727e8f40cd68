/* SPDX-License-Identifier: Apache-2.0 */
#include "stats/metrics.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/list.h"
#include "base/log.h"
#include "base/time_units.h"
#include "loop/loop.h"
#include "stats/listen.h"
#include "stats/prometheus.h"
#include "trace/trace.h"

#include "stats/microhttpd_lazy.h"

/* Connections at a time; others wait in the backlog. */
#define CONNECTIONS_MAX 32
/* Seconds without a byte, and seconds in all, after which a connection is closed. */
#define IDLE_SECONDS 5
#define LIFE_SECONDS 15
/* Bytes that a request's head may have. */
#define REQUEST_BYTES (16 * 1024)
/*
 * How long the thread rests after a turn in which no connection and no request came or went. With
 * no descriptor left the listening socket stays ready, as clients cannot be accepted.
 */
#define REST_MS 10
/* How long the main reactor may take to copy the figures. */
#define SNAPSHOT_SECONDS 5

/*
 * A snapshot that is being waited for. Owned by both sides: the second that is done with it frees
 * it.
 */
struct order {
    struct snapshot *snapshot; /* NULL: not there yet, or out of memory */
    bool done;
    bool abandoned; /* nobody waits any more */
};

/* A connection, while libmicrohttpd has it. */
struct connection {
    struct list link; /* in metrics.connections, oldest first */
    int fd;           /* libmicrohttpd's */
    int64_t since_ns;
};

static struct {
    bool running; /* main reactor's */
    pthread_t thread;
    char *path; /* of a unix socket; NULL: TCP */
    int listen_fd;
    int stop_fd; /* an eventfd that ends the thread's wait */

    /* The thread's own, once it runs. */
    struct MHD_Daemon *daemon;
    struct list connections; /* of struct connection */
    bool progress;           /* in this turn */

    pthread_mutex_t lock; /* guards all below, and orders */
    pthread_cond_t changed;
    bool stopping;
} metrics = {
    .lock = PTHREAD_MUTEX_INITIALIZER,
    .changed = PTHREAD_COND_INITIALIZER,
};

/* --- the snapshot: main reactor --------------------------------------------------------------- */

static void co_carry_out(void *arg)
{
    struct order *order = arg;
    struct snapshot *s = snapshot_take();
    bool abandoned;

    pthread_mutex_lock(&metrics.lock);
    order->snapshot = s;
    order->done = true;
    abandoned = order->abandoned;
    pthread_cond_signal(&metrics.changed);
    pthread_mutex_unlock(&metrics.lock);
    if (abandoned) {
        snapshot_free(s);
        free(order);
    }
}

/* --- the snapshot: the thread ----------------------------------------------------------------- */

/* Wait for it. False: too late, or the endpoint ends. */
static bool wait_for(struct order *order)
{
    struct timespec until = ns_to_timespec(loop_now_ns() + SNAPSHOT_SECONDS * NS_PER_SECOND);
    bool done;

    pthread_mutex_lock(&metrics.lock);
    while (!order->done && !metrics.stopping &&
           pthread_cond_clockwait(&metrics.changed, &metrics.lock, CLOCK_MONOTONIC, &until) == 0) {
    }
    done = order->done;
    order->abandoned = !done;
    pthread_mutex_unlock(&metrics.lock);
    return done;
}

/* NULL: none is available now. */
static struct snapshot *get_snapshot(void)
{
    struct order *order = calloc(1, sizeof(*order));
    struct snapshot *s;

    if (!order) {
        return NULL;
    }
    if (reactor_spawn(reactor_main(), co_carry_out, order) < 0) {
        free(order);
        return NULL;
    }
    if (!wait_for(order)) {
        return NULL;
    }
    s = order->snapshot;
    free(order);
    return s;
}

/* --- requests --------------------------------------------------------------------------------- */

/* Answer with `body`, which is static, or malloc'ed and given away. */
static enum MHD_Result answer(struct MHD_Connection *c, unsigned status, const char *type,
                              char *body, size_t size, bool is_static)
{
    struct MHD_Response *response = MHD_create_response_from_buffer(
        size, body, is_static ? MHD_RESPMEM_PERSISTENT : MHD_RESPMEM_MUST_FREE);
    enum MHD_Result r;

    if (!response) {
        if (!is_static) {
            free(body);
        }
        return MHD_NO;
    }
    (void)MHD_add_response_header(response, "Content-Type", type);
    (void)MHD_add_response_header(response, "Connection", "close");
    if (status == MHD_HTTP_METHOD_NOT_ALLOWED) {
        (void)MHD_add_response_header(response, "Allow", "GET, HEAD");
    }
    r = MHD_queue_response(c, status, response);
    MHD_destroy_response(response);
    return r;
}

static enum MHD_Result answer_text(struct MHD_Connection *c, unsigned status, const char *text)
{
    return answer(c, status, "text/plain; charset=utf-8", (char *)(uintptr_t)text, strlen(text),
                  true);
}

static enum MHD_Result answer_metrics(struct MHD_Connection *c)
{
    struct snapshot *s = get_snapshot();
    STRBUF_AUTO(text);
    struct timespec now;
    size_t size;

    if (!s) {
        return answer_text(c, MHD_HTTP_SERVICE_UNAVAILABLE, "The figures are not available now\n");
    }
    clock_gettime(CLOCK_REALTIME, &now);
    prometheus_put_all(&text, s, loop_now_ns(), (double)now.tv_sec + (double)now.tv_nsec / 1e9);
    snapshot_free(s);
    if (text.failed) {
        return answer_text(c, MHD_HTTP_SERVICE_UNAVAILABLE, "Out of memory\n");
    }
    size = text.len;
    return answer(c, MHD_HTTP_OK, PROMETHEUS_CONTENT_TYPE, strbuf_take(&text), size, false);
}

static enum MHD_Result handle(void *arg, struct MHD_Connection *c, const char *url,
                              const char *method, const char *version, const char *upload,
                              size_t *upload_size, void **request)
{
    static char seen;

    metrics.progress = true;
    /*
     * The first call is for the head alone. An answer to that ends the connection: no body is
     * taken.
     */
    if (!*request) {
        *request = &seen;
        return strcmp(method, "GET") == 0 || strcmp(method, "HEAD") == 0
                   ? MHD_YES
                   : answer_text(c, MHD_HTTP_METHOD_NOT_ALLOWED, "Only GET and HEAD are served\n");
    }
    if (*upload_size > 0) {
        return MHD_NO;
    }
    if (strcmp(url, "/metrics") == 0) {
        return answer_metrics(c);
    }
    return answer_text(c, strcmp(url, "/") == 0 ? MHD_HTTP_OK : MHD_HTTP_NOT_FOUND,
                       "Tidemark: metrics for Prometheus are at /metrics\n");
}

/* --- connections ------------------------------------------------------------------------------ */

static void note_connection(void *arg, struct MHD_Connection *c, void **context,
                            enum MHD_ConnectionNotificationCode code)
{
    const union MHD_ConnectionInfo *info;
    struct connection *conn = *context;

    metrics.progress = true;
    if (code == MHD_CONNECTION_NOTIFY_CLOSED) {
        if (conn) {
            list_remove(&conn->link);
            free(conn);
        }
        return;
    }
    info = MHD_get_connection_info(c, MHD_CONNECTION_INFO_CONNECTION_FD);
    conn = info ? malloc(sizeof(*conn)) : NULL;
    if (conn) {
        conn->fd = info->connect_fd;
        conn->since_ns = loop_now_ns();
        list_append(&metrics.connections, &conn->link);
    } else if (info) {
        shutdown(info->connect_fd, SHUT_RDWR);
    }
    *context = conn;
}

/* A client that sends a byte now and then is never idle. */
static void end_old_connections(void)
{
    int64_t oldest = loop_now_ns() - LIFE_SECONDS * NS_PER_SECOND;
    struct connection *conn;

    LIST_FOREACH (conn, &metrics.connections, link) {
        if (conn->since_ns > oldest) {
            return;
        }
        shutdown(conn->fd, SHUT_RDWR);
    }
}

/* --- the thread ------------------------------------------------------------------------------- */

static bool is_stopping(void)
{
    bool stopping;

    pthread_mutex_lock(&metrics.lock);
    stopping = metrics.stopping;
    pthread_mutex_unlock(&metrics.lock);
    return stopping;
}

/* Milliseconds until there is something to do without an event; never more than a second. */
static int wait_for_scrape_ms(void)
{
    MHD_UNSIGNED_LONG_LONG ms;

    return MHD_get_timeout(metrics.daemon, &ms) == MHD_YES ? (int)MIN(ms, 1000) : 1000;
}

static void *metrics_thread(void *arg)
{
    const union MHD_DaemonInfo *info =
        MHD_get_daemon_info(metrics.daemon, MHD_DAEMON_INFO_EPOLL_FD);
    struct pollfd fds[2] = {{.fd = info->epoll_fd, .events = POLLIN},
                            {.fd = metrics.stop_fd, .events = POLLIN}};

    pthread_setname_np(pthread_self(), "metrics");
    trace_thread_begin("metrics");
    while (!is_stopping()) {
        metrics.progress = false;
        (void)poll(fds, 2, wait_for_scrape_ms());
        if (MHD_run(metrics.daemon) != MHD_YES) {
            log_warning("The metrics endpoint has failed and is closed");
            break;
        }
        end_old_connections();
        if (!metrics.progress) {
            (void)poll(&fds[1], 1, REST_MS);
        }
    }
    MHD_stop_daemon(metrics.daemon);
    return arg;
}

/* --- start and stop --------------------------------------------------------------------------- */

/* Undo what was done of a start. */
static void co_release(void)
{
    if (metrics.path) {
        (void)loop_co_unlink_soon(metrics.path);
    }
    free(metrics.path);
    metrics.path = NULL;
    if (metrics.stop_fd >= 0) {
        close(metrics.stop_fd);
    }
}

/* The listening socket is libmicrohttpd's on success. */
static int start_daemon(struct error *err)
{
    metrics.daemon = MHD_start_daemon(
        MHD_USE_EPOLL, 0, NULL, NULL, handle, NULL, MHD_OPTION_LISTEN_SOCKET, metrics.listen_fd,
        MHD_OPTION_CONNECTION_LIMIT, CONNECTIONS_MAX, MHD_OPTION_CONNECTION_TIMEOUT, IDLE_SECONDS,
        MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)REQUEST_BYTES, MHD_OPTION_NOTIFY_CONNECTION,
        note_connection, NULL, MHD_OPTION_END);
    if (!metrics.daemon) {
        close(metrics.listen_fd);
        return error_set(err, EIO, "Metrics: could not start the HTTP server");
    }
    return 0;
}

static int start_thread(struct error *err)
{
    int r = pthread_create(&metrics.thread, NULL, metrics_thread, NULL);

    if (r != 0) {
        MHD_stop_daemon(metrics.daemon);
        return error_set_errno(err, r, "Metrics: could not start a thread");
    }
    return 0;
}

/* What blocks, for the offload pool. */
struct start {
    const char *address;
    struct error *err;
};

static int start_job(void *arg)
{
    struct start *s = arg;
    int r = lazy_microhttpd_load(s->err);

    return r < 0 ? r : metrics_listen(s->address, &metrics.listen_fd, &metrics.path, s->err);
}

int metrics_co_start(const char *address, struct error *err)
{
    struct start start = {.address = address, .err = err};
    int r;

    metrics.stop_fd = -1;
    r = loop_co_offload(start_job, &start);
    if (r < 0) {
        return r;
    }
    list_init(&metrics.connections);
    metrics.stopping = false;
    metrics.stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    r = start_daemon(err);
    if (r == 0) {
        r = start_thread(err);
    }
    if (r < 0) {
        co_release();
        return r;
    }
    metrics.running = true;
    return 0;
}

static int join_job(void *arg)
{
    return -pthread_join(metrics.thread, NULL);
}

void metrics_co_stop(void)
{
    if (!metrics.running) {
        return;
    }
    pthread_mutex_lock(&metrics.lock);
    metrics.stopping = true;
    pthread_cond_broadcast(&metrics.changed);
    pthread_mutex_unlock(&metrics.lock);
    (void)eventfd_write(metrics.stop_fd, 1);
    (void)loop_co_offload(join_job, NULL);
    metrics.running = false;
    co_release();
}
