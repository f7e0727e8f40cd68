/* SPDX-License-Identifier: Apache-2.0 */
#include "block/control.h"

#include <errno.h>
#include <string.h>

#include "block/internal.h"
#include "trace/events.h"

enum control_op {
    OP_GET_INFO,
    OP_CHECK,
    OP_AMEND,
    OP_CHANGE_BACKING,
    OP_MAKE_EMPTY,
    OP_SNAPSHOT_CREATE,
    OP_SNAPSHOT_CREATE_VM,
    OP_SNAPSHOT_APPLY,
    OP_SNAPSHOT_DELETE,
    OP_SNAPSHOT_LIST,
    OP_SNAPSHOT_SHOW,
};

static const struct {
    /* Where struct block_driver has the operation. */
    size_t place;
    /* For traces. */
    const char *name;
    /*
     * It changes the visible contents or the size. A filter above would not see that: the bitmaps,
     * the log and the size that it has would be wrong.
     */
    bool changes_disk;
    /* The sentence for formats without the operation, in which "@" is the format. */
    const char *refusal;
} ops[] = {
#define OP(function, changes_disk, refusal)                                                        \
    {                                                                                              \
        offsetof(struct block_driver, function), #function, changes_disk, refusal                  \
    }
    [OP_GET_INFO] = OP(co_get_info, false, "format '@' has no information on its images"),
    [OP_CHECK] = OP(co_check, false, "This image format does not support checks"),
    [OP_AMEND] = OP(co_amend, true, "Format driver '@' does not support option amendment"),
    [OP_CHANGE_BACKING] = OP(co_change_backing, false, "Operation not supported by format '@'"),
    [OP_MAKE_EMPTY] = OP(co_make_empty, true, "format '@' can't be emptied"),
    [OP_SNAPSHOT_CREATE] = OP(co_snapshot_create, false, "format '@' has no snapshots"),
    [OP_SNAPSHOT_CREATE_VM] = OP(co_snapshot_create_vm, false, "format '@' has no snapshots"),
    [OP_SNAPSHOT_APPLY] = OP(co_snapshot_apply, true, "format '@' has no snapshots"),
    [OP_SNAPSHOT_DELETE] = OP(co_snapshot_delete, false, "format '@' has no snapshots"),
    [OP_SNAPSHOT_LIST] = OP(co_snapshot_list, false, "format '@' has no snapshots"),
    [OP_SNAPSHOT_SHOW] = OP(co_snapshot_show, true, "format '@' has no snapshots"),
};

static bool has_op(const struct block_driver *driver, enum control_op op)
{
    return *(void (*const *)(void))((const char *)driver + ops[op].place) != NULL;
}

/*
 * The node that has the operation, or the last one that was asked: a filter is the same image as
 * the node that it filters.
 */
static struct block_node *find_last(struct block_node *node, enum control_op op)
{
    while (!has_op(node->driver, op) && node->filtered && !ops[op].changes_disk) {
        node = node->filtered->node;
    }
    return node;
}

/* NULL: none. */
static struct block_node *find_capable(struct block_node *node, enum control_op op)
{
    node = find_last(node, op);
    return has_op(node->driver, op) ? node : NULL;
}

static int refuse(struct block_node *node, enum control_op op, struct error *err)
{
    const char *format = find_last(node, op)->driver->name;
    const char *at = strchrnul(ops[op].refusal, '@');

    return error_set(err, ENOTSUP, "%.*s%s%s", (int)(at - ops[op].refusal), ops[op].refusal,
                     *at ? format : "", *at ? at + 1 : "");
}

/* The node to call for the operation, drained; NULL after an error, which is -ENOTSUP. */
static struct block_node *co_op_begin(struct block_node *node, enum control_op op,
                                      struct error *err)
{
    struct block_node *at = find_capable(node, op);

    if (!at) {
        refuse(node, op, err);
        return NULL;
    }
    trace_block_control_begin(at->name, ops[op].name);
    block_co_drain_begin(at);
    return at;
}

/* The end of the operation, with its result. */
static int op_end(struct block_node *at, int result)
{
    block_drain_end(at);
    trace_block_control_end(at->name, result);
    return result;
}

