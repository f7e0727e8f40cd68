/* SPDX-License-Identifier: Apache-2.0 */
#include "qmp/objects.h"

#include <errno.h>

#include "block/control_lock.h"
#include "block/user_object.h"
#include "co/co.h"
#include "loop/loop.h"
#include "qmp/commands.h"
#include "schema/define.h"

static int iothread_create(const char *id, struct options *opts, void **ret_data, struct error *err)
{
    struct reactor *reactor;
    int r = reactor_create(id, &reactor, err);

    if (r < 0) {
        return r;
    }
    /* These options control how an iothread of QEMU polls. The reactor decides that for itself. */
    options_drop(opts, "poll-max-ns");
    options_drop(opts, "poll-grow");
    options_drop(opts, "poll-shrink");
    options_drop(opts, "aio-max-batch");
    *ret_data = reactor;
    return 0;
}

/* This may wait for coroutines that still run there; other commands continue meanwhile. */
static void iothread_destroy(void *data)
{
    bool held = co_self() && block_control_pause();

    reactor_destroy(data);
    block_co_control_resume(held);
}

#define NO_EFFECT .help = "no effect: how to poll is decided while the thread runs"
OBJECT(iothread_properties, "IothreadProperties", OPT("aio-max-batch", schema_int, NO_EFFECT),
       OPT("poll-max-ns", schema_int, NO_EFFECT), OPT("poll-grow", schema_int, NO_EFFECT),
       OPT("poll-shrink", schema_int, NO_EFFECT));

/* As when it is made: the value is checked and shown. */
static int iothread_set(void *data, const char *name, struct json_object *value, struct error *err)
{
    return json_object_get_int64(value) < 0
               ? error_set(err, EINVAL, "%s value must be in range [0, %lld]", name,
                           (long long)INT64_MAX)
               : 0;
}

static const struct user_object_type iothread_type = {
    .name = "iothread",
    .create = iothread_create,
    .destroy = iothread_destroy,
    .parent = "event-loop-base",
    .properties = &iothread_properties,
    .set = iothread_set,
    .help = "a thread that serves exports",
};

void qmp_register_objects(void)
{
    user_object_register_type(&iothread_type);
}

struct reactor *qmp_find_iothread(const char *id, struct user_object **ret_object)
{
    struct user_object *o = user_object_ref(id);

    if (!o) {
        return NULL;
    }
    if (user_object_type_of(o) != &iothread_type) {
        user_object_unref(o);
        return NULL;
    }
    *ret_object = o;
    return user_object_data(o);
}

int qmp_co_object_add(struct qmp_call *call, struct json_object *args,
                      struct json_object **ret_value, struct error *err)
{
    struct options *opts;
    int r = options_from_arguments(args, &opts, err);

    if (r < 0) {
        return r;
    }
    return user_object_add(opts, err);
}

int qmp_co_object_del(struct qmp_call *call, struct json_object *args,
                      struct json_object **ret_value, struct error *err)
{
    return user_object_del(qmp_get_str(args, "id"), err);
}
