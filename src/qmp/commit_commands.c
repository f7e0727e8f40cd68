/* SPDX-License-Identifier: Apache-2.0 */
/* block-commit, block-stream: the jobs that shorten backing chains. */
#include <errno.h>
#include <string.h>

#include "base/cleanup.h"
#include "block/block.h"
#include "block/control_lock.h"
#include "job/chain.h"
#include "job/commit.h"
#include "job/commit_active.h"
#include "job/stream.h"
#include "qmp/command_lock.h"
#include "qmp/commands.h"
#include "qmp/jobs.h"
#include "qmp/transaction.h"

/* A node by its name alone. */
static struct block_node *lookup_by_name(const char *name, struct error *err)
{
    struct block_node *node = block_node_find(name);

    if (!node) {
        error_set(err, ENOENT, "Cannot find device='' nor node-name='%s'", name);
    }
    return node;
}

/* Of an action that starts a job. */
struct start_state {
    struct job *job; /* borrowed; NULL: not made yet */
    struct chain_writable writable;
};

static void co_start_abort(void *state)
{
    struct start_state *s = state;

    job_co_discard(s->job);
}

/* If the job has not begun. */
static void co_start_clean(void *state)
{
    struct start_state *s = state;

    chain_co_end_writable(&s->writable);
}

/* --- both ------------------------------------------------------------------------------------- */

/*
 * Let the arguments name an image below `top` by its node where they do by its file: links are
 * followed for that, which takes time, so it is done once, before anything is drained. Returns
 * whether that is no image of the chain.
 */
static bool co_is_strange_file(struct json_object *args, const char *file_key, const char *node_key,
                               struct block_node *top)
{
    const char *file = qmp_get_str(args, file_key);
    const struct block_node *node = file ? chain_co_find(top, file) : NULL;

    if (node) {
        json_object_object_add(args, node_key, json_object_new_string(block_node_name(node)));
        json_object_object_del(args, file_key);
    }
    return file && !node;
}

/* --- block-stream ----------------------------------------------------------------------------- */

/* At most one of the three arguments that say where the streaming ends. */
static int check_stream_ends(struct json_object *args, struct error *err)
{
    static const char *const pairs[][2] = {
        {"base", "base-node"}, {"base", "bottom"}, {"bottom", "base-node"}};

    for (size_t i = 0; i < 3; i++) {
        if (qmp_get(args, pairs[i][0]) && qmp_get(args, pairs[i][1])) {
            return error_set(err, EINVAL, "'%s' and '%s' cannot be specified at the same time",
                             pairs[i][0], pairs[i][1]);
        }
    }
    return 0;
}

static int find_stream_base(struct json_object *args, struct block_node *device,
                            struct block_node **ret_base, struct error *err)
{
    const char *name = qmp_get_str(args, "base-node");

    *ret_base = NULL;
    if (!name) {
        return 0;
    }
    *ret_base = lookup_by_name(name, err);
    if (!*ret_base) {
        return -ENOENT;
    }
    if (!chain_above(device, *ret_base)) {
        return error_set(err, EINVAL, "Node '%s' is not a backing image of '%s'", name,
                         qmp_get_str(args, "device"));
    }
    return 0;
}

static int find_stream_bottom(struct json_object *args, struct block_node *device,
                              struct block_node **ret_bottom, struct error *err)
{
    const char *name = qmp_get_str(args, "bottom");
    struct block_node *bottom = lookup_by_name(name, err);

    if (!bottom) {
        return -ENOENT;
    }
    if (block_node_is_filter(bottom)) {
        return error_set(err, EINVAL, "Node '%s' is a filter, use a non-filter node as 'bottom'",
                         name);
    }
    if (bottom != device && !chain_above(device, bottom)) {
        return error_set(err, EINVAL, "Node '%s' is not in a chain starting from '%s'", name,
                         qmp_get_str(args, "device"));
    }
    *ret_bottom = bottom;
    return 0;
}

