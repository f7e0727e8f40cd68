/* SPDX-License-Identifier: Apache-2.0 */
/* The commands blockdev-mirror and block-job-change; what drive-mirror shares with them. */
#include "qmp/mirror_commands.h"

#include <errno.h>
#include <string.h>

#include "base/checked.h"
#include "block/hand_over.h"
#include "block/bitmaps.h"
#include "block/block.h"
#include "block/control.h"
#include "block/control_lock.h"
#include "qmp/command_lock.h"
#include "qmp/commands.h"
#include "qmp/jobs.h"
#include "qmp/lookup.h"

static bool is_json_text(struct json_object *args, const char *name, const char *value)
{
    const char *text = qmp_get_str(args, name);

    return text && strcmp(text, value) == 0;
}

/* --- arguments -------------------------------------------------------------------------------- */

static int get_mirror_granularity(struct json_object *args, uint32_t *ret_granularity,
                                  struct error *err)
{
    uint64_t granularity = qmp_get_uint(args, "granularity", 0);

    if (granularity != 0 &&
        (granularity < MIRROR_GRANULARITY_MIN || granularity > MIRROR_GRANULARITY_MAX)) {
        return error_set(err, EINVAL,
                         "Parameter 'granularity' expects a value in range [512B, 64MB]");
    }
    if (granularity != 0 && !is_power_of_2(granularity)) {
        return error_set(err, EINVAL, "Parameter 'granularity' expects a power of 2");
    }
    *ret_granularity = (uint32_t)granularity;
    return 0;
}

static int get_mirror_buf_size(struct json_object *args, uint64_t *ret_size, struct error *err)
{
    struct json_object *value = qmp_get(args, "buf-size");
    int64_t size = value ? json_object_get_int64(value) : 0;

    if (size < 0) {
        return error_set(err, EINVAL, "Invalid parameter 'buf-size'");
    }
    *ret_size = (uint64_t)size;
    return 0;
}

static int get_mirror_bitmap(struct json_object *args, struct mirror_params *p, struct error *err)
{
    const char *name = qmp_get_str(args, "bitmap"), *mode = qmp_get_str(args, "bitmap-mode");
    const char *sync = qmp_get_str(args, "sync");
    bool incremental = strcmp(sync, "incremental") == 0;

    if (!incremental && strcmp(sync, "bitmap") != 0) {
        return name   ? error_set(err, EINVAL, "Sync mode '%s' not supported with a bitmap", sync)
               : mode ? error_set(err, EINVAL, "Cannot specify bitmap sync mode without a bitmap")
                      : 0;
    }
    if (!name) {
        return error_set(err, EINVAL, "must provide a valid bitmap name for '%s' sync mode", sync);
    }
    if (incremental && mode && strcmp(mode, "on-success") != 0) {
        return error_set(err, EINVAL,
                         "Bitmap sync mode must be 'on-success' when using sync mode "
                         "'incremental'");
    }
    if (!incremental && !mode) {
        return error_set(err, EINVAL, "Bitmap sync mode must be given when providing a bitmap");
    }
    p->bitmap = block_bitmap_find(p->source, name);
    if (!p->bitmap) {
        return error_set(err, ENOENT, "Bitmap '%s' could not be found", name);
    }
    p->sync = MIRROR_SYNC_BITMAP;
    p->bitmap_mode = is_json_text(args, "bitmap-mode", "never")    ? MIRROR_BITMAP_NEVER
                     : is_json_text(args, "bitmap-mode", "always") ? MIRROR_BITMAP_ALWAYS
                                                                   : MIRROR_BITMAP_ON_SUCCESS;
    return 0;
}

static int get_mirror_replaces(struct json_object *args, struct mirror_params *p, struct error *err)
{
    const char *name = qmp_get_str(args, "replaces");

    p->replaces = name ? block_node_find(name) : NULL;
    return !name         ? 0
           : p->replaces ? qmp_check_not_busy(p->replaces, err)
                         : error_set(err, ENOENT, "Failed to find node with node-name='%s'", name);
}

int qmp_get_mirror_params(struct json_object *args, struct block_node *source,
                          struct mirror_params *ret_params, struct error *err)
{
    struct mirror_params p = {
        .type = "mirror",
        .source = source,
        .sync = MIRROR_SYNC_FULL,
        .filter_name = qmp_get_str(args, "filter-node-name"),
        .copy_mode = is_json_text(args, "copy-mode", "write-blocking") ? MIRROR_COPY_WRITE_BLOCKING
                                                                       : MIRROR_COPY_BACKGROUND,
        .unmap = qmp_get_bool(args, "unmap", true),
        .on_source_error = qmp_get_on_error(args, "on-source-error"),
        .on_target_error = qmp_get_on_error(args, "on-target-error"),
    };
    int r;

