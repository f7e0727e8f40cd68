/* SPDX-License-Identifier: Apache-2.0 */
#include "filter/throttle_group.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/time_units.h"
#include "block/user_object.h"
#include "loop/loop.h"
#include "schema/define.h"

/* As QEMU's. */
#define VALUE_MAX UINT64_C(1000000000000000)
/* Parts of a second that pass at once without a burst. */
#define CAPACITY_DIVISOR 10.0

struct bucket {
    uint64_t avg;              /* units per second; 0: no limit */
    uint64_t max;              /* of a burst; 0: none */
    uint64_t length;           /* of a burst, in seconds */
    double level, burst_level; /* units */
};

struct throttle_group {
    pthread_mutex_t lock; /* guards the levels and `leaked_ns` */
    struct bucket buckets[THROTTLE_LIMITS];
    uint64_t iops_size; /* bytes of a request that counts as one; 0: any */
    int64_t leaked_ns;  /* when the buckets leaked last */
};

/* --- pouring ---------------------------------------------------------------------------------- */

static void leak(struct throttle_group *g, int64_t now)
{
    double seconds = (double)(now - g->leaked_ns) / (double)NS_PER_SECOND;

    g->leaked_ns = now;
    for (int i = 0; i < THROTTLE_LIMITS; i++) {
        struct bucket *b = &g->buckets[i];

        b->level = MAX(b->level - (double)b->avg * seconds, 0);
        b->burst_level = MAX(b->burst_level - (double)b->max * seconds, 0);
    }
}

/* Seconds until the bucket lets a request pass. */
static double wait_of(const struct bucket *b)
{
    double rate = (double)b->avg, wait, burst_wait = 0;
    double capacity = b->max ? (double)b->max * (double)b->length : rate / CAPACITY_DIVISOR;

    if (b->avg == 0) {
        return 0;
    }
    wait = (b->level - capacity) / rate;
    if (b->length > 1) {
        burst_wait = (b->burst_level - (double)b->max / CAPACITY_DIVISOR) / (double)b->max;
    }
    return MAX(MAX(wait, burst_wait), 0);
}

/* Whether a limit concerns a request, and the units that the request has there. */
static double units_of(const struct throttle_group *g, int limit, bool is_write, uint64_t bytes)
{
    int direction = limit % 3; /* total, read, write */

    if ((direction == 1 && is_write) || (direction == 2 && !is_write)) {
        return 0;
    }
    if (limit < THROTTLE_IOPS_TOTAL) {
        return (double)bytes;
    }
    return g->iops_size && bytes > g->iops_size ? (double)bytes / (double)g->iops_size : 1;
}

int64_t throttle_group_pour(struct throttle_group *g, bool is_write, uint64_t bytes)
{
    double wait = 0;

    pthread_mutex_lock(&g->lock);
    leak(g, loop_now_ns());
    for (int i = 0; i < THROTTLE_LIMITS; i++) {
        struct bucket *b = &g->buckets[i];
        double units = units_of(g, i, is_write, bytes);

        if (b->avg > 0 && units > 0) {
            wait = MAX(wait, wait_of(b));
            b->level += units;
            b->burst_level += units;
        }
    }
    pthread_mutex_unlock(&g->lock);
    /* Longer than any process lives, and within the clock. */
    return (int64_t)(MIN(wait, 1e9) * (double)NS_PER_SECOND);
}

void throttle_group_take_back(struct throttle_group *g, bool is_write, uint64_t bytes)
{
    pthread_mutex_lock(&g->lock);
    for (int i = 0; i < THROTTLE_LIMITS; i++) {
        struct bucket *b = &g->buckets[i];
        double units = b->avg > 0 ? units_of(g, i, is_write, bytes) : 0;

        b->level = MAX(b->level - units, 0);
        b->burst_level = MAX(b->burst_level - units, 0);
    }
    pthread_mutex_unlock(&g->lock);
}

/* --- limits ----------------------------------------------------------------------------------- */

static const char *const limit_names[THROTTLE_LIMITS] = {"bps-total",  "bps-read",  "bps-write",
                                                         "iops-total", "iops-read", "iops-write"};

/* Take a value by its name in `limits`, or by its older name that begins with "x-". */
static int take_value(struct options *opts, struct options *limits, const char *name,
                      const char *suffix, uint64_t dflt, uint64_t *ret_value, struct error *err)
{
    char key[64], old_key[sizeof(key) + 2];
    int r;

    snprintf(key, sizeof(key), "%s%s", name, suffix);
    snprintf(old_key, sizeof(old_key), "x-%s", key);
    r = options_take_uint(opts, old_key, dflt, UINT64_MAX, ret_value, err);
    if (r < 0 || !limits) {
        return r;
    }
    return options_take_uint(limits, key, *ret_value, UINT64_MAX, ret_value, err);
}

