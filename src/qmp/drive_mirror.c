/* SPDX-License-Identifier: Apache-2.0 */
/* The command drive-mirror: blockdev-mirror onto a target that is made or opened by its name. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "block/block.h"
#include "block/control.h"
#include "block/control_lock.h"
#include "loop/loop.h"
#include "qmp/command_lock.h"
#include "qmp/commands.h"
#include "qmp/jobs.h"
#include "qmp/mirror_commands.h"

/* What is known of the source when the lock is released to open the target. */
struct drive_target {
    const char *filename, *format, *node_name; /* borrowed from the arguments or static; or NULL */
    bool existing;
    uint64_t size;
    struct block_node_settings settings;
    char *backing_filename; /* owned; of a new image; NULL: none */
    const char *backing_format;
    struct block_node *node; /* referenced */
    /* referenced; what a new image gets as its backing node in the end; NULL: none */
    struct block_node *backing;
    /* The image records a backing file, which the target has no node of yet. */
    bool backing_later;
};

static bool creates_with_backing(const char *format)
{
    const struct block_driver *driver = block_find_driver(format);
    const struct block_option_desc *o = driver ? block_driver_create_options(driver) : NULL;

    for (; o && o->name; o++) {
        if (strcmp(o->name, "backing_file") == 0) {
            return true;
        }
    }
    return false;
}

/* The name of the backing file for an image that will be `target`; NULL: no memory. */
static char *co_backing_name(const char *target, const struct block_node *backing)
{
    const char *name = block_node_filename(backing);
    AUTO_FREE char *resolved = *name ? block_resolve_relative(target, name) : NULL;
    bool leads_there = resolved && strcmp(resolved, name) == 0;
    AUTO_FREE char *full = block_node_co_filename_to_record(backing);
    const char *path = full;
    char *real;

    if (!full || leads_there) {
        return TAKE_PTR(full);
    }
    (void)loop_co_real_paths_soon(&path, 1, &real);
    return real ?: block_absolute_name(full);
}

static int co_note_source(struct drive_target *t, struct json_object *args,
                          const struct mirror_params *p, struct error *err)
{
    const char *mode = qmp_get_str(args, "mode");
    struct block_node *backing = p->sync == MIRROR_SYNC_TOP    ? p->base
                                 : p->sync == MIRROR_SYNC_NONE ? p->source
                                                               : NULL;

    t->filename = qmp_get_str(args, "target");
    t->format = qmp_get_str(args, "format");
    t->node_name = qmp_get_str(args, "node-name");
    t->existing = mode && strcmp(mode, "existing") == 0;
    t->size = block_node_size(p->source);
    t->settings = block_node_settings(block_node_skip_filters(p->source));
    if (p->replaces && !t->node_name) {
        return error_set(err, EINVAL,
                         "a node-name must be provided when replacing a named node of the graph");
    }
    if (t->existing) {
        return 0;
    }
    if (p->bitmap) {
        return error_set(err, EINVAL, "A mirror of what a bitmap says needs 'mode' 'existing'");
    }
    t->format = t->format ?: block_node_format(block_node_skip_filters(p->source));
    if (!block_find_driver(t->format)) {
        return error_set(err, EINVAL, "Unknown file format '%s'", t->format);
    }
    if (backing && !creates_with_backing(t->format)) {
        return error_set(err, EINVAL, "Backing file not supported for file format '%s'", t->format);
    }
    if (backing) {
        t->backing = block_node_ref(backing);
        t->backing_later = true;
        t->backing_format = block_node_format(block_node_skip_filters(backing));
        t->backing_filename = co_backing_name(t->filename, block_node_skip_filters(backing));
    }
    return backing && !t->backing_filename ? error_out_of_memory(err) : 0;
}

static int co_create_mirror_target(const struct drive_target *t, struct error *err)
{
    struct options *opts = options_new();

    if (!opts) {
        return error_out_of_memory(err);
    }
    if (t->backing_filename) {
        options_set_str(opts, "backing_file", t->backing_filename);
        options_set_str(opts, "backing_fmt", t->backing_format);
    }
    return block_co_create_image(t->format, t->filename, t->size, opts, err);
}

