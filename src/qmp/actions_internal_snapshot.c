/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The action and command blockdev-snapshot-internal-sync, and the commands
 * blockdev-snapshot-delete-internal-sync and x-tidemark-snapshot-apply: snapshots inside an image.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "block/control.h"
#include "block/control_lock.h"
#include "block/hand_over.h"
#include "qmp/answer.h"
#include "qmp/command_lock.h"
#include "qmp/commands.h"
#include "qmp/lookup.h"
#include "qmp/transaction.h"

/*
 * The first snapshot with this ID and this name (NULL: any). 1, 0 if there is none, or -errno.
 */
static int co_find_internal(struct block_node *node, const char *id, const char *name,
                            struct block_snapshot_info *ret_info)
{
    struct block_snapshot_info *list;
    size_t count;
    int r = block_co_snapshot_list(node, &list, &count, NULL);

    if (r < 0) {
        return r;
    }
    for (size_t i = 0; i < count && r == 0; i++) {
        if ((!id || strcmp(list[i].id, id) == 0) && (!name || strcmp(list[i].name, name) == 0)) {
            *ret_info = list[i];
            r = 1;
        }
    }
    free(list);
    return r;
}

/* The snapshot with the members `id` and `name`, of which one may be missing. */
static int co_find_named_internal(struct block_node *node, struct json_object *args,
                                  struct block_snapshot_info *ret_info, struct error *err)
{
    const char *id = qmp_get_str(args, "id"), *name = qmp_get_str(args, "name");
    int r;

    if (!id && !name) {
        return error_set(err, EINVAL, "Name or id must be provided");
    }
    r = co_find_internal(node, id, name, ret_info);
    if (r < 0) {
        return error_set(err, -r, "Failed to get a snapshot list: %s",
                         r == -ENOTSUP ? "Operation not supported" : strerror(-r));
    }
    return r > 0 ? 0
                 : error_set(err, ENOENT,
                             "Snapshot with id '%s' and name '%s' does not exist on device '%s'",
                             id ? id : "null", name ? name : "null", qmp_get_str(args, "device"));
}

/* --- blockdev-snapshot-internal-sync ---------------------------------------------------------- */

struct internal_state {
    struct block_node *node; /* referenced */
    char id[sizeof(((struct block_snapshot_info *)0)->id)];
};

static void internal_concerns(void *state, struct json_object *data, struct qmp_concern *concern)
{
    qmp_concern_add(concern, block_node_find(qmp_get_str(data, "device")));
}

/* -EROFS, -EPERM. A write that is refused on its way would mark the image as failed. */
static int check_changeable(const struct block_node *node, const char *device, struct error *err)
{
    if (block_node_is_read_only(node)) {
        return error_set(err, EROFS, "Device '%s' is read only", device);
    }
    return block_node_is_handed_over(node)
               ? error_set(err, EPERM, "Permission 'write' unavailable on inactive node")
               : 0;
}

static int co_check_new_internal(struct block_node *node, const char *device, const char *name,
                                 struct error *err)
{
    struct block_snapshot_info found;
    int r = qmp_check_not_busy(node, err);

    UNLESS_FAILED(r, check_changeable(node, device, err));
    if (r < 0) {
        return r;
    }
    r = co_find_internal(node, NULL, name, &found);
    if (r == -ENOTSUP) {
        return error_set(
            err, ENOTSUP,
            "Block format '%s' used by device '%s' does not support internal snapshots",
            block_node_format(node), device);
    }
    if (!*name) {
        return error_set(err, EINVAL, "Name is empty");
    }
    if (r > 0) {
        return error_set(err, EEXIST, "Snapshot with name '%s' already exists on device '%s'", name,
                         device);
    }
    return r < 0 ? error_set_errno(err, -r, "Failed to create snapshot '%s' on device '%s'", name,
                                   device)
                 : 0;
}

static int co_internal_prepare(void *state, struct json_object *data, struct error *err)
{
    struct internal_state *s = state;
    const char *device = qmp_get_str(data, "device"), *name = qmp_get_str(data, "name");
    struct block_node *node = qmp_find_root_node(device, err);
    struct block_snapshot_info made = {0};
    int r = node ? co_check_new_internal(node, device, name, err) : -ENOENT;

    UNLESS_FAILED(r, block_co_snapshot_create(node, name, err));
    if (r < 0) {
        return r;
    }
    /* It can't be missing. */
    (void)co_find_internal(node, NULL, name, &made);
    memcpy(s->id, made.id, sizeof(s->id));
    s->node = block_node_ref(node);
    return 0;
}

