/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Limits of bytes and requests a second: their values, and the arithmetic. (QEMU's
 * docs/throttle.txt, and ThrottleLimits of its schema.)
 *
 * Each limit is a leaking bucket. A request passes when no bucket that concerns it is fuller than
 * its capacity, and pours its bytes, or 1, into them:
 *
 *     level ------------+          pours          the next one passes here
 *                       |\        +------+ .  .  .  |
 *     capacity  ........|.\.......|......|...\......v........
 *                       |  \      |      |    \  .
 *     0 ----------------+---\-----+------+-----\----.-------> time
 *
 * So a request may be larger than the capacity: those after it wait the longer. Without a burst the
 * capacity is a twentieth of a second at the rate. `max` allows bursts of that rate for `length`
 * seconds.
 *
 * No locks, but for what is prepaid: the owner has one. None of these functions yields.
 */
#ifndef TIDEMARK_FILTER_THROTTLE_LIMITS_H
#define TIDEMARK_FILTER_THROTTLE_LIMITS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "block/options.h"

struct json_object;

/* The greatest value of a limit. */
#define THROTTLE_VALUE_MAX UINT64_C(1000000000000000)

enum throttle_limit {
    THROTTLE_BPS_TOTAL,
    THROTTLE_BPS_READ,
    THROTTLE_BPS_WRITE,
    THROTTLE_IOPS_TOTAL,
    THROTTLE_IOPS_READ,
    THROTTLE_IOPS_WRITE,
    THROTTLE_LIMITS
};

struct throttle_limit_value {
    uint64_t avg;    /* units per second; 0: no limit */
    uint64_t max;    /* of a burst, likewise; 0: none */
    uint64_t length; /* of a burst, in seconds; at least 1 */
};

/* What a user sets. */
struct throttle_limits {
    struct throttle_limit_value values[THROTTLE_LIMITS];
    uint64_t iops_size; /* bytes of a request that counts as one; 0: any number */
};

/* No limits. */
void throttle_limits_init(struct throttle_limits *l);
/*
 * Take new values from the option `limits` and, with `old_names`, from those that begin with "x-".
 * Values that are not given stay. -EINVAL, with QEMU's sentences, if they are wrong or contradict
 * each other; `l` is then undefined.
 */
int throttle_limits_take(struct throttle_limits *l, struct options *opts, bool old_names,
                         struct error *err);
/* All values by their names; a new reference, NULL: no memory. */
struct json_object *throttle_limits_to_json(const struct throttle_limits *l);

struct throttle_bucket {
    double rate, burst_rate;         /* units per nanosecond */
    double capacity, burst_capacity; /* units; the latter infinite: bursts have no length */
    double level, burst_level;
    int64_t leaked_ns; /* when it leaked last */
    /* Units that were poured before their requests came: those pass without the lock. */
    _Atomic int64_t prepaid;
};

/* The buckets of one direction: at most one counts bytes, and one requests. */
struct throttle_buckets {
    struct throttle_bucket all[THROTTLE_LIMITS];
    /* Those that concern reads (0) and writes (1); `count` of each. */
    struct throttle_bucket *_Atomic bytes[2], *_Atomic requests[2]; /* NULL: no such limit */
    uint64_t iops_size;
    /*
     * Until then time counts that passed while the buckets were empty, a second at most: requests
     * waited lately, so the rate was not used up only because their turn came late.
     */
    int64_t owed_until_ns;
};

/*
 * Put limits in force. Buckets keep their levels, but not what is above the new capacity: nobody
 * pays off a debt at a lower rate than the one it was made at. The struct is not copied afterwards.
 */
void throttle_buckets_set(struct throttle_buckets *b, const struct throttle_limits *l, int64_t now);
/*
 * How long it takes until a read or write may pass, in nanoseconds; 0: it may. `now` may go
 * backwards a bit, which changes nothing.
 */
int64_t throttle_buckets_wait(struct throttle_buckets *b, bool is_write, int64_t now);
/* Requests wait, at this time. */
void throttle_buckets_note_wait(struct throttle_buckets *b, int64_t now);
/* A request of `bytes` passes. */
void throttle_buckets_pour(struct throttle_buckets *b, bool is_write, uint64_t bytes);
/*
 * Pour something for requests of a direction that may come, half of the room at most, so that they
 * need no lock; and pour back what they have not used. While requests wait nothing is prepaid.
 */
void throttle_buckets_prepay(struct throttle_buckets *b, bool is_write);
void throttle_buckets_reclaim(struct throttle_buckets *b);

/* Take units that were prepaid; NULL: no limit. Any thread, without the lock. */
static inline bool throttle_take_prepaid(struct throttle_bucket *b, int64_t units)
{
    if (!b || atomic_fetch_sub_explicit(&b->prepaid, units, memory_order_relaxed) >= units) {
        return true;
    }
    atomic_fetch_add_explicit(&b->prepaid, units, memory_order_relaxed);
    return false;
}

/* Whether a request of `bytes` was prepaid. Any thread, without the lock. */
static inline bool throttle_buckets_take_prepaid(struct throttle_buckets *b, bool is_write,
                                                 uint64_t bytes)
{
    struct throttle_bucket *first = atomic_load_explicit(&b->bytes[is_write], memory_order_relaxed);

    if (!throttle_take_prepaid(first, (int64_t)bytes)) {
        return false;
    }
    if (throttle_take_prepaid(atomic_load_explicit(&b->requests[is_write], memory_order_relaxed),
                              1)) {
        return true;
    }
    if (first) {
        atomic_fetch_add_explicit(&first->prepaid, (int64_t)bytes, memory_order_relaxed);
    }
    return false;
}
/*
 * A request passes without having waited, because somebody waits for it. Those after it wait for
 * that at most a second.
 */
void throttle_buckets_pour_early(struct throttle_buckets *b, bool is_write, uint64_t bytes);

#endif
