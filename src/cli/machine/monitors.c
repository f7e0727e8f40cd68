/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/machine/monitors.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/list.h"
#include "base/log.h"
#include "base/unix_socket.h"
#include "block/options.h"
#include "block/passed_fd.h"
#include "cli/daemon/run.h"
#include "cli/machine/clock.h"
#include "cli/machine/hmp.h"
#include "cli/machine/lines.h"
#include "loop/loop.h"
#include "qmp/monitor.h"
#include "qmp/stdio_pair.h"

#define BACKLOG 16

enum chardev_kind { CHARDEV_NULL, CHARDEV_CONNECTED, CHARDEV_LISTENING };

struct machine_chardev {
    struct list link; /* in `chardevs` */
    enum chardev_kind kind;
    char *id;          /* owned */
    char *unlink_path; /* owned; NULL: no socket file was made */
    int fd;            /* owned until the conversation begins; -1: none */
    bool accepting;
    enum machine_talk talk;
    struct fd_names *fd_names;
};

static struct list chardevs = LIST_INIT(chardevs);
static bool ending;

static struct machine_chardev *find_machine_chardev(const char *id)
{
    struct machine_chardev *c;

    LIST_FOREACH (c, &chardevs, link) {
        if (strcmp(c->id, id) == 0) {
            return c;
        }
    }
    return NULL;
}

/* --- sockets ---------------------------------------------------------------------------------- */