/* The target is opened as the source is. */
static int co_open_mirror_target(struct drive_target *t, struct error *err)
{
    struct options *opts = options_new(), *cache = options_new();

    if (!opts || !cache) {
        options_free(opts);
        options_free(cache);
        return error_out_of_memory(err);
    }
    if (t->node_name) {
        options_set_str(opts, "node-name", t->node_name);
    }
    options_set_str(opts, "discard", t->settings.discard_unmap ? "unmap" : "ignore");
    options_set_bool(cache, "direct", t->settings.cache_direct);
    options_set_bool(cache, "no-flush", t->settings.cache_no_flush);
    options_set_child(opts, "cache", cache);
    return block_co_open_filename(t->filename, t->format, opts,
                                  BLOCK_OPEN_RDWR | BLOCK_OPEN_NO_BACKING | BLOCK_OPEN_PROBE,
                                  &t->node, err);
}

/* Whether the image of the target records a backing file, which it keeps. */
static bool co_records_backing(struct block_node *target)
{
    struct block_info info;

    return block_co_get_info(target, &info) >= 0 && info.backing_filename;
}

/* Without the control lock. */
static int co_make_target(struct drive_target *t, struct error *err)
{
    int r = t->existing ? 0 : co_create_mirror_target(t, err);

    UNLESS_FAILED(r, co_open_mirror_target(t, err));
    if (r >= 0 && t->existing) {
        t->backing_later = co_records_backing(t->node);
    }
    return r;
}

/* The source may have changed meanwhile: it is looked up again. */
static int co_start_drive_mirror(struct drive_target *t, struct json_object *args,
                                 struct error *err)
{
    struct block_node *source = block_node_lookup(qmp_get_str(args, "device"), err);
    struct mirror_params params;
    struct job_config config;
    int r = source ? qmp_get_job_config(args, &config, err) : -ENOENT;

    UNLESS_FAILED(r, qmp_get_mirror_params(args, source, &params, err));
    if (r >= 0 && params.sync == MIRROR_SYNC_TOP && !t->existing && params.base != t->backing) {
        r = error_set(err, EBUSY, "The backing chain of '%s' has changed meanwhile",
                      block_node_name(source));
    }
    if (r < 0) {
        return r;
    }
    params.target = t->node;
    params.backing_later = t->backing_later;
    params.target_backing = t->backing;
    params.opens_backing = t->existing && t->backing_later;
    return mirror_co_start(&config, &params, NULL, err);
}

int qmp_co_drive_mirror(struct qmp_call *call, struct json_object *args,
                        struct json_object **ret_value, struct error *err)
{
    struct block_node *source = block_node_lookup(qmp_get_str(args, "device"), err);
    struct drive_target t = {0};
    struct mirror_params params;
    struct job_config config;
    ERROR_AUTO(ending);
    int r = source ? qmp_check_job_node_active(source, "backing", args, err) : -ENOENT, r2;

    UNLESS_FAILED(r, qmp_get_job_config(args, &config, err));
    UNLESS_FAILED(r, qmp_get_mirror_params(args, source, &params, err));
    UNLESS_FAILED(r, co_note_source(&t, args, &params, err));
    UNLESS_FAILED(r, params.bitmap ? qmp_co_fetch_mirror_bitmap(&params, err) : 0);
    if (r >= 0) {
        block_control_unlock();
        r = co_make_target(&t, err);
        r2 = qmp_co_lock_again(r < 0 ? &ending : err);
        r = error_first(r, r2);
    }
    source = block_node_lookup(qmp_get_str(args, "device"), NULL);
    if (r == 0 && source) {
        r = qmp_co_await_requests(source, t.node, err);
    }
    UNLESS_FAILED(r, co_start_drive_mirror(&t, args, err));
    block_co_unref(t.node);
    block_co_unref(t.backing);
    free(t.backing_filename);
    return r;
}
