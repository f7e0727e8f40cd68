/* SPDX-License-Identifier: Apache-2.0 */
/* System calls on paths. */
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

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
