/* SPDX-License-Identifier: Apache-2.0 */
/* block-stream: the jobs that shorten backing chains. */
#include <errno.h>
#include <string.h>

#include "block/block.h"
#include "job/chain.h"
#include "job/stream.h"
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
};

static void start_concerns(void *state, struct json_object *data, struct qmp_concern *concern)
{
    qmp_concern_add(concern, block_node_find(qmp_get_str(data, "device")));
}

static void co_start_commit(void *state)
{
    struct start_state *s = state;

    job_start(s->job);
}

static void co_start_abort(void *state)
{
    struct start_state *s = state;

    job_co_discard(s->job);
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
    const char *base = qmp_get_str(args, "base");
    const char *name = qmp_get_str(args, "base-node");

    *ret_base = NULL;
    if (base) {
        *ret_base = chain_find(device, base);
        return *ret_base ? 0 : error_set(err, ENOENT, "Can't find '%s' in the backing chain", base);
    }
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

static const struct qmp_action action_block_stream = {
    .name = "block-stream",
    .state_size = sizeof(struct start_state),
    .concerns = start_concerns,
    .co_prepare = co_stream_prepare,
    .co_commit = co_start_commit,
    .co_abort = co_start_abort,
};

int qmp_co_block_stream(struct qmp_call *call, struct json_object *args,
                        struct json_object **ret_value, struct error *err)
{
    return qmp_co_run_action(&action_block_stream, args, err);
}
