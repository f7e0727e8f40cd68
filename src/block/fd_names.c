/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/list.h"
#include "block/passed_fd.h"
#include "co/co.h"
#include "loop/loop.h"

struct named_fd {
    struct list link; /* in `fds` of its monitor */
    char *name;       /* owned */
    int fd;           /* owned */
};

struct fd_names {
    unsigned references;
    struct list fds;
};

/* The commands that run. */
static struct fd_names_use *uses;

struct fd_names *fd_names_new(void)
{
    struct fd_names *names = calloc(1, sizeof(*names));

    if (names) {
        names->references = 1;
        list_init(&names->fds);
    }
    return names;
}

struct fd_names *fd_names_ref(struct fd_names *names)
{
    names->references++;
    return names;
}

/* Forget the name; the descriptor is the caller's. */
static int take_named(struct named_fd *named)
{
    int fd = named->fd;

    list_remove(&named->link);
    free(named->name);
    free(named);
    return fd;
}

void fd_names_co_close_all(struct fd_names *names)
{
    while (!list_is_empty(&names->fds)) {
        loop_co_close(take_named(LIST_FIRST(&names->fds, struct named_fd, link)));
    }
}

void fd_names_unref(struct fd_names *names)
{
    struct named_fd *named, *next;

    if (!names || --names->references > 0) {
        return;
    }
    LIST_FOREACH_SAFE (named, next, &names->fds, link) {
        close(take_named(named));
    }
    free(names);
}

static struct named_fd *find_named(struct fd_names *names, const char *name)
{
    struct named_fd *named;

    LIST_FOREACH (named, &names->fds, link) {
        if (strcmp(named->name, name) == 0) {
            return named;
        }
    }
    return NULL;
}

int fd_names_put(struct fd_names *names, const char *name, int fd, struct error *err)
{
    struct named_fd *named = find_named(names, name);

    if (named) {
        close(named->fd);
        named->fd = fd;
        return 0;
    }
    named = calloc(1, sizeof(*named));
    if (!named || !(named->name = strdup(name))) {
        free(named);
        return error_out_of_memory(err);
    }
    named->fd = fd;
    list_append(&names->fds, &named->link);
    return 0;
}

int fd_names_take(struct fd_names *names, const char *name)
{
    struct named_fd *named = find_named(names, name);

    return named ? take_named(named) : -ENOENT;
}

/* --- commands that run ------------------------------------------------------------------------ */

void fd_names_begin(struct fd_names_use *use, struct fd_names *names)
{
    *use = (struct fd_names_use){.next = uses, .task = co_task(), .names = names};
    uses = use;
}

void fd_names_end(struct fd_names_use *use)
{
    struct fd_names_use **p = &uses;

    while (*p != use) {
        p = &(*p)->next;
    }
    *p = use->next;
}

static struct fd_names *names_in_use(void)
{
    const void *task = co_task();

    for (const struct fd_names_use *use = uses; use; use = use->next) {
        if (use->task == task) {
            return use->names;
        }
    }
    return NULL;
}

static int find_passed(const char *text, struct error *err)
{
    struct fd_names *names = names_in_use();
    char *end;
    long fd;

    if (names) {
        fd = fd_names_take(names, text);
        return fd < 0
                   ? error_set(err, ENOENT, "File descriptor named '%s' has not been found", text)
                   : (int)fd;
    }
    if (!text[0]) {
        return error_set(err, ENOENT, "The descriptor was used before");
    }
    errno = 0;
    fd = strtol(text, &end, 10);
    if (end == text || *end || errno || fd < 0 || fd > INT32_MAX) {
        return error_set(err, EINVAL, "Unable to parse FD number %s", text);
    }
    return (int)fd;
}

int passed_socket(const char *text, struct error *err)
{
    AUTO_CLOSE int fd = find_passed(text, err);
    struct stat st;

    if (fd < 0) {
        return fd;
    }
    if (fstat(fd, &st) < 0 || !S_ISSOCK(st.st_mode) || fcntl(fd, F_SETFL, O_NONBLOCK) < 0 ||
        fcntl(fd, F_SETFD, FD_CLOEXEC) < 0) {
        if (!names_in_use()) {
            (void)TAKE_FD(fd); /* the number may be anything, such as standard output */
        }
        return error_set(err, ENOTSOCK, "File descriptor '%s' is not a socket", text);
    }
    return TAKE_FD(fd);
}