/* --- questions -------------------------------------------------------------------------------- */

int block_co_get_info(struct block_node *node, struct block_info *ret_info)
{
    struct block_node *at = find_capable(node, OP_GET_INFO);

    *ret_info = (struct block_info){0};
    return at ? at->driver->co_get_info(at, ret_info) : -ENOTSUP;
}

bool block_co_stands_alone(struct block_node *node)
{
    struct block_info info;

    return !block_node_backing(node) &&
           (block_co_get_info(node, &info) < 0 || !info.backing_filename);
}

struct json_object *block_co_specific_info(struct block_node *node)
{
    return node->driver->co_specific_info ? node->driver->co_specific_info(node) : NULL;
}

/* Of all children with the data and metadata of a node, but not of what lies below. */
static int co_sum_allocated_sizes(struct block_node *node, uint64_t *ret_size)
{
    uint64_t sum = 0, size;
    int r = node->file ? 0 : -ENOTSUP;
    struct block_edge *edge;

    LIST_FOREACH (edge, &node->children, sibling) {
        if (r == 0 && edge->role & (BLOCK_ROLE_DATA | BLOCK_ROLE_METADATA)) {
            r = block_co_allocated_size(edge->node, &size);
            sum += r == 0 ? size : 0;
        }
    }
    if (r == 0) {
        *ret_size = sum;
    }
    return r;
}

int block_co_allocated_size(struct block_node *node, uint64_t *ret_size)
{
    while (!node->driver->co_allocated_size && node->driver->is_filter &&
           block_node_filter_or_backing(node)) {
        node = block_node_filter_or_backing(node);
    }
    return node->driver->co_allocated_size ? node->driver->co_allocated_size(node, ret_size)
                                           : co_sum_allocated_sizes(node, ret_size);
}

/* --- check and repair ------------------------------------------------------------------------- */

int block_co_check(struct block_node *node, unsigned fix, struct block_check_result *ret_result,
                   struct error *err)
{
    struct block_node *at = co_op_begin(node, OP_CHECK, err);

    *ret_result = (struct block_check_result){0};
    return at ? op_end(at, at->driver->co_check(at, fix, ret_result, err)) : -ENOTSUP;
}

/* --- change of the image ---------------------------------------------------------------------- */

static int co_begin_drained(struct block_node *at, struct error *err)
{
    int r = 0;

    if (at->driver->co_amend_begin) {
        block_co_drain_begin(at);
        r = at->driver->co_amend_begin(at, err);
        block_drain_end(at);
    }
    return r;
}

static void co_end_drained(struct block_node *at)
{
    if (at->driver->co_amend_end) {
        block_co_drain_begin(at);
        at->driver->co_amend_end(at);
        block_drain_end(at);
    }
}

int block_co_amend_begin(struct block_node *node, struct error *err)
{
    return node->driver->co_change_keys
               ? co_begin_drained(node, err)
               : error_set(err, ENOTSUP, "Driver does not support x-blockdev-amend");
}

void block_co_amend_end(struct block_node *node)
{
    co_end_drained(node);
}

int block_co_change_keys(struct block_node *node, struct options *opts, bool force,
                         struct error *err)
{
    int r;

    trace_block_control_begin(node->name, "co_change_keys");
    r = node->driver->co_change_keys(node, opts, force, err);
    trace_block_control_end(node->name, r);
    return r;
}

int block_co_amend(struct block_node *node, struct options *opts, bool force,
                   block_progress_fn *progress, void *progress_arg, struct error *err)
{
    struct block_node *at = co_op_begin(node, OP_AMEND, err);
    int r;

    if (!at) {
        return -ENOTSUP;
    }
    r = co_begin_drained(at, err);
    if (r == 0) {
        r = at->driver->co_amend(at, opts, force, progress, progress_arg, err);
        co_end_drained(at);
    }
    return op_end(at, r);
}

int block_co_change_backing(struct block_node *node, const char *filename, const char *format,
                            struct error *err)
{
    struct block_node *at = co_op_begin(node, OP_CHANGE_BACKING, err);
    int r;

