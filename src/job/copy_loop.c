/* SPDX-License-Identifier: Apache-2.0 */
#include "job/copy_loop.h"

#include <errno.h>
#include <stdlib.h>

#include "base/checked.h"
#include "base/time_units.h"
#include "co/co.h"
#include "loop/loop.h"

/* Waits before a piece is tried again that has failed, one after another without a success. */
#define FIRST_RETRY_NS NS_PER_MS
#define LAST_RETRY_NS NS_PER_SECOND

/* One run. Everything happens on one reactor, so nothing needs a lock. */
struct copy_loop {
    const struct copy_loop_params *p;
    uint64_t end;          /* of the range */
    uint64_t cursor;       /* look for the next piece from here */
    unsigned active;       /* pieces in flight */
    struct list runs;      /* of struct piece_run: those */
    uint64_t bytes_active; /* of them */
    struct co *waiter;     /* the job's coroutine, while it waits for one of them */
    int r;                 /* the error that ends the loop */
    int skipped_r;         /* the first error of a piece that was skipped */
    int64_t retry_ns;      /* the wait before the next retry; 0: none is due */
    int64_t last_retry_ns; /* the one before it */
};

struct piece_run {
    struct list link; /* in loop->runs while it is in flight */
    struct copy_loop *loop;
    struct copy_piece_plan piece;
};

/* The offset up to which nothing is left and nothing in flight. */
static uint64_t done_up_to(const struct copy_loop *l)
{
    const struct piece_run *run;
    uint64_t offset, length;

    if (!dirty_bitmap_next_dirty(l->p->todo, 0, UINT64_MAX, &offset, &length)) {
        offset = dirty_bitmap_size(l->p->todo);
    }
    LIST_FOREACH (run, &l->runs, link) {
        offset = MIN(offset, run->piece.offset);
    }
    return offset;
}

static void update_progress(struct copy_loop *l, uint64_t done)
{
    if (l->p->in_order) {
        done = done_up_to(l) - job_get_info(l->p->job).current;
    } else if (l->p->left) {
        uint64_t left = l->p->left(l->p->arg);
        struct job_info info = job_get_info(l->p->job);

        done = info.total > info.current + left ? info.total - info.current - left : 0;
    }
    job_progress_add(l->p->job, done);
    if (l->p->live) {
        job_progress_set_total(l->p->job, job_get_info(l->p->job).current + l->bytes_active +
                                              dirty_bitmap_count(l->p->todo));
    }
}

static void piece_failed(struct copy_loop *l, const struct copy_piece_plan *piece, bool reading,
                         int r)
{
    const struct copy_loop_params *p = l->p;
    enum job_error_action action = JOB_ERROR_FAIL;

    dirty_bitmap_set(p->todo, piece->offset, piece->length);
    if (r == -ECANCELED && job_is_cancelled(p->job)) {
        return;
    }
    if (l->r == 0) {
        action =
            job_handle_error(p->job, reading ? p->on_source_error : p->on_target_error, reading, r);
    }
    if (action == JOB_ERROR_FAIL) {
        l->r = l->r ?: r;
    } else if (action == JOB_ERROR_RETRY && p->skip_ignored) {
        dirty_bitmap_clear(p->todo, piece->offset, piece->length);
        l->skipped_r = l->skipped_r ?: r;
        update_progress(l, piece->length);
    } else if (action == JOB_ERROR_RETRY) {
        l->last_retry_ns = MIN(MAX(2 * l->last_retry_ns, FIRST_RETRY_NS), LAST_RETRY_NS);
        l->retry_ns = l->last_retry_ns;
    }
}

/* A piece is in the target, or has failed. */
static void end_piece(struct piece_run *run, bool reading, int r)
{
    struct copy_loop *l = run->loop;
    struct co *waiter = l->waiter;

    list_remove(&run->link);
    l->active--;
    l->bytes_active -= run->piece.length;
    if (r < 0) {
        piece_failed(l, &run->piece, reading, r);
    } else {
        l->last_retry_ns = 0;
        update_progress(l, run->piece.length);
    }
    free(run);
    l->waiter = NULL;
    if (waiter) {
        co_wake(waiter);
    }
}

static void co_run_piece(void *arg)
{
    struct piece_run *run = arg;
    bool reading = false;
    int r = run->loop->p->co_copy(run->loop->p->arg, &run->piece, &reading);

    end_piece(run, reading, r);
}

static void co_wait_for_piece(struct copy_loop *l)
{
    l->waiter = co_self();
    co_suspend();
}

