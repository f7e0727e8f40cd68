/* SPDX-License-Identifier: Apache-2.0 */
#include "job/commit_active.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "block/block.h"
#include "block/gate.h"
#include "copy/chain_bitmaps.h"
#include "job/chain.h"
#include "job/mirror.h"

struct active {
    struct block_node *top, *base; /* held by the job */
    struct chain_writable writable;
    struct chain_guard guard;
    struct chain_bitmaps bitmaps;
};

static int co_collect_active_bitmaps(struct active *a, struct error *err)
{
    struct block_node *base = block_node_skip_filters(a->base);
    struct block_node *node = block_node_skip_filters(a->top);
    uint64_t size = MAX(block_node_size(a->top), block_node_size(a->base));
    int r = 0;

    for (int depth = 1; r == 0 && node != base; depth++) {
        r = chain_bitmaps_co_collect(&a->bitmaps, node, depth, size, err);
        node = block_node_skip_filters(block_node_backing(node));
    }
    return r;
}

/*
 * The edge from the mirror's filter to the top. Everything is drained, and requests through a root
 * would wait for the end of that.
 */
static struct block_edge *filter_edge(const struct active *a)
{
    struct block_edge *edge = NULL;

    do {
        edge = block_node_next_parent(a->top, edge);
    } while (edge && (!block_edge_parent(edge) ||
                      strcmp(block_node_format(block_edge_parent(edge)), "mirror_top") != 0));
    return edge;
}

/* Mark in the bitmaps of images what the images above them store (docs/bitmaps.md). */
static int co_mark_active(struct active *a, struct error *err)
{
    struct block_edge *edge = filter_edge(a);
    struct block_node *stop = chain_stop(a->top, a->base);
    uint64_t size = block_node_size(a->top);
    struct block_status status;
    int depth, r = 0;

    for (uint64_t at = 0; at < size && r == 0; at += status.length) {
        r = block_co_status_above(edge, stop, at, size - at, &status, &depth);
        if (r == 0 && depth > 0) {
            chain_bitmaps_mark(&a->bitmaps, at, status.length, depth);
        }
    }
    return r < 0 ? error_set_errno(err, -r, "Reading the source failed") : 0;
}

/*
 * From here on the base is what guests write to. Its bitmaps have recorded what the job wrote; they
 * get what those above it have, and record from now on what those would have recorded.
 */
static int co_carry_bitmaps(void *arg, struct error *err)
{
    struct active *a = arg;
    struct block_node *base = block_node_skip_filters(a->base);
    int r = co_collect_active_bitmaps(a, err);

    UNLESS_FAILED(r, chain_bitmaps_co_check(&a->bitmaps, base, err));
    if (r == 0 && chain_bitmaps_want_marks(&a->bitmaps)) {
        r = co_mark_active(a, err);
    }
    UNLESS_FAILED(r, chain_bitmaps_co_store(&a->bitmaps, base, err));
    return r;
}

static int co_guard_images(void *arg, struct error *err)
{
    struct active *a = arg;

    return chain_co_guard(&a->guard, "block job 'commit'", a->top, a->base, err);
}

static void co_unguard_images(void *arg)
{
    struct active *a = arg;

    chain_co_unguard(&a->guard);
}

static void co_free_active(struct active *a, bool pivoted)
{
    chain_co_unguard(&a->guard);
    if (pivoted) {
        chain_co_keep_writable(&a->writable);
    } else {
        chain_co_end_writable(&a->writable);
    }
    chain_bitmaps_clear(&a->bitmaps);
    free(a);
}

static void co_active_done(void *arg, bool pivoted)
{
    co_free_active(arg, pivoted);
}

static const struct mirror_hooks hooks = {
    .co_attach = co_guard_images,
    .co_detach = co_unguard_images,
    .co_before_pivot = co_carry_bitmaps,
    .co_done = co_active_done,
};

int commit_active_co_start(const struct commit_params *params, const struct job_config *config,
                           struct error *err)
{
    struct mirror_params mirror = {
        .type = "commit",
        .source = params->top,
        .target = params->base,
        .sync = MIRROR_SYNC_TOP,
        .base = chain_stop(params->top, params->base),
        .filter_name = params->filter_name,
        .unmap = true,
        .on_source_error = params->on_error,
        .on_target_error = params->on_error,
        .hooks = &hooks,
    };
    struct active *a = calloc(1, sizeof(*a));
    int r;

    if (!a) {
        return error_out_of_memory(err);
    }
    a->top = params->top;
    a->base = params->base;
    a->bitmaps.all = true;
    mirror.hooks_arg = a;
    r = chain_co_begin_writable(&a->writable, params->base, err);
    UNLESS_FAILED(r, mirror_co_start(config, &mirror, NULL, err));
    if (r < 0) {
        co_free_active(a, false);
    }
    return r;
}
