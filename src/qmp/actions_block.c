/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Actions of transactions, and commands of the same names, on nodes: blockdev-add, -del, -replace.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "block/bitmaps.h"
#include "block/control_lock.h"
#include "block/device.h"
#include "export/export.h"
#include "job/job.h"
#include "qmp/command_lock.h"
#include "qmp/commands.h"
#include "qmp/transaction.h"

/* --- blockdev-add ----------------------------------------------------------------------------- */

struct add_state {
    struct block_node *node; /* referenced; NULL once the reference is the monitor's */
};

static int co_node_add_open(void *state, struct json_object *data, struct error *err)
{
    struct add_state *s = state;
    const char *driver = qmp_get_str(data, "driver");
    struct options *opts;
    int r;

    if (!block_find_driver(driver)) {
        return error_set(err, EINVAL, "Parameter 'driver' does not accept value '%s'", driver);
    }
    if (!qmp_get(data, "node-name")) {
        return error_set(err, EINVAL, "'node-name' must be specified for the root node");
    }
    r = options_from_arguments(data, &opts, err);
    if (r < 0) {
        return r;
    }
    return block_co_open_hidden(opts, BLOCK_OPEN_RDWR, &s->node, err);
}

static void concern_node(struct block_node *node, void *concern)
{
    qmp_concern_add(concern, node);
}

/* The nodes below that were there before. */
static void node_add_concerns(void *state, struct json_object *data, struct qmp_concern *concern)
{
    struct add_state *s = state;

    block_node_foreach_below(s->node, concern_node, concern);
}

static int co_node_add_prepare(void *state, struct json_object *data, struct error *err)
{
    struct add_state *s = state;
    int r = block_co_publish(s->node, err);

    if (r < 0) {
        return r;
    }
    r = job_check_new_node(s->node, err);
    if (r < 0) {
        block_unpublish(s->node);
        return r;
    }
    block_node_set_monitor_owned(s->node, true);
    return 0;
}

static void co_node_add_commit(void *state)
{
    struct add_state *s = state;

    s->node = NULL;
}

static void co_node_add_abort(void *state)
{
    struct add_state *s = state;

    block_node_set_monitor_owned(s->node, false);
    block_unpublish(s->node);
}

/*
 * A node that was opened in vain is closed without the control lock, so that no other command waits
 * for that.
 */
static void co_node_add_clean(void *state)
{
    struct add_state *s = state;

    block_control_unlock();
    block_co_unref(s->node);
    block_co_control_lock();
}

const struct qmp_action qmp_action_blockdev_add = {
    .name = "blockdev-add",
    .state_size = sizeof(struct add_state),
    .co_open = co_node_add_open,
    .concerns = node_add_concerns,
    .co_prepare = co_node_add_prepare,
    .co_commit = co_node_add_commit,
    .co_abort = co_node_add_abort,
    .co_clean = co_node_add_clean,
};

/* --- blockdev-del ----------------------------------------------------------------------------- */

/*
 * A node is deleted when the transaction is committed. From prepare on it counts as deleted for the
 * nodes below it, so that one transaction can delete a filter and its children. Its permissions
 * remain in force until the commit: an action that conflicts with them needs a transaction of its
 * own.
 */
struct del_state {
    struct block_node *node; /* borrowed until the commit, which takes the monitor's reference */
    struct list link;        /* in `going` */
    bool committed;
};

/* Nodes that the running transaction deletes. One transaction runs at a time. */
static struct list going = LIST_INIT(going);

static bool node_is_going(const struct block_node *node)
{
    struct del_state *s;

    LIST_FOREACH (s, &going, link) {
        if (s->node == node) {
            return true;
        }
    }
    return false;
}

/* -EBUSY: an image that stays has it as its backing node. */
static int check_not_backing(struct block_node *node, struct error *err)
{
    struct block_edge *edge = NULL;
    struct block_node *overlay = NULL;

    /* The one that came last, as in QEMU. */
    while ((edge = block_node_next_parent(node, edge))) {
        struct block_node *parent = block_edge_parent(edge);

        if (parent && strcmp(block_edge_name(edge), "backing") == 0 && !node_is_going(parent)) {
            overlay = parent;
        }
    }
    return overlay ? error_set(err, EBUSY, "Node '%s' is busy: node is used as backing hd of '%s'",
                               block_node_device_or_name(node), block_node_device_or_name(overlay))
                   : 0;
}

static int check_node_unused(struct block_node *node, struct error *err)
{
    struct block_edge *edge = NULL;

    while ((edge = block_node_next_parent(node, edge))) {
        if (!block_edge_parent(edge)) {
            return error_set(err, EBUSY, "Node %s is in use", block_node_name(node));
        }
        if (!node_is_going(block_edge_parent(edge))) {
            return error_set(err, EBUSY, "Block device %s is in use", block_node_name(node));
        }
    }
    return 0;
}

static bool has_bitmaps_to_store(struct block_node *node)
{
    struct block_bitmap *b;

    for (b = block_bitmap_next(node, NULL); b; b = block_bitmap_next(node, b)) {
        if (block_bitmap_persistent(b) && !block_bitmap_inconsistent(b) &&
            !block_bitmap_read_only(b)) {
            return true;
        }
    }
    return false;
}

