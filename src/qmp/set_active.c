/* SPDX-License-Identifier: Apache-2.0 */
/*
 * blockdev-set-active: nodes are handed over to another process, and taken over again. It runs as
 * an action of a transaction, so that a disk that hangs delays no other command, but is none.
 */
#include "qmp/set_active.h"

#include <errno.h>

#include "block/block.h"
#include "block/hand_over.h"
#include "qmp/commands.h"
#include "qmp/transaction.h"

struct active_state {
    struct block_hand_over *plan; /* from prepare on; NULL: nothing to undo */
};

/* NULL: all nodes. */
static struct block_node *node_to_change(struct json_object *data)
{
    const char *name = qmp_get_str(data, "node-name");

    return name ? block_node_find(name) : NULL;
}

static bool is_taken(struct json_object *data)
{
    return qmp_get_bool(data, "active", true);
}

/* -ENOENT: the node that is named is not there. */
static int check_active_node(struct json_object *data, struct error *err)
{
    const char *name = qmp_get_str(data, "node-name");

    return !name || block_node_find(name)
               ? 0
               : error_set(err, ENOENT, "Failed to find node with node-name='%s'", name);
}

static void active_concerns(void *state, struct json_object *data, struct qmp_concern *concern)
{
    struct block_hand_over *plan = NULL;
    struct block_node *node;
    size_t index = 0;

    if (check_active_node(data, NULL) == 0) {
        plan = block_hand_over_plan(node_to_change(data), is_taken(data), NULL);
    }
    while (plan && (node = block_hand_over_next_node(plan, &index))) {
        qmp_concern_add(concern, node);
    }
    block_hand_over_discard(plan);
}

static int co_active_prepare(void *state, struct json_object *data, struct error *err)
{
    struct active_state *s = state;
    int r = check_active_node(data, err);

    if (r < 0) {
        return r;
    }
    s->plan = block_hand_over_plan(node_to_change(data), is_taken(data), err);
    return s->plan ? block_co_hand_over_prepare(s->plan, err) : -EBUSY;
}

static int co_active_finish(void *state, struct error *err)
{
    return block_co_hand_over_finish(((struct active_state *)state)->plan, err);
}

static void co_active_commit(void *state)
{
    block_hand_over_commit(((struct active_state *)state)->plan);
}

static void co_active_abort(void *state)
{
    block_hand_over_abort(((struct active_state *)state)->plan);
}

static void co_active_clean(void *state)
{
    block_co_hand_over_free(((struct active_state *)state)->plan);
}

static const struct qmp_action set_active = {
    .name = "blockdev-set-active",
    .state_size = sizeof(struct active_state),
    .concerns = active_concerns,
    .co_prepare = co_active_prepare,
    .co_finish = co_active_finish,
    .co_commit = co_active_commit,
    .co_abort = co_active_abort,
    .co_clean = co_active_clean,
};

int qmp_co_set_active(const char *node_name, bool active, struct error *err)
{
    struct json_object *data = json_object_new_object();
    int r;

    qmp_put_str(data, "node-name", node_name);
    qmp_put_bool(data, "active", active);
    r = qmp_co_run_action(&set_active, data, err);
    json_object_put(data);
    return r;
}

int qmp_co_blockdev_set_active(struct qmp_call *call, struct json_object *args,
                               struct json_object **ret_value, struct error *err)
{
    return qmp_co_run_action(&set_active, args, err);
}
