/* SPDX-License-Identifier: Apache-2.0 */
/* The types null, file, pipe and stdio: one talk, with what is no socket. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "block/passed_fd.h"
#include "chardev/internal.h"
#include "chardev/stdio_pair.h"
#include "loop/loop.h"

struct plain_chardev {
    struct chardev base;
    struct chardev_ends ends; /* `in` and `out` are owned */
};

static struct plain_chardev *plain(const struct chardev *c)
{
    return container_of(c, struct plain_chardev, base);
}

static void co_talk_plainly(void *arg)
{
    struct chardev *c = arg;
    ERROR_AUTO(err);

    if (chardev_co_carry(c, &plain(c)->ends, &err) < 0) {
        log_error("chardev '%s': %s", c->id, error_message(&err));
    }
    chardev_ran(c);
}

static int start_plain(struct chardev *c, struct error *err)
{
    return chardev_spawn(c, co_talk_plainly, err);
}

static void co_free_plain(struct chardev *c)
{
    struct chardev_ends *e = &plain(c)->ends;

    if (e->in >= 0) {
        close(e->in);
    }
    if (e->out >= 0 && e->out != e->in) {
        close(e->out);
    }
}

static void init_ends(struct chardev *c)
{
    plain(c)->ends = (struct chardev_ends){.in = -1, .out = -1, .near = -1};
}

/* Paths of descriptor sets name descriptors here, too. O_NONBLOCK: a FIFO without a writer. */
static int co_open_plain_file(const char *path, int flags, struct error *err)
{
    int fd;

    if (fdset_is_path(path)) {
        return fdset_open(path, flags, err);
    }
    fd = loop_co_open(path, flags | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, 0666);
    return fd < 0 ? error_set_errno(err, -fd, "Could not open '%s'", path) : fd;
}

/* --- null, file, pipe ------------------------------------------------------------------------- */

static int co_open_null(struct chardev *c, struct json_object *data, struct error *err)
{
    init_ends(c);
    return 0;
}

static int co_open_backend_file(struct chardev *c, struct json_object *data, struct error *err)
{
    struct chardev_ends *e = &plain(c)->ends;
    const char *in = chardev_text(data, "in");
    int mode = chardev_flag(data, "append", false) ? O_APPEND : O_TRUNC;

    init_ends(c);
    e->out_blocks = true;
    e->out = co_open_plain_file(chardev_text(data, "out"), O_WRONLY | O_CREAT | mode, err);
    if (e->out < 0) {
        return e->out;
    }
    if (in) {
        e->in = co_open_plain_file(in, O_RDONLY, err);
    }
    return in && e->in < 0 ? e->in : 0;
}

/* PATH.in and PATH.out, or one FIFO for both directions, as in QEMU. */
static int co_open_pipe(struct chardev *c, struct json_object *data, struct error *err)
{
    struct chardev_ends *e = &plain(c)->ends;
    const char *path = chardev_text(data, "device");
    AUTO_FREE char *in = NULL, *out = NULL;

    init_ends(c);
    if (asprintf(&in, "%s.in", path) < 0 || asprintf(&out, "%s.out", path) < 0) {
        return error_out_of_memory(err);
    }
    /* O_RDWR: the FIFO has a reader and a writer also while nobody else has opened it. */
    e->in = co_open_plain_file(in, O_RDWR, NULL);
    e->out = e->in >= 0 ? co_open_plain_file(out, O_RDWR, NULL) : -1;
    if (e->out >= 0) {
        return 0;
    }
    if (e->in >= 0) {
        close(e->in);
    }
    e->in = e->out = co_open_plain_file(path, O_RDWR, err);
    return e->in < 0 ? e->in : 0;
}

const struct chardev_ops chardev_null_ops = {
    .name = "null",
    .size = sizeof(struct plain_chardev),
    .co_open = co_open_null,
    .start = start_plain,
    .co_free = co_free_plain,
};

const struct chardev_ops chardev_file_ops = {
    .name = "file",
    .size = sizeof(struct plain_chardev),
    .co_open = co_open_backend_file,
    .start = start_plain,
    .co_free = co_free_plain,
};

const struct chardev_ops chardev_pipe_ops = {
    .name = "pipe",
    .size = sizeof(struct plain_chardev),
    .co_open = co_open_pipe,
    .start = start_plain,
    .co_free = co_free_plain,
};

/* --- stdio ------------------------------------------------------------------------------------ */

static bool refuses_stdio;

void chardev_refuse_stdio(void)
{
    refuses_stdio = true;
}

static int co_open_stdio(struct chardev *c, struct json_object *data, struct error *err)
{
    struct chardev_ends *e = &plain(c)->ends;
    int fd;

    init_ends(c);
    if (refuses_stdio) {
        return error_set(err, EINVAL, "cannot use stdio with -daemonize");
    }
    fd = chardev_stdio_open(err);
    if (fd < 0) {
        return fd;
    }
    e->in = e->out = fd;
    e->is_socket = true;
    return 0;
}

/* It is a socket already, so that nothing has to be carried unless it is recorded. */
static int start_stdio(struct chardev *c, struct error *err)
{
    struct chardev_ends *e = &plain(c)->ends;
    int fd = e->in;

    if (c->log_fd >= 0) {
        return start_plain(c, err);
    }
    e->in = e->out = -1;
    return chardev_begin_client(c, fd, err);
}

const struct chardev_ops chardev_stdio_ops = {
    .name = "stdio",
    .size = sizeof(struct plain_chardev),
    .co_open = co_open_stdio,
    .start = start_stdio,
    .co_free = co_free_plain,
};