/*
 * Complete an image that nobody uses, while it can still be kept: the image stays if its bitmaps
 * would be lost otherwise. After any other failure it is closed all the same, and the error is
 * logged.
 */
static int co_complete_unused(const char *name, struct error *err)
{
    struct block_node *node = block_node_find(name);
    ERROR_AUTO(why);
    int r;

    if (!node || !block_node_is_monitor_owned(node) || block_node_in_use(node) ||
        !has_bitmaps_to_store(node)) {
        return 0;
    }
    r = qmp_co_complete(node, &why);
    if (r < 0) {
        error_set(err, -r, "Node '%s' stays, since its bitmaps would be lost: %s", name,
                  error_message(&why));
    }
    return r;
}

static int co_node_del_open(void *state, struct json_object *data, struct error *err)
{
    int r = qmp_co_lock_again(err);

    UNLESS_FAILED(r, co_complete_unused(qmp_get_str(data, "node-name"), err));
    block_control_unlock();
    return r;
}

static int co_node_del_prepare(void *state, struct json_object *data, struct error *err)
{
    struct del_state *s = state;
    const char *name = qmp_get_str(data, "node-name");
    int r;

    s->node = block_node_find(name);
    /* The node of a device is found by the device's name as well; that is not meant here. */
    if (!s->node || strcmp(block_node_name(s->node), name) != 0 || node_is_going(s->node)) {
        return error_set(err, ENOENT, "Failed to find node with node-name='%s'", name);
    }
    r = job_check_node(s->node, err);
    UNLESS_FAILED(r, check_not_backing(s->node, err));
    if (r < 0) {
        return r;
    }
    if (!block_node_is_monitor_owned(s->node)) {
        return error_set(err, EBUSY, "Node %s is not owned by the monitor", name);
    }
    r = check_node_unused(s->node, err);
    if (r >= 0) {
        list_append(&going, &s->link);
    }
    return r;
}

static void co_node_del_commit(void *state)
{
    struct del_state *s = state;

    block_node_set_monitor_owned(s->node, false);
    block_node_forget_name(s->node);
    list_remove(&s->link);
    s->committed = true;
}

static void co_node_del_abort(void *state)
{
    struct del_state *s = state;

    list_remove(&s->link);
}

/* After the last reference is given back, nobody finds the node: closing needs no lock. */
static void co_node_del_clean(void *state)
{
    struct del_state *s = state;

    if (s->committed) {
        block_control_unlock();
        block_co_unref(s->node);
        block_co_control_lock();
    }
}

const struct qmp_action qmp_action_blockdev_del = {
    .name = "blockdev-del",
    .state_size = sizeof(struct del_state),
    .co_open = co_node_del_open,
    .co_prepare = co_node_del_prepare,
    .co_commit = co_node_del_commit,
    .co_abort = co_node_del_abort,
    .co_clean = co_node_del_clean,
};

/* --- blockdev-replace ------------------------------------------------------------------------- */

struct replace_state {
    char *export_id;        /* owned */
    struct block_node *was; /* referenced */
};

static void node_replace_concerns(void *state, struct json_object *data,
                                  struct qmp_concern *concern)
{
    struct export_info info;

    if (export_find(qmp_get_str(data, "export"), &info)) {
        qmp_concern_add(concern, info.node);
    }
    qmp_concern_add(concern, block_node_find(qmp_get_str(data, "node-name")));
}

static void node_replace_ahead(void *state, struct json_object *data, struct qmp_concern *flushed,
                               struct qmp_concern *completed)
{
    struct export_info info;

    if (export_find(qmp_get_str(data, "export"), &info)) {
        qmp_concern_add(flushed, info.node);
    }
}

static int co_node_replace_prepare(void *state, struct json_object *data, struct error *err)
{
    struct replace_state *s = state;
    const char *id = qmp_get_str(data, "export");
    struct export_info info;
    struct block_node *node;

    if (!export_find(id, &info)) {
        return error_set(err, ENOENT, "Export '%s' is not found", id);
    }
    node = block_node_lookup(qmp_get_str(data, "node-name"), err);
    if (!node) {
        return -ENOENT;
    }
    s->export_id = strdup(id);
    if (!s->export_id) {
        return error_out_of_memory(err);
    }
    s->was = block_node_ref(info.node);
    return export_co_replace_node(id, node, err);
}

/*
 * This cannot fail: the old node still exists, has the same size, and nothing is checked before the
 * end of the graph change.
 */
static void co_node_replace_abort(void *state)
{
    struct replace_state *s = state;
    ERROR_AUTO(err);

    if (export_co_replace_node(s->export_id, s->was, &err) < 0) {
        log_error("transaction: export '%s' cannot be put back on node '%s': %s", s->export_id,
                  block_node_name(s->was), error_message(&err));
    }
}

static void co_node_replace_clean(void *state)
{
    struct replace_state *s = state;

    block_co_unref(s->was);
    free(s->export_id);
}

const struct qmp_action qmp_action_blockdev_replace = {
    .name = "blockdev-replace",
    .state_size = sizeof(struct replace_state),
    .ahead = node_replace_ahead,
    .concerns = node_replace_concerns,
    .co_prepare = co_node_replace_prepare,
    .co_abort = co_node_replace_abort,
    .co_clean = co_node_replace_clean,
};
