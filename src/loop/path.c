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
#include "loop/loop.h"

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

static int close_fd(void *arg)
{
    return close(*(const int *)arg);
}

void loop_co_close(int fd)
{
    (void)loop_co_brief(close_fd, &fd);
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

/* --- what is waited for with a limit ---------------------------------------------------------- */

/* A call about paths. All of this but the call itself is on the main reactor. */
struct path_call {
    struct loop_call call;
    size_t count;
    char **paths, **real;
};

/* How many calls nobody waits for any more. Main reactor. */
static unsigned late_calls;

static struct path_call *path_call_of(struct loop_call *call)
{
    return container_of(call, struct path_call, call);
}

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

static void path_call_end_late(struct loop_call *call)
{
    late_calls--;
    path_call_free(path_call_of(call));
}

static struct path_call *path_call_new(int (*fn)(struct loop_call *call), const char *const *paths,
                                       size_t count)
{
    struct path_call *c = calloc(1, sizeof(*c));

    if (!c) {
        return NULL;
    }
    c->call.fn = fn;
    c->call.end_late = path_call_end_late;
    c->count = count;
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

/* Whether the call has ended; if not it is not the caller's any more. */
static bool path_call_co_wait(struct path_call *c)
{
    bool is_bounded = loop_is_serving() && reactor_current() == reactor_main();
    int64_t patience_ns = late_calls > 0 ? LOOP_LATE_PATIENCE_NS : LOOP_PATIENCE_NS;
    bool ended = loop_co_call_within(&c->call, is_bounded ? patience_ns : INT64_MAX);

    late_calls += !ended;
    return ended;
}

static int follow_paths(struct loop_call *call)
{
    struct path_call *c = path_call_of(call);

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

/*
 * A file system that hangs does so when the path is looked up. When it answers late, another file
 * may have the name: one of this process, that it needs, or of another one.
 */
static int unlink_first(struct loop_call *call)
{
    struct path_call *c = path_call_of(call);
    struct stat st;

    if (lstat(c->paths[0], &st) < 0) {
        return -errno;
    }
    return atomic_load(&call->is_late) ? -ETIMEDOUT : unlink_path(c->paths[0]);
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
    r = c->call.result;
    path_call_free(c);
    return r;
}
