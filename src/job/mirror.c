/* SPDX-License-Identifier: Apache-2.0 */
/* The job "mirror": how it starts, and what it does until its end. */
#include "job/mirror.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/time_units.h"
#include "block/bitmaps.h"
#include "block/block.h"
#include "block/control.h"
#include "block/control_lock.h"
#include "job/copy_loop.h"
#include "job/mirror_internal.h"
#include "loop/loop.h"

#define CHUNK_SIZE (1 * MiB)
/* How often a job that is ready looks for something to copy. */
#define LOOK_NS (100 * NS_PER_MS)

static bool is_commit(const struct mirror_params *p)
{
    return strcmp(p->type, "commit") == 0;
}

/* --- the work --------------------------------------------------------------------------------- */

/* Of MIRROR_SYNC_TOP: what is allocated above the base. */
static int co_scan_top(struct mirror *s)
{
    struct dirty_bitmap *todo = mirror_top_todo(s->top);
    struct block_edge *edge = block_root_edge(s->root);
    uint64_t size = dirty_bitmap_size(todo);
    int r = 0;

    for (uint64_t offset = 0; offset < size && r == 0;) {
        struct block_status status;
        int depth;

        r = block_co_status_above(edge, s->params.base, offset, size - offset, &status, &depth);
        if (r == 0 && status.length == 0) {
            break;
        }
        if (r == 0 && depth > 0) {
            dirty_bitmap_set(todo, offset, status.length);
        }
        offset += r == 0 ? status.length : 0;
        if (reactor_turn_expired()) {
            loop_co_give_way();
        }
        UNLESS_FAILED(r, job_co_pause_point(s->job));
    }
    return r;
}

/*
 * After the mode has become blocking: wait until no write is in flight that began before that. Then
 * the bitmap, once empty, stays empty.
 */
static void co_settle_mode(struct mirror *s)
{
    bool ends = s->completing || s->stopping;

    if (s->settled || (!ends && s->copy_mode == MIRROR_COPY_BACKGROUND)) {
        return;
    }
    s->settled = true; /* a change of the mode meanwhile takes it back */
    if (mirror_co_stop_guests(s)) {
        block_drain_end(s->filter);
    }
}

static int co_follow_source(struct mirror *s)
{
    for (;;) {
        int r;

        co_settle_mode(s);
        r = job_co_pause_point(s->job);
        UNLESS_FAILED(r, mirror_co_copy_range(s, 0, 0, false));
        if (r < 0) {
            return r;
        }
        if (dirty_bitmap_count(mirror_top_todo(s->top)) > 0) {
            continue;
        }
        if (!s->ready) {
            r = mirror_co_flush_or_fail(s);
            if (r < 0) {
                return r;
            }
            if (r > 0) {
                continue;
            }
            s->ready = true;
            job_set_ready(s->job);
        } else if ((s->completing || s->stopping) && s->settled) {
            r = mirror_co_flush_or_fail(s);
            if (r <= 0) {
                return r;
            }
        } else {
            r = mirror_restart_co_idle(s);
            if (r < 0) {
                return r;
            }
            job_co_sleep(s->job, LOOK_NS);
        }
    }
}

/* A base that is larger keeps its end, which users see once they have moved there. */
static int check_mirror_sizes(const struct mirror *s, struct error *err)
{
    uint64_t source = block_node_size(s->params.source);
    uint64_t target = block_node_size(s->params.target);

    return source > target || (source < target && !is_commit(&s->params))
               ? error_set(err, EINVAL, "Source and target image have different sizes")
               : 0;
}

static int mirror_co_run(struct job *job, void *state, struct error *err)
{
    struct mirror *s = state;
    int r = check_mirror_sizes(s, err);

    if (r == 0 && s->params.sync == MIRROR_SYNC_TOP) {
        r = co_scan_top(s);
    }
    if (r == 0 && s->restart.taken) {
        r = mirror_restart_co_run(s, err);
    } else if (r == 0) {
        job_progress_set_total(job, dirty_bitmap_count(mirror_top_todo(s->top)));
    }
    UNLESS_FAILED(r, co_follow_source(s));
    if (r == 0 && s->stopping && !s->completing) {
        block_co_control_lock();
        r = mirror_co_conclude(s, false, err);
        s->concluded = r == 0;
        block_control_unlock();
    }
    if (r < 0) {
        mirror_let_guests_go(s);
    }
    if (r < 0 && !error_is_set(err)) {
        error_set(err, -r, "%s", strerror(-r));
    }
    return r;
}

