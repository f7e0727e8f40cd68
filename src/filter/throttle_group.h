/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Groups of limits (throttle_limits.h), and the object "throttle-group". All nodes that name a
 * group are its members, and share its limits.
 *
 * A request that may not pass yet waits in a queue of its member and direction. When something may
 * pass, the members with requests of a direction have their turn one after the other, a request
 * each, and so have the directions. A member with many requests in flight gets no more than one
 * with few.
 *
 *     waiting[READ]  -> member a -> member c           the first is next; after its turn the
 *                        |           |                 member goes to the end
 *                       queue       queue
 *
 * One of the waiting coroutines, the *watcher*, sleeps until something may pass, and then lets it;
 * when it passes itself, another one becomes watcher. So a group needs no thread and no reactor of
 * its own, and its members may be on any.
 *
 * Functions are for the main reactor, and do not yield, unless they say otherwise.
 */
#ifndef TIDEMARK_FILTER_THROTTLE_GROUP_H
#define TIDEMARK_FILTER_THROTTLE_GROUP_H

#include "base/list.h"
#include "filter/throttle_limits.h"

struct block_node;
struct throttle_group;
struct user_object;

/* Register the object's type. Once, at start. */
void throttle_group_register_type(void);

/*
 * The group of an object; NULL, with an error: there is none. The caller gives *ret_object back by
 * user_object_unref().
 */
struct throttle_group *throttle_group_find(const char *id, struct user_object **ret_object,
                                           struct error *err);

/*
 * A group without an object, and without limits; NULL: no memory. Free it when it has no members.
 * `clock`: as throttle_set_clock() has it, for this group alone.
 */
struct throttle_group *throttle_group_new(int64_t (*clock)(void));
void throttle_group_free(struct throttle_group *g);

/*
 * Other limits for a group in use. `limits` is a ThrottleLimits of QEMU's schema; values that it
 * does not have stay. -EINVAL with a sentence: nothing has changed.
 */
int throttle_group_set(struct throttle_group *g, struct json_object *limits, struct error *err);
/* Whether a new group could have these limits: 0, or -EINVAL with a sentence. */
int throttle_group_check(struct json_object *limits, struct error *err);
/* The limits in force, by the same names; a new reference. */
struct json_object *throttle_group_get(struct throttle_group *g);

/* A node in a group, or another user whose requests wait. */
struct throttle_member {
    struct throttle_group *group;
    struct block_node *node; /* NULL: no node */
    /* Guarded by the group's lock from here on; by direction: reads, writes. */
    struct list queue[2];   /* of struct waiter, oldest first */
    struct list in_turn[2]; /* in group->waiting while the queue is not empty */
    bool hurried;
};

/* Make a node, or NULL, a member of a group. No request waits when it changes or leaves it. */
void throttle_member_init(struct throttle_member *m, struct block_node *node,
                          struct throttle_group *group);
void throttle_co_member_leave(struct throttle_member *m); /* yields */

/*
 * Wait until a request of `bytes` may pass. Any reactor, coroutine; yields if it has to wait, which
 * it does not while the member is in a hurry, or if somebody waits for requests of the node
 * (block_node_is_awaited()).
 */
void throttle_co_pass(struct throttle_member *m, bool is_write, uint64_t bytes);

/*
 * Whether a request of `bytes` passes at once, without the group's lock: no limit concerns it, or
 * it was prepaid (throttle_buckets_prepay()). And to take that back, for a request that was not
 * made, and comes again. Any reactor; neither yields.
 */
bool throttle_lets_pass(struct throttle_member *m, bool is_write, uint64_t bytes);
void throttle_comes_again(struct throttle_member *m, bool is_write, uint64_t bytes);

/*
 * From now on, until it is called with false, no request of the member waits, and those that do
 * pass at once. They count: the group pays for them later (throttle_buckets_pour_early()).
 */
void throttle_member_hurry(struct throttle_member *m, bool hurry);

/*
 * For tests: take the time, in nanoseconds, from a function that does not yield, on any thread;
 * NULL: that of the system. Once, at start. Whoever changes such a clock calls
 * throttle_clock_changed(), which lets pass what may; it does not wait until that has happened.
 */
void throttle_set_clock(int64_t (*now)(void));
void throttle_clock_changed(void);
/*
 * How long it takes until something that waits may pass in a group with a clock of its own, by that
 * clock; INT64_MAX: nothing waits.
 */
int64_t throttle_clock_next(void);

#endif
