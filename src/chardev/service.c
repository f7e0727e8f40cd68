/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the types need of every chardev: members of their JSON, coroutines, clients that come and
 * leave.
 */
#include <errno.h>

#include "chardev/internal.h"
#include "loop/loop.h"

/* --- members of JSON -------------------------------------------------------------------------- */

const char *chardev_text(struct json_object *data, const char *name)
{
    struct json_object *value;

    return json_object_object_get_ex(data, name, &value) ? json_object_get_string(value) : NULL;
}

bool chardev_flag(struct json_object *data, const char *name, bool dflt)
{
    struct json_object *value;

    return json_object_object_get_ex(data, name, &value) ? json_object_get_boolean(value) : dflt;
}

int64_t chardev_number(struct json_object *data, const char *name, int64_t dflt)
{
    struct json_object *value;

    return json_object_object_get_ex(data, name, &value) ? json_object_get_int64(value) : dflt;
}

/* --- coroutines ------------------------------------------------------------------------------- */

int chardev_spawn(struct chardev *c, void (*entry)(void *c), struct error *err)
{
    int r = reactor_spawn(reactor_main(), entry, c);

    if (r < 0) {
        return error_set_errno(err, -r, "chardev '%s' cannot be served", c->id);
    }
    c->running++;
    return 0;
}

void chardev_ran(struct chardev *c)
{
    c->running--;
}

/* --- clients ---------------------------------------------------------------------------------- */

int chardev_begin_client(struct chardev *c, int fd, struct error *err)
{
    int r;

    c->clients++;
    r = c->begin(c, fd, c->arg, err);
    c->clients -= r < 0;
    return r < 0 ? r : 0;
}

void chardev_client_left(struct chardev *c, int fd)
{
    struct co *waiter = c->waiter;

    if (c->ops->left) {
        c->ops->left(c, fd);
    }

    c->clients--;
    if (c->clients == 0 && waiter) {
        c->waiter = NULL;
        co_wake(waiter);
    }
}

void chardev_co_wait_left(struct chardev *c)
{
    if (c->clients > 0) {
        c->waiter = co_self();
        co_suspend();
    }
}
