/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Actions of transactions, and commands of the same names, that put an overlay on a node in use:
 * blockdev-snapshot with a node that is open, blockdev-snapshot-sync with a file.
 *
 * The drain flushes nothing. What the node has not written to storage is flushed after the drain,
 * or by a flush of the overlay if a guest asks for one earlier. When nobody can write to the node
 * any more, the image is completed and becomes read-only. If that fails, it stays writable.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "block/control.h"
#include "block/control_lock.h"
#include "block/hand_over.h"
#include "job/job.h"
#include "loop/loop.h"
#include "qmp/command_lock.h"
#include "qmp/commands.h"
#include "qmp/lookup.h"
#include "qmp/transaction.h"

struct snapshot_state {
    struct block_node *node;           /* referenced, from prepare on */
    struct block_node *overlay;        /* referenced, from prepare on; of -sync from open on */
    struct block_append *append;       /* NULL: not done, or over */
    struct block_hand_over *hand_over; /* of the overlay, if the node is; NULL: none */
    bool is_published;
    bool committed;
};

/* --- both ------------------------------------------------------------------------------------- */

/* Whether somebody reads the node: it can't be an overlay that begins empty. */
static bool is_read(const struct block_node *node)
{
    struct block_edge *edge = NULL;

    while ((edge = block_node_next_parent(node, edge))) {
        if (block_edge_perm(edge) & BLOCK_PERM_CONSISTENT_READ) {
            return true;
        }
    }
    return false;
}

static int check_overlay(const struct block_node *node, struct block_node *overlay,
                         struct error *err)
{
    if (overlay == node && !is_read(overlay) && !block_node_child(overlay, "backing")) {
        return error_set(err, EINVAL, "Making '%s' a backing child of '%s' would create a cycle",
                         block_node_name(node), block_node_name(overlay));
    }
    if (is_read(overlay)) {
        return error_set(err, EBUSY, "The overlay is already in use");
    }
    if (block_node_child(overlay, "backing")) {
        return error_set(err, EINVAL, "The overlay already has a backing image");
    }
    if (!(block_node_traits(overlay) & BLOCK_DRIVER_BACKING)) {
        return error_set(err, EINVAL, "The overlay does not support backing images");
    }
    return 0;
}

/* A node that is handed over to another process can't be below one that is not. */
static int co_hand_overlay_over(struct snapshot_state *s, struct block_node *node,
                                struct block_node *overlay, struct error *err)
{
    int r;

    if (!block_node_is_handed_over(node)) {
        return 0;
    }
    s->hand_over = block_hand_over_plan(overlay, false, err);
    r = s->hand_over ? block_co_hand_over_prepare(s->hand_over, err) : -EBUSY;
    if (r < 0) {
        block_co_hand_over_free(s->hand_over);
        s->hand_over = NULL;
    }
    return r;
}

static int co_put_overlay(struct snapshot_state *s, struct block_node *node,
                          struct block_node *overlay, struct error *err)
{
    int r = check_overlay(node, overlay, err);

    UNLESS_FAILED(r, co_hand_overlay_over(s, node, overlay, err));
    UNLESS_FAILED(r, block_co_append(overlay, node, &s->append, err));
    if (r >= 0) {
        s->node = block_node_ref(node);
    } else if (s->hand_over) {
        block_hand_over_abort(s->hand_over);
    }
    return r;
}

static void co_snapshot_commit(void *state)
{
    struct snapshot_state *s = state;

    block_append_end(s->append);
    s->append = NULL;
    s->committed = true;
    if (s->hand_over) {
        block_hand_over_commit(s->hand_over);
    }
}

static void co_snapshot_abort(void *state)
{
    struct snapshot_state *s = state;

    block_co_append_undo(s->append);
    s->append = NULL;
    if (s->hand_over) {
        block_hand_over_abort(s->hand_over);
    }
    if (s->is_published) {
        block_unpublish(s->overlay);
    }
}

