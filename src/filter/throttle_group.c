/* SPDX-License-Identifier: Apache-2.0 */
#include "filter/throttle_group.h"

#include <errno.h>
#include <json-c/json.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/debug.h"
#include "block/driver.h"
#include "block/user_object.h"
#include "co/stall.h"
#include "co/wait.h"
#include "loop/loop.h"
#include "schema/define.h"

/* How often the watcher looks for the ends of users, which nobody reports. */
#define LOOK_NS (50 * NS_PER_MS)

struct waiter {
    struct list link;
    struct throttle_member *member;
    struct co *co;
    uint64_t bytes;
    struct loop_timer timer; /* of the watcher, on its reactor */
    bool is_write, passed;
    bool woken; /* it runs soon; false while it is suspended */
};

struct throttle_group {
    pthread_mutex_t lock;          /* guards all below that is not atomic */
    struct list link;              /* in all_groups */
    struct throttle_limits limits; /* main reactor; no lock */
    int64_t (*clock)(void);        /* NULL: the one that all have */
    struct throttle_buckets buckets;
    /* By direction: bits of enum throttle_counts. */
    atomic_uint counts[2];
    struct list waiting[2]; /* of struct throttle_member, by direction; the first is next */
    bool latest;            /* direction that had its turn last */
    struct waiter *watcher; /* NULL: nobody waits */
    int64_t looked_ns;
    /* A look for the ends of users is under way on the main reactor. */
    atomic_bool looking;
};

static struct list all_groups = LIST_INIT(all_groups);
static int64_t (*test_clock)(void);

/* --- the clock -------------------------------------------------------------------------------- */

static int64_t exact_now(const struct throttle_group *g)
{
    return g->clock ? g->clock() : test_clock ? test_clock() : loop_now_ns();
}

/* Not older than the present turn of the reactor, and almost free. In a coroutine. */
static inline int64_t cheap_now(const struct throttle_group *g)
{
    return __builtin_expect(test_clock || g->clock, false) ? exact_now(g) : co_stall_clock();
}

void throttle_set_clock(int64_t (*now)(void))
{
    test_clock = now;
}

/* --- who passes ------------------------------------------------------------------------------- */

/* Make sure that a suspended waiter runs. Any thread. */
static void wake_locked(struct waiter *w)
{
    if (!w->woken) {
        w->woken = true;
        co_wake(w->co);
    }
}

static void on_timer(struct loop_timer *timer)
{
    struct waiter *w = container_of(timer, struct waiter, timer);
    struct throttle_group *g = w->member->group;

    pthread_mutex_lock(&g->lock);
    wake_locked(w);
    pthread_mutex_unlock(&g->lock);
}

static void enqueue_locked(struct throttle_group *g, struct waiter *w)
{
    struct throttle_member *m = w->member;

    /* The watcher sleeps as long as the other direction has to wait. */
    if (g->watcher && list_is_empty(&g->waiting[w->is_write])) {
        wake_locked(g->watcher);
    }
    if (list_is_empty(&m->queue[w->is_write])) {
        list_append(&g->waiting[w->is_write], &m->in_turn[w->is_write]);
    }
    list_append(&m->queue[w->is_write], &w->link);
}

/* Take the first request of a member's queue; it passes. The member goes to the end. */
static struct waiter *dequeue_locked(struct throttle_group *g, struct throttle_member *m,
                                     bool is_write)
{
    struct waiter *w = LIST_FIRST(&m->queue[is_write], struct waiter, link);

    list_remove(&w->link);
    list_remove(&m->in_turn[is_write]);
    if (!list_is_empty(&m->queue[is_write])) {
        list_append(&g->waiting[is_write], &m->in_turn[is_write]);
    }
    w->passed = true;
    wake_locked(w);
    return w;
}

static bool can_pass_locked(struct throttle_group *g, bool is_write, int64_t now)
{
    return !list_is_empty(&g->waiting[is_write]) &&
           throttle_buckets_wait(&g->buckets, is_write, now) == 0;
}

