/* SPDX-License-Identifier: Apache-2.0 */
/* The filter of a mirror job: how it gets into the graph, and out of it; the bitmap of the user. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "base/time_units.h"
#include "block/bitmaps.h"
#include "block/block.h"
#include "block/control.h"
#include "block/control_lock.h"
#include "job/mirror_internal.h"
#include "loop/loop.h"

/* For how long guests are stopped, the first time, while the target gets all, and is flushed. */
#define FIRST_FINISH_NS NS_PER_SECOND
/* How often the job looks whether writes that follow have ended. */
#define FOLLOWERS_NS NS_PER_MS

/* --- in --------------------------------------------------------------------------------------- */

static int co_call_attach(struct mirror *s, struct error *err)
{
    const struct mirror_hooks *hooks = s->params.hooks;

    return hooks && hooks->co_attach ? hooks->co_attach(s->params.hooks_arg, err) : 0;
}

static void co_call_detach(struct mirror *s)
{
    const struct mirror_hooks *hooks = s->params.hooks;

    if (hooks && hooks->co_detach) {
        hooks->co_detach(s->params.hooks_arg);
    }
}

static int co_mirror_attach(struct mirror *s, struct error *err)
{
    char user[300];
    int r;

    mirror_top_set_stopped(s->top, false);
    r = block_co_publish(s->filter, err);
    UNLESS_FAILED(r, block_co_node_replace(s->params.source, s->filter, err));
    if (r >= 0) {
        snprintf(user, sizeof(user), "block job '%s'", s->params.type);
        r = block_co_root_new(s->filter, user, BLOCK_PERM_CONSISTENT_READ, BLOCK_PERM_ALL, &s->root,
                              err);
    }
    UNLESS_FAILED(r, co_call_attach(s, err));
    UNLESS_FAILED(r, block_co_change_settle(err));
    return r;
}

/* Undo that, all of it or what has been done. In a graph change, drained. */
static void co_mirror_detach(struct mirror *s)
{
    ERROR_AUTO(err);
    int r;

    block_co_root_release(s->root);
    s->root = NULL;
    co_call_detach(s);
    mirror_top_set_stopped(s->top, true);
    r = block_co_node_replace(s->filter, s->params.source, &err);
    UNLESS_FAILED(r, block_co_change_settle(&err));
    if (r < 0) {
        log_error("%s: the filter '%s' cannot be taken out: %s", s->params.type,
                  block_node_name(s->filter), error_message(&err));
    }
}

/* What has to be copied first, of what needs no scan. */
static int fill_todo(struct mirror *s, struct error *err)
{
    struct dirty_bitmap *todo = mirror_top_todo(s->top);

    if (s->params.restart_bitmap) {
        mirror_top_set_follow_end(s->top, 0);
        return 0; /* mirror_restart_co_run() fills it */
    }
    if (s->params.sync == MIRROR_SYNC_FULL) {
        dirty_bitmap_set(todo, 0, dirty_bitmap_size(todo));
    } else if (s->params.sync == MIRROR_SYNC_BITMAP &&
               dirty_bitmap_merge(todo, block_bitmap_bits(s->params.bitmap)) < 0) {
        return error_out_of_memory(err);
    }
    return 0;
}

int mirror_co_insert(struct mirror *s, struct error *err)
{
    struct block_node *nodes[] = {s->params.source, s->params.target};
    bool blocking = s->params.copy_mode == MIRROR_COPY_WRITE_BLOCKING;
    int r;

    block_co_drain_begin_many(nodes, ARRAY_SIZE(nodes));
    block_co_change_begin();
    r = fill_todo(s, err);
    UNLESS_FAILED(r, co_mirror_attach(s, err));
    if (r < 0) {
        co_mirror_detach(s);
        block_unpublish(s->filter);
        (void)block_co_change_settle(NULL);
    } else {
        mirror_top_set_mode(s->top, blocking ? MIRROR_TOP_BLOCKING : MIRROR_TOP_BACKGROUND);
        s->settled = blocking;
    }
    block_co_change_end();
    block_drain_end(nodes[0]);
    block_drain_end(nodes[1]);
    return r;
}

