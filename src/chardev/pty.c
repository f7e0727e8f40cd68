/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The type pty: a terminal whose other end a client opens. A talk begins each time that the
 * terminal is opened, and ends when it is closed. The kernel reports a hangup while nobody has it
 * open.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "chardev/internal.h"
#include "loop/loop.h"

/* How often to ask whether the terminal was opened. */
#define LOOK_NS (100 * NS_PER_MS)

struct pty_chardev {
    struct chardev base;
    int fd;        /* our end; owned; -1: none */
    char name[64]; /* of the client's end */
    char *link;    /* a symbolic link to that, removed at the end; owned; NULL: none */
};

static struct pty_chardev *pty(const struct chardev *c)
{
    return container_of(c, struct pty_chardev, base);
}

const char *chardev_pty(const struct chardev *c)
{
    return c->ops == &chardev_pty_ops ? pty(c)->name : NULL;
}

/* Without echo and line editing. The client's end is closed again, so that opening it is seen. */
static int make_raw(const char *name)
{
    int fd = open(name, O_RDWR | O_NOCTTY | O_CLOEXEC);
    struct termios t;
    int r = 0;

    if (fd < 0) {
        return -errno;
    }
    if (tcgetattr(fd, &t) < 0) {
        r = -errno;
    } else {
        cfmakeraw(&t);
        r = tcsetattr(fd, TCSAFLUSH, &t) < 0 ? -errno : 0;
    }
    close(fd);
    return r;
}

/* For the offload pool. */
static int make_link(void *arg)
{
    const struct pty_chardev *p = arg;

    return symlink(p->name, p->link) < 0 ? -errno : 0;
}

static int co_open_pty(struct chardev *c, struct json_object *data, struct error *err)
{
    struct pty_chardev *p = pty(c);
    const char *link = chardev_text(data, "path");
    int r = 0;

    p->fd = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
    if (p->fd < 0 || grantpt(p->fd) < 0 || unlockpt(p->fd) < 0 ||
        ptsname_r(p->fd, p->name, sizeof(p->name)) != 0) {
        r = -errno;
    }
    UNLESS_FAILED(r, make_raw(p->name));
    if (r < 0) {
        return error_set_errno(err, -r, "Failed to open PTY");
    }
    if (link && !(p->link = strdup(link))) {
        return error_out_of_memory(err);
    }
    r = link ? loop_co_brief(make_link, p) : 0;
    if (r < 0) {
        free(TAKE_PTR(p->link)); /* it is another's */
        return error_set_errno(err, -r, "Failed to create PTY symlink");
    }
    log_notice("char device redirected to %s (label %s)", p->name, c->id);
    return 0;
}

static bool is_open(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};

    return poll(&p, 1, 0) >= 0 && !(p.revents & POLLHUP);
}

static void co_talk_by_pty(void *arg)
{
    struct chardev *c = arg;
    struct pty_chardev *p = pty(c);

    while (!c->stopped) {
        struct chardev_ends ends = {.in = p->fd, .out = p->fd, .near = -1};
        ERROR_AUTO(err);

        if (!is_open(p->fd)) {
            loop_co_sleep(LOOK_NS);
        } else if (chardev_co_carry(c, &ends, &err) < 0) {
            log_error("chardev '%s': %s", c->id, error_message(&err));
            loop_co_sleep(LOOK_NS);
        }
    }
    chardev_ran(c);
}

static int start_pty(struct chardev *c, struct error *err)
{
    return chardev_spawn(c, co_talk_by_pty, err);
}

static void co_free_pty(struct chardev *c)
{
    struct pty_chardev *p = pty(c);

    if (p->fd >= 0) {
        close(p->fd);
    }
    if (p->link) {
        (void)loop_co_unlink_soon(p->link);
    }
    free(p->link);
}

static char *pty_filename(const struct chardev *c)
{
    char *text;

    return asprintf(&text, "pty:%s", pty(c)->name) < 0 ? NULL : text;
}

const struct chardev_ops chardev_pty_ops = {
    .name = "pty",
    .size = sizeof(struct pty_chardev),
    .co_open = co_open_pty,
    .start = start_pty,
    .co_free = co_free_pty,
    .filename = pty_filename,
};