/* Let pass what may. */
static void let_pass_locked(struct throttle_group *g)
{
    int64_t now = exact_now(g);

    MUTEX_ASSERT_HELD(&g->lock);
    for (;;) {
        bool is_write = !g->latest;
        const struct waiter *w;

        if (!can_pass_locked(g, is_write, now)) {
            is_write = !is_write;
            if (!can_pass_locked(g, is_write, now)) {
                return;
            }
        }
        w = dequeue_locked(
            g, container_of(g->waiting[is_write].next, struct throttle_member, in_turn[is_write]),
            is_write);
        throttle_buckets_note_wait(&g->buckets, now);
        throttle_buckets_pour(&g->buckets, is_write, w->bytes);
        g->latest = is_write;
    }
}

/* When something that waits may pass. */
static int64_t next_pass_locked(struct throttle_group *g)
{
    int64_t now = exact_now(g), wait = INT64_MAX;

    for (int i = 0; i < 2; i++) {
        if (!list_is_empty(&g->waiting[i])) {
            wait = MIN(wait, throttle_buckets_wait(&g->buckets, i, now));
        }
    }
    return wait;
}

/* --- ends of users ---------------------------------------------------------------------------- */

static void hurry_queue_locked(struct throttle_group *g, struct throttle_member *m)
{
    for (int i = 0; i < 2; i++) {
        while (!list_is_empty(&m->queue[i])) {
            const struct waiter *w = dequeue_locked(g, m, i);

            throttle_buckets_pour_early(&g->buckets, i, w->bytes);
        }
    }
}

/* A member of a direction, not before `from`, whose user is about to end; NULL: none. */
static struct throttle_member *find_awaited_locked(struct throttle_group *g, int direction)
{
    struct list *l;

    for (l = g->waiting[direction].next; l != &g->waiting[direction]; l = l->next) {
        struct throttle_member *m = container_of(l, struct throttle_member, in_turn[direction]);

        if (m->node && block_node_is_awaited(m->node)) {
            return m;
        }
    }
    return NULL;
}

/* On the main reactor, where the graph may be looked at. */
static void look_for_ends(void *arg)
{
    struct throttle_group *g = arg;
    struct throttle_member *m;

    pthread_mutex_lock(&g->lock);
    while ((m = find_awaited_locked(g, 0)) || (m = find_awaited_locked(g, 1))) {
        hurry_queue_locked(g, m);
    }
    pthread_mutex_unlock(&g->lock);
    atomic_store(&g->looking, false);
}

/* Look for ends now and then; the members stay until the look has ended. */
static void plan_look_locked(struct throttle_group *g)
{
    int64_t now = loop_now_ns();

    if (now - g->looked_ns < LOOK_NS || atomic_exchange(&g->looking, true)) {
        return;
    }
    g->looked_ns = now;
    if (reactor_spawn(reactor_main(), look_for_ends, g) < 0) {
        atomic_store(&g->looking, false);
    }
}

/* --- waiting ---------------------------------------------------------------------------------- */

/* The last in a queue: it will wait longest. NULL: nobody waits. */
static struct waiter *find_watcher_locked(struct throttle_group *g)
{
    for (int i = 0; i < 2; i++) {
        if (!list_is_empty(&g->waiting[i])) {
            struct throttle_member *m =
                container_of(g->waiting[i].prev, struct throttle_member, in_turn[i]);

            return container_of(m->queue[i].prev, struct waiter, link);
        }
    }
    return NULL;
}