/* --- out -------------------------------------------------------------------------------------- */

/* Writes in flight may wait for a target that hangs: nothing else should wait for them. */
static void co_wait_for_followers(struct mirror *s)
{
    bool held = block_control_pause();

    while (mirror_top_is_following(s->top)) {
        loop_co_sleep(FOLLOWERS_NS);
    }
    block_co_control_resume(held);
}

static void co_drop_filter(struct mirror *s)
{
    struct block_node *filter = s->filter;

    if (s->job) {
        job_forget_filter(s->job, filter);
    }
    s->filter = NULL;
    block_co_unref(filter);
}

void mirror_co_remove(struct mirror *s)
{
    struct block_node *filter = s->filter;

    if (!filter) {
        return;
    }
    mirror_top_set_mode(s->top, MIRROR_TOP_OFF);
    co_wait_for_followers(s);
    job_co_drain(s->job, &filter, 1); /* a guest's read may hang at the source */
    block_co_change_begin();
    co_mirror_detach(s);
    block_co_change_end();
    block_drain_end(filter);
    co_drop_filter(s);
}

/* --- the bitmap ------------------------------------------------------------------------------- */

static void give_bitmap(struct mirror *s)
{
    if (s->bitmap_taken) {
        s->bitmap_taken = false;
        block_bitmap_give(s->params.bitmap);
    }
}

/*
 * The target has, on stable storage, all that is not in `todo`: the bitmap keeps what is in there.
 * *backup has what it had; on failure it still has that. The source is drained.
 */
static int co_settle_bitmap(struct mirror *s, struct block_bitmap_backup *backup, struct error *err)
{
    struct block_bitmap *b = s->params.bitmap;
    struct block_bitmap_commits commits;
    bool taken = s->bitmap_taken;
    int r;

    give_bitmap(s);
    if (!taken || s->params.bitmap_mode == MIRROR_BITMAP_NEVER) {
        return 0;
    }
    block_bitmap_commits_begin(&commits); /* both at once, also for a crash */
    r = block_co_bitmap_clear(b, backup, err);
    if (r >= 0 && dirty_bitmap_count(mirror_top_todo(s->top)) > 0) {
        r = block_co_bitmap_add_bits(b, mirror_top_todo(s->top), err);
    }
    UNLESS_FAILED(r, block_co_bitmap_commits_run(&commits, err));
    if (r < 0 && backup->bits) {
        block_co_bitmap_restore(b, backup);
        block_co_bitmap_commits_retry(&commits);
    }
    block_bitmap_commits_end(&commits);
    return r;
}

void mirror_co_give_up_bitmap(struct mirror *s)
{
    struct block_bitmap_backup backup = {0};
    ERROR_AUTO(err);
    bool held;
    int r;

    if (s->bitmap_taken && s->filter && s->flushes.r == 0 && !s->doubtful &&
        s->params.bitmap_mode == MIRROR_BITMAP_ALWAYS) {
        mirror_let_guests_go(s);
        co_wait_for_followers(s);
        /* Guests write the source only now, and `todo` records that: no need to stop them. */
        held = block_control_pause();
        r = mirror_top_co_flush_target(s->top, NULL);
        block_co_control_resume(held);
        job_co_drain(s->job, &s->filter, 1);
        if (r == 0 && co_settle_bitmap(s, &backup, &err) < 0) {
            log_error("mirror: bitmap '%s': %s", block_bitmap_name(s->params.bitmap),
                      error_message(&err));
        }
        dirty_bitmap_free(backup.bits);
        mirror_top_set_mode(s->top, MIRROR_TOP_OFF);
        block_drain_end(s->filter);
    }
    give_bitmap(s);
}