/* Guests are on the overlay, and do not wait. */
static void co_snapshot_clean(void *state)
{
    struct snapshot_state *s = state;
    ERROR_AUTO(err);

    if (s->committed && !block_node_is_handed_over(s->node) &&
        qmp_co_make_read_only(s->node, &err) < 0) {
        log_notice("node '%s' stays writable below its overlay: %s", block_node_name(s->node),
                   error_message(&err));
    }
    block_control_unlock();
    block_co_hand_over_free(s->hand_over);
    block_co_unref(s->overlay);
    block_co_unref(s->node);
    block_co_control_lock();
}

/* --- blockdev-snapshot ------------------------------------------------------------------------ */

static struct block_node *node_of_snapshot(struct json_object *data)
{
    return block_node_find(qmp_get_str(data, "node"));
}

static void snapshot_concerns(void *state, struct json_object *data, struct qmp_concern *concern)
{
    qmp_concern_add(concern, node_of_snapshot(data));
    qmp_concern_add(concern, block_node_find(qmp_get_str(data, "overlay")));
}

static int co_snapshot_prepare(void *state, struct json_object *data, struct error *err)
{
    struct snapshot_state *s = state;
    struct block_node *node = block_node_lookup(qmp_get_str(data, "node"), err), *overlay;
    int r = node ? qmp_check_not_busy(node, err) : -ENOENT;

    UNLESS_FAILED(r, job_check_links_to(node, err));
    if (r < 0) {
        return r;
    }
    overlay = block_node_lookup(qmp_get_str(data, "overlay"), err);
    r = overlay ? job_check_frozen(overlay, err) : -ENOENT;
    UNLESS_FAILED(r, co_put_overlay(s, node, overlay, err));
    if (r >= 0) {
        s->overlay = block_node_ref(overlay);
    }
    return r;
}

const struct qmp_action qmp_action_snapshot = {
    .name = "blockdev-snapshot",
    .state_size = sizeof(struct snapshot_state),
    .concerns = snapshot_concerns,
    .co_prepare = co_snapshot_prepare,
    .co_commit = co_snapshot_commit,
    .co_abort = co_snapshot_abort,
    .co_clean = co_snapshot_clean,
};

/* --- blockdev-snapshot-sync ------------------------------------------------------------------- */

static struct block_node *find_sync_node(struct json_object *data, struct error *err)
{
    return qmp_find_device_or_node(qmp_get_str(data, "device"), qmp_get_str(data, "node-name"),
                                   err);
}

/* What can be said before the file is made. */
static int check_sync(struct json_object *data, const struct block_node *node, struct error *err)
{
    const char *name = qmp_get_str(data, "snapshot-node-name");
    int r = qmp_check_not_busy(node, err);

    UNLESS_FAILED(r, job_check_links_to(node, err));
    if (r < 0) {
        return r;
    }
    if (qmp_get(data, "node-name") && !name) {
        return error_set(err, EINVAL, "New overlay node-name missing");
    }
    return name && block_node_find(name)
               ? error_set(err, EEXIST, "New overlay node-name already in use")
               : 0;
}

static int co_make_overlay_file(struct json_object *data, struct block_node *node,
                                const char *format, struct error *err)
{
    AUTO_FREE char *backing = block_node_co_filename_to_record(node);
    struct options *opts = options_new();
    int r;

    if (!backing || !opts) {
        options_free(opts);
        return error_out_of_memory(err);
    }
    options_set_str(opts, "backing_file", backing);
    options_set_str(opts, "backing_fmt", block_node_format(node));
    r = block_co_create_image(format, qmp_get_str(data, "snapshot-file"), block_node_size(node),
                              opts, err);
    return r;
}

/* Options of the node of the file. */
static int co_snapshot_file_options(const char *filename, struct options **ret_options,
                                    struct error *err)
{
    const struct block_driver *driver = block_driver_of_filename(filename);
    struct options *opts = options_new();
    struct stat st;
    int r = 0;

    if (!opts) {
        return error_out_of_memory(err);
    }
    if (driver && block_driver_parses_filename(driver)) {
        options_set_str(opts, "driver", block_driver_name(driver));
        r = block_driver_parse_filename(driver, filename, opts, err);
    } else {
        bool is_device = loop_co_stat(filename, &st) == 0 && S_ISBLK(st.st_mode);

        options_set_str(opts, "driver", is_device ? "host_device" : "file");
        options_set_str(opts, "filename", filename);
    }
    if (r < 0) {
        options_free(opts);
        return r;
    }
    *ret_options = opts;
    return 0;
}