/* With a low speed limit pieces are short, so that the job answers verbs, and moves steadily. */
static uint64_t longest_piece(const struct copy_loop_params *p)
{
    uint64_t speed = job_speed(p->job);
    uint32_t granularity = dirty_bitmap_granularity(p->todo);

    return speed == 0 || p->whole_pieces
               ? p->chunk
               : MIN(p->chunk, MAX(granularity, round_down(speed / 10, granularity)));
}

/* The next dirty extent at or after the cursor, else the first one of all. */
static bool next_extent(struct copy_loop *l, uint64_t *ret_offset, uint64_t *ret_length)
{
    const struct dirty_bitmap *todo = l->p->todo;

    return dirty_bitmap_next_dirty(todo, l->cursor, l->end, ret_offset, ret_length) ||
           (!l->p->one_pass &&
            dirty_bitmap_next_dirty(todo, l->p->begin, l->cursor, ret_offset, ret_length));
}

/*
 * Take the next piece that is not in flight: 1, with `run` filled; 0: there is none now. -errno:
 * reading the source failed, for the piece that `run` has.
 */
static int co_claim_next(struct copy_loop *l, struct piece_run *run)
{
    const struct copy_loop_params *p = l->p;
    struct copy_piece_plan *piece = &run->piece;
    uint64_t max_length;
    int r = 0;

    if (!next_extent(l, &piece->offset, &max_length)) {
        return 0;
    }
    piece->length = MIN(max_length, longest_piece(p));
    piece->paced = piece->length;
    if (p->co_plan) {
        r = p->co_plan(p->arg, piece, max_length);
    }
    l->cursor = piece->offset + piece->length;
    dirty_bitmap_clear(p->todo, piece->offset, piece->length);
    list_append(&l->runs, &run->link);
    l->active++;
    l->bytes_active += piece->length;
    return r < 0 ? r : 1;
}

/* A piece that was claimed is left for later. */
static void put_piece_back(struct piece_run *run)
{
    struct copy_loop *l = run->loop;

    dirty_bitmap_set(l->p->todo, run->piece.offset, run->piece.length);
    list_remove(&run->link);
    l->active--;
    l->bytes_active -= run->piece.length;
    l->cursor = run->piece.offset;
    free(run);
}

/* Start the next piece, or wait for one in flight; false: nothing is left. */
static bool co_start_next(struct copy_loop *l)
{
    struct piece_run *run = calloc(1, sizeof(*run));
    int r;

    if (!run) {
        l->r = -ENOMEM;
        return true;
    }
    run->loop = l;
    r = co_claim_next(l, run);
    if (r < 0) {
        end_piece(run, true, r);
        return true;
    }
    if (r == 0) {
        free(run);
        if (l->active > 0) {
            co_wait_for_piece(l);
            return true;
        }
        return false;
    }
    if (!job_co_pace(l->p->job, run->piece.paced)) {
        put_piece_back(run);
        return true;
    }
    if (job_is_cancelled(l->p->job)) {
        end_piece(run, true, -ECANCELED);
        return true;
    }
    /* At once: a piece that has nothing to wait for is not in flight while others wait for it. */
    if (co_run(co_get_home(co_self()), co_run_piece, run) < 0) {
        co_run_piece(run);
    }
    return true;
}

static void co_wait_for_all(struct copy_loop *l)
{
    while (l->active > 0) {
        co_wait_for_piece(l);
    }
}

/* One step of the loop; false: the loop has ended. */
static bool co_loop_step(struct copy_loop *l)
{
    struct job *job = l->p->job;

    if (l->r < 0) {
        return false;
    }
    if (job_should_stop(job)) {
        co_wait_for_all(l);
        l->r = l->r ?: job_co_pause_point(job);
        return true;
    }
    if (l->retry_ns > 0) {
        int64_t ns = l->retry_ns;

        l->retry_ns = 0;
        job_co_sleep(job, ns);
        return true;
    }
    if (l->active >= l->p->workers) {
        co_wait_for_piece(l);
        return true;
    }
    if (reactor_turn_expired()) {
        loop_co_give_way();
    }
    return co_start_next(l);
}

int copy_loop_co_run(const struct copy_loop_params *params)
{
    struct copy_loop l = {
        .p = params,
        .cursor = params->begin,
        .end = params->end ? params->end : UINT64_MAX,
    };

    list_init(&l.runs);
    while (co_loop_step(&l)) {
    }
    co_wait_for_all(&l);
    return l.r < 0 ? l.r : l.skipped_r;
}