static int co_open_unix(const char *path, bool server, struct error *err)
{
    AUTO_CLOSE int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    int r;

    if (strlen(path) >= sizeof(addr.sun_path)) {
        return error_set(err, ENAMETOOLONG, "UNIX socket path '%s' is too long", path);
    }
    memcpy(addr.sun_path, path, strlen(path) + 1);
    if (fd < 0) {
        return error_set_errno(err, errno, "Failed to create a socket");
    }
    if (!server) {
        r = loop_co_connect(fd, (struct sockaddr *)&addr, sizeof(addr), -1);
        return r < 0 ? error_set_errno(err, -r, "Failed to connect to '%s'", path) : TAKE_FD(fd);
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

static int take_inherited(int fd, struct error *err)
{
    if (fcntl(fd, F_SETFL, O_NONBLOCK) < 0 || fcntl(fd, F_SETFD, FD_CLOEXEC) < 0) {
        return error_set_errno(err, errno, "File descriptor '%d' is not a socket", fd);
    }
    return fd;
}

/* Take the options of a socket, and open it. */
static int co_open_socket(struct machine_chardev *c, struct options *opts, struct error *err)
{
    AUTO_FREE char *path = NULL;
    bool server, wait, nowait;
    uint64_t fd;
    int r;

    if ((r = options_take_str(opts, "path", &path, err)) < 0 ||
        (r = options_take_uint(opts, "fd", UINT64_MAX, INT32_MAX, &fd, err)) < 0 ||
        (r = options_take_bool(opts, "server", false, &server, err)) < 0 ||
        (r = options_take_bool(opts, "nowait", false, &nowait, err)) < 0 ||
        (r = options_take_bool(opts, "wait", server && !nowait, &wait, err)) < 0) {
        return r;
    }
    if (!path && fd == UINT64_MAX) {
        return error_set(err, EINVAL, "chardev: socket: no path or fd given");
    }
    r = path ? co_open_unix(path, server, err) : take_inherited((int)fd, err);
    if (r < 0) {
        return r;
    }
    c->fd = r;
    c->kind = server ? CHARDEV_LISTENING : CHARDEV_CONNECTED;
    c->unlink_path = path && server ? TAKE_PTR(path) : NULL;
    return server && wait ? loop_co_poll(c->fd, POLLIN, -1) : 0;
}

/* --- -chardev --------------------------------------------------------------------------------- */

static void free_machine_chardev(struct machine_chardev *c)
{
    list_remove(&c->link);
    if (c->fd >= 0) {
        close(c->fd);
    }
    if (c->unlink_path) {
        unlink(c->unlink_path);
    }
    fd_names_unref(c->fd_names);
    free(c->unlink_path);
    free(c->id);
    free(c);
}

static int co_open_backend(struct machine_chardev *c, const char *backend, struct options *opts,
                           struct error *err)
{
    if (strcmp(backend, "socket") == 0) {
        return co_open_socket(c, opts, err);
    }
    if (strcmp(backend, "stdio") == 0) {
        options_drop(opts, "signal");
        c->kind = CHARDEV_CONNECTED;
        c->fd = qmp_stdio_open(err);
        return c->fd < 0 ? c->fd : 0;
    }
    if (strcmp(backend, "null") == 0) {
        return 0;
    }
    return error_set(err, EINVAL, "'%s' is not a valid char driver name", backend);
}

/* `opts` is consumed; its member `backend` is the type. */
static int co_new_chardev(struct options *opts_, struct machine_chardev **ret_chardev,
                          struct error *err)
{
    AUTO_OPTIONS struct options *opts = opts_;
    AUTO_FREE char *backend = NULL;
    struct machine_chardev *c = calloc(1, sizeof(*c));
    int r;

    if (!c) {
        return error_out_of_memory(err);
    }
    list_init(&c->link);
    c->fd = -1;
    c->fd_names = fd_names_new();
    r = c->fd_names ? options_take_str(opts, "backend", &backend, err) : error_out_of_memory(err);
    UNLESS_FAILED(r, options_take_str(opts, "id", &c->id, err));
    if (r >= 0 && (!backend || !c->id)) {
        r = error_set(err, EINVAL, "chardev: %s missing", backend ? "no id given" : "backend");
    }
    if (r >= 0 && find_machine_chardev(c->id)) {
        r = error_set(err, EEXIST, "Duplicate ID '%s' for chardev", c->id);
    }
    UNLESS_FAILED(r, co_open_backend(c, backend, opts, err));
    UNLESS_FAILED(r, options_check_empty(opts, "chardev", err));
    if (r < 0) {
        free_machine_chardev(c);
        return r;
    }
    list_append(&chardevs, &c->link);
    *ret_chardev = c;
    return 0;
}

int machine_co_add_chardev(const char *text, struct error *err)
{
    struct machine_chardev *c;
    struct options *opts;
    int r = options_parse(text, "backend", &opts, err);

    return r < 0 ? r : co_new_chardev(opts, &c, err);
}

/* --- conversations ---------------------------------------------------------------------------- */

static int begin_talk(struct machine_chardev *c, int fd, struct error *err)
{
    switch (c->talk) {
    case MACHINE_TALK_QMP:
        return qmp_session_start(fd, false, c->fd_names, err);
    case MACHINE_TALK_QMP_PRETTY:
        return qmp_session_start(fd, true, c->fd_names, err);
    case MACHINE_TALK_HMP:
        return hmp_start(fd, daemon_quit, err);
    default:
        return machine_qtest_start(fd, err);
    }
}

static void co_accept_clients(void *arg)
{
    struct machine_chardev *c = arg;

    while (!ending) {
        ERROR_AUTO(err);
        int fd = loop_co_accept(c->fd);

        if (fd == -ECANCELED || (fd < 0 && ending)) {
            break;
        }
        if (fd < 0) {
            loop_co_sleep(50 * NS_PER_MS);
        } else if (begin_talk(c, fd, &err) < 0) {
            log_error("chardev '%s': %s", c->id, error_message(&err));
        }
    }
    c->accepting = false;
}

static int start_talk(struct machine_chardev *c, enum machine_talk talk, struct error *err)
{
    int fd = c->fd, r;

    if (c->kind == CHARDEV_NULL) {
        return 0;
    }
    if (fd < 0 || c->accepting) {
        return error_set(err, EBUSY, "Device '%s' is in use", c->id);
    }
    c->talk = talk;
    if (c->kind == CHARDEV_CONNECTED) {
        c->fd = -1;
        return begin_talk(c, fd, err);
    }
    c->accepting = true;
    r = reactor_spawn(reactor_main(), co_accept_clients, c);
    if (r < 0) {
        c->accepting = false;
        return error_set_errno(err, -r, "chardev '%s' cannot be served", c->id);
    }
    return 0;
}

int machine_add_monitor(const char *text, struct error *err)
{
    static const char *const modes[] = {"readline", "control", NULL};
    AUTO_OPTIONS struct options *opts = NULL;
    AUTO_FREE char *id = NULL;
    struct machine_chardev *c;
    bool pretty = false;
    int mode = 0, r = options_parse(text, "chardev", &opts, err);

    UNLESS_FAILED(r, options_take_str(opts, "chardev", &id, err));
    UNLESS_FAILED(r, options_take_enum(opts, "mode", modes, 0, &mode, err));
    UNLESS_FAILED(r, options_take_bool(opts, "pretty", false, &pretty, err));
    UNLESS_FAILED(r, options_check_empty(opts, "mon", err));
    if (r < 0) {
        return r;
    }
    c = id ? find_machine_chardev(id) : NULL;
    if (!c) {
        return error_set(err, ENOENT, "chardev \"%s\" not found", id ?: "");
    }
    return start_talk(c,
                      mode == 0 ? MACHINE_TALK_HMP
                      : pretty  ? MACHINE_TALK_QMP_PRETTY
                                : MACHINE_TALK_QMP,
                      err);
}

/* "unix:PATH,server,nowait" as the options of a chardev. */
static int short_form(const char *text, struct options **ret_opts, struct error *err)
{
    static unsigned serial;
    AUTO_FREE char *options = NULL;
    const char *unix_path = strncmp(text, "unix:", 5) == 0 ? text + 5 : NULL;
    int r = unix_path ? asprintf(&options, "backend=socket,id=compat_monitor%u,path=%s", serial++,
                                 unix_path)
                      : asprintf(&options, "id=compat_monitor%u,backend=%s", serial++, text);

    if (r < 0) {
        options = NULL;
        return error_out_of_memory(err);
    }
    return options_parse(options, NULL, ret_opts, err);
}

int machine_co_add_talk(enum machine_talk talk, const char *text, struct error *err)
{
    struct machine_chardev *c;
    struct options *opts;
    int r;

    if (strcmp(text, "none") == 0) {
        return 0;
    }
    if (strncmp(text, "chardev:", 8) == 0) {
        c = find_machine_chardev(text + 8);
        return c ? start_talk(c, talk, err)
                 : error_set(err, ENOENT, "chardev \"%s\" not found", text + 8);
    }
    r = short_form(text, &opts, err);
    UNLESS_FAILED(r, co_new_chardev(opts, &c, err));
    return r < 0 ? r : start_talk(c, talk, err);
}

/* --- the end ---------------------------------------------------------------------------------- */

void machine_monitors_co_end(void)
{
    struct machine_chardev *c, *next;

    ending = true;
    LIST_FOREACH (c, &chardevs, link) {
        if (c->accepting) {
            shutdown(c->fd, SHUT_RDWR);
        }
    }
    LIST_FOREACH_SAFE (c, next, &chardevs, link) {
        while (c->accepting) {
            loop_co_sleep(NS_PER_MS);
        }
        free_machine_chardev(c);
    }
    machine_lines_co_end();
}