/* The overlay has the caching of the node, and no backing node yet. */
static int co_snapshot_overlay_options(struct json_object *data, struct block_node *node,
                                       const char *format, struct options **ret_options,
                                       struct error *err)
{
    struct block_node_settings settings = block_node_settings(node);
    AUTO_OPTIONS struct options *opts = options_new();
    struct options *cache = options_new(), *file = NULL;
    int r = opts && cache ? co_snapshot_file_options(qmp_get_str(data, "snapshot-file"), &file, err)
                          : error_out_of_memory(err);

    if (r < 0) {
        options_free(cache);
        return r;
    }
    options_set_bool(cache, "direct", settings.cache_direct);
    options_set_bool(cache, "no-flush", settings.cache_no_flush);
    options_set_child(opts, "cache", cache);
    options_set_child(opts, "file", file);
    options_set_str(opts, "driver", format);
    options_set_str(opts, "discard", settings.discard_unmap ? "unmap" : "ignore");
    if (qmp_get_str(data, "snapshot-node-name")) {
        options_set_str(opts, "node-name", qmp_get_str(data, "snapshot-node-name"));
    }
    *ret_options = TAKE_PTR(opts);
    return 0;
}

static int co_open_overlay(struct snapshot_state *s, struct json_object *data,
                           struct block_node *node, struct error *err)
{
    const char *format = qmp_get_str(data, "format") ?: "qcow2";
    const char *mode = qmp_get_str(data, "mode") ?: "absolute-paths";
    const struct block_driver *driver = block_find_driver(format);
    struct options *opts = NULL;
    int r = 0;

    if (!driver || !block_driver_is_usable(driver)) {
        return error_set(err, EINVAL, "Unknown file format '%s'", format);
    }
    if (strcmp(mode, "existing") != 0) {
        if (!(block_driver_traits(driver) & BLOCK_DRIVER_BACKING)) {
            return error_set(err, ENOTSUP, "Backing file not supported for file format '%s'",
                             format);
        }
        r = co_make_overlay_file(data, node, format, err);
    }
    UNLESS_FAILED(r, co_snapshot_overlay_options(data, node, format, &opts, err));
    return UNLESS_FAILED(
        r, block_co_open_hidden(opts, BLOCK_OPEN_RDWR | BLOCK_OPEN_NO_BACKING, &s->overlay, err));
}

static int co_sync_open(void *state, struct json_object *data, struct error *err)
{
    struct block_node *node = find_sync_node(data, err);
    int r = node ? check_sync(data, node, err) : -ENOENT;

    if (r < 0) {
        return r;
    }
    block_node_ref(node);
    r = co_open_overlay(state, data, node, err);
    block_co_unref(node);
    return r;
}

static void sync_concerns(void *state, struct json_object *data, struct qmp_concern *concern)
{
    qmp_concern_add(concern, find_sync_node(data, NULL));
    qmp_concern_add(concern, ((struct snapshot_state *)state)->overlay);
}

static int co_sync_prepare(void *state, struct json_object *data, struct error *err)
{
    struct snapshot_state *s = state;
    struct block_node *node = find_sync_node(data, err);
    int r = node ? qmp_check_not_busy(node, err) : -ENOENT;

    UNLESS_FAILED(r, block_co_publish(s->overlay, err));
    if (r < 0) {
        return r;
    }
    s->is_published = true;
    r = co_put_overlay(s, node, s->overlay, err);
    if (r < 0) {
        block_unpublish(s->overlay);
    }
    return r;
}

const struct qmp_action qmp_action_snapshot_sync = {
    .name = "blockdev-snapshot-sync",
    .state_size = sizeof(struct snapshot_state),
    .co_open = co_sync_open,
    .concerns = sync_concerns,
    .co_prepare = co_sync_prepare,
    .co_commit = co_snapshot_commit,
    .co_abort = co_snapshot_abort,
    .co_clean = co_snapshot_clean,
};