/* --- the driver of the job -------------------------------------------------------------------- */

/*
 * Between the work and this moment the job may have waited for long, and the target may not answer
 * any more: other commands go on while it is asked. What it flushes now need not be flushed when
 * guests are stopped.
 */
static int co_ask_target(struct mirror *s, struct error *err)
{
    bool held = block_control_pause();
    int r = mirror_co_flush_target(s);

    block_co_control_resume(held);
    return r < 0 ? error_set_errno(err, -r, "Flushing the target failed") : 0;
}

static int mirror_co_prepare(struct job *job, void *state, struct error *err)
{
    struct mirror *s = state;
    int r;

    if (s->concluded) {
        return 0;
    }
    r = co_ask_target(s, err);
    if (r >= 0 && job_is_cancelled(job)) {
        r = -ECANCELED;
    }
    return r < 0 ? r : mirror_co_conclude(s, s->completing, err);
}

static void mirror_co_abort(struct job *job, void *state)
{
    mirror_co_give_up_bitmap(state);
}

static void mirror_co_clean(struct job *job, void *state)
{
    struct mirror *s = state;

    mirror_co_give_up_bitmap(s);
    mirror_co_remove(s);
    mirror_restart_co_end(s);
    mirror_free_buffers(s);
    flush_behind_destroy(&s->flushes);
    block_co_unref(s->params.target_backing);
    if (s->params.hooks && s->params.hooks->co_done) {
        s->params.hooks->co_done(s->params.hooks_arg, s->pivoted);
    }
}

/*
 * From now on the bitmap gets no new bits, so that the end comes. If that was so before, nothing
 * has to be waited for: a guest's write in flight may wait for a target that hangs.
 */
static void block_from_now_on(struct mirror *s)
{
    mirror_top_set_mode(s->top, MIRROR_TOP_BLOCKING);
}

static int mirror_complete(struct job *job, void *state, struct error *err)
{
    struct mirror *s = state;

    s->completing = true;
    block_from_now_on(s);
    return 0;
}

static bool mirror_cancel_softly(struct job *job, void *state)
{
    struct mirror *s = state;

    s->stopping = true;
    s->completing = false;
    block_from_now_on(s);
    return true;
}

static void mirror_cancelled(struct job *job, void *state)
{
    struct mirror *s = state;

    if (s->root) {
        block_root_begin_end(s->root);
    }
    if (s->filter) {
        mirror_let_guests_go(s);
    }
}

static int mirror_change_mode(struct job *job, void *state, const void *args, struct error *err)
{
    const struct mirror_change *change = args;
    struct mirror *s = state;
    bool blocking = change->copy_mode == MIRROR_COPY_WRITE_BLOCKING;

    if (change->copy_mode == s->copy_mode) {
        return 0;
    }
    s->copy_mode = change->copy_mode;
    if (!s->completing && !s->stopping) {
        s->settled = false;
        mirror_top_set_mode(s->top, blocking ? MIRROR_TOP_BLOCKING : MIRROR_TOP_BACKGROUND);
    }
    return 0;
}

static const struct block_root *mirror_reader(const void *state, const struct block_node *node)
{
    const struct mirror *s = state;

    return node == s->params.source || node == s->filter ? s->root : NULL;
}

/* A base that is committed into is what guests read. */
static struct block_node *mirror_given_up(const void *state)
{
    const struct mirror *s = state;

    return s->filter ? s->params.target : NULL;
}

static bool mirror_is_synced(const struct job *job, const void *state)
{
    const struct mirror *s = state;

    return s->filter && s->ready && s->idle && s->settled &&
           dirty_bitmap_count(mirror_top_todo(s->top)) == 0;
}