static void co_internal_abort(void *state)
{
    struct internal_state *s = state;
    ERROR_AUTO(err);

    if (block_co_snapshot_delete(s->node, s->id, &err) < 0) {
        log_error("transaction: the internal snapshot '%s' of node '%s' can't be deleted again: %s",
                  s->id, block_node_name(s->node), error_message(&err));
    }
}

static void co_internal_clean(void *state)
{
    struct internal_state *s = state;

    block_co_unref(s->node);
}

const struct qmp_action qmp_action_snapshot_internal = {
    .name = "blockdev-snapshot-internal-sync",
    .state_size = sizeof(struct internal_state),
    .keeps_graph = true,
    .concerns = internal_concerns,
    .co_prepare = co_internal_prepare,
    .co_abort = co_internal_abort,
    .co_clean = co_internal_clean,
};

/* --- blockdev-snapshot-delete-internal-sync --------------------------------------------------- */

struct json_object *qmp_snapshot_json(const struct block_snapshot_info *info)
{
    struct json_object *o = json_object_new_object();

    qmp_put_uint(o, "vm-clock-nsec", info->vm_clock_nsec % 1000000000);
    qmp_put_str(o, "name", info->name);
    qmp_put_uint(o, "date-sec", info->date_sec);
    qmp_put_uint(o, "date-nsec", info->date_nsec);
    qmp_put_uint(o, "vm-clock-sec", info->vm_clock_nsec / 1000000000);
    qmp_put_str(o, "id", info->id);
    qmp_put_uint(o, "vm-state-size", info->vm_state_size);
    if (info->icount != UINT64_MAX) {
        qmp_put_uint(o, "icount", info->icount);
    }
    return o;
}

/* The caller has a reference to the node. */
static int co_delete_internal(struct block_node *node, struct json_object *args,
                              struct json_object **ret_value, struct error *err)
{
    struct block_snapshot_info found = {0};
    int r = co_find_named_internal(node, args, &found, err);

    UNLESS_FAILED(r, check_changeable(node, qmp_get_str(args, "device"), err));
    UNLESS_FAILED(r, block_co_snapshot_delete(node, found.id, err));
    if (r >= 0) {
        *ret_value = qmp_snapshot_json(&found);
    }
    return r;
}

int qmp_co_snapshot_delete_internal(struct qmp_call *call, struct json_object *args,
                                    struct json_object **ret_value, struct error *err)
{
    struct block_node *node = qmp_find_root_node(qmp_get_str(args, "device"), err);
    struct block_control_work work;
    int r;

    if (!node) {
        return -ENOENT;
    }
    r = qmp_check_not_busy(node, err);
    if (r < 0) {
        return r;
    }
    block_node_ref(node);
    block_control_begin_work(&work, &node, 1, false);
    r = co_delete_internal(node, args, ret_value, err);
    block_co_control_end_work(&work);
    block_co_unref(node);
    return r;
}

/* --- x-tidemark-snapshot-apply ---------------------------------------------------------------- */

/* Jobs, filters and overlays would not learn that the disk has other contents. */
static int check_apply(struct block_node *node, struct error *err)
{
    int r = block_node_is_read_only(node) ? error_set(err, EROFS, "Image is read-only") : 0;

    UNLESS_FAILED(r, qmp_check_not_busy(node, err));
    UNLESS_FAILED(r, block_node_check_resize(node, err));
    return r;
}

static int co_apply_named(struct block_root *root, void *args, struct error *err)
{
    struct block_node *node = block_root_node(root);
    struct block_snapshot_info found = {0};
    int r = co_find_named_internal(node, args, &found, err);

    return UNLESS_FAILED(r, block_co_snapshot_apply(node, found.id, err));
}

int qmp_co_x_tidemark_snapshot_apply(struct qmp_call *call, struct json_object *args,
                                     struct json_object **ret_value, struct error *err)
{
    struct block_node *node = qmp_find_root_node(qmp_get_str(args, "device"), err);
    int r;

    if (!node) {
        return -ENOENT;
    }
    r = check_apply(node, err);
    if (r < 0) {
        return r;
    }
    block_node_ref(node);
    r = qmp_co_drain_unlocked(node, err);
    UNLESS_FAILED(r, check_apply(node, err));
    if (r < 0) {
        block_drain_end(node);
    } else {
        r = qmp_co_change_image(node, "x-tidemark-snapshot-apply",
                                BLOCK_PERM_WRITE | BLOCK_PERM_RESIZE, co_apply_named, args, err);
    }
    block_co_unref(node);
    return r;
}