/* --- the end of a mirror that succeeds -------------------------------------------------------- */

/* What is copied last, with the nodes drained: no other copies are in flight. */
struct rest {
    struct mirror *s;
    struct mirror_top_copy copy;
    struct error err;
    int r;
    bool done;
};

static int co_copy_rest_of(struct rest *rest)
{
    struct mirror_top_copy *c = &rest->copy;
    struct mirror *s = rest->s;
    struct dirty_bitmap *todo = mirror_top_todo(s->top);
    int r = 0;

    while (r == 0 && !job_is_cancelled(s->job) &&
           dirty_bitmap_next_dirty(todo, 0, UINT64_MAX, &c->offset, &c->length)) {
        dirty_bitmap_clear(todo, c->offset, c->length);
        r = mirror_top_co_copy(s->top, c);
        if (r < 0) {
            dirty_bitmap_set(todo, c->offset, c->length);
            error_set_errno(&rest->err, -r, "%s",
                            c->reading ? "Reading the source failed"
                                       : "Writing to the target failed");
        }
    }
    if (r == 0) {
        r = mirror_top_co_flush_target(s->top, c->entrance);
        if (r < 0) {
            error_set_errno(&rest->err, -r, "Flushing the target failed");
        }
    }
    return r;
}

static int co_copy_rest(struct rest *rest)
{
    struct mirror *s = rest->s;
    int r;

    rest->copy.buffer = mirror_get_buffer(s);
    if (!rest->copy.buffer) {
        return error_out_of_memory(&rest->err);
    }
    r = co_copy_rest_of(rest);
    mirror_put_buffer(s, rest->copy.buffer);
    return r;
}

/* Edges that were moved, to move them back. */
struct moves {
    struct move {
        struct block_edge *edge;
        struct block_node *from;
    } * list; /* owned */
    size_t count;
};

/* A parent of `from` other than the filter and what is below the target; NULL: there is none. */
static struct block_edge *find_target_user(const struct mirror *s, const struct block_node *from)
{
    struct block_edge *edge = NULL;
    const struct block_node *parent;

    do {
        edge = block_node_next_parent(from, edge);
        parent = edge ? block_edge_parent(edge) : NULL;
    } while (parent && (parent == s->filter || block_node_reaches(s->params.target, parent)));
    return edge;
}

/* Move the parents of `from` to `to`, except the filter. */
static int co_move_users(struct mirror *s, struct block_node *from, struct block_node *to,
                         struct moves *moves, struct error *err)
{
    struct block_edge *edge;
    int r = 0;

    while (r == 0 && (edge = find_target_user(s, from))) {
        struct move *list = realloc(moves->list, (moves->count + 1) * sizeof(*list));

        if (!list) {
            return error_out_of_memory(err);
        }
        moves->list = list;
        list[moves->count] = (struct move){.edge = edge, .from = from};
        r = s->grows ? block_co_edge_point(edge, to, err) : block_co_edge_move(edge, to, err);
        moves->count += r == 0;
    }
    return r;
}

/* Within a graph change. The root of the job is gone. */
static int co_move_to_target(struct mirror *s, struct moves *moves, struct error *err)
{
    struct block_node *source = s->params.source, *target = s->params.target;
    struct block_node *replaces = s->params.replaces;
    int r;

    mirror_top_set_stopped(s->top, true);
    if (!replaces || replaces == source) {
        r = co_move_users(s, s->filter, target, moves, err);
        /* Those that came meanwhile, below the filter. */
        return UNLESS_FAILED(r, co_move_users(s, source, target, moves, err));
    }
    r = co_move_users(s, s->filter, source, moves, err);
    UNLESS_FAILED(r, co_move_users(s, replaces, target, moves, err));
    return r;
}

