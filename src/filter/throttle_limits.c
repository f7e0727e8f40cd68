/* SPDX-License-Identifier: Apache-2.0 */
#include "filter/throttle_limits.h"

#include <errno.h>
#include <json-c/json.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/time_units.h"

/* As QEMU's. */
/* Parts of a second that pass at once without a burst. */
#define CAPACITY_DIVISOR 20.0
/* Likewise at the rate of a burst that has a length; as QEMU's. */
#define BURST_DIVISOR 10.0
/* How long after requests have waited they are owed what was not used. */
#define OWED_AFTER_NS (250 * NS_PER_MS)

static const char *const limit_names[THROTTLE_LIMITS] = {"bps-total",  "bps-read",  "bps-write",
                                                         "iops-total", "iops-read", "iops-write"};

/* --- values ----------------------------------------------------------------------------------- */

void throttle_limits_init(struct throttle_limits *l)
{
    *l = (struct throttle_limits){0};
    for (int i = 0; i < THROTTLE_LIMITS; i++) {
        l->values[i].length = 1;
    }
}

/* Where options are taken from; each may be NULL. */
struct sources {
    struct options *limits, *old_names;
};

/* The sentences that QEMU has for a negative value, `limit` being an average or a burst. */
static int take_limit_number(struct options *opts, const char *key, bool limit, uint64_t *value,
                             struct error *err)
{
    AUTO_FREE char *text = NULL;
    int r = options_take_uint(opts, key, *value, UINT64_MAX, value, err);

    if (r >= 0 || options_take_text(opts, key, &text, NULL) < 0 || !text || text[0] != '-') {
        return r;
    }
    if (err) {
        error_clear(err);
    }
    return limit && strncmp(key, "x-", 2) != 0
               ? error_set(err, EINVAL, "bps/iops/max values must be within [0, %llu]",
                           (unsigned long long)THROTTLE_VALUE_MAX)
               : error_set(err, EINVAL, "Property values cannot be negative");
}

static int take_limit_value(const struct sources *from, const char *name, const char *suffix,
                            uint64_t *value, struct error *err)
{
    char key[64], old_key[sizeof(key) + 2];
    bool limit = suffix[0] == '\0' || strcmp(suffix, "-max") == 0;
    int r = 0;

    snprintf(key, sizeof(key), "%s%s", name, suffix);
    snprintf(old_key, sizeof(old_key), "x-%s", key);
    if (from->old_names && from->limits && options_has(from->old_names, old_key) &&
        options_has(from->limits, key)) {
        return error_set(err, EINVAL, "'%s' and '%s' of 'limits' exclude each other", old_key, key);
    }
    if (from->old_names) {
        r = take_limit_number(from->old_names, old_key, limit, value, err);
    }
    if (from->limits) {
        UNLESS_FAILED(r, take_limit_number(from->limits, key, limit, value, err));
    }
    return r;
}

static int take_rate_limit(const struct sources *from, const char *name,
                           struct throttle_limit_value *v, struct error *err)
{
    int r = take_limit_value(from, name, "", &v->avg, err);

    UNLESS_FAILED(r, take_limit_value(from, name, "-max", &v->max, err));
    UNLESS_FAILED(r, take_limit_value(from, name, "-max-length", &v->length, err));
    if (r == 0 && v->length > UINT32_MAX) {
        r = error_set(err, EINVAL, "%s-max-length value must be in the range [0, %u]", name,
                      UINT32_MAX);
    }
    return r;
}

static int check_limit(const struct throttle_limit_value *v, struct error *err)
{
    if (v->avg > THROTTLE_VALUE_MAX || v->max > THROTTLE_VALUE_MAX) {
        return error_set(err, EINVAL, "bps/iops/max values must be within [0, %llu]",
                         (unsigned long long)THROTTLE_VALUE_MAX);
    }
    if (v->length == 0) {
        return error_set(err, EINVAL, "the burst length cannot be 0");
    }
    if (v->length > 1 && v->max == 0) {
        return error_set(err, EINVAL, "burst length set without burst rate");
    }
    if (v->max && v->length > THROTTLE_VALUE_MAX / v->max) {
        return error_set(err, EINVAL, "burst length too high for this burst rate");
    }
    if (v->max && !v->avg) {
        return error_set(err, EINVAL, "bps_max/iops_max require corresponding bps/iops values");
    }
    if (v->max && v->max < v->avg) {
        return error_set(err, EINVAL, "bps_max/iops_max cannot be lower than bps/iops");
    }
    return 0;
}

/* Whether a total and one of its parts both have a value. */
static bool contradicts(const struct throttle_limit_value *v)
{
    return (v[0].avg && (v[1].avg || v[2].avg)) || (v[0].max && (v[1].max || v[2].max));
}