/* The last node that is not needed afterwards. */
static int find_above_base(struct json_object *args, struct block_node *device,
                           struct block_node **ret_above, struct error *err)
{
    struct block_node *base = NULL;
    int r = check_stream_ends(args, err);

    *ret_above = NULL;
    if (r == 0 && qmp_get(args, "bottom")) {
        r = find_stream_bottom(args, device, ret_above, err);
    } else if (r == 0) {
        r = find_stream_base(args, device, &base, err);
        if (r == 0 && block_node_backing(device)) {
            *ret_above = chain_above(device, base);
        }
    }
    if (r == 0 && qmp_get(args, "backing-file") && !base && !qmp_get(args, "bottom")) {
        r = error_set(err, EINVAL, "backing file specified, but streaming the entire chain");
    }
    return r;
}

/* The image has to be writable before the graph is changed. */
static int co_stream_open(void *state, struct json_object *args, struct error *err)
{
    struct start_state *s = state;
    struct block_node *device = NULL, *above = NULL;
    int r = qmp_co_lock_again(err);

    if (r == 0) {
        device = block_node_lookup(qmp_get_str(args, "device"), err);
        r = device ? find_above_base(args, device, &above, err) : -ENOENT;
    }
    UNLESS_FAILED(r, stream_check_nodes(device, above, err));
    UNLESS_FAILED(r, chain_co_begin_writable(&s->writable, block_node_skip_filters(device), err));
    block_control_unlock();
    return r;
}

static void stream_concerns(void *state, struct json_object *args, struct qmp_concern *concern)
{
    qmp_concern_add(concern, block_node_lookup(qmp_get_str(args, "device"), NULL));
}

static int co_stream_prepare(void *state, struct json_object *args, struct error *err)
{
    struct start_state *s = state;
    struct stream_params params = {
        .device = block_node_lookup(qmp_get_str(args, "device"), err),
        .backing_file = qmp_get_str(args, "backing-file"),
        .mask_protocol = qmp_get_bool(args, "backing-mask-protocol", false),
        .on_error = qmp_get_on_error(args, "on-error"),
        .filter_name = qmp_get_str(args, "filter-node-name"),
    };
    struct job_config config;
    int r = params.device ? find_above_base(args, params.device, &params.above_base, err) : -ENOENT;

    UNLESS_FAILED(r, qmp_get_job_config(args, &config, err));
    UNLESS_FAILED(r, stream_co_new(&params, &config, &s->job, err));
    return r;
}

static void co_stream_commit(void *state)
{
    struct start_state *s = state;

    stream_start(s->job, &s->writable);
}

static const struct qmp_action action_block_stream = {
    .name = "block-stream",
    .state_size = sizeof(struct start_state),
    .co_open = co_stream_open,
    .concerns = stream_concerns,
    .co_prepare = co_stream_prepare,
    .co_commit = co_stream_commit,
    .co_abort = co_start_abort,
    .co_clean = co_start_clean,
};

int qmp_co_block_stream(struct qmp_call *call, struct json_object *args,
                        struct json_object **ret_value, struct error *err)
{
    struct block_node *device = block_node_lookup(qmp_get_str(args, "device"), err);
    int r = device ? qmp_check_job_node_active(device, "file", args, err) : -ENOENT;

    if (r == -EPERM) {
        error_prepend(err, "Could not create node: ");
    }
    UNLESS_FAILED(r, check_stream_ends(args, err));
    if (r == 0 && co_is_strange_file(args, "base", "base-node", device)) {
        return error_set(err, ENOENT, "Can't find '%s' in the backing chain",
                         qmp_get_str(args, "base"));
    }
    return r < 0 ? r : qmp_co_run_action(&action_block_stream, args, err);
}

/* --- block-commit ----------------------------------------------------------------------------- */

