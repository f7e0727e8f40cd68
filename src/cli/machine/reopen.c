/* SPDX-License-Identifier: Apache-2.0 */
/* qemu-io's command reopen on nodes of the machine: they stay open, and get other options. */
#include <errno.h>
#include <string.h>

#include "base/json_string.h"
#include "block/reopen.h"
#include "cli/image.h"
#include "cli/io/session.h"
#include "cli/machine/disk.h"

static struct json_object *copy_json(struct json_object *o)
{
    struct json_object *copy = NULL;

    return o && json_copy(o, &copy) == 0 ? copy : json_object_new_object();
}

static void put_cache(struct json_object *o, const char *mode)
{
    struct json_object *cache = json_object_new_object();

    json_object_object_add(cache, "direct", json_object_new_boolean(cli_cache_is_direct(mode)));
    json_object_object_add(cache, "no-flush", json_object_new_boolean(strcmp(mode, "unsafe") == 0));
    json_object_object_add(o, "cache", cache);
}

static void put_reopen_name(struct json_object *o, const char *key, const struct block_node *node)
{
    json_object_object_add(o, key, json_object_new_string(block_node_name(node)));
}

/* Children are named, so that they stay; those of a list are in the options. */
static void name_children(const struct block_node *node, struct json_object *o)
{
    struct block_edge *edge = NULL;

    while ((edge = block_node_next_child(node, edge))) {
        if (!strchr(block_edge_name(edge), '.')) {
            put_reopen_name(o, block_edge_name(edge), block_edge_node(edge));
        }
    }
}

/* Put the member `key` of a change in the place of what `o` has; groups are joined. */
static void change_member(struct json_object *o, const char *key, struct json_object *value)
{
    struct json_object *old;

    if (json_object_is_type(value, json_type_object) && json_object_object_get_ex(o, key, &old) &&
        json_object_is_type(old, json_type_object)) {
        json_object_object_foreach(value, name, member)
        {
            json_object_object_add(old, name, json_object_get(member));
        }
    } else {
        json_object_object_add(o, key, json_object_get(value));
    }
}

/*
 * Plan that the node keeps its options, but for those in `changes`. Options of a child are those of
 * the node that is there now, which gets a place of its own in the plan.
 */
static int co_plan_machine_reopen(struct block_reopen *plan, struct block_node *node,
                                  struct json_object *changes, struct error *err)
{
    struct json_object *o = copy_json(block_node_options(node));
    struct options *opts = NULL;
    int r = 0;

    name_children(node, o);
    json_object_object_add(o, "driver", json_object_new_string(block_node_format(node)));
    put_reopen_name(o, "node-name", node);
    json_object_object_foreach(changes, key, value)
    {
        struct block_node *child = block_node_child(node, key);

        if (!child || !json_object_is_type(value, json_type_object)) {
            change_member(o, key, value);
        } else {
            UNLESS_FAILED(r, co_plan_machine_reopen(plan, child, value, err));
        }
    }
    UNLESS_FAILED(r, options_from_json(o, &opts, err));
    json_object_put(o);
    return r < 0 ? r : block_co_reopen_add(plan, node, opts, err);
}

/* The user gives up writing before its node becomes read-only, and may write again afterwards. */
static int co_set_writing(struct io *io, bool writes, struct error *err)
{
    unsigned perm = BLOCK_PERM_CONSISTENT_READ | (writes ? BLOCK_PERM_WRITE : 0);

    return block_co_root_set_perm(io->disk.root, perm, block_edge_shared(io->disk.edge), err);
}

int machine_co_reopen(struct io *io, const struct io_reopen *how, struct error *err)
{
    bool wrote = block_edge_perm(io->disk.edge) & BLOCK_PERM_WRITE;
    struct block_reopen *plan = block_reopen_new();
    struct json_object *changes = NULL;
    struct options *given = NULL;
    int r = plan ? options_parse(how->options ?: "", NULL, &given, err) : error_out_of_memory(err);

    if (r >= 0) {
        changes = options_to_json(given);
        options_free(given);
        if (how->cache) {
            put_cache(changes, how->cache);
        }
        if (how->read_only >= 0) {
            json_object_object_add(changes, "read-only", json_object_new_boolean(how->read_only));
        }
        r = co_plan_machine_reopen(plan, io->disk.node, changes, err);
        json_object_put(changes);
    }
    UNLESS_FAILED(r, block_reopen_expand(plan, err));
    if (how->read_only == 1) {
        UNLESS_FAILED(r, co_set_writing(io, false, err));
    }
    UNLESS_FAILED(r, block_co_reopen_carry_out(plan, err));
    block_co_reopen_free(plan);
    if (r >= 0 && how->cache) {
        io->disk.writethrough = cli_cache_is_writethrough(how->cache);
    }
    if (r < 0 && wrote) {
        (void)co_set_writing(io, true, NULL);
    } else if (r >= 0 && how->read_only == 0) {
        r = co_set_writing(io, true, err);
    }
    return r;
}