static int check_limits(const struct throttle_limits *l, struct error *err)
{
    const struct throttle_limit_value *v = l->values;
    int r = 0;

    if (contradicts(&v[THROTTLE_BPS_TOTAL]) || contradicts(&v[THROTTLE_IOPS_TOTAL])) {
        return error_set(err, EINVAL,
                         "bps/iops/max total values and read/write values cannot be used at the "
                         "same time");
    }
    if (l->iops_size && !v[THROTTLE_IOPS_TOTAL].avg && !v[THROTTLE_IOPS_READ].avg &&
        !v[THROTTLE_IOPS_WRITE].avg) {
        return error_set(err, EINVAL, "iops size requires an iops value to be set");
    }
    for (int i = 0; i < THROTTLE_LIMITS && r == 0; i++) {
        r = check_limit(&v[i], err);
    }
    return r;
}

int throttle_limits_take(struct throttle_limits *l, struct options *opts, bool old_names,
                         struct error *err)
{
    AUTO_OPTIONS struct options *limits = NULL;
    AUTO_FREE char *wrong = NULL;
    struct sources from = {.old_names = old_names ? opts : NULL};
    int r = options_take_child(opts, "limits", &limits, &wrong, err);

    from.limits = limits;
    if (r == 0 && wrong) {
        r = error_set(err, EINVAL, "Invalid parameter type for 'limits', expected: object");
    }
    for (int i = 0; i < THROTTLE_LIMITS; i++) {
        UNLESS_FAILED(r, take_rate_limit(&from, limit_names[i], &l->values[i], err));
    }
    UNLESS_FAILED(r, take_limit_value(&from, "iops", "-size", &l->iops_size, err));
    if (limits) {
        UNLESS_FAILED(r, options_check_empty(limits, "throttle-group", err));
    }
    return r < 0 ? r : check_limits(l, err);
}

static void add_value(struct json_object *all, const char *name, const char *suffix, uint64_t value)
{
    char key[64];

    snprintf(key, sizeof(key), "%s%s", name, suffix);
    json_object_object_add(all, key, json_object_new_int64((int64_t)value));
}

struct json_object *throttle_limits_to_json(const struct throttle_limits *l)
{
    struct json_object *all = json_object_new_object();

    for (int i = 0; all && i < THROTTLE_LIMITS; i++) {
        add_value(all, limit_names[i], "", l->values[i].avg);
        add_value(all, limit_names[i], "-max", l->values[i].max);
        add_value(all, limit_names[i], "-max-length", l->values[i].length);
    }
    if (all) {
        add_value(all, "iops-size", "", l->iops_size);
    }
    return all;
}

/* --- buckets ---------------------------------------------------------------------------------- */

static void set_bucket(struct throttle_bucket *b, const struct throttle_limit_value *v, int64_t now)
{
    double second = (double)NS_PER_SECOND;

    b->rate = (double)v->avg / second;
    b->burst_rate = (double)v->max / second;
    b->capacity = v->max ? (double)v->max * (double)v->length : (double)v->avg / CAPACITY_DIVISOR;
    b->burst_capacity = v->length > 1 ? (double)v->max / BURST_DIVISOR : INFINITY;
    b->level = MIN(b->level, b->capacity);
    b->burst_level = MIN(b->burst_level, b->burst_capacity);
    b->leaked_ns = now;
}

/* The one of a total and a part that is set; NULL: none. */
static struct throttle_bucket *choose(struct throttle_bucket *total, struct throttle_bucket *part)
{
    return total->rate > 0 ? total : part->rate > 0 ? part : NULL;
}

void throttle_buckets_set(struct throttle_buckets *b, const struct throttle_limits *l, int64_t now)
{
    for (int i = 0; i < THROTTLE_LIMITS; i++) {
        set_bucket(&b->all[i], &l->values[i], now);
    }
    for (int i = 0; i < 2; i++) {
        b->bytes[i] = choose(&b->all[THROTTLE_BPS_TOTAL], &b->all[THROTTLE_BPS_READ + i]);
        b->requests[i] = choose(&b->all[THROTTLE_IOPS_TOTAL], &b->all[THROTTLE_IOPS_READ + i]);
    }
    b->iops_size = l->iops_size;
}

/* What was not used goes back; what is owed stays owed. */
static double give_back(double level, double units)
{
    return MAX(level - units, MIN(level, 0));
}

/* Lower a level by `ns` of a rate; not below zero by more than `owed` nanoseconds of it. */
static inline double leak(double level, double rate, int64_t ns, int64_t owed)
{
    return MAX(level - rate * (double)ns, -rate * (double)owed);
}