/* The device: a node that no other node uses. */
static int find_commit_root(struct json_object *args, struct block_node **ret_root,
                            struct error *err)
{
    const char *device = qmp_get_str(args, "device");
    struct block_node *node = block_node_lookup(device, NULL);
    struct block_edge *edge = NULL;

    if (!node) {
        return error_set_class(err, ERROR_CLASS_DEVICE_NOT_FOUND, ENOENT, "Device '%s' not found",
                               device);
    }
    while ((edge = block_node_next_parent(node, edge))) {
        if (block_edge_parent(edge)) {
            return error_set(err, EINVAL, "Need a root block node");
        }
    }
    *ret_root = node;
    return 0;
}

/* "top-node", the device without it; it is in the chain of the device. */
static int find_top(struct json_object *args, struct block_node *root, struct block_node **ret_top,
                    struct error *err)
{
    const char *node = qmp_get_str(args, "top-node");

    *ret_top = root;
    if (node) {
        *ret_top = lookup_by_name(node, err);
        if (*ret_top && *ret_top != root && !chain_above(root, *ret_top)) {
            return error_set(err, EINVAL, "'%s' is not in this backing file chain", node);
        }
    }
    return *ret_top ? 0 : -ENOENT;
}

/* "base-node", the last image without it; it is below the top. */
static int find_base(struct json_object *args, struct block_node *top, struct block_node **ret_base,
                     struct error *err)
{
    const char *node = qmp_get_str(args, "base-node");

    if (node) {
        *ret_base = lookup_by_name(node, err);
        if (*ret_base && *ret_base != top && !chain_above(top, *ret_base)) {
            return error_set(err, EINVAL, "'%s' is not in this backing file chain", node);
        }
    } else {
        *ret_base = block_node_skip_filters(top);
        for (struct block_node *n = *ret_base; n; n = block_node_backing(n)) {
            *ret_base = block_node_skip_filters(n);
        }
    }
    if (*ret_base && block_node_skip_filters(*ret_base) == block_node_skip_filters(top)) {
        return error_set(err, EINVAL, "cannot commit an image into itself");
    }
    return *ret_base ? 0 : -ENOENT;
}

/* "top" becomes "top-node", or goes if it is the device's. */
static int co_name_top(struct json_object *args, struct block_node *root, struct error *err)
{
    const char *file = qmp_get_str(args, "top");
    AUTO_FREE char *name = block_node_full_filename(root);

    if (file && qmp_get(args, "top-node")) {
        return error_set(err, EINVAL, "'top-node' and 'top' are mutually exclusive");
    }
    if (file &&
        (strcmp(file, block_node_filename(root)) == 0 || (name && strcmp(file, name) == 0))) {
        json_object_object_del(args, "top");
        return 0;
    }
    return co_is_strange_file(args, "top", "top-node", root)
               ? error_set(err, ENOENT, "Top image file %s not found", file)
               : 0;
}

static int co_name_base(struct json_object *args, struct block_node *top, struct error *err)
{
    const char *file = qmp_get_str(args, "base");

    if (file && qmp_get(args, "base-node")) {
        return error_set(err, EINVAL, "'base-node' and 'base' are mutually exclusive");
    }
    return co_is_strange_file(args, "base", "base-node", top)
               ? error_set(err, ENOENT, "Can't find '%s' in the backing chain", file)
               : 0;
}

/* Let the arguments have "top-node" and "base-node" only. */
static int co_name_commit_nodes(struct json_object *args, struct error *err)
{
    struct block_node *root = NULL, *top = NULL;
    int r = find_commit_root(args, &root, err);

    UNLESS_FAILED(r, co_name_top(args, root, err));
    UNLESS_FAILED(r, find_top(args, root, &top, err));
    return UNLESS_FAILED(r, co_name_base(args, top, err));
}

