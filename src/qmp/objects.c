/* SPDX-License-Identifier: Apache-2.0 */
#include "qmp/objects.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/list.h"
#include "loop/loop.h"

struct iothread {
    struct list link;
    char *id; /* owned */
    struct reactor *reactor;
};

static struct list iothreads = LIST_INIT(iothreads);

struct reactor *qmp_find_iothread(const char *id)
{
    struct iothread *t;

    LIST_FOREACH (t, &iothreads, link) {
        if (strcmp(t->id, id) == 0) {
            return t->reactor;
        }
    }
    return NULL;
}

static int add_iothread(const char *id, struct error *err)
{
    struct iothread *t;
    int r;

    if (qmp_find_iothread(id)) {
        return error_set(err, EEXIST, "attempt to add duplicate property '%s' to object", id);
    }
    t = calloc(1, sizeof(*t));
    if (!t || !(t->id = strdup(id))) {
        free(t);
        return error_set(err, ENOMEM, "Out of memory");
    }
    r = reactor_create(id, &t->reactor, err);
    if (r < 0) {
        free(t->id);
        free(t);
        return r;
    }
    list_append(&iothreads, &t->link);
    return 0;
}

int qmp_object_add(struct options *opts_, struct error *err)
{
    AUTO_OPTIONS struct options *opts = opts_;
    AUTO_FREE char *type = NULL, *id = NULL;
    int r = options_take_str(opts, "qom-type", &type, err);

    if (r >= 0) {
        r = options_take_str(opts, "id", &id, err);
    }
    if (r < 0) {
        return r;
    }
    if (!type || !id) {
        return error_set(err, EINVAL, "Parameter '%s' is missing", type ? "id" : "qom-type");
    }
    if (strcmp(type, "iothread") != 0) {
        return error_set(err, ENOTSUP,
                         "Objects of type '%s' are not supported (object '%s'): only 'iothread' is",
                         type, id);
    }
    /* How a QEMU iothread polls has no counterpart: the reactor decides for itself. */
    options_drop(opts, "poll-max-ns");
    options_drop(opts, "poll-grow");
    options_drop(opts, "poll-shrink");
    options_drop(opts, "aio-max-batch");
    r = options_check_empty(opts, "iothread", err);
    return r < 0 ? r : add_iothread(id, err);
}

void qmp_objects_release(void)
{
    struct iothread *t, *next;

    LIST_FOREACH_SAFE (t, next, &iothreads, link) {
        list_remove(&t->link);
        reactor_destroy(t->reactor);
        free(t->id);
        free(t);
    }
}
