/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Each connection has a session and a thread of its own, since a session of libssh cannot be shared
 * by threads:
 *
 *     user --- socketpair --- thread --- channel --- sshd --- unix socket
 */
#include "ssh/tunnel.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "ssh/libssh_lazy.h"
#include "ssh/remote_internal.h"

#define PUMP_SIZE 32768u
#define END_WAIT_S 1

struct tunnel {
    struct remote_file connection; /* without SFTP; the thread's, as the channel is */
    ssh_channel channel;
    int fd;      /* the thread's end of the socketpair */
    int network; /* that of the session once more: its number stays ours */
    pthread_t thread;
    bool ended; /* the thread returns */
    struct tunnel *next;
};

/* Those that have a thread. The lock guards the list, and `ended`. */
static struct tunnel *tunnels;
static pthread_mutex_t tunnels_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t one_ended = PTHREAD_COND_INITIALIZER;

/* End the connection to the server. */
static void hang_up(struct tunnel *t)
{
    if (t->channel) {
        ssh_channel_free(t->channel);
    }
    remote_file_end_session(&t->connection);
}

/* Nobody uses it, and it was hung up. */
static void tunnel_free(struct tunnel *t)
{
    if (t->fd >= 0) {
        close(t->fd);
    }
    if (t->network >= 0) {
        close(t->network);
    }
    free(t);
}

/* Take from the list, and return, those whose threads have ended; or all. */
static struct tunnel *take_tunnels(bool all)
{
    struct tunnel *taken = NULL;

    pthread_mutex_lock(&tunnels_lock);
    for (struct tunnel **link = &tunnels, *t; (t = *link) != NULL;) {
        if (all || t->ended) {
            *link = t->next;
            t->next = taken;
            taken = t;
        } else {
            link = &t->next;
        }
    }
    pthread_mutex_unlock(&tunnels_lock);
    return taken;
}

/* Free those whose threads have ended. */
static void reap_tunnels(void)
{
    for (struct tunnel *t = take_tunnels(false), *next; t; t = next) {
        next = t->next;
        pthread_join(t->thread, NULL);
        tunnel_free(t);
    }
}

/* Whether it ends by then. */
static bool ends_until(const struct tunnel *t, const struct timespec *until)
{
    bool ended;
    int r = 0;

    pthread_mutex_lock(&tunnels_lock);
    while (!t->ended && r == 0) {
        r = pthread_cond_clockwait(&one_ended, &tunnels_lock, CLOCK_MONOTONIC, until);
    }
    ended = t->ended;
    pthread_mutex_unlock(&tunnels_lock);
    return ended;
}

void ssh_tunnels_end(void)
{
    struct timespec until;

    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += END_WAIT_S;
    for (struct tunnel *t = take_tunnels(true), *next; t; t = next) {
        next = t->next;
        if (!ends_until(t, &until)) {
            shutdown(t->fd, SHUT_RDWR);
            shutdown(t->network, SHUT_RDWR);
        }
        pthread_join(t->thread, NULL);
        tunnel_free(t);
    }
}

/* Send all of it to the user; false: the user has gone. */
static bool send_to_user(const struct tunnel *t, const char *data, size_t size)
{
    while (size > 0) {
        ssize_t n = send(t->fd, data, size, MSG_NOSIGNAL);

        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return false;
        }
        data += n;
        size -= (size_t)n;
    }
    return true;
}

static bool send_to_channel(const struct tunnel *t, const char *data, size_t size)
{
    while (size > 0) {
        int n = ssh_channel_write(t->channel, data, (uint32_t)size);

        if (n <= 0) {
            return false;
        }
        data += n;
        size -= (size_t)n;
    }
    return true;
}

/* Pass on what the server has sent; false: it has gone. */
static bool pump_from_server(const struct tunnel *t, char *buf)
{
    int n;

    while ((n = ssh_channel_read_nonblocking(t->channel, buf, PUMP_SIZE, 0)) > 0) {
        if (!send_to_user(t, buf, (size_t)n)) {
            return false;
        }
    }
    return n == 0 && !ssh_channel_is_eof(t->channel) && !ssh_channel_is_closed(t->channel);
}

static bool pump_from_user(const struct tunnel *t, char *buf)
{
    ssize_t n = recv(t->fd, buf, PUMP_SIZE, 0);

    return n < 0 ? errno == EINTR : n > 0 && send_to_channel(t, buf, (size_t)n);
}

static void *run_tunnel(void *arg)
{
    struct tunnel *t = arg;
    char buf[PUMP_SIZE];
    struct pollfd ends[2] = {{.fd = ssh_get_fd(t->connection.session), .events = POLLIN},
                             {.fd = t->fd, .events = POLLIN}};

    /* What a write has received is in the channel, and not in the socket any more: read first. */
    while (pump_from_server(t, buf)) {
        if (poll(ends, 2, -1) < 0 && errno != EINTR) {
            break;
        }
        if ((ends[1].revents & (POLLIN | POLLHUP | POLLERR)) && !pump_from_user(t, buf)) {
            break;
        }
    }
    hang_up(t);
    shutdown(t->fd, SHUT_RDWR);
    pthread_mutex_lock(&tunnels_lock);
    t->ended = true;
    pthread_cond_signal(&one_ended);
    pthread_mutex_unlock(&tunnels_lock);
    return NULL;
}

static int open_channel(struct tunnel *t, const struct ssh_target *target, struct error *err)
{
    t->channel = ssh_channel_new(t->connection.session);
    if (!t->channel) {
        return error_out_of_memory(err);
    }
    if (ssh_channel_open_forward_unix(t->channel, target->path, "localhost", 0) != SSH_OK) {
        return error_set(err, ECONNREFUSED, "'%s:%s' does not connect to its socket '%s': %s",
                         target->host, target->port, target->path,
                         ssh_get_error(t->connection.session));
    }
    return 0;
}

/* Signals are for the other threads. */
static int start_pump_thread(struct tunnel *t, struct error *err)
{
    sigset_t all, before;
    int r;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_mutex_lock(&tunnels_lock);
    r = pthread_create(&t->thread, NULL, run_tunnel, t);
    if (r == 0) {
        t->next = tunnels;
        tunnels = t;
    }
    pthread_mutex_unlock(&tunnels_lock);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return r != 0 ? error_set_errno(err, r, "Could not start a thread") : 0;
}

int ssh_tunnel_open(const struct ssh_target *target, int *ret_fd, struct error *err)
{
    struct tunnel *t = calloc(1, sizeof(*t));
    int ends[2] = {-1, -1}, r;

    if (!t) {
        return error_out_of_memory(err);
    }
    reap_tunnels();
    t->fd = t->network = -1;
    r = remote_file_start_session(&t->connection, target, err);
    UNLESS_FAILED(r, open_channel(t, target, err));
    if (r == 0 && socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0) {
        r = error_set_errno(err, errno, "Could not make a socket");
    }
    t->fd = ends[0];
    if (r == 0) {
        t->network = fcntl(ssh_get_fd(t->connection.session), F_DUPFD_CLOEXEC, 0);
    }
    if (r == 0 && t->network < 0) {
        r = error_set_errno(err, errno, "Could not make a socket");
    }
    if (r == 0 && fcntl(ends[1], F_SETFL, O_NONBLOCK) < 0) {
        r = error_set_errno(err, errno, "Could not make a socket");
    }
    UNLESS_FAILED(r, start_pump_thread(t, err));
    if (r < 0) {
        hang_up(t);
        tunnel_free(t);
        if (ends[1] >= 0) {
            close(ends[1]);
        }
        return r;
    }
    *ret_fd = ends[1];
    return 0;
}
