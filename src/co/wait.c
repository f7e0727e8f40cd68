/* SPDX-License-Identifier: Apache-2.0 */
#include "co/wait.h"

#include <limits.h>
#include <stdio.h>
#include <unistd.h>

#include "base/strbuf.h"
#include "co/internal.h"

void co_wait_begin(struct co_wait *wait, const char *what, const char *object, int fd)
{
    struct co *task = co_running()->task;

    *wait = (struct co_wait){.what = what, .object = object, .fd = fd, .outer = task->wait};
    task->wait = wait;
}

void co_wait_end(const struct co_wait *wait)
{
    co_running()->task->wait = wait->outer;
}

void co_wait_begin_lost(struct co_wait *wait, struct co *co, const char *what)
{
    *wait = (struct co_wait){.what = what, .fd = wait->fd, .outer = co->task->wait};
    co->task->wait = wait;
}

/* The path of an open file; " (deleted)" follows where it has none any more. */
static void put_file(struct strbuf *s, int fd)
{
    char link[32], path[PATH_MAX];
    ssize_t n;

    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    n = readlink(link, path, sizeof(path) - 1);
    if (n < 0) {
        strbuf_printf(s, " file descriptor %d", fd);
    } else {
        path[n] = '\0';
        strbuf_printf(s, " '%s'", path);
    }
}

static void put_wait(struct strbuf *s, const struct co_wait *wait)
{
    if (wait->outer) {
        put_wait(s, wait->outer);
        strbuf_puts(s, ", in it ");
    }
    strbuf_puts(s, wait->what);
    if (wait->object) {
        strbuf_printf(s, " '%s'", wait->object);
    }
    if (wait->fd >= 0) {
        put_file(s, wait->fd);
    }
}

bool co_wait_describe(const struct co *co, struct strbuf *text)
{
    if (!co->task->wait) {
        return false;
    }
    put_wait(text, co->task->wait);
    return true;
}
