/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The driver "throttle": requests wait as long as the limits of a group say (throttle_group.h).
 * Options: throttle-group (the id of an object throttle-group), file.
 *
 * While the node is drained nothing waits: whoever drains waits for the requests, and a limit of a
 * few bytes a second would hold up a command for minutes.
 */
#include <errno.h>
#include <stdatomic.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "block/user_object.h"
#include "filter/filter.h"
#include "filter/throttle_group.h"
#include "loop/loop.h"
#include "schema/define.h"

/* How soon a request that waits notices a drain. */
#define LOOK_NS (10 * NS_PER_MS)

struct throttle {
    atomic_bool drained;
    struct throttle_group *group;
    struct user_object *object; /* referenced: keeps the group */
};

OBJECT(throttle_options, "BlockdevOptionsThrottle",
       REQ("throttle-group", schema_str, .help = "id of the object with the limits"),
       REQ("file", block_ref_type));

static int throttle_co_open(struct block_node *node, struct options *opts, struct error *err)
{
    struct throttle *t = node->opaque;
    AUTO_FREE char *id = NULL;
    int r = options_take_str(opts, "throttle-group", &id, err);

    if (r < 0) {
        return r;
    }
    if (!id) {
        return options_missing(opts, "throttle-group", err);
    }
    r = block_co_open_filtered(node, opts, "file", err);
    if (r < 0) {
        return r;
    }
    t->group = throttle_group_find(id, &t->object, err);
    return t->group ? 0 : -ENOENT;
}

static void throttle_co_close(struct block_node *node)
{
    struct throttle *t = node->opaque;

    user_object_unref(t->object);
}

static void throttle_drain_begin(struct block_node *node)
{
    struct throttle *t = node->opaque;

    atomic_store(&t->drained, true);
}

static void throttle_drain_end(struct block_node *node)
{
    struct throttle *t = node->opaque;

    atomic_store(&t->drained, false);
}

/*
 * Whether somebody waits for requests here: a drain; or, where the graph may be looked at, the end
 * of a user.
 */
static bool is_in_a_hurry(const struct block_node *node)
{
    const struct throttle *t = node->opaque;

    return atomic_load(&t->drained) ||
           (reactor_current() == reactor_main() && block_node_is_awaited(node));
}

/* Wait as long as the limits say, in order of arrival. */
static void co_throttle(struct block_node *node, bool is_write, uint64_t bytes)
{
    struct throttle *t = node->opaque;
    int64_t wait = throttle_group_pour(t->group, is_write, bytes);
    int64_t end = wait > 0 ? loop_now_ns() + wait : 0;

    while (wait > 0 && !is_in_a_hurry(node)) {
        loop_co_sleep(MIN(wait, LOOK_NS));
        wait = end - loop_now_ns();
    }
    if (wait > 0) {
        throttle_group_take_back(t->group, is_write, bytes);
    }
}

static int throttle_co_preadv(struct block_node *node, uint64_t offset, struct iov iov,
                              unsigned flags)
{
    co_throttle(node, false, iov.size);
    return block_co_preadv(node->filtered, offset, iov, flags);
}

static int throttle_co_pwritev(struct block_node *node, uint64_t offset, struct iov iov,
                               unsigned flags)
{
    co_throttle(node, true, iov.size);
    return block_co_pwritev(node->filtered, offset, iov, flags);
}

static int throttle_co_write_zeroes(struct block_node *node, uint64_t offset, uint64_t length,
                                    unsigned flags)
{
    co_throttle(node, true, length);
    return block_co_write_zeroes(node->filtered, offset, length, flags);
}

static int throttle_co_discard(struct block_node *node, uint64_t offset, uint64_t length)
{
    co_throttle(node, true, length);
    return block_co_discard(node->filtered, offset, length);
}

/* A copy that the system makes is a write like any other. */
static int throttle_co_copy_from(struct block_node *node, uint64_t offset,
                                 struct block_node *source, uint64_t source_offset, uint64_t length)
{
    co_throttle(node, true, length);
    return block_co_copy_from(node->filtered, offset, source, source_offset, length, 0);
}

const struct block_driver throttle_driver = {
    .name = "throttle",
    .options = &throttle_options,
    .instance_size = sizeof(struct throttle),
    .is_filter = true,
    .co_open = throttle_co_open,
    .co_close = throttle_co_close,
    .drain_begin = throttle_drain_begin,
    .drain_end = throttle_drain_end,
    .co_preadv = throttle_co_preadv,
    .co_pwritev = throttle_co_pwritev,
    .co_write_zeroes = throttle_co_write_zeroes,
    .co_discard = throttle_co_discard,
    .co_copy_from = throttle_co_copy_from,
};
