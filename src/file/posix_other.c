/* SPDX-License-Identifier: Apache-2.0 */
/* Finding a file again by its name, and looking into another one that may be in use. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fd_io.h"
#include "file/posix_file.h"
#include "loop/loop.h"

/* The path of the open file, however it was opened. Asks no file system. */
char *posix_file_lasting_name(const struct block_node *node)
{
    char link[64], path[PATH_MAX];
    ssize_t length;

    snprintf(link, sizeof(link), "/proc/self/fd/%d", ((const struct posix_file *)node->opaque)->fd);
    length = readlink(link, path, sizeof(path));
    if (length <= 0 || length == sizeof(path)) {
        return NULL;
    }
    path[length] = '\0';
    return path[0] == '/' ? strdup(path) : NULL;
}

struct name_call {
    int fd;
    const char *name;
};

static int look_at_name(void *arg)
{
    const struct name_call *c = arg;
    struct stat opened, found;

    return fstat(c->fd, &opened) == 0 && stat(c->name, &found) == 0 &&
           opened.st_dev == found.st_dev && opened.st_ino == found.st_ino;
}

bool posix_file_co_has_name(const struct block_node *node, const char *name)
{
    struct name_call c = {((const struct posix_file *)node->opaque)->fd, name};

    return loop_co_brief(look_at_name, &c) > 0;
}

struct read_call {
    const char *path;
    void *buf;
    size_t size; /* what there is of it, afterwards */
};

/*
 * Nothing but a regular file or a block device is opened: to open others can wait, or do something
 * (start a watchdog).
 */
static int open_other(const char *path)
{
    int at AUTO_CLOSE = open(path, O_PATH | O_CLOEXEC);
    char link[64];
    struct stat st;
    int fd;

    if (at < 0 || fstat(at, &st) < 0) {
        return errno == ENOTDIR ? -ENOENT : -errno;
    }
    if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode)) {
        return -ENOENT;
    }
    snprintf(link, sizeof(link), "/proc/self/fd/%d", at);
    fd = open(link, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    return fd < 0 ? -errno : fd;
}

static int read_blocking(void *arg)
{
    struct read_call *c = arg;
    int fd AUTO_CLOSE = open_other(c->path);
    ssize_t n = fd < 0 ? fd : fd_read_at(fd, c->buf, c->size, 0);

    if (n < 0) {
        return (int)n;
    }
    c->size = (size_t)n;
    return 0;
}

/* A file of that name next to this one: they may have been moved together. */
static char *co_name_beside(const struct block_node *node, const char *name)
{
    AUTO_FREE char *own = posix_file_lasting_name(node);
    char *slash = own && posix_file_co_has_name(node, own) ? strrchr(own, '/') : NULL, *path;
    const char *base = strrchr(name, '/');

    if (!slash || !base) {
        return NULL;
    }
    *slash = '\0';
    return asprintf(&path, "%s%s", own, base) < 0 ? NULL : path;
}

int posix_file_co_read_other(struct block_node *node, const char *name, unsigned place, void *buf,
                             size_t *size)
{
    AUTO_FREE char *path = NULL;
    struct read_call c = {.buf = buf, .size = *size};
    int r;

    if (place > 1) {
        return -EINVAL;
    }
    if (name[0] != '/') {
        return -ENOENT;
    }
    path = place == 0 ? co_name_beside(node, name) : strdup(name);
    if (!path) {
        return -ENOENT;
    }
    c.path = path;
    r = loop_co_offload(read_blocking, &c);
    *size = c.size;
    return r;
}