static const struct job_driver mirror_driver = {
    .type = "mirror",
    .state_size = sizeof(struct mirror),
    .block_job = true,
    .co_run = mirror_co_run,
    .cancels_prepare = true,
    .prepare_is_final = true,
    .co_prepare = mirror_co_prepare,
    .co_abort = mirror_co_abort,
    .co_clean = mirror_co_clean,
    .complete = mirror_complete,
    .cancel_softly = mirror_cancel_softly,
    .cancelled = mirror_cancelled,
    .given_up = mirror_given_up,
    .change = mirror_change_mode,
    .reader = mirror_reader,
    .is_synced = mirror_is_synced,
};

/* An active commit has one mode, and a soft cancel of it leaves the base as far as it has come. */
static const struct job_driver commit_driver = {
    .type = "commit",
    .state_size = sizeof(struct mirror),
    .block_job = true,
    .co_run = mirror_co_run,
    .cancels_prepare = true,
    .prepare_is_final = true,
    .co_prepare = mirror_co_prepare,
    .co_abort = mirror_co_abort,
    .co_clean = mirror_co_clean,
    .complete = mirror_complete,
    .cancel_softly = mirror_cancel_softly,
    .cancelled = mirror_cancelled,
};

/* --- start ------------------------------------------------------------------------------------ */

static int check_nodes(const struct mirror_params *p, struct error *err)
{
    struct block_edge *edge = NULL;
    int r;

    while ((edge = block_node_next_parent(p->source, edge))) {
        if (block_edge_parent(edge) && !is_commit(p)) {
            return error_set(err, EINVAL, "Need a root block node");
        }
    }
    if (p->replaces && !mirror_may_replace(p->source, p->replaces)) {
        return error_set(err, EINVAL,
                         "Cannot replace '%s' by a node mirrored from '%s', because it cannot be "
                         "guaranteed that doing so would not lead to an abrupt change of visible "
                         "data",
                         block_node_name(p->replaces), block_node_name(p->source));
    }
    if (p->replaces && block_node_size(p->replaces) != block_node_size(p->source)) {
        return error_set(err, EINVAL, "cannot replace image with a mirror image of different size");
    }
    if (p->source == p->target) {
        return error_set(err, EINVAL, "Can't mirror node into itself");
    }
    r = job_check_node(p->source, err);
    UNLESS_FAILED(r, job_check_node(p->target, err));
    return r;
}

/* Clusters of an image that is written in whole granules should not be split between two. */
static uint32_t choose_granularity(const struct mirror_params *p)
{
    uint32_t cluster = block_node_limits(block_node_skip_filters(p->target))->cluster_size;
    uint32_t chosen = p->granularity;

    if (chosen == 0) {
        chosen = cluster ? MIN(MAX(cluster, 4096), MIRROR_GRANULARITY_MAX) : 64 * KiB;
    }
    return p->backing_later && is_power_of_2(cluster) ? MAX(chosen, cluster) : chosen;
}

/* A part of the disk may be on top of the rest afterwards. */
static bool co_is_backing_unknown(struct block_node *target, enum mirror_sync sync)
{
    return !block_node_backing(target) &&
           (sync == MIRROR_SYNC_BITMAP || !block_co_stands_alone(target));
}

static int co_open_filter(struct mirror *s, struct error *err)
{
    const struct mirror_params *p = &s->params;
    struct mirror_top_params top = {
        .source = p->source,
        .target = p->target,
        .node_name = p->filter_name,
        .granularity = choose_granularity(p),
        .commit = is_commit(p),
        .resizes = is_commit(p),
        .unmap = p->unmap,
        .target_is_zero = p->target_is_zero,
        .own_layer = p->backing_later,
        .notes_followed = p->restart_bitmap != NULL,
        .backing_unknown = co_is_backing_unknown(p->target, p->sync),
    };

    s->chunk = MAX(CHUNK_SIZE, top.granularity);
    if (p->buf_size) {
        s->chunk = MAX(MIN(s->chunk, round_down(p->buf_size, top.granularity)), top.granularity);
    }
    list_init(&s->free_buffers);
    return mirror_top_co_open(&top, &s->filter, &s->top, err);
}

