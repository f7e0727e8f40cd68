/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Groups of limits, and the object "throttle-group" (QEMU's docs/throttle.txt). All nodes that name
 * a group share its limits.
 *
 * Each limit is a leaking bucket. A request pours its bytes, or 1, into the buckets that concern
 * it, and waits until what was there before has leaked down to what the bucket lets pass at once:
 *
 *     level ------------+          pours          the request goes here
 *                       |\        +------+ .  .  .  |
 *     capacity  ........|.\.......|......|...\......v........
 *                       |  \      |      |    \  .
 *     0 ----------------+---\-----+------+-----\----.-------> time
 *
 * Without a burst the capacity is a tenth of a second at the rate. `max` allows bursts of that rate
 * for `length` seconds.
 */
#ifndef TIDEMARK_FILTER_THROTTLE_GROUP_H
#define TIDEMARK_FILTER_THROTTLE_GROUP_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

struct throttle_group;
struct user_object;

enum throttle_limit {
    THROTTLE_BPS_TOTAL,
    THROTTLE_BPS_READ,
    THROTTLE_BPS_WRITE,
    THROTTLE_IOPS_TOTAL,
    THROTTLE_IOPS_READ,
    THROTTLE_IOPS_WRITE,
    THROTTLE_LIMITS
};

/* Register the object's type. Once, at start; does not yield. */
void throttle_group_register_type(void);

/*
 * The group of an object; NULL, with an error: there is none. The caller gives *ret_object back by
 * user_object_unref(). Main reactor; does not yield.
 */
struct throttle_group *throttle_group_find(const char *id, struct user_object **ret_object,
                                           struct error *err);

/*
 * A request of `bytes` begins: pour it in. Returns how long it has to wait, in nanoseconds. Any
 * thread; does not yield.
 */
int64_t throttle_group_pour(struct throttle_group *g, bool is_write, uint64_t bytes);
/* It does not wait to the end: what it poured does not count. Likewise. */
void throttle_group_take_back(struct throttle_group *g, bool is_write, uint64_t bytes);

#endif