void throttle_buckets_note_wait(struct throttle_buckets *b, int64_t now)
{
    b->owed_until_ns = now + OWED_AFTER_NS;
}

/* Nanoseconds until the bucket lets a request pass. */
static inline double wait_of(struct throttle_bucket *b, int64_t now, int64_t owed)
{
    double wait = 0;

    if (!b) {
        return 0;
    }
    if (now > b->leaked_ns) {
        int64_t elapsed = now - b->leaked_ns;

        b->level = leak(b->level, b->rate, elapsed, owed);
        b->burst_level = leak(b->burst_level, b->burst_rate, elapsed, owed);
        b->leaked_ns = now;
    }
    if (b->level > b->capacity) {
        wait = (b->level - b->capacity) / b->rate;
    }
    if (b->burst_level > b->burst_capacity) {
        wait = MAX(wait, (b->burst_level - b->burst_capacity) / b->burst_rate);
    }
    return wait;
}

int64_t throttle_buckets_wait(struct throttle_buckets *b, bool is_write, int64_t now)
{
    int64_t owed = now < b->owed_until_ns ? NS_PER_SECOND : 0;
    double wait =
        MAX(wait_of(b->bytes[is_write], now, owed), wait_of(b->requests[is_write], now, owed));

    /* At most longer than any process lives, and within the clock; rounded up. */
    return wait > 0 ? (int64_t)MIN(wait, 1e18) + 1 : 0;
}

static inline double requests_of(const struct throttle_buckets *b, uint64_t bytes)
{
    return b->iops_size && bytes > b->iops_size ? (double)bytes / (double)b->iops_size : 1;
}

static inline void pour(struct throttle_bucket *b, double units)
{
    b->level += units;
    b->burst_level += units;
}

void throttle_buckets_pour(struct throttle_buckets *b, bool is_write, uint64_t bytes)
{
    if (b->bytes[is_write]) {
        pour(b->bytes[is_write], (double)bytes);
    }
    if (b->requests[is_write]) {
        pour(b->requests[is_write], requests_of(b, bytes));
    }
}

static void prepay(struct throttle_bucket *b, struct throttle_prepaid *p, unsigned reactors)
{
    double room;

    if (b) {
        room = MIN(b->capacity - b->level, b->burst_capacity - b->burst_level) / 2;
        /* A burst is not to be paid for at once. */
        room = MIN(room, b->rate * (double)NS_PER_SECOND / CAPACITY_DIVISOR / 2 / reactors);
        room = floor(room);
        if (room >= 1) {
            pour(b, room);
            atomic_fetch_add(&p->granted, (int64_t)room);
        }
    }
}

void throttle_buckets_prepay(struct throttle_buckets *b, bool is_write, unsigned index)
{
    if (index >= COUNTERS_SHARDS) {
        return;
    }
    b->lease_count = MAX(b->lease_count, index + 1);
    prepay(b->bytes[is_write], &b->leases[index].bytes[is_write], b->lease_count);
    if (b->iops_size == 0) {
        prepay(b->requests[is_write], &b->leases[index].requests[is_write], b->lease_count);
    }
}

static void reclaim(struct throttle_bucket *b, struct throttle_prepaid *p)
{
    int64_t left = atomic_load(&p->granted) - atomic_load(&p->taken);

    if (b && left != 0) {
        atomic_fetch_sub(&p->granted, left);
        b->level = give_back(b->level, (double)left);
        b->burst_level = give_back(b->burst_level, (double)left);
    }
}

void throttle_buckets_reclaim(struct throttle_buckets *b, unsigned index)
{
    for (int i = 0; i < 2 && index < b->lease_count; i++) {
        reclaim(b->bytes[i], &b->leases[index].bytes[i]);
        reclaim(b->requests[i], &b->leases[index].requests[i]);
    }
}

void throttle_buckets_reclaim_all(struct throttle_buckets *b)
{
    for (unsigned i = 0; i < b->lease_count; i++) {
        throttle_buckets_reclaim(b, i);
    }
}

static double raise_early(double level, double units, double capacity, double rate)
{
    double most = MAX(level, capacity + rate * (double)NS_PER_SECOND);

    return MIN(level + units, most);
}

static void pour_early(struct throttle_bucket *b, double units)
{
    if (b) {
        b->level = raise_early(b->level, units, b->capacity, b->rate);
        b->burst_level = raise_early(b->burst_level, units, b->burst_capacity, b->burst_rate);
    }
}

void throttle_buckets_pour_early(struct throttle_buckets *b, bool is_write, uint64_t bytes)
{
    pour_early(b->bytes[is_write], (double)bytes);
    pour_early(b->requests[is_write], requests_of(b, bytes));
}
