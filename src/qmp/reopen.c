/* SPDX-License-Identifier: Apache-2.0 */
/* The command blockdev-reopen: it runs as a transaction of one, but is no action of others. */
#include <errno.h>

#include "block/reopen.h"
#include "job/job.h"
#include "qmp/commands.h"
#include "qmp/transaction.h"

struct reopen_state {
    struct block_reopen *plan; /* owned; NULL: not made */
};

/* A node, and those that follow it. Chains of backing images may be long: no recursion there. */
static void add_with_followers(struct qmp_concern *concern, struct block_node *node)
{
    while (node) {
        struct block_node *below = block_node_child(node, "backing");
        struct block_edge *edge = NULL;

        qmp_concern_add(concern, node);
        while ((edge = block_node_next_child(node, edge))) {
            struct block_node *child = block_edge_node(edge);

            if (child != below && block_node_follows(child, node)) {
                add_with_followers(concern, child);
            }
        }
        node = below && block_node_follows(below, node) ? below : NULL;
    }
}

/* The nodes that are named, those to reopen and their children, and those that follow them. */
static void reopen_concerns(void *state, struct json_object *data, struct qmp_concern *concern)
{
    struct json_object *list = qmp_get(data, "options");

    for (size_t i = 0; i < json_object_array_length(list); i++) {
        json_object_object_foreach(json_object_array_get_idx(list, i), key, value)
        {
            (void)key;
            if (json_object_is_type(value, json_type_string)) {
                add_with_followers(concern, block_node_find(json_object_get_string(value)));
            }
        }
    }
}

/* A node may leave children, which it flushes; one that becomes read-only is completed. */
static void reopen_ahead(void *state, struct json_object *data, struct qmp_concern *flushed,
                         struct qmp_concern *completed)
{
    struct json_object *list = qmp_get(data, "options");

    for (size_t i = 0; i < json_object_array_length(list); i++) {
        struct json_object *element = json_object_array_get_idx(list, i);
        const char *name = qmp_get_str(element, "node-name");
        struct block_node *node = name ? block_node_find(name) : NULL;

        qmp_concern_add(
            json_object_get_boolean(qmp_get(element, "read-only")) ? completed : flushed, node);
    }
}

static int co_add_node(struct block_reopen *plan, const struct options *all, size_t index,
                       struct json_object *element, struct error *err)
{
    const char *name = qmp_get_str(element, "node-name");
    struct block_node *node = name ? block_node_find(name) : NULL;
    struct options *opts;
    int r;

    if (!name) {
        return error_set(err, EINVAL, "node-name not specified");
    }
    if (!node) {
        return error_set(err, ENOENT, "Failed to find node with node-name='%s'", name);
    }
    r = options_from_element(all, "options", index, element, &opts, err);
    return r < 0 ? r : block_co_reopen_add(plan, node, opts, err);
}

static int co_make_plan(struct block_reopen *plan, struct json_object *data, struct error *err)
{
    struct json_object *list = qmp_get(data, "options");
    AUTO_OPTIONS struct options *all = NULL;
    struct block_node *node;
    size_t index = 0;
    int r = options_from_arguments(data, &all, err);

    for (size_t i = 0; i < json_object_array_length(list); i++) {
        UNLESS_FAILED(r, co_add_node(plan, all, i, json_object_array_get_idx(list, i), err));
    }
    UNLESS_FAILED(r, block_reopen_expand(plan, err));
    while (r >= 0 && (node = block_reopen_next_node(plan, &index))) {
        r = block_reopen_changes_links(plan, node) ? job_check_frozen(node, err) : 0;
    }
    return r;
}

static int co_reopen_prepare(void *state, struct json_object *data, struct error *err)
{
    struct reopen_state *s = state;
    int r;

    s->plan = block_reopen_new();
    if (!s->plan) {
        return error_out_of_memory(err);
    }
    r = co_make_plan(s->plan, data, err);
    if (r < 0) {
        return r;
    }
    r = block_co_reopen_prepare(s->plan, err);
    if (r < 0) {
        block_co_reopen_abort(s->plan);
    }
    return r;
}

static int co_reopen_finish(void *state, struct error *err)
{
    return block_co_reopen_finish(((struct reopen_state *)state)->plan, err);
}

static void co_reopen_commit(void *state)
{
    block_co_reopen_commit(((struct reopen_state *)state)->plan);
}

static void co_reopen_abort(void *state)
{
    block_co_reopen_abort(((struct reopen_state *)state)->plan);
}

static void co_reopen_clean(void *state)
{
    block_co_reopen_free(((struct reopen_state *)state)->plan);
}

static const struct qmp_action reopen_action = {
    .name = "blockdev-reopen",
    .state_size = sizeof(struct reopen_state),
    .ahead = reopen_ahead,
    .concerns = reopen_concerns,
    .co_prepare = co_reopen_prepare,
    .co_finish = co_reopen_finish,
    .co_commit = co_reopen_commit,
    .co_abort = co_reopen_abort,
    .co_clean = co_reopen_clean,
};

int qmp_co_blockdev_reopen(struct qmp_call *call, struct json_object *args,
                           struct json_object **ret_value, struct error *err)
{
    return qmp_co_run_action(&reopen_action, args, err);
}
