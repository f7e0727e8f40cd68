/* SPDX-License-Identifier: Apache-2.0 */
/* All chardevs: by their ids, with their users, to their end. */
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/checked.h"
#include "chardev/internal.h"
#include "chardev/stdio_pair.h"
#include "loop/loop.h"

#define RELEASE_WAIT_MS 1000

static struct list chardevs = LIST_INIT(chardevs);

static const struct chardev_ops *const types[] = {
    &chardev_file_ops,    &chardev_null_ops,   &chardev_pipe_ops,  &chardev_pty_ops,
    &chardev_ringbuf_ops, &chardev_socket_ops, &chardev_stdio_ops,
};

/* --- making and finding ----------------------------------------------------------------------- */

struct chardev *chardev_find(const char *id)
{
    struct chardev *c;

    LIST_FOREACH (c, &chardevs, link) {
        if (strcmp(c->id, id) == 0) {
            return c;
        }
    }
    return NULL;
}

struct chardev *chardev_next(const struct chardev *c)
{
    const struct list *next = c ? c->link.next : chardevs.next;

    return next == &chardevs ? NULL : container_of(next, struct chardev, link);
}

const char *chardev_id(const struct chardev *c)
{
    return c->id;
}

const char *chardev_type(const struct chardev *c)
{
    return c->ops->name;
}

bool chardev_has_client(const struct chardev *c)
{
    return c->clients > 0;
}

bool chardev_is_opening(const struct chardev *c)
{
    return c->opening;
}

char *chardev_filename(const struct chardev *c)
{
    return c->ops->filename ? c->ops->filename(c) : strdup(c->ops->name);
}

bool chardev_can_be_cut(const struct chardev *c)
{
    return c->ops->cut && !c->opening;
}

void chardev_cut(struct chardev *c)
{
    c->ops->cut(c);
}

static void co_free_chardev(struct chardev *c)
{
    list_remove(&c->link);
    if (c->ops->co_free) {
        c->ops->co_free(c);
    }
    if (c->log_fd >= 0) {
        close(c->log_fd);
    }
    free(c->id);
    free(c);
}

/* "memory" is the older name of "ringbuf". */
static const struct chardev_ops *find_chardev_type(const char *name)
{
    name = strcmp(name, "memory") == 0 ? "ringbuf" : name;
    for (size_t i = 0; i < ARRAY_SIZE(types); i++) {
        if (strcmp(types[i]->name, name) == 0) {
            return types[i];
        }
    }
    return NULL;
}

static int co_open_chardev_log(struct chardev *c, struct json_object *data, struct error *err)
{
    const char *path = chardev_text(data, "logfile");
    int mode = chardev_flag(data, "logappend", false) ? O_APPEND : O_TRUNC;

    if (!path) {
        return mode == O_TRUNC ? 0
                               : error_set(err, EINVAL, "'logappend' option requires 'logfile'");
    }
    c->log_fd = loop_co_open(path, O_WRONLY | O_CREAT | O_CLOEXEC | mode, 0666);
    return c->log_fd < 0 ? error_set_errno(err, -c->log_fd, "Could not create '%s'", path) : 0;
}

int chardev_co_new(const char *id, struct json_object *backend, struct chardev **ret_chardev,
                   struct error *err)
{
    const struct chardev_ops *ops = find_chardev_type(chardev_text(backend, "type"));
    struct json_object *data;
    struct chardev *c;
    int r;

    if (chardev_find(id)) {
        return error_set(err, EEXIST, "Chardev with id '%s' already exists", id);
    }
    if (options_check_identifier("id", id, err) < 0) {
        return -EINVAL;
    }
    if (!ops) {
        return error_set(err, EINVAL, "'%s' is not a valid char driver name",
                         chardev_text(backend, "type"));
    }
    c = calloc(1, ops->size);
    if (!c || !(c->id = strdup(id))) {
        free(c);
        return error_out_of_memory(err);
    }
    c->ops = ops;
    c->opening = true;
    c->log_fd = -1;
    /* The id is taken while this yields. */
    list_append(&chardevs, &c->link);
    json_object_object_get_ex(backend, "data", &data);
    /* The state first: before that nobody could use, stop or free the chardev. */
    r = ops->co_open(c, data, err);
    UNLESS_FAILED(r, co_open_chardev_log(c, data, err));
    if (r < 0) {
        co_free_chardev(c);
        return r;
    }
    c->opening = false;
    *ret_chardev = c;
    return 0;
}

static void co_stop_chardev(struct chardev *c)
{
    if (!c->stopped) {
        c->stopped = true;
        if (c->ops->co_stop) {
            c->ops->co_stop(c);
        }
    }
}

void chardev_co_remove(struct chardev *c)
{
    co_stop_chardev(c);
    while (c->running > 0) {
        loop_co_sleep(NS_PER_MS);
    }
    co_free_chardev(c);
}

/* --- users ------------------------------------------------------------------------------------ */

int chardev_attach(const char *id, chardev_begin *begin, void *arg, struct error *err)
{
    struct chardev *c = chardev_find(id);
    int r;

    if (!c || c->opening) {
        return error_set(err, ENOENT, "chardev \"%s\" not found", id);
    }
    if (c->begin) {
        return error_set(err, EBUSY, "Device '%s' is in use", id);
    }
    c->begin = begin;
    c->arg = arg;
    r = c->ops->start(c, err);
    if (r < 0) {
        c->begin = NULL;
    }
    return r;
}

bool chardev_has_user(const struct chardev *c)
{
    return c->begin;
}

/* --- the end ---------------------------------------------------------------------------------- */

static struct chardev *find_unstopped(void)
{
    struct chardev *c;

    LIST_FOREACH (c, &chardevs, link) {
        if (!c->stopped) {
            return c;
        }
    }
    return NULL;
}

void chardev_co_close_all(void)
{
    struct chardev *c;

    while ((c = find_unstopped())) {
        co_stop_chardev(c);
    }
}

static bool anything_runs(void)
{
    struct chardev *c;

    LIST_FOREACH (c, &chardevs, link) {
        if (c->opening || c->running > 0 || c->clients > 0) {
            return true;
        }
    }
    return false;
}

static struct chardev *find_idle(void)
{
    struct chardev *c;

    LIST_FOREACH (c, &chardevs, link) {
        if (!c->opening && c->running == 0 && c->clients == 0) {
            return c;
        }
    }
    return NULL;
}

void chardev_co_release_all(void)
{
    struct chardev *c;

    for (int ms = 0; ms < RELEASE_WAIT_MS && anything_runs(); ms++) {
        loop_co_sleep(NS_PER_MS);
    }
    /* The list may change while one is freed. */
    while ((c = find_idle())) {
        co_free_chardev(c);
    }
    chardev_co_stdio_flush();
}