/* Suspend the caller until it passes or, as the watcher, until there is something to do. */
static void co_wait_turn_locked(struct throttle_group *g, struct waiter *w)
{
    bool watches;
    int64_t wait = 0;

    if (!g->watcher) {
        g->watcher = w;
    }
    watches = g->watcher == w;
    if (watches) {
        plan_look_locked(g);
        wait = MIN(next_pass_locked(g), LOOK_NS);
    }
    w->woken = false;
    pthread_mutex_unlock(&g->lock);
    if (watches) {
        loop_timer_arm(&w->timer, loop_now_ns() + wait);
    }
    co_suspend();
    if (watches) {
        loop_timer_disarm(&w->timer);
    }
    pthread_mutex_lock(&g->lock);
}

/* Called with the lock, returns without. */
static void co_wait_release(struct throttle_member *m, bool is_write, uint64_t bytes)
{
    struct throttle_group *g = m->group;
    struct waiter w = {.member = m, .co = co_self(), .is_write = is_write, .bytes = bytes};
    struct co_wait note;

    loop_timer_init(&w.timer, on_timer);
    enqueue_locked(g, &w);
    throttle_buckets_note_wait(&g->buckets, exact_now(g));
    co_wait_begin(&note, "the limits of the node", m->node ? m->node->name : "", -1);
    do {
        co_wait_turn_locked(g, &w);
        if (!w.passed && g->watcher == &w) {
            let_pass_locked(g);
        }
    } while (!w.passed);
    co_wait_end(&note);
    if (g->watcher == &w) {
        g->watcher = find_watcher_locked(g);
        if (g->watcher) {
            wake_locked(g->watcher);
        }
    }
    pthread_mutex_unlock(&g->lock);
}

static bool may_pass_locked(struct throttle_group *g, bool is_write)
{
    return list_is_empty(&g->waiting[is_write]) &&
           (throttle_buckets_wait(&g->buckets, is_write, cheap_now(g)) == 0 ||
            throttle_buckets_wait(&g->buckets, is_write, exact_now(g)) == 0);
}

bool throttle_lets_pass(struct throttle_member *m, bool is_write, uint64_t bytes)
{
    struct throttle_group *g = m->group;
    unsigned counts = atomic_load_explicit(&g->counts[is_write], memory_order_relaxed), index;

    if (counts == 0) {
        return true;
    }
    index = counters_index();
    return index < COUNTERS_SHARDS &&
           throttle_take_lease(&g->buckets.leases[index], counts, is_write, bytes);
}

void throttle_comes_again(struct throttle_member *m, bool is_write, uint64_t bytes)
{
    struct throttle_group *g = m->group;
    unsigned counts = atomic_load_explicit(&g->counts[is_write], memory_order_relaxed);
    unsigned index = counters_index();

    if (index < COUNTERS_SHARDS) {
        throttle_return_lease(&g->buckets.leases[index], counts, is_write, bytes);
    }
}

void throttle_co_pass(struct throttle_member *m, bool is_write, uint64_t bytes)
{
    struct throttle_group *g = m->group;
    unsigned index = counters_index();
    bool may_pass;

    if (throttle_lets_pass(m, is_write, bytes)) {
        return;
    }
    pthread_mutex_lock(&g->lock);
    throttle_buckets_reclaim(&g->buckets, index);
    if (m->hurried) {
        throttle_buckets_pour_early(&g->buckets, is_write, bytes);
        pthread_mutex_unlock(&g->lock);
        return;
    }
    may_pass = may_pass_locked(g, is_write);
    if (!may_pass) {
        throttle_buckets_reclaim_all(&g->buckets);
        may_pass = may_pass_locked(g, is_write);
    }
    if (!may_pass) {
        co_wait_release(m, is_write, bytes);
        return;
    }
    throttle_buckets_pour(&g->buckets, is_write, bytes);
    if (list_is_empty(&g->waiting[!is_write])) {
        throttle_buckets_prepay(&g->buckets, is_write, index);
    }
    pthread_mutex_unlock(&g->lock);
}

/* --- members ---------------------------------------------------------------------------------- */

void throttle_member_init(struct throttle_member *m, struct block_node *node,
                          struct throttle_group *group)
{
    *m = (struct throttle_member){.group = group, .node = node};
    for (int i = 0; i < 2; i++) {
        list_init(&m->queue[i]);
        list_init(&m->in_turn[i]);
    }
}