/* The base of a commit gets the size of the active image. */
static int co_grow_target(const struct mirror *s, struct error *err)
{
    uint64_t size = block_node_size(s->params.source);

    if (!is_commit(&s->params) || block_node_size(s->params.target) >= size) {
        return 0;
    }
    return block_co_truncate(mirror_top_target(s->top), size, BLOCK_PREALLOC_OFF, err);
}

static int note_nodes(struct mirror *s, struct error *err)
{
    const struct mirror_params *p = &s->params;
    int r = job_add_filter(s->job, s->filter, true, err);

    UNLESS_FAILED(r, job_add_node(s->job, p->source, err));
    UNLESS_FAILED(r, job_add_node(s->job, p->target, err));
    if (p->replaces && p->replaces != p->source) {
        UNLESS_FAILED(r, job_add_node(s->job, p->replaces, err));
    }
    if (is_commit(p)) {
        struct block_node *n = block_node_filter_or_backing(p->source);

        for (; n != p->target && r == 0; n = block_node_filter_or_backing(n)) {
            r = job_add_node(s->job, n, err);
        }
        UNLESS_FAILED(r, job_freeze_chain(s->job, p->source, p->target, err));
    } else if (p->sync == MIRROR_SYNC_TOP) {
        UNLESS_FAILED(r, job_freeze_chain(s->job, p->source, p->base, err));
    }
    return r;
}

/* With the filter in the graph. The state moves into the job. */
static int co_fill_job(struct mirror *made, struct job *job, struct error *err)
{
    struct mirror *s = job_state(job);
    int r;

    *s = *made;
    list_init(&s->free_buffers);
    flush_behind_init(&s->flushes, mirror_co_flush_target, s);
    s->job = job;
    s->params.hooks = NULL; /* not called for a job that is not started */
    if (s->params.target_backing) {
        block_node_ref(s->params.target_backing);
    }
    r = note_nodes(s, err);
    UNLESS_FAILED(r, co_grow_target(s, err));
    if (r < 0) {
        job_co_discard(job);
        return r;
    }
    s->params.hooks = made->params.hooks;
    if (s->params.bitmap) {
        block_bitmap_take(s->params.bitmap, "block job 'mirror'");
        s->bitmap_taken = true;
    }
    return 0;
}

/* The job is made, and its filter put above the source; on failure neither. */
static int co_make_job(struct mirror *s, const struct job_config *config, struct job **ret_job,
                       struct error *err)
{
    struct job *job;
    int r = job_new(is_commit(&s->params) ? &commit_driver : &mirror_driver, config, &job, err);

    if (r < 0) {
        return r;
    }
    list_init(&((struct mirror *)job_state(job))->free_buffers);
    r = mirror_co_insert(s, err);
    if (r < 0) {
        job_co_discard(job);
        return r;
    }
    *ret_job = job;
    return 0;
}

int mirror_co_start(const struct job_config *config, const struct mirror_params *params,
                    struct job **ret_job, struct error *err)
{
    struct mirror s = {.params = *params, .copy_mode = params->copy_mode, .idle = true};
    struct job *job = NULL;
    int r = check_nodes(params, err);

    if (r >= 0 && params->sync == MIRROR_SYNC_BITMAP) {
        r = block_bitmap_check(params->bitmap, BLOCK_BITMAP_REFUSE_ALL, err);
        UNLESS_FAILED(r, block_co_bitmap_fetch(params->bitmap, err));
    }
    UNLESS_FAILED(r, co_open_filter(&s, err));
    if (r < 0) {
        return r;
    }
    r = mirror_restart_co_begin(&s, err);
    UNLESS_FAILED(r, co_make_job(&s, config, &job, err));
    if (r < 0) {
        mirror_restart_co_end(&s);
        block_co_unref(s.filter);
        return r;
    }
    r = co_fill_job(&s, job, err);
    if (r < 0) {
        return r;
    }
    job_start(job);
    if (ret_job) {
        *ret_job = job;
    }
    return 0;
}