/* *ret_active: guests write to the top, which is committed as it changes. */
static int find_commit_nodes(struct json_object *args, struct commit_params *ret_params,
                             bool *ret_active, struct error *err)
{
    struct block_node *root = NULL, *top = NULL, *base = NULL;
    int r = find_commit_root(args, &root, err);
    bool is_root;

    UNLESS_FAILED(r, find_top(args, root, &top, err));
    UNLESS_FAILED(r, find_base(args, top, &base, err));
    UNLESS_FAILED(r, qmp_check_job_node_active(top, "backing", args, err));
    if (r < 0) {
        return r;
    }
    is_root = block_node_skip_filters(top) == block_node_skip_filters(root);
    *ret_active = is_root || (block_node_used_perm(top) & BLOCK_PERM_WRITE);
    if (*ret_active && qmp_get(args, "backing-file")) {
        return error_set(err, EINVAL, "'backing-file' specified, but 'top' %s",
                         is_root ? "is the active layer" : "has a writer on it");
    }
    *ret_params = (struct commit_params){
        .root = root,
        .top = top,
        .base = base,
        .backing_file = qmp_get_str(args, "backing-file"),
        .mask_protocol = qmp_get_bool(args, "backing-mask-protocol", false),
        .on_error = qmp_get_on_error(args, "on-error"),
        .filter_name = qmp_get_str(args, "filter-node-name"),
    };
    return 0;
}

/* The base has to be writable before the graph is changed. */
static int co_commit_open(void *state, struct json_object *args, struct error *err)
{
    struct start_state *s = state;
    struct commit_params params;
    bool active;
    int r = qmp_co_lock_again(err);

    UNLESS_FAILED(r, find_commit_nodes(args, &params, &active, err));
    UNLESS_FAILED(r, commit_co_check_nodes(&params, err));
    UNLESS_FAILED(r, chain_co_begin_writable(&s->writable, params.base, err));
    block_control_unlock();
    return r;
}

static void commit_concerns(void *state, struct json_object *args, struct qmp_concern *concern)
{
    struct commit_params params;
    bool active;

    if (find_commit_nodes(args, &params, &active, NULL) == 0) {
        qmp_concern_add(concern, params.top);
        qmp_concern_add(concern, params.base);
    }
}

static int co_commit_prepare(void *state, struct json_object *args, struct error *err)
{
    struct start_state *s = state;
    struct commit_params params;
    struct job_config config;
    bool active;
    int r = find_commit_nodes(args, &params, &active, err);

    UNLESS_FAILED(r, qmp_get_job_config(args, &config, err));
    UNLESS_FAILED(r, commit_co_new(&params, &config, &s->job, err));
    return r;
}

static void co_commit_commit(void *state)
{
    struct start_state *s = state;

    commit_start(s->job, &s->writable);
}

static const struct qmp_action action_block_commit = {
    .name = "block-commit",
    .state_size = sizeof(struct start_state),
    .co_open = co_commit_open,
    .concerns = commit_concerns,
    .co_prepare = co_commit_prepare,
    .co_commit = co_commit_commit,
    .co_abort = co_start_abort,
    .co_clean = co_start_clean,
};

int qmp_co_block_commit(struct qmp_call *call, struct json_object *args,
                        struct json_object **ret_value, struct error *err)
{
    struct commit_params params;
    struct job_config config;
    bool active = false;
    int r = co_name_commit_nodes(args, err);

    UNLESS_FAILED(r, find_commit_nodes(args, &params, &active, err));
    if (r < 0) {
        return r;
    }
    if (!active) {
        return qmp_co_run_action(&action_block_commit, args, err);
    }
    r = qmp_co_await_requests(params.top, params.base, err);
    UNLESS_FAILED(r, find_commit_nodes(args, &params, &active, err));
    if (r == 0 && !active) {
        return qmp_co_run_action(&action_block_commit, args, err);
    }
    UNLESS_FAILED(r, qmp_get_job_config(args, &config, err));
    UNLESS_FAILED(r, commit_co_check_nodes(&params, err));
    return r < 0 ? r : commit_active_co_start(&params, &config, err);
}
