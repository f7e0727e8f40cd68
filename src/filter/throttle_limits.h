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
 * No locks: the owner has one. None of these functions yields.
 */
#ifndef TIDEMARK_FILTER_THROTTLE_LIMITS_H
#define TIDEMARK_FILTER_THROTTLE_LIMITS_H

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
};

/* The buckets of one direction: at most one counts bytes, and one requests. */
struct throttle_buckets {
    struct throttle_bucket all[THROTTLE_LIMITS];
    /* Those that concern reads (0) and writes (1); `count` of each. */
    struct throttle_bucket *bytes[2], *requests[2]; /* NULL: no such limit */
    uint64_t iops_size;
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
/* A request of `bytes` passes. */
void throttle_buckets_pour(struct throttle_buckets *b, bool is_write, uint64_t bytes);
/*
 * A request passes without having waited, because somebody waits for it. Those after it wait for
 * that at most a second.
 */
void throttle_buckets_pour_early(struct throttle_buckets *b, bool is_write, uint64_t bytes);

#endif
