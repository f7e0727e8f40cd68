/* SPDX-License-Identifier: Apache-2.0 */
/* The work of a backup job: which pieces there are, how each is copied, flushes of the target. */
#include <errno.h>
#include <string.h>

#include "base/checked.h"
#include "base/time_units.h"
#include "block/control.h"
#include "block/control_lock.h"
#include "block/gate.h"
#include "co/co.h"
#include "filter/copy_before_write.h"
#include "job/background.h"
#include "job/backup_internal.h"
#include "loop/loop.h"

#define DEFAULT_WORKERS 16u
/*
 * The default of the longest piece. Guest writes to a piece wait until it is copied, and a piece is
 * what is read and written at a time.
 */
#define DEFAULT_CHUNK (256 * KiB)
/* The longest piece that is known to be zero. */
#define ZERO_CHUNK (256 * MiB)
/* How often a job that only waits for its end looks for errors, and for the progress of guests. */
#define LOOK_NS (100 * NS_PER_MS)
/* Between two looks whether copies of guest writes have ended. */
#define IDLE_LOOK_NS NS_PER_MS

/* --- pieces ----------------------------------------------------------------------------------- */

static bool co_reads_as_zeroes(struct backup *b, uint64_t offset, uint64_t length,
                               uint64_t *ret_run)
{
    struct block_status status;

    *ret_run = length;
    if (block_co_status_above(block_root_edge(b->root), NULL, offset, length, &status, NULL) < 0 ||
        status.length == 0) {
        return false; /* the copy meets the error again, or not */
    }
    *ret_run = MIN(status.length, length);
    return status.flags & BLOCK_STATUS_ZERO;
}

/* Whether the image of the source has nothing of its own there. */
static bool co_is_unallocated(struct backup *b, uint64_t offset, uint64_t length, uint64_t *ret_run)
{
    bool allocated = true;

    *ret_run = length;
    if (block_co_is_allocated(block_root_edge(b->root), offset, length, &allocated, ret_run) < 0 ||
        *ret_run == 0) {
        return false;
    }
    return !allocated;
}

/*
 * The next piece: what others have copied already, what needs no data, or a piece of data. The
 * first two cost little, and are long.
 */
static int co_plan_backup(void *arg, struct copy_piece_plan *piece, uint64_t max_length)
{
    struct backup *b = arg;
    uint64_t cluster = cbw_cluster_size(b->cbw), offset = piece->offset, found, length, run;
    bool nothing;

    max_length = MIN(max_length, ZERO_CHUNK);
    if (!cbw_next_uncopied(b->cbw, offset, offset + max_length, &found, &length)) {
        piece->length = max_length;
        piece->paced = 0;
        return 0;
    }
    if (found - offset >= cluster) {
        piece->length = round_down(found, cluster) - offset;
        piece->paced = 0;
        return 0;
    }
    max_length = MIN(max_length, round_up(found + length, cluster) - offset);
    nothing = b->sync == BACKUP_TOP ? co_is_unallocated(b, offset, max_length, &run)
                                    : co_reads_as_zeroes(b, offset, max_length, &run);
    if (nothing && run < max_length) {
        run = round_down(run, cluster);
    }
    if (nothing && run > 0) {
        piece->length = run;
        piece->paced = 0;
    } else {
        piece->length = MIN(MIN(round_up(MAX(run, 1), cluster), piece->length), max_length);
        piece->paced = piece->length;
    }
    return 0;
}

/*
 * Whether the target reads as zeroes there already, by itself: so nothing has to be written, and
 * nothing takes space.
 */
static bool co_backup_target_is_zero(struct backup *b, uint64_t offset, uint64_t length,
                                     uint64_t *ret_run)
{
    struct block_status status;

    *ret_run = length;
    if (block_co_status(block_root_edge(b->target_root), offset, length, &status) < 0 ||
        status.length == 0) {
        return false;
    }
    *ret_run = MIN(status.length, length);
    return (status.flags & BLOCK_STATUS_ZERO) &&
           ((status.flags & BLOCK_STATUS_ALLOCATED) || b->target_alone);
}

/*
 * Leave out what is zero on both sides. The status of the source is that of the point in time as
 * long as the area has not been copied; cbw_skip() leaves alone what has been.
 */
static void co_skip_zeroes(struct backup *b, uint64_t pos, uint64_t end)
{
    while (pos < end) {
        uint64_t run, target_run;

        if (co_reads_as_zeroes(b, pos, end - pos, &run)) {
            if (co_backup_target_is_zero(b, pos, run, &target_run)) {
                cbw_skip(b->cbw, pos, target_run);
            }
            run = target_run;
        }
        pos += run;
    }
}

/* --- flushes ---------------------------------------------------------------------------------- */

static int co_flush_backup(void *arg)
{
    struct backup *b = arg;

    return block_co_flush(block_root_edge(b->target_root));
}

/* --- copies ----------------------------------------------------------------------------------- */

/* A guest's write has broken the point in time: no policy can mend that. */
static bool is_broken(struct backup *b)
{
    bool reading;

    return cbw_error(b->cbw, &reading) < 0;
}

struct backup_piece {
    struct backup *b;
    uint64_t offset, length; /* length 0: it has been copied */
    struct cbw_held_step held;
    bool reading;
    int r;
};

