/* SPDX-License-Identifier: Apache-2.0 */
/* System calls on paths. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/time_units.h"
#include "loop/loop.h"

/* How long an answer is waited for that can be done without: in general, and while one is late. */
#define PATIENCE_NS NS_PER_SECOND
#define LATE_PATIENCE_NS (100 * NS_PER_MS)

struct path_open {
    const char *path;
    int flags;
    mode_t mode;
};

static int open_at_path(void *arg)
{
    const struct path_open *o = arg;
    int fd = open(o->path, o->flags, o->mode);

    return fd < 0 ? -errno : fd;
}

int loop_co_open(const char *path, int flags, mode_t mode)
{
    struct path_open o = {path, flags, mode};

    return loop_co_brief(open_at_path, &o);
}

static int unlink_path(void *arg)
{
    return unlink(arg) < 0 ? -errno : 0;
}

int loop_co_unlink(const char *path)
{
    return loop_co_brief(unlink_path, (void *)(uintptr_t)path);
}

struct path_stat {
    const char *path;
    struct stat *ret_stat;
};

static int stat_path(void *arg)
{
    const struct path_stat *s = arg;

    return stat(s->path, s->ret_stat) < 0 ? -errno : 0;
}

int loop_co_stat(const char *path, struct stat *ret_stat)
{
    struct path_stat s = {path, ret_stat};

    return loop_co_brief(stat_path, &s);
}

struct path_real {
    const char *path;
    char *real;
};

static int follow_path(void *arg)
{
    struct path_real *p = arg;

    p->real = realpath(p->path, NULL);
    return 0;
}

char *loop_co_real_path(const char *path)
{
    struct path_real p = {.path = path};

    loop_co_brief(follow_path, &p);
    return p.real;
}

/* --- what is not waited for any longer -------------------------------------------------------- */

/*
 * A call about paths, by a coroutine of its own, which goes on when the call hangs. All of this but
 * the call itself is on the main reactor.
 */
struct path_call {
    int (*fn)(void *arg); /* its argument is this struct */
    size_t count;
    char **paths, **real;
    int result;
    bool ended, is_late;
    struct co *waiter; /* suspended, until the call has ended or the time is over; else NULL */
    struct loop_timer timer;
};

/* How many calls nobody waits for any more. Main reactor. */
static unsigned late_calls;

static void path_call_free(struct path_call *c)
{
    for (size_t i = 0; c && i < c->count; i++) {
        free(c->paths ? c->paths[i] : NULL);
        free(c->real ? c->real[i] : NULL);
    }
    if (c) {
        free(c->paths);
        free(c->real);
        free(c);
    }
}

static struct path_call *path_call_new(int (*fn)(void *arg), const char *const *paths, size_t count)
{
    struct path_call *c = calloc(1, sizeof(*c));

    if (!c) {
        return NULL;
    }
    *c = (struct path_call){.fn = fn, .count = count};
    c->paths = calloc(MAX(count, 1u), sizeof(char *));
    c->real = calloc(MAX(count, 1u), sizeof(char *));
    for (size_t i = 0; c->paths && i < count; i++) {
        c->paths[i] = strdup(paths[i]);
        if (!c->paths[i]) {
            path_call_free(c);
            return NULL;
        }
    }
    if (!c->paths || !c->real) {
        path_call_free(c);
        return NULL;
    }
    return c;
}

static void path_call_wake(struct path_call *c)
{
    struct co *co = c->waiter;

    c->waiter = NULL;
    if (co) {
        co_wake(co);
    }
}

static void path_call_over(struct loop_timer *timer)
{
    path_call_wake(container_of(timer, struct path_call, timer));
}

static void co_run_path_call(void *arg)
{
    struct path_call *c = arg;

    c->result = loop_co_brief(c->fn, c);
    c->ended = true;
    if (c->is_late) {
        late_calls--;
        path_call_free(c);
    } else {
        path_call_wake(c);
    }
}

/* Whether the call has ended; if not it belongs to its coroutine from now on. */
static bool path_call_co_wait(struct path_call *c)
{
    int64_t patience_ns = late_calls > 0 ? LATE_PATIENCE_NS : PATIENCE_NS;

    if (!loop_is_serving() || reactor_current() != reactor_main() ||
        reactor_spawn(reactor_main(), co_run_path_call, c) < 0) {
        c->result = loop_co_brief(c->fn, c);
        return true;
    }
    c->waiter = co_self();
    loop_timer_init(&c->timer, path_call_over);
    loop_timer_arm(&c->timer, loop_now_ns() + patience_ns);
    co_suspend();
    loop_timer_disarm(&c->timer);
    if (!c->ended) {
        c->is_late = true;
        late_calls++;
    }
    return c->ended;
}

static int follow_paths(void *arg)
{
    struct path_call *c = arg;

    for (size_t i = 0; i < c->count; i++) {
        c->real[i] = realpath(c->paths[i], NULL);
    }
    return 0;
}

int loop_co_real_paths_soon(const char *const *paths, size_t count, char **ret_real)
{
    struct path_call *c = path_call_new(follow_paths, paths, count);

    for (size_t i = 0; i < count; i++) {
        ret_real[i] = NULL;
    }
    if (!c) {
        return -ENOMEM;
    }
    if (!path_call_co_wait(c)) {
        return -ETIMEDOUT;
    }
    for (size_t i = 0; i < count; i++) {
        ret_real[i] = TAKE_PTR(c->real[i]);
    }
    path_call_free(c);
    return 0;
}

static int unlink_first(void *arg)
{
    return unlink_path(((struct path_call *)arg)->paths[0]);
}

int loop_co_unlink_soon(const char *path)
{
    struct path_call *c = path_call_new(unlink_first, &path, 1);
    int r;

    if (!c) {
        return -ENOMEM;
    }
    if (!path_call_co_wait(c)) {
        return -ETIMEDOUT;
    }
    r = c->result;
    path_call_free(c);
    return r;
}