void throttle_co_member_leave(struct throttle_member *m)
{
    while (atomic_load(&m->group->looking)) {
        loop_co_sleep(NS_PER_MS);
    }
}

void throttle_member_hurry(struct throttle_member *m, bool hurry)
{
    pthread_mutex_lock(&m->group->lock);
    m->hurried = hurry;
    if (hurry) {
        hurry_queue_locked(m->group, m);
    }
    pthread_mutex_unlock(&m->group->lock);
}

void throttle_clock_changed(void)
{
    struct throttle_group *g;

    LIST_FOREACH (g, &all_groups, link) {
        pthread_mutex_lock(&g->lock);
        let_pass_locked(g);
        pthread_mutex_unlock(&g->lock);
    }
}

int64_t throttle_clock_next(void)
{
    struct throttle_group *g;
    int64_t next = INT64_MAX;

    LIST_FOREACH (g, &all_groups, link) {
        pthread_mutex_lock(&g->lock);
        next = g->clock ? MIN(next, next_pass_locked(g)) : next;
        pthread_mutex_unlock(&g->lock);
    }
    return next;
}

/* --- the object ------------------------------------------------------------------------------- */

static void put_in_force(struct throttle_group *g, const struct throttle_limits *limits)
{
    g->limits = *limits;
    pthread_mutex_lock(&g->lock);
    throttle_buckets_reclaim_all(&g->buckets);
    throttle_buckets_set(&g->buckets, limits, exact_now(g));
    for (int i = 0; i < 2; i++) {
        atomic_store(&g->counts[i], throttle_buckets_counts(&g->buckets, i));
    }
    let_pass_locked(g);
    /* It sleeps by the old limits. */
    if (g->watcher) {
        wake_locked(g->watcher);
    }
    pthread_mutex_unlock(&g->lock);
}

/* Change those of `next` that `limits` has. */
static int read_limits(struct json_object *limits, struct throttle_limits *next, struct error *err)
{
    AUTO_OPTIONS struct options *opts = NULL;
    struct json_object *arguments;
    int r;

    if (!json_object_is_type(limits, json_type_object)) {
        return error_set(err, EINVAL, "Invalid parameter type for 'limits', expected: object");
    }
    arguments = json_object_new_object();
    if (!arguments) {
        return error_out_of_memory(err);
    }
    json_object_object_add(arguments, "limits", json_object_get(limits));
    r = options_from_arguments(arguments, &opts, err);
    json_object_put(arguments);
    UNLESS_FAILED(r, throttle_limits_take(next, opts, false, err));
    return r;
}

int throttle_group_set(struct throttle_group *g, struct json_object *limits, struct error *err)
{
    struct throttle_limits next = g->limits;
    int r = read_limits(limits, &next, err);

    if (r == 0) {
        put_in_force(g, &next);
    }
    return r;
}

int throttle_group_check(struct json_object *limits, struct error *err)
{
    struct throttle_limits next;

    throttle_limits_init(&next);
    return read_limits(limits, &next, err);
}

struct json_object *throttle_group_get(struct throttle_group *g)
{
    return throttle_limits_to_json(&g->limits);
}

void throttle_group_free(struct throttle_group *g)
{
    list_remove(&g->link);
    pthread_mutex_destroy(&g->lock);
    free(g);
}

struct throttle_group *throttle_group_new(int64_t (*clock)(void))
{
    struct throttle_group *g = aligned_alloc(_Alignof(struct throttle_group), sizeof(*g));

    if (g) {
        memset(g, 0, sizeof(*g));
        g->clock = clock;
        throttle_limits_init(&g->limits);
        pthread_mutex_init(&g->lock, NULL);
        list_init(&g->waiting[0]);
        list_init(&g->waiting[1]);
        list_append(&all_groups, &g->link);
    }
    return g;
}

