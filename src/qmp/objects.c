/* SPDX-License-Identifier: Apache-2.0 */
#include "qmp/objects.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/list.h"
#include "block/control_lock.h"
#include "block/user_object.h"
#include "co/co.h"
#include "loop/loop.h"
#include "qmp/commands.h"
#include "schema/define.h"

#define POOL_MAX_DEFAULT 64

struct iothread {
    struct list link;        /* in `iothreads` */
    struct reactor *reactor; /* NULL: the object main-loop, which is the main reactor's settings */
    /* Of the pool of threads that all have in common: loop_offload_set_threads(). */
    int64_t pool_min, pool_max;
    /* reactor_set_polling(), of an iothread */
    int64_t poll_max_ns, poll_grow, poll_shrink;
};

static struct list iothreads = LIST_INIT(iothreads);

/* The greatest of what they ask for, of those that ask. */
static void set_pool_threads(void)
{
    int64_t min = 0, max = 0;
    struct iothread *t;

    LIST_FOREACH (t, &iothreads, link) {
        min = MAX(min, t->pool_min);
        max = MAX(max, t->pool_max);
    }
    loop_offload_set_threads((unsigned)min, (unsigned)max);
}

static int wrong_range(const char *name, struct error *err)
{
    return error_set(err, EINVAL, "%s value must be in range [0, %lld]", name,
                     (long long)INT64_MAX);
}

/* QEMU's default for the greatest number is 64. */
static int check_pool(int64_t min, int64_t max, struct error *err)
{
    int64_t most = max >= 0 ? max : POOL_MAX_DEFAULT;

    return most == 0 || most > INT_MAX || min > most
               ? error_set(err, EINVAL, "bad thread-pool-min/thread-pool-max values")
               : 0;
}

/* Take a number of type int; *ret_value is left alone if it is absent. */
static int take_int(struct options *opts, const char *name, int64_t *ret_value, struct error *err)
{
    uint64_t value;

    if (!options_has(opts, name)) {
        return 0;
    }
    if (options_take_uint(opts, name, 0, INT64_MAX, &value, NULL) < 0) {
        return wrong_range(name, err);
    }
    *ret_value = (int64_t)value;
    return 0;
}

static int take_iothread_options(struct iothread *t, struct options *opts, struct error *err)
{
    int64_t ignored, max = -1;
    int r = take_int(opts, "poll-max-ns", &t->poll_max_ns, err);

    UNLESS_FAILED(r, take_int(opts, "poll-grow", &t->poll_grow, err));
    UNLESS_FAILED(r, take_int(opts, "poll-shrink", &t->poll_shrink, err));
    UNLESS_FAILED(r, take_int(opts, "aio-max-batch", &ignored, err));
    UNLESS_FAILED(r, take_int(opts, "thread-pool-min", &t->pool_min, err));
    UNLESS_FAILED(r, take_int(opts, "thread-pool-max", &max, err));
    UNLESS_FAILED(r, check_pool(t->pool_min, max, err));
    t->pool_max = MAX(max, 0);
    return r;
}

static void set_polling(struct iothread *t)
{
    if (t->reactor) {
        reactor_set_polling(t->reactor, t->poll_max_ns, t->poll_grow, t->poll_shrink);
    }
}

/* `id`: that of the reactor to make; NULL: none. */
static int add_iothread(const char *id, struct options *opts, void **ret_data, struct error *err)
{
    struct iothread *t = calloc(1, sizeof(*t));
    int r = t ? take_iothread_options(t, opts, err) : error_out_of_memory(err);

    if (id) {
        UNLESS_FAILED(r, reactor_create(id, &t->reactor, err));
    }
    if (r < 0) {
        free(t);
        return r;
    }
    list_append(&iothreads, &t->link);
    set_pool_threads();
    set_polling(t);
    *ret_data = t;
    return 0;
}

static void remove_iothread(struct iothread *t)
{
    list_remove(&t->link);
    set_pool_threads();
}

static int iothread_create(const char *id, struct options *opts, void **ret_data, struct error *err)
{
    return add_iothread(id, opts, ret_data, err);
}