static void co_move_users_back(struct mirror *s, const struct moves *moves)
{
    for (size_t i = moves->count; i > 0; i--) {
        (void)block_co_edge_point(moves->list[i - 1].edge, moves->list[i - 1].from, NULL);
    }
    mirror_top_set_stopped(s->top, false);
    if (block_co_change_settle(NULL) < 0) {
        log_error("%s: permissions of before the change can't be had again", s->params.type);
    }
}

/* Parents may have come since the job began. */
static int check_replaced(const struct mirror *s, struct error *err)
{
    const struct block_node *replaces = s->params.replaces;

    return !replaces || mirror_may_replace(s->params.source, replaces)
               ? 0
               : error_set(err, EPERM,
                           "Can no longer replace '%s' by '%s', because it can no longer be "
                           "guaranteed that doing so would not lead to an abrupt change of "
                           "visible data",
                           block_node_name(replaces), block_node_name(s->params.target));
}

/* Whether guests at the target still read what they wrote to the source: it is below the target. */
static bool target_needs_source(const struct mirror *s)
{
    struct block_node *target = s->params.target, *backing = s->params.target_backing;

    return block_node_reaches(target, s->params.source) ||
           (backing && block_node_reaches(backing, s->params.source));
}

static int co_pivot(struct mirror *s, struct error *err)
{
    const struct mirror_hooks *hooks = s->params.hooks;
    struct moves moves = {0};
    int r = check_replaced(s, err);

    if (r >= 0 && hooks && hooks->co_before_pivot) {
        r = hooks->co_before_pivot(s->params.hooks_arg, err);
    }
    s->grows = block_node_size(s->params.target) != block_node_size(s->params.source);
    if (r >= 0 && s->grows) {
        r = block_node_check_resize(s->filter, err);
    }
    if (r < 0) {
        return r;
    }
    block_co_root_release(s->root);
    s->root = NULL;
    co_call_detach(s);
    block_co_change_begin();
    if (!target_needs_source(s)) {
        block_change_excuse_flushes(); /* the target was: users can leave a source that fails */
    }
    r = co_move_to_target(s, &moves, err);
    if (block_node_reaches(s->params.source, s->params.target)) {
        block_node_leave_for_below(s->params.source);
    }
    if (r >= 0 && s->params.target_backing) {
        r = block_co_set_backing_node(s->params.target, s->params.target_backing, err);
    }
    UNLESS_FAILED(r, block_co_change_settle(err));
    if (r < 0) {
        if (s->params.target_backing) {
            (void)block_co_set_backing_node(s->params.target, NULL, NULL);
        }
        co_move_users_back(s, &moves);
    }
    block_co_change_end();
    free(moves.list);
    if (r < 0) {
        return r;
    }
    s->pivoted = true;
    if (s->grows) {
        block_report_size(s->params.target);
    }
    if (hooks && hooks->co_after_pivot) {
        hooks->co_after_pivot(s->params.hooks_arg);
    }
    return 0;
}

/* The backing node of a target that exists, and was opened without. */
static int co_open_target_backing(struct mirror *s, struct error *err)
{
    struct block_info info;
    AUTO_FREE char *name = NULL;
    AUTO_FREE char *format = NULL;

    if (!s->params.opens_backing || s->params.target_backing ||
        block_node_backing(s->params.target) || block_co_get_info(s->params.target, &info) < 0 ||
        !info.backing_filename) {
        return 0;
    }
    format = info.backing_format ? strdup(info.backing_format) : NULL;
    name = block_node_resolve_backing(s->params.target, info.backing_filename);
    if (!name || (info.backing_format && !format)) {
        return error_out_of_memory(err);
    }
    return block_co_open_filename(name, format, NULL, 0, &s->params.target_backing, err);
}

static void co_copy_rest_apart(void *arg)
{
    struct rest *rest = arg;

    rest->r = co_copy_rest(rest);
    rest->done = true;
    job_wake(rest->s->job);
}

static void end_drains(struct block_node *const *nodes, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        block_drain_end(nodes[i]);
    }
}