    if (is_json_text(args, "sync", "none")) {
        p.sync = MIRROR_SYNC_NONE;
    } else if (is_json_text(args, "sync", "top") && block_node_backing(source)) {
        p.sync = MIRROR_SYNC_TOP;
        p.base = block_node_backing(source);
    }
    r = get_mirror_granularity(args, &p.granularity, err);
    UNLESS_FAILED(r, get_mirror_replaces(args, &p, err));
    UNLESS_FAILED(r, get_mirror_buf_size(args, &p.buf_size, err));
    UNLESS_FAILED(r, get_mirror_bitmap(args, &p, err));
    if (r >= 0) {
        p.target_is_zero =
            p.sync == MIRROR_SYNC_FULL && qmp_get_bool(args, "target-is-zero", false);
        *ret_params = p;
    }
    return r;
}

int qmp_co_fetch_mirror_bitmap(const struct mirror_params *p, struct error *err)
{
    struct block_node *node = block_node_ref(p->source);
    struct block_control_work work;
    int r = block_bitmap_check(p->bitmap, BLOCK_BITMAP_REFUSE_ALL, err);

    if (r >= 0) {
        block_control_begin_work(&work, &node, 1, false);
        r = block_co_bitmap_fetch(p->bitmap, err);
        block_co_control_end_work(&work);
    }
    block_co_unref(node);
    return r;
}

/*
 * Whether the target may get a backing node before the job is finalized (blockdev-snapshot,
 * blockdev-reopen): it has none now, although the mirror is a part of the source's chain, or its
 * image records one.
 */
static bool co_gets_backing_later(const struct mirror_params *p)
{
    struct block_node *format = block_node_skip_filters(p->target);
    struct block_info info;

    if (block_node_backing(format) || !block_driver_create_options(block_node_driver(format))) {
        return false;
    }
    return p->sync == MIRROR_SYNC_TOP || p->sync == MIRROR_SYNC_NONE ||
           (block_co_get_info(format, &info) >= 0 && info.backing_filename);
}

/* --- commands --------------------------------------------------------------------------------- */

/* x-restart */
static int get_mirror_restart(struct json_object *args, struct mirror_params *p, struct error *err)
{
    struct json_object *restart = qmp_get(args, "x-restart");

    if (!restart) {
        return 0;
    }
    if (p->sync != MIRROR_SYNC_FULL || !is_json_text(args, "sync", "full")) {
        return error_set(err, EINVAL, "x-restart needs sync 'full', found '%s'",
                         qmp_get_str(args, "sync"));
    }
    if (p->target_is_zero) {
        return error_set(err, EINVAL,
                         "x-restart and target-is-zero exclude each other: the target may have "
                         "data of an earlier mirror");
    }
    p->restart_bitmap = qmp_get_str(restart, "bitmap");
    p->restart_changes = qmp_get_str(restart, "target-changes");
    return 0;
}

static int get_mirror(struct json_object *args, struct job_config *config,
                      struct mirror_params *params, struct error *err)
{
    struct block_node *source = qmp_find_root_node(qmp_get_str(args, "device"), err), *target;
    int r;

    if (!source) {
        return -EINVAL;
    }
    target = block_node_lookup(qmp_get_str(args, "target"), err);
    if (!target) {
        return -ENOENT;
    }
    r = qmp_check_job_node_active(source, "backing", args, err);
    if (r == 0 && block_node_is_handed_over(target)) {
        r = error_set(err, EPERM, "Permission 'write' unavailable on inactive node");
    }
    UNLESS_FAILED(r, qmp_get_job_config(args, config, err));
    UNLESS_FAILED(r, qmp_get_mirror_params(args, source, params, err));
    UNLESS_FAILED(r, get_mirror_restart(args, params, err));
    if (r < 0) {
        return r;
    }
    params->target = target;
    return target == source ? 0 : qmp_check_not_busy(target, err);
}

int qmp_co_blockdev_mirror(struct qmp_call *call, struct json_object *args,
                           struct json_object **ret_value, struct error *err)
{
    struct mirror_params params;
    struct job_config config;
    int r = get_mirror(args, &config, &params, err);

    if (r == 0 && params.bitmap) {
        r = qmp_co_fetch_mirror_bitmap(&params, err);
        UNLESS_FAILED(r, get_mirror(args, &config, &params, err));
    }
    UNLESS_FAILED(r, qmp_co_await_requests(params.source, params.target, err));
    UNLESS_FAILED(r, get_mirror(args, &config, &params, err));
    if (r < 0) {
        return r;
    }
    params.backing_later = co_gets_backing_later(&params);
    return mirror_co_start(&config, &params, NULL, err);
}

int qmp_co_block_job_change(struct qmp_call *call, struct json_object *args,
                            struct json_object **ret_value, struct error *err)
{
    const char *id = qmp_get_str(args, "id");
    struct job *job = job_find(id);
    struct mirror_change change = {
        .copy_mode = is_json_text(args, "copy-mode", "write-blocking") ? MIRROR_COPY_WRITE_BLOCKING
                                                                       : MIRROR_COPY_BACKGROUND,
    };

    if (!job || !job_get_info(job).block_job) {
        return error_set_class(err, ERROR_CLASS_DEVICE_NOT_ACTIVE, ENOENT,
                               "Block job '%s' not found", id);
    }
    return job_change(job, &change, qmp_get_str(args, "type"), err);
}