static void throttle_group_destroy(void *data)
{
    throttle_group_free(data);
}

static int throttle_group_create(const char *id, struct options *opts, void **ret_data,
                                 struct error *err)
{
    struct throttle_group *g;
    struct throttle_limits limits;
    int r;

    throttle_limits_init(&limits);
    r = throttle_limits_take(&limits, opts, true, err);
    if (r < 0) {
        return r;
    }
    g = throttle_group_new(NULL);
    if (!g) {
        return error_out_of_memory(err);
    }
    put_in_force(g, &limits);
    *ret_data = g;
    return 0;
}

/* A limit: its mean, its burst, and how long a burst may last. */
#define LIMIT(name, what, ...)                                                                     \
    OPT(name, schema_int, .dflt = "0", .unit = what, .max = THROTTLE_VALUE_MAX,                    \
        .help = "0: no limit", ##__VA_ARGS__),                                                     \
        OPT(name "-max", schema_int, .dflt = "0", .unit = what, .max = THROTTLE_VALUE_MAX,         \
            .help = "in a burst; 0: as without", ##__VA_ARGS__),                                   \
        OPT(name "-max-length", schema_int, .dflt = "1", .unit = "seconds", .min = 1,              \
            .max = INT64_MAX, .help = "of a burst", ##__VA_ARGS__)
#define ALL_LIMITS(prefix, ...)                                                                    \
    LIMIT(prefix "iops-total", "requests per second", ##__VA_ARGS__),                              \
        LIMIT(prefix "iops-read", "requests per second", ##__VA_ARGS__),                           \
        LIMIT(prefix "iops-write", "requests per second", ##__VA_ARGS__),                          \
        LIMIT(prefix "bps-total", "bytes per second", ##__VA_ARGS__),                              \
        LIMIT(prefix "bps-read", "bytes per second", ##__VA_ARGS__),                               \
        LIMIT(prefix "bps-write", "bytes per second", ##__VA_ARGS__),                              \
        OPT(prefix "iops-size", schema_int, .dflt = "0", .unit = "bytes",                          \
            .help = "a longer request counts as several; 0: as one", ##__VA_ARGS__)
OBJECT(limits_type, "ThrottleLimits", ALL_LIMITS(""));
OBJECT(throttle_group_properties, "ThrottleGroupProperties", OPT("limits", limits_type),
       ALL_LIMITS("x-", UNSTABLE));

/* "limits", or one of them by its name after "x-". */
static struct json_object *get_throttle_property(void *data, const char *name)
{
    struct json_object *limits = throttle_group_get(data), *value = NULL;

    if (strcmp(name, "limits") == 0) {
        return limits;
    }
    if (json_object_object_get_ex(limits, name + strlen("x-"), &value)) {
        json_object_get(value);
    }
    json_object_put(limits);
    return value;
}

static int set_throttle_property(void *data, const char *name, struct json_object *value,
                                 struct error *err)
{
    return strcmp(name, "limits") == 0
               ? throttle_group_set(data, value, err)
               : error_set(err, EINVAL, "Property cannot be set after initialization");
}

static const struct user_object_type throttle_group_type = {
    .name = "throttle-group",
    .create = throttle_group_create,
    .destroy = throttle_group_destroy,
    .properties = &throttle_group_properties,
    .get = get_throttle_property,
    .set = set_throttle_property,
    .help = "limits that the throttle nodes which name it share",
};

void throttle_group_register_type(void)
{
    user_object_register_type(&throttle_group_type);
}

struct throttle_group *throttle_group_find(const char *id, struct user_object **ret_object,
                                           struct error *err)
{
    struct user_object *o = user_object_ref(id);

    if (!o || user_object_type_of(o) != &throttle_group_type) {
        user_object_unref(o);
        error_set(err, ENOENT, "Throttle group '%s' does not exist", id);
        return NULL;
    }
    *ret_object = o;
    return user_object_data(o);
}
