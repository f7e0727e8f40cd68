/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/machine/migrate_channel.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/time_units.h"
#include "loop/loop.h"

#define READ_SIZE 65536
/* The most that is received, in bytes. */
#define TEXT_MAX ((size_t)256 << 20)
/* Between two looks for the end of a command. */
#define LOOK_NS (2 * NS_PER_MS)

/* --- exec: ------------------------------------------------------------------------------------ */

/* The command reads from and writes to a socket, of which this side has the other end. */
static int start_command(struct migrate_channel *c, const char *command, struct error *err)
{
    char *argv[] = {(char *)(uintptr_t) "/bin/sh", (char *)(uintptr_t) "-c",
                    (char *)(uintptr_t)command, NULL};
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    sigset_t none;
    int pair[2], r;

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0) {
        return error_set_errno(err, errno, "Failed to make a channel");
    }
    (void)fcntl(pair[0], F_SETFL, O_NONBLOCK); /* not the command's end */
    sigemptyset(&none);
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, pair[1], STDIN_FILENO);
    posix_spawn_file_actions_adddup2(&actions, pair[1], STDOUT_FILENO);
    posix_spawnattr_init(&attributes);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setpgroup(&attributes, 0);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETPGROUP);
    r = posix_spawn(&c->child, argv[0], &actions, &attributes, argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attributes);
    close(pair[1]);
    if (r != 0) {
        c->child = 0;
        close(pair[0]);
        return error_set_errno(err, r, "Failed to run '%s'", command);
    }
    c->fd = pair[0];
    return 0;
}

/* --- unix: ------------------------------------------------------------------------------------ */

static int address_of(const char *path, struct sockaddr_un *ret_address, struct error *err)
{
    *ret_address = (struct sockaddr_un){.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof(ret_address->sun_path)) {
        return error_set(err, ENAMETOOLONG, "UNIX socket path '%s' is too long", path);
    }
    memcpy(ret_address->sun_path, path, strlen(path) + 1);
    return 0;
}

static int listen_at(struct migrate_channel *c, const char *path, struct error *err)
{
    struct sockaddr_un address;
    int r = address_of(path, &address, err);

    if (r < 0) {
        return r;
    }
    c->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    (void)unlink(path);
    if (c->listener < 0 || bind(c->listener, (struct sockaddr *)&address, sizeof(address)) < 0 ||
        listen(c->listener, 1) < 0) {
        return error_set_errno(err, errno, "Failed to bind socket to %s", path);
    }
    c->path = strdup(path);
    return c->path ? 0 : error_out_of_memory(err);
}

static int co_connect_to(struct migrate_channel *c, const char *path, struct error *err)
{
    struct sockaddr_un address;
    int r = address_of(path, &address, err);

    if (r < 0) {
        return r;
    }
    c->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    r = c->fd < 0 ? -errno : loop_co_connect(c->fd, (void *)&address, sizeof(address), -1);
    return r < 0 ? error_set_errno(err, -r, "Failed to connect to '%s'", path) : 0;
}

/* --- all -------------------------------------------------------------------------------------- */

int migrate_channel_co_open(struct migrate_channel *c, const char *uri, bool incoming,
                            struct error *err)
{
    if (strncmp(uri, "exec:", 5) == 0) {
        return start_command(c, uri + 5, err);
    }
    if (strncmp(uri, "unix:", 5) == 0) {
        return incoming ? listen_at(c, uri + 5, err) : co_connect_to(c, uri + 5, err);
    }
    return error_set(err, EINVAL, "unknown migration protocol: %s", uri);
}

int migrate_channel_co_wait(struct migrate_channel *c, struct error *err)
{
    int fd = c->fd >= 0 ? c->fd : loop_co_accept(c->listener);

    if (fd >= 0) {
        c->fd = fd;
        fd = loop_co_poll(fd, POLLIN, -1);
    }
    return fd < 0 ? error_set_errno(err, -fd, "The other machine did not come") : 0;
}

int migrate_channel_co_send(struct migrate_channel *c, const char *text, size_t size,
                            struct error *err)
{
    while (size > 0) {
        struct iovec vec = {.iov_base = (char *)(uintptr_t)text, .iov_len = size};
        struct msghdr msg = {.msg_iov = &vec, .msg_iovlen = 1};
        ssize_t sent = loop_co_sendmsg(c->fd, &msg, MSG_NOSIGNAL);

        if (sent < 0) {
            return error_set_errno(err, (int)-sent, "Unable to write to the channel");
        }
        text += sent;
        size -= (size_t)sent;
    }
    return shutdown(c->fd, SHUT_WR) < 0
               ? error_set_errno(err, errno, "Unable to write to the channel")
               : 0;
}

int migrate_channel_co_receive(struct migrate_channel *c, struct strbuf *text, struct error *err)
{
    AUTO_FREE char *buf = malloc(READ_SIZE);
    ssize_t n = buf ? 1 : -ENOMEM;

    while (n > 0 && text->len < TEXT_MAX && !text->failed) {
        n = loop_co_recv(c->fd, buf, READ_SIZE);
        if (n > 0) {
            strbuf_append(text, buf, (size_t)n);
        }
    }
    if (n == 0 && (text->len == 0 || text->failed)) {
        n = -EIO;
    }
    return n == 0  ? 0
           : n < 0 ? error_set_errno(err, (int)-n, "load of migration failed")
                   : error_set(err, EIO, "load of migration failed: the stream is too long");
}

void migrate_channel_cancel(struct migrate_channel *c)
{
    if (c->fd >= 0) {
        shutdown(c->fd, SHUT_RDWR);
    }
    if (c->listener >= 0) {
        shutdown(c->listener, SHUT_RDWR);
    }
    if (c->child > 0) {
        kill(-c->child, SIGTERM); /* and what the shell has started */
    }
}

void migrate_channel_co_close(struct migrate_channel *c)
{
    if (c->fd >= 0) {
        close(TAKE_FD(c->fd));
    }
    if (c->listener >= 0) {
        close(TAKE_FD(c->listener));
    }
    if (c->path) {
        (void)unlink(c->path);
        free(c->path);
        c->path = NULL;
    }
    while (c->child > 0 && waitpid(c->child, NULL, WNOHANG) == 0) {
        loop_co_sleep(LOOK_NS);
    }
    c->child = 0;
}