/* This may wait for coroutines that still run there; other commands continue meanwhile. */
static void iothread_destroy(void *data)
{
    bool held = co_self() && block_control_pause();
    struct iothread *t = data;

    remove_iothread(t);
    reactor_destroy(t->reactor);
    block_co_control_resume(held);
    free(t);
}

#define NO_EFFECT .max = INT64_MAX, .help = "no effect: a thread submits all it has in each turn"
#define POLL_OPTION(text) .dflt = "0", .max = INT64_MAX, .help = text
#define POOL_PROPERTIES                                                                            \
    OPT("aio-max-batch", schema_int, NO_EFFECT),                                                   \
        OPT("thread-pool-min", schema_int, .dflt = "0", .max = INT_MAX,                            \
            .help =                                                                                \
                "threads for what would block, at least; those of all iothreads are one pool"),    \
        OPT("thread-pool-max", schema_int, .dflt = "as many as processors, at least 4", .min = 1,  \
            .max = INT_MAX, .help = "likewise, at most; some more if system calls hang")
OBJECT(main_loop_properties, "MainLoopProperties", POOL_PROPERTIES);
OBJECT(iothread_properties, "IothreadProperties", POOL_PROPERTIES,
       OPT("poll-max-ns", schema_int,
           POLL_OPTION("look for work for this time at most before the thread sleeps (ns)")),
       OPT("poll-grow", schema_int,
           POLL_OPTION("multiply the time by this when it was too short; 0: by 2")),
       OPT("poll-shrink", schema_int,
           POLL_OPTION("divide the time by this when it was in vain; 0: to nothing")));

static int64_t *polling_option(struct iothread *t, const char *name)
{
    return strcmp(name, "poll-max-ns") == 0   ? &t->poll_max_ns
           : strcmp(name, "poll-grow") == 0   ? &t->poll_grow
           : strcmp(name, "poll-shrink") == 0 ? &t->poll_shrink
                                              : NULL;
}

static int iothread_set(void *data, const char *name, struct json_object *value, struct error *err)
{
    struct iothread *t = data;
    int64_t number = json_object_get_int64(value), min = t->pool_min, max = t->pool_max;
    int64_t *polling = polling_option(t, name);
    int r;

    if (number < 0) {
        return wrong_range(name, err);
    }
    if (polling) {
        *polling = number;
        set_polling(t);
        return 0;
    }
    min = strcmp(name, "thread-pool-min") == 0 ? number : min;
    max = strcmp(name, "thread-pool-max") == 0 ? number : max ? max : -1;
    r = check_pool(min, max, err);
    if (r < 0) {
        return r;
    }
    t->pool_min = min;
    t->pool_max = MAX(max, 0);
    set_pool_threads();
    return 0;
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

static int main_loop_create(const char *id, struct options *opts, void **ret_data,
                            struct error *err)
{
    struct iothread *t;

    LIST_FOREACH (t, &iothreads, link) {
        if (!t->reactor) {
            return error_set(err, EINVAL, "only one main-loop instance allowed");
        }
    }
    return add_iothread(NULL, opts, ret_data, err);
}

static void main_loop_destroy(void *data)
{
    remove_iothread(data);
    free(data);
}

static const struct user_object_type main_loop_type = {
    .name = "main-loop",
    .create = main_loop_create,
    .destroy = main_loop_destroy,
    .parent = "event-loop-base",
    .properties = &main_loop_properties,
    .set = iothread_set,
    .help = "settings of the thread that all begins with",
};

void qmp_register_objects(void)
{
    user_object_register_type(&iothread_type);
    user_object_register_type(&main_loop_type);
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
    return ((struct iothread *)user_object_data(o))->reactor;
}

int qmp_co_object_add(struct qmp_call *call, struct json_object *args,
                      struct json_object **ret_value, struct error *err)
{
    struct options *opts;
    int r = options_from_arguments(args, &opts, err);

    if (r < 0) {
        return r;
    }
    return user_object_co_add(opts, err);
}

int qmp_co_object_del(struct qmp_call *call, struct json_object *args,
                      struct json_object **ret_value, struct error *err)
{
    return user_object_del(qmp_get_str(args, "id"), err);
}