    if (!at) {
        return -ENOTSUP;
    }
    r = at->driver->co_change_backing(at, filename, format, err);
    if (r == 0) {
        block_set_auto_backing(at, filename);
    }
    return op_end(at, r);
}

int block_co_make_empty(struct block_node *node, struct error *err)
{
    struct block_node *at = co_op_begin(node, OP_MAKE_EMPTY, err);

    return at ? op_end(at, at->driver->co_make_empty(at, err)) : -ENOTSUP;
}

/* --- internal snapshots ----------------------------------------------------------------------- */

int block_co_snapshot_create(struct block_node *node, const char *name, struct error *err)
{
    struct block_node *at = co_op_begin(node, OP_SNAPSHOT_CREATE, err);

    return at ? op_end(at, at->driver->co_snapshot_create(at, name, err)) : -ENOTSUP;
}

int block_co_snapshot_create_vm(struct block_node *node, const char *name,
                                const struct block_snapshot_vm *vm, struct error *err)
{
    struct block_node *at = co_op_begin(node, OP_SNAPSHOT_CREATE_VM, err);

    return at ? op_end(at, at->driver->co_snapshot_create_vm(at, name, vm, err)) : -ENOTSUP;
}

int block_co_snapshot_apply(struct block_node *node, const char *id_or_name, struct error *err)
{
    struct block_node *at = co_op_begin(node, OP_SNAPSHOT_APPLY, err);
    int r;

    if (!at) {
        return -ENOTSUP;
    }
    r = at->driver->co_snapshot_apply(at, id_or_name, err);
    atomic_fetch_add(&at->write_generation, 1);
    block_report_size(at);
    return op_end(at, r);
}

int block_co_snapshot_delete(struct block_node *node, const char *id_or_name, struct error *err)
{
    struct block_node *at = co_op_begin(node, OP_SNAPSHOT_DELETE, err);

    return at ? op_end(at, at->driver->co_snapshot_delete(at, id_or_name, err)) : -ENOTSUP;
}

int block_co_snapshot_list(struct block_node *node, struct block_snapshot_info **ret_list,
                           size_t *ret_count, struct error *err)
{
    struct block_node *at = co_op_begin(node, OP_SNAPSHOT_LIST, err);

    return at ? op_end(at, at->driver->co_snapshot_list(at, ret_list, ret_count, err)) : -ENOTSUP;
}

int block_co_own_snapshots(struct block_node *node, struct block_snapshot_info **ret_list,
                           size_t *ret_count)
{
    return node->driver->co_snapshot_list
               ? node->driver->co_snapshot_list(node, ret_list, ret_count, NULL)
               : -ENOTSUP;
}

int block_co_snapshot_show(struct block_node *node, const char *id, const char *name,
                           struct error *err)
{
    struct block_node *at = co_op_begin(node, OP_SNAPSHOT_SHOW, err);

    return at ? op_end(at, at->driver->co_snapshot_show(at, id, name, err)) : -ENOTSUP;
}

/* --- persistent bitmaps ----------------------------------------------------------------------- */

bool block_node_stores_bitmaps(const struct block_node *node)
{
    return node->driver->co_can_store_bitmap != NULL;
}

int block_co_can_store_bitmap(struct block_node *node, const char *name, uint32_t granularity,
                              struct error *err)
{
    if (!node->driver->co_can_store_bitmap) {
        return error_set(err, ENOTSUP, "Format driver '%s' does not support bitmaps",
                         node->driver->name);
    }
    return node->driver->co_can_store_bitmap(node, name, granularity, err);
}

int block_co_reserve_bitmap(struct block_node *node, const char *name, uint32_t granularity,
                            struct error *err)
{
    return node->driver->co_reserve_bitmap
               ? node->driver->co_reserve_bitmap(node, name, granularity, err)
               : 0;
}

int block_co_remove_stored_bitmap(struct block_node *node, const char *name, struct error *err)
{
    int r;

    if (!node->driver->co_remove_stored_bitmap) {
        return 0;
    }
    trace_block_control_begin(node->name, "co_remove_stored_bitmap");
    block_co_drain_begin(node);
    r = node->driver->co_remove_stored_bitmap(node, name, err);
    block_drain_end(node);
    trace_block_control_end(node->name, r);
    return r;
}
