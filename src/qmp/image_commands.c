/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Commands on an image in use that are no actions: block_resize, change-backing-file,
 * block-set-write-threshold.
 */
#include <errno.h>
#include <inttypes.h>

#include "base/checked.h"
#include "block/bitmaps.h"
#include "block/control.h"
#include "block/control_lock.h"
#include "block/threshold.h"
#include "block/reopen.h"
#include "job/job.h"
#include "qmp/command_lock.h"
#include "qmp/commands.h"
#include "qmp/lookup.h"

/* QEMU has no larger disks, and says so. */
#define SIZE_MAX_SHOWN ((int64_t)(INT64_MAX + 1ULL - GiB))

/* --- block_resize ----------------------------------------------------------------------------- */

/* An export or a job reads the bits of a bitmap with the size that it had. */
static int check_bitmaps_idle(struct block_node *node, struct error *err)
{
    struct block_bitmap *b = NULL;

    while ((b = block_bitmap_next(node, b))) {
        int r = block_bitmap_check(b, BLOCK_BITMAP_REFUSE_BUSY, err);

        if (r < 0) {
            return r;
        }
    }
    return 0;
}

static int co_resize(struct block_root *root, void *size, struct error *err)
{
    return block_co_truncate(block_root_edge(root), *(const uint64_t *)size, BLOCK_PREALLOC_OFF,
                             err);
}

/* Nor is there a job on a node above, whose size changes, too. */
static int check_not_busy_above(struct block_node *node, struct error *err)
{
    struct block_edge *edge = NULL;
    int r = qmp_check_not_busy(node, err);

    while (r >= 0 && (edge = block_node_next_parent(node, edge))) {
        if (block_edge_parent(edge)) {
            r = check_not_busy_above(block_edge_parent(edge), err);
        }
    }
    return r;
}

static int check_resize(struct block_node *node, struct error *err)
{
    int r = block_node_is_read_only(node) ? error_set(err, EROFS, "Image is read-only") : 0;

    UNLESS_FAILED(r, check_not_busy_above(node, err));
    UNLESS_FAILED(r, block_node_check_resize(node, err));
    UNLESS_FAILED(r, check_bitmaps_idle(node, err));
    return r;
}

int qmp_co_block_resize(struct qmp_call *call, struct json_object *args,
                        struct json_object **ret_value, struct error *err)
{
    struct block_node *node =
        qmp_find_device_or_node(qmp_get_str(args, "device"), qmp_get_str(args, "node-name"), err);
    int64_t size = json_object_get_int64(qmp_get(args, "size"));
    uint64_t bytes = (uint64_t)size;
    int r;

    if (!node) {
        return -ENOENT;
    }
    if (size < 0) {
        return error_set(err, EINVAL, "Parameter 'size' expects a >0 size");
    }
    if (size > SIZE_MAX_SHOWN) {
        return error_set(err, EFBIG, "offset(%" PRId64 ") exceeds maximum(%" PRId64 ")", size,
                         SIZE_MAX_SHOWN);
    }
    r = check_resize(node, err);
    if (r < 0) {
        return r;
    }
    block_node_ref(node);
    r = qmp_co_drain_unlocked(node, err);
    UNLESS_FAILED(r, check_resize(node, err));
    if (r < 0) {
        block_drain_end(node);
    } else {
        r = qmp_co_change_image(node, "block_resize", BLOCK_PERM_RESIZE, co_resize, &bytes, err);
    }
    block_co_unref(node);
    return r;
}

/* --- change-backing-file ---------------------------------------------------------------------- */

/*
 * An image that is read-only is writable for the time of the change. The change itself may take
 * long, and touches no edge: commands that change others' edges go on meanwhile.
 */
static int co_record_backing(struct block_node *node, const char *name, const char *format,
                             struct error *err)
{
    bool read_only = block_node_is_read_only(node);
    struct block_control_work work;
    int r, r2 = 0;

    block_node_ref(node);
    block_control_begin_work(&work, &node, 1, read_only);
    r = read_only ? block_co_set_read_only(node, false, err) : 0;
    read_only = read_only && r >= 0;
    block_control_keep_graph(&work);
    UNLESS_FAILED(r, block_co_change_backing(node, name, format, err));
    block_co_control_end_work(&work);
    if (read_only) {
        r2 = qmp_co_make_read_only(node, r < 0 ? NULL : err);
    }
    block_co_unref(node);
    return error_first(r, r2);
}

int qmp_co_change_backing_file(struct qmp_call *call, struct json_object *args,
                               struct json_object **ret_value, struct error *err)
{
    const char *name = qmp_get_str(args, "backing-file");
    struct block_node *top = qmp_find_root_node(qmp_get_str(args, "device"), err);
    struct block_node *node, *backing;
    int r = top ? 0 : -ENOENT;

    if (r < 0) {
        return r;
    }
    node = qmp_find_device_or_node(NULL, qmp_get_str(args, "image-node-name"), err);
    if (!node) {
        return -ENOENT;
    }
    backing = block_node_backing(node);
    if (!backing || block_node_is_filter(node)) {
        return error_set(err, EINVAL,
                         "not allowing backing file change on an image without a backing file");
    }
    if (!block_node_reaches(top, node)) {
        return error_set(err, EINVAL, "'%s' and image file are not in the same chain",
                         qmp_get_str(args, "device"));
    }
    r = job_check_node(top, err);
    UNLESS_FAILED(r, job_check_frozen(node, err));
    return UNLESS_FAILED(r, co_record_backing(node, *name ? name : NULL,
                                              *name ? block_node_format(backing) : NULL, err));
}

/* --- block-set-write-threshold ---------------------------------------------------------------- */

int qmp_co_block_set_write_threshold(struct qmp_call *call, struct json_object *args,
                                     struct json_object **ret_value, struct error *err)
{
    const char *name = qmp_get_str(args, "node-name");
    struct block_node *node = block_node_find(name);

    if (!node) {
        return error_set(err, ENOENT, "Device '%s' not found", name);
    }
    block_node_set_write_threshold(node, qmp_get_uint(args, "write-threshold", 0));
    return 0;
}