/*
 * With the nodes drained: make the target equal. If the job is cancelled, guests go on at once,
 * whatever the target does: *ret_drained is false, and the result -ECANCELED. They go on as well if
 * it takes longer than `ns`: then it has to be done again when it has ended.
 */
static int co_finish_target(struct mirror *s, struct block_node *const *nodes, size_t count,
                            int64_t ns, bool *ret_drained, struct error *err)
{
    struct rest rest = {
        .s = s,
        .copy = {.buffer_size = s->chunk, .is_cancelled = mirror_is_cancelled, .arg = s},
    };
    int64_t until = loop_now_ns() + ns, now;

    if (reactor_spawn(reactor_main(), co_copy_rest_apart, &rest) < 0) {
        co_copy_rest_apart(&rest);
    }
    while (!rest.done && !job_is_cancelled(s->job) && (now = loop_now_ns()) < until) {
        job_co_sleep(s->job, until - now);
    }
    *ret_drained = rest.done && !job_is_cancelled(s->job);
    if (!*ret_drained) {
        if (job_is_cancelled(s->job)) {
            mirror_let_guests_go(s);
        }
        rest.copy.entrance = block_root_edge(s->root); /* others may drain the source, too */
        end_drains(nodes, count);
        while (!rest.done) {
            job_co_sleep(s->job, -1);
        }
    }
    error_move(err, &rest.err);
    return job_is_cancelled(s->job) ? -ECANCELED : rest.r;
}

/*
 * Drain the nodes, and make the target equal. It may not answer, with a guest's write in flight or
 * something left to copy: other commands go on meanwhile, and so do guests when the job is
 * cancelled. The nodes are the job's, which nobody takes out of the graph. *ret_drained: they are,
 * whatever the result is; storage may fail with -ECANCELED, too.
 */
static int co_make_equal(struct mirror *s, struct block_node **nodes, size_t count,
                         bool *ret_drained, struct error *err)
{
    bool held = block_control_pause();
    int64_t ns = FIRST_FINISH_NS;
    int r;

    do {
        *ret_drained = mirror_co_stop_nodes(s, nodes, count);
        r = *ret_drained ? co_finish_target(s, nodes, count, ns, ret_drained, err) : -ECANCELED;
        ns *= 2;
    } while (r == 0 && !*ret_drained);
    block_co_control_resume(held);
    return r;
}

int mirror_co_conclude(struct mirror *s, bool pivot, struct error *err)
{
    struct block_node *nodes[] = {s->filter, s->params.source, s->params.target,
                                  s->params.replaces ?: s->params.source};
    struct block_bitmap_backup backup = {0};
    bool drained;
    int r = pivot ? co_open_target_backing(s, err) : 0;

    if (r < 0) {
        return r;
    }
    r = co_make_equal(s, nodes, ARRAY_SIZE(nodes), &drained, err);
    if (r >= 0 && !job_begin_last_step(s->job)) {
        r = -ECANCELED;
    }
    UNLESS_FAILED(r, co_settle_bitmap(s, &backup, err));
    if (r >= 0) {
        mirror_restart_settle(s);
    }
    if (r >= 0 && pivot) {
        r = co_pivot(s, err);
        if (r == -EPERM && block_uses_qemu_names()) {
            log_error("%s", error_message(err));
            error_clear(err);
            error_set(err, EPERM, "%s", strerror(EPERM)); /* QEMU's words */
        }
    }
    if (r < 0 && backup.bits && s->params.bitmap_mode == MIRROR_BITMAP_ON_SUCCESS) {
        block_co_bitmap_restore(s->params.bitmap, &backup);
    }
    dirty_bitmap_free(backup.bits);
    if (r >= 0) {
        mirror_top_set_mode(s->top, MIRROR_TOP_OFF);
    }
    if (drained) {
        end_drains(nodes, ARRAY_SIZE(nodes));
    }
    if (s->pivoted) {
        co_drop_filter(s);
    }
    return r;
}
