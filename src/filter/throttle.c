/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The driver "throttle": requests wait as long as the limits of a group say (throttle_group.h).
 * Options: throttle-group (the id of an object throttle-group; a reopen can change it), file.
 *
 * While the node is drained nothing waits: whoever drains waits for the requests, and a limit of a
 * few bytes a second would hold up a command for minutes.
 */
#include <errno.h>

#include "base/cleanup.h"
#include "block/user_object.h"
#include "filter/filter.h"
#include "filter/throttle_group.h"
#include "schema/define.h"

/* A group, and the reference that keeps it. */
struct group_ref {
    struct throttle_group *group;
    struct user_object *object;
};

OBJECT(throttle_options, "BlockdevOptionsThrottle",
       REQ("throttle-group", schema_str, .help = "id of the object with the limits"),
       REQ("file", block_ref_type));

struct throttle {
    struct throttle_member member;
    struct user_object *object;
    struct group_ref next; /* while the node is reopened; NULL: it keeps its group */
};

static int take_group(struct options *opts, struct group_ref *ret_ref, struct error *err)
{
    AUTO_FREE char *id = NULL;
    int r = options_take_str(opts, "throttle-group", &id, err);

    if (r < 0) {
        return r;
    }
    if (!id) {
        return options_missing(opts, "throttle-group", err);
    }
    ret_ref->group = throttle_group_find(id, &ret_ref->object, err);
    return ret_ref->group ? 0 : -ENOENT;
}

static int throttle_co_open(struct block_node *node, struct options *opts, struct error *err)
{
    struct throttle *t = node->opaque;
    struct group_ref ref = {0};
    int r = take_group(opts, &ref, err);

    if (r < 0) {
        return r;
    }
    r = block_co_open_filtered(node, opts, "file", err);
    if (r < 0) {
        user_object_unref(ref.object);
        return r;
    }
    throttle_member_init(&t->member, node, ref.group);
    t->object = ref.object;
    return 0;
}

static void throttle_co_close(struct block_node *node)
{
    struct throttle *t = node->opaque;

    throttle_co_member_leave(&t->member);
    user_object_unref(t->object);
}

static int throttle_co_reopen_prepare(struct block_node *node, struct options *opts,
                                      struct error *err)
{
    struct throttle *t = node->opaque;

    t->next = (struct group_ref){NULL, NULL};
    return opts ? take_group(opts, &t->next, err) : 0;
}

static void throttle_co_reopen_commit(struct block_node *node)
{
    struct throttle *t = node->opaque;
    bool hurried = t->member.hurried;

    if (t->next.group) {
        throttle_co_member_leave(&t->member);
        user_object_unref(t->object);
        throttle_member_init(&t->member, node, t->next.group);
        throttle_member_hurry(&t->member, hurried);
        t->object = t->next.object;
        t->next = (struct group_ref){NULL, NULL};
    }
}

static void throttle_co_reopen_abort(struct block_node *node)
{
    struct throttle *t = node->opaque;

    user_object_unref(t->next.object);
    t->next = (struct group_ref){NULL, NULL};
}

static void throttle_drain_begin(struct block_node *node)
{
    struct throttle *t = node->opaque;

    throttle_member_hurry(&t->member, true);
}

static void throttle_drain_end(struct block_node *node)
{
    struct throttle *t = node->opaque;

    throttle_member_hurry(&t->member, false);
}

/* No limit holds the request up now. */
static bool throttle_node_lets_pass(struct block_node *node, bool is_write, uint64_t length)
{
    struct throttle *t = node->opaque;

    return throttle_lets_pass(&t->member, is_write, length);
}

static void throttle_read_comes_again(struct block_node *node, uint64_t length)
{
    struct throttle *t = node->opaque;

    throttle_comes_again(&t->member, false, length);
}

/* Wait as long as the limits say. */
static void co_throttle(struct block_node *node, bool is_write, uint64_t bytes)
{
    struct throttle *t = node->opaque;

    throttle_co_pass(&t->member, is_write, bytes);
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
    .help = "filter: limits of requests and bytes per second",
    .options = &throttle_options,
    .instance_size = sizeof(struct throttle),
    .is_filter = true,
    .reopen_options = (const char *const[]){"throttle-group", NULL},
    .exchanges_file = true,
    .co_open = throttle_co_open,
    .co_close = throttle_co_close,
    .co_reopen_prepare = throttle_co_reopen_prepare,
    .co_reopen_commit = throttle_co_reopen_commit,
    .co_reopen_abort = throttle_co_reopen_abort,
    .drain_begin = throttle_drain_begin,
    .drain_end = throttle_drain_end,
    .co_preadv = throttle_co_preadv,
    .lets_pass = throttle_node_lets_pass,
    .read_comes_again = throttle_read_comes_again,
    .co_pwritev = throttle_co_pwritev,
    .co_write_zeroes = throttle_co_write_zeroes,
    .co_discard = throttle_co_discard,
    .co_copy_from = throttle_co_copy_from,
};