static int take_bucket(struct options *opts, struct options *limits, const char *name,
                       struct bucket *b, struct error *err)
{
    int r = take_value(opts, limits, name, "", 0, &b->avg, err);

    UNLESS_FAILED(r, take_value(opts, limits, name, "-max", 0, &b->max, err));
    UNLESS_FAILED(r, take_value(opts, limits, name, "-max-length", 1, &b->length, err));
    return r;
}

static int check_bucket(const struct bucket *b, struct error *err)
{
    if (b->avg > VALUE_MAX || b->max > VALUE_MAX) {
        return error_set(err, EINVAL, "bps/iops/max values must be within [0, %llu]",
                         (unsigned long long)VALUE_MAX);
    }
    if (b->length == 0) {
        return error_set(err, EINVAL, "the burst length cannot be 0");
    }
    if (b->length > 1 && b->max == 0) {
        return error_set(err, EINVAL, "burst length set without burst rate");
    }
    if (b->max && b->length > VALUE_MAX / b->max) {
        return error_set(err, EINVAL, "burst length too high for this burst rate");
    }
    if (b->max && !b->avg) {
        return error_set(err, EINVAL, "bps_max/iops_max require corresponding bps/iops values");
    }
    if (b->max && b->max < b->avg) {
        return error_set(err, EINVAL, "bps_max/iops_max cannot be lower than bps/iops");
    }
    return 0;
}

/* Whether a total and one of its parts both have a value. */
static bool contradicts(const struct throttle_group *g, int total)
{
    const struct bucket *b = &g->buckets[total];

    return (b[0].avg && (b[1].avg || b[2].avg)) || (b[0].max && (b[1].max || b[2].max));
}

static int check_group(const struct throttle_group *g, struct error *err)
{
    int r = 0;

    if (contradicts(g, THROTTLE_BPS_TOTAL) || contradicts(g, THROTTLE_IOPS_TOTAL)) {
        return error_set(err, EINVAL,
                         "bps/iops/max total values and read/write values cannot be used at the "
                         "same time");
    }
    if (g->iops_size && !g->buckets[THROTTLE_IOPS_TOTAL].avg &&
        !g->buckets[THROTTLE_IOPS_READ].avg && !g->buckets[THROTTLE_IOPS_WRITE].avg) {
        return error_set(err, EINVAL, "iops size requires an iops value to be set");
    }
    for (int i = 0; i < THROTTLE_LIMITS && r == 0; i++) {
        r = check_bucket(&g->buckets[i], err);
    }
    return r;
}

/* --- the object ------------------------------------------------------------------------------- */

static void throttle_group_destroy(void *data)
{
    struct throttle_group *g = data;

    pthread_mutex_destroy(&g->lock);
    free(g);
}

static int take_limits(struct throttle_group *g, struct options *opts, struct error *err)
{
    AUTO_OPTIONS struct options *limits = NULL;
    AUTO_FREE char *wrong = NULL;
    int r = options_take_child(opts, "limits", &limits, &wrong, err);

    if (r == 0 && wrong) {
        r = error_set(err, EINVAL, "Invalid parameter type for 'limits', expected: object");
    }
    for (int i = 0; i < THROTTLE_LIMITS && r >= 0; i++) {
        r = take_bucket(opts, limits, limit_names[i], &g->buckets[i], err);
    }
    UNLESS_FAILED(r, take_value(opts, limits, "iops-size", "", 0, &g->iops_size, err));
    if (limits) {
        UNLESS_FAILED(r, options_check_empty(limits, "throttle-group", err));
    }
    return r < 0 ? r : check_group(g, err);
}

static int throttle_group_create(const char *id, struct options *opts, void **ret_data,
                                 struct error *err)
{
    struct throttle_group *g = calloc(1, sizeof(*g));
    int r;

    if (!g) {
        return error_out_of_memory(err);
    }
    pthread_mutex_init(&g->lock, NULL);
    g->leaked_ns = loop_now_ns();
    r = take_limits(g, opts, err);
    if (r < 0) {
        throttle_group_destroy(g);
        return r;
    }
    *ret_data = g;
    return 0;
}

/* A limit: its mean, its burst, and how long a burst may last. */
#define LIMIT(name, what, ...)                                                                     \
    OPT(name, schema_int, .dflt = "0", .unit = what, .max = VALUE_MAX, .help = "0: no limit",      \
        ##__VA_ARGS__),                                                                            \
        OPT(name "-max", schema_int, .dflt = "0", .unit = what, .max = VALUE_MAX,                  \
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

static const struct user_object_type throttle_group_type = {
    .name = "throttle-group",
    .create = throttle_group_create,
    .destroy = throttle_group_destroy,
    .properties = &throttle_group_properties,
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
