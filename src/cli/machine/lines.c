/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/machine/lines.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/list.h"
#include "base/strbuf.h"
#include "chardev/chardev.h"
#include "loop/loop.h"

#define READ_SIZE 4096
/* The longest line, in bytes; a longer one ends the conversation. */
#define LINE_MAX_SIZE (1u << 20)

struct machine_lines {
    struct list link; /* in `conversations` */
    int fd;           /* owned */
    struct chardev *chardev;
    const struct machine_lines_ops *ops;
    struct strbuf pending; /* received, without the end of its line */
};

static struct list conversations = LIST_INIT(conversations);
static bool ending;

void machine_lines_co_send(struct machine_lines *lines, const char *text, size_t size)
{
    while (size > 0) {
        struct iovec vec = {.iov_base = (char *)text, .iov_len = size};
        struct msghdr msg = {.msg_iov = &vec, .msg_iovlen = 1};
        ssize_t sent = loop_co_sendmsg(lines->fd, &msg, MSG_NOSIGNAL);

        if (sent < 0) {
            return;
        }
        text += sent;
        size -= (size_t)sent;
    }
}

/* Act on the whole lines of what was received. */
static void co_act_on_lines(struct machine_lines *lines)
{
    char *end;

    while (!ending && lines->pending.data && (end = strchr(lines->pending.data, '\n'))) {
        struct strbuf rest = STRBUF_INIT, line = lines->pending;

        *end = '\0';
        strbuf_puts(&rest, end + 1);
        lines->pending = rest;
        if (end > line.data && end[-1] == '\r') {
            end[-1] = '\0';
        }
        lines->ops->co_line(lines, line.data);
        strbuf_clear(&line);
    }
}

static void co_converse(void *arg)
{
    struct machine_lines *lines = arg;
    char *buf = malloc(READ_SIZE);
    ssize_t n;

    while (buf && !ending && !lines->pending.failed && lines->pending.len < LINE_MAX_SIZE &&
           (n = loop_co_recv(lines->fd, buf, READ_SIZE)) > 0) {
        strbuf_append(&lines->pending, buf, (size_t)n);
        co_act_on_lines(lines);
    }
    free(buf);
    list_remove(&lines->link);
    close(lines->fd);
    strbuf_clear(&lines->pending);
    chardev_client_left(lines->chardev, lines->fd);
    free(lines);
}

int machine_lines_start(int fd, const struct machine_lines_ops *ops, struct chardev *chardev,
                        struct error *err)
{
    struct machine_lines *lines = calloc(1, sizeof(*lines));
    int r = lines ? 0 : -ENOMEM;

    if (lines) {
        *lines = (struct machine_lines){.fd = fd, .chardev = chardev, .ops = ops};
        list_append(&conversations, &lines->link);
        r = reactor_spawn(reactor_main(), co_converse, lines);
    }
    if (r < 0) {
        if (lines) {
            list_remove(&lines->link);
        }
        free(lines);
        close(fd);
        return error_set_errno(err, -r, "A conversation cannot start");
    }
    return 0;
}

void machine_lines_co_end(void)
{
    struct machine_lines *lines;

    ending = true;
    LIST_FOREACH (lines, &conversations, link) {
        shutdown(lines->fd, SHUT_RDWR);
    }
    while (!list_is_empty(&conversations)) {
        loop_co_sleep(NS_PER_MS);
    }
}
