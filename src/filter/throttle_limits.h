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
 * No locks, but for leases: the owner has one. None of these functions yields.
 */
#ifndef TIDEMARK_FILTER_THROTTLE_LIMITS_H
#define TIDEMARK_FILTER_THROTTLE_LIMITS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/counters.h"
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
};

/*
 * Units that were poured before their requests came, and those that requests have taken of them;
 * both only grow, but for requests that were not made. A request passes without the lock while it
 * takes no more than is granted.
 */
struct throttle_prepaid {
    _Atomic int64_t granted; /* changes with the lock */
    /*
     * The thread that runs the reactor writes it, and no other, so a request costs no atomic
     * operation that locks the bus. Whoever takes back what is left reads it, and may miss a
     * request of that moment: more is taken then than granted, and the next look finds the debt.
     */
    _Atomic int64_t taken;
};

/*
 * Of one reactor, so that reactors do not share a cache line for each request; by direction, for
 * the bucket that counts bytes in it, and for the one that counts requests.
 */
struct throttle_lease {
    _Alignas(64) struct throttle_prepaid bytes[2], requests[2];
};

/* The buckets of one direction: at most one counts bytes, and one requests. */
struct throttle_buckets {
    struct throttle_bucket all[THROTTLE_LIMITS];
    /* Those that concern reads (0) and writes (1); `count` of each. */
    struct throttle_bucket *bytes[2], *requests[2]; /* NULL: no such limit */
    uint64_t iops_size;
    /*
     * Until then time counts that passed while the buckets were empty, a second at most: requests
     * waited lately, so the rate was not used up only because their turn came late.
     */
    int64_t owed_until_ns;
    /* By the index of the reactor, and how many of them have been used. */
    struct throttle_lease leases[COUNTERS_SHARDS];
    unsigned lease_count;
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
 * Pour something for requests of a direction that may come on a reactor (an index as of
 * counters_index()), half of the room at most, so that they need no lock; and not more than its
 * part of a fortieth of a second at the rate. While requests wait nothing is prepaid. On that
 * reactor.
 */
void throttle_buckets_prepay(struct throttle_buckets *b, bool is_write, unsigned index);
/*
 * Pour back what one reactor has not used, or what all have not; pour what was taken in excess.
 * Exact for the reactor of the caller.
 */
void throttle_buckets_reclaim(struct throttle_buckets *b, unsigned index);
void throttle_buckets_reclaim_all(struct throttle_buckets *b);

/* Whether `count` more units are granted. On the reactor of `p`. */
static inline bool throttle_is_prepaid(const struct throttle_prepaid *p, int64_t count)
{
    return atomic_load_explicit(&p->taken, memory_order_relaxed) + count <=
           atomic_load_explicit(&p->granted, memory_order_relaxed);
}

/* Take units, or give them back (a negative count). On the reactor of `p`. */
static inline void throttle_take_prepaid(struct throttle_prepaid *p, int64_t count)
{
    atomic_store_explicit(&p->taken, atomic_load_explicit(&p->taken, memory_order_relaxed) + count,
                          memory_order_relaxed);
}

/* What the limits of a direction count. */
enum throttle_counts {
    THROTTLE_COUNTS_BYTES = 1 << 0,
    THROTTLE_COUNTS_REQUESTS = 1 << 1,
};

/* Bits of enum throttle_counts. */
static inline unsigned throttle_buckets_counts(const struct throttle_buckets *b, bool is_write)
{
    return (b->bytes[is_write] ? THROTTLE_COUNTS_BYTES : 0u) |
           (b->requests[is_write] ? THROTTLE_COUNTS_REQUESTS : 0u);
}

/* Take what a request of `bytes` counts. On the reactor of `lease`, without the lock. */
static inline void throttle_use_lease(struct throttle_lease *lease, unsigned counts, bool is_write,
                                      int64_t bytes, int64_t requests)
{
    if (counts & THROTTLE_COUNTS_BYTES) {
        throttle_take_prepaid(&lease->bytes[is_write], bytes);
    }
    if (counts & THROTTLE_COUNTS_REQUESTS) {
        throttle_take_prepaid(&lease->requests[is_write], requests);
    }
}

/*
 * Whether a request of `bytes` was prepaid, where the limits count what `counts` says; it takes its
 * part then. On the reactor of `lease`, without the lock.
 */
static inline bool throttle_take_lease(struct throttle_lease *lease, unsigned counts, bool is_write,
                                       uint64_t bytes)
{
    if ((counts & THROTTLE_COUNTS_BYTES &&
         !throttle_is_prepaid(&lease->bytes[is_write], (int64_t)bytes)) ||
        (counts & THROTTLE_COUNTS_REQUESTS &&
         !throttle_is_prepaid(&lease->requests[is_write], 1))) {
        return false;
    }
    throttle_use_lease(lease, counts, is_write, (int64_t)bytes, 1);
    return true;
}

/* Put that back, for a request that was not made. On the reactor of `lease`, without the lock. */
static inline void throttle_return_lease(struct throttle_lease *lease, unsigned counts,
                                         bool is_write, uint64_t bytes)
{
    throttle_use_lease(lease, counts, is_write, -(int64_t)bytes, -1);
}

/*
 * A request passes without having waited, because somebody waits for it. Those after it wait for
 * that at most a second.
 */
void throttle_buckets_pour_early(struct throttle_buckets *b, bool is_write, uint64_t bytes);

#endif