/* The piece, then one area of what guests have left in memory. */
static void co_run_backup_piece(void *arg)
{
    struct backup_piece *p = arg;

    p->r = cbw_co_copy(p->b->cbw, p->offset, p->length, &p->reading);
    if (p->r == 0) {
        p->r = cbw_co_write_held(p->b->cbw, &p->held);
        p->reading = p->held.reading;
    }
}

static int co_copy_backup_piece(void *arg, const struct copy_piece_plan *piece, bool *ret_reading)
{
    struct backup *b = arg;
    struct backup_piece p = {
        .b = b, .offset = piece->offset, .length = piece->length, .reading = *ret_reading};
    int r;

    if (piece->paced == 0) {
        co_skip_zeroes(b, piece->offset, piece->offset + piece->length);
    }
    do {
        p.held = (struct cbw_held_step){.held_only = job_speed(b->job) > 0};
        job_co_in_background(co_run_backup_piece, &p);
        /* What is held does not wait, or guests would: the pieces after it wait the longer. */
        job_pace_after(b->job, p.held.copied);
        p.length = 0;
        if (reactor_turn_expired()) {
            loop_co_give_way();
        }
    } while (p.r == 0 && p.held.more && !job_should_stop(b->job));
    r = p.r;
    *ret_reading = p.reading;
    if (r == 0) {
        flush_behind_note(&b->flushes, piece->paced);
    }
    if (r < 0 && is_broken(b)) {
        b->loop.on_source_error = b->loop.on_target_error = JOB_ON_ERROR_REPORT;
    }
    return r;
}

/* What the image itself does not have turns out to be no work as the job gets there. */
static uint64_t bytes_left(void *arg)
{
    struct backup *b = arg;
    uint64_t left = cbw_uncopied_bytes(b->cbw);

    if (b->sync == BACKUP_TOP) {
        job_progress_set_total(b->job, cbw_copied_bytes(b->cbw) + left);
    }
    return left;
}

void backup_set_loop(struct backup *b, const struct backup_config *config)
{
    uint32_t cluster = cbw_cluster_size(b->cbw);
    uint64_t chunk = config->max_chunk ? MIN(config->max_chunk, 1 * GiB) : DEFAULT_CHUNK;

    b->loop = (struct copy_loop_params){
        .job = b->job,
        .todo = b->todo,
        .chunk = MAX(round_down(chunk, cluster), cluster),
        .workers = config->max_workers ?: DEFAULT_WORKERS,
        .on_source_error = config->on_source_error,
        .on_target_error = config->on_target_error,
        .left = bytes_left,
        .co_plan = co_plan_backup,
        .co_copy = co_copy_backup_piece,
        .arg = b,
    };
}

/* --- the work --------------------------------------------------------------------------------- */

/* sync=none: guests do the work. Ends with an error only. */
static int co_watch_guests(struct backup *b)
{
    int r = 0;

    while (r == 0) {
        struct job_info info = job_get_info(b->job);
        bool reading;

        job_progress_add(b->job, info.total - info.current - bytes_left(b));
        r = job_co_pause_point(b->job);
        UNLESS_FAILED(r, cbw_error(b->cbw, &reading));
        if (r == 0) {
            job_co_sleep(b->job, LOOK_NS);
        }
    }
    return r;
}

/* The disk, then what guests have left in memory of what the job had passed. */
static int co_copy_all(struct backup *b)
{
    int r;

    do {
        r = copy_loop_co_run(&b->loop);
    } while (r == 0 && cbw_merge_held(b->cbw, b->todo));
    return r;
}

/* Copies of guest writes that are still in flight, of areas that the job needed no more. */
static void co_wait_for_copies(struct backup *b)
{
    while (cbw_is_busy(b->cbw, true)) {
        loop_co_sleep(IDLE_LOOK_NS);
    }
}

void backup_co_note_left(struct backup *b)
{
    struct dirty_bitmap *left;
    bool held;
    int r;

    left = dirty_bitmap_new(block_node_size(b->source), cbw_cluster_size(b->cbw));
    if (!left) {
        return;
    }
    cbw_merge_uncopied(b->cbw, left);
    /* The flush may wait for a drain, whose owner may wait for the lock. */
    held = block_control_pause();
    r = flush_behind_co_flush(&b->flushes);
    block_co_control_resume(held);
    if (r < 0) {
        dirty_bitmap_set(left, 0, dirty_bitmap_size(left));
    }
    b->left = left;
}

int backup_co_run(struct job *job, void *state, struct error *err)
{
    struct backup *b = state;
    bool reading;
    int r;

    b->has_run = true;
    cbw_set_entrance(b->cbw, block_root_edge(b->root));
    flush_behind_init(&b->flushes, co_flush_backup, b);
    b->target_alone = b->sync == BACKUP_FULL && block_co_stands_alone(b->target);
    r = b->sync == BACKUP_NONE ? co_watch_guests(b) : co_copy_all(b);
    UNLESS_FAILED(r, cbw_error(b->cbw, &reading));
    /* What guests have overwritten in the source since cannot be copied again. */
    UNLESS_FAILED(r, flush_behind_co_flush_or_fail(&b->flushes, job, b->loop.on_target_error));
    if (r < 0) {
        cbw_stop(b->cbw);
        if (b->bitmap_mode == BACKUP_ALWAYS && b->bitmap) {
            backup_co_note_left(b);
        }
    }
    co_wait_for_copies(b);
    flush_behind_co_wait(&b->flushes);
    return r < 0 && r != -ECANCELED ? error_set(err, -r, "%s", strerror(-r)) : r;
}
