/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A mirror that can be restarted. docs/mirror.md has the protocol, and why a skip is right; its
 * names are used here:
 *
 *      received (R)  the bitmap of the target: a write has reached it there
 *      pending  (P)  the bitmap of the source, restart.pending: the target may lack it
 *      todo     (W)  the bitmap of the running job
 *
 * Invariant: what R has and P has not is in the target, equal, on stable storage.
 *
 *      for each window, from the beginning of the disk:
 *          set P in the window, and in the margin behind it
 *          copy what W has in the window; nothing is written to the target behind the window
 *          flush the target
 *          with the source drained: clear P in the window, where W has no bit, and where no guest
 *          has written on both sides since the flush began
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/log.h"
#include "base/size.h"
#include "base/time_units.h"
#include "block/bitmaps.h"
#include "block/block.h"
#include "block/control.h"
#include "block/control_lock.h"
#include "job/copy_loop.h"
#include "job/mirror_internal.h"
#include "loop/loop.h"

#define WINDOW_MIN (1 * MiB)
#define WINDOW_MAX (64 * MiB)
#define WINDOWS_OF_DISK 64
/* Behind the window, P is set as far as this: granules of R may be that large. */
#define MARGIN (64 * MiB)
/* How often a job that is ready clears bits of P. */
#define SETTLE_NS NS_PER_SECOND
/* How often a job stores P: what it has lost since then is sent again after a crash. */
#define NOTE_NS (5 * NS_PER_SECOND)

/* --- start: the bitmap of the source ---------------------------------------------------------- */

/* Add P. It records from now on. */
static int co_add_pending(struct mirror *s, struct error *err)
{
    struct mirror_restart *m = &s->restart;
    struct block_node *source = block_node_skip_filters(s->params.source);
    bool persistent = block_node_stores_bitmaps(source) && !block_node_is_read_only(source);

    m->fresh = true;
    return block_co_bitmap_add(source, m->name, dirty_bitmap_granularity(mirror_top_todo(s->top)),
                               persistent, false, &m->pending, err);
}

/* Find P; *ret_bitmap is NULL if there is none, or if it says nothing any more. */
static int co_find_pending(struct mirror *s, struct block_bitmap **ret_bitmap, struct error *err)
{
    struct block_node *source = block_node_skip_filters(s->params.source);
    struct block_bitmap *b = block_bitmap_find(source, s->restart.name);
    int r;

    *ret_bitmap = NULL;
    if (!b) {
        return 0;
    }
    if (block_bitmap_inconsistent(b)) {
        log_warning("mirror: bitmap '%s' of node '%s' is inconsistent, and is made again: all is "
                    "copied",
                    s->restart.name, block_node_name(source));
        return block_co_bitmap_remove(b, err);
    }
    r = block_bitmap_check(b, BLOCK_BITMAP_REFUSE_ALL, err);
    if (r == 0 && !block_bitmap_enabled(b)) {
        r = error_set(err, EINVAL,
                      "Bitmap '%s' of node '%s' is disabled: writes may be missing in there",
                      s->restart.name, block_node_name(source));
    }
    *ret_bitmap = b;
    return r;
}

static int copy_names(struct mirror *s, struct error *err)
{
    const struct mirror_params *p = &s->params;

    s->restart.name = strdup(p->restart_bitmap);
    s->restart.changes_name = p->restart_changes ? strdup(p->restart_changes) : NULL;
    return s->restart.name && (s->restart.changes_name || !p->restart_changes)
               ? 0
               : error_out_of_memory(err);
}

int mirror_restart_co_begin(struct mirror *s, struct error *err)
{
    struct mirror_restart *m = &s->restart;
    int r;

    if (!s->params.restart_bitmap) {
        return 0;
    }
    r = copy_names(s, err);
    UNLESS_FAILED(r, co_find_pending(s, &m->pending, err));
    if (r >= 0 && !m->pending) {
        r = co_add_pending(s, err);
    }
    if (r >= 0) {
        block_bitmap_take(m->pending, "block job 'mirror'");
        m->taken = true;
        r = block_co_bitmap_borrow_bits(m->pending, &m->bits, err);
    }
    if (r < 0) {
        mirror_restart_co_end(s);
    }
    return r;
}

void mirror_restart_co_end(struct mirror *s)
{
    struct mirror_restart *m = &s->restart;
    ERROR_AUTO(err);

    free(m->name);
    free(m->changes_name);
    m->name = m->changes_name = NULL;
    if (m->taken) {
        block_co_bitmap_return_bits(m->pending);
        block_bitmap_give(m->pending);
    }
    /* The target has taken over, or nothing was sent: the bitmap says nothing any more. */
    if (m->pending && (s->pivoted || (m->fresh && !m->sending)) &&
        block_co_bitmap_remove(m->pending, &err) < 0) {
        log_warning("mirror: bitmap '%s' of node '%s' stays: %s", block_bitmap_name(m->pending),
                    block_node_name(s->params.source), error_message(&err));
    }
    m->pending = NULL;
    m->taken = false;
}

/* --- what the target has ---------------------------------------------------------------------- */

/* The largest power of two that divides all borders of extents: not below R's granularity. */
static uint64_t common_alignment(const struct dirty_bitmap *bits)
{
    uint64_t offset = 0, length, borders = 0, size = dirty_bitmap_size(bits);

    while (dirty_bitmap_next_dirty(bits, offset, UINT64_MAX, &offset, &length)) {
        borders |= offset;
        offset += length;
        borders |= offset < size ? offset : 0;
    }
    return borders ? borders & -borders : size;
}

/*
 * A granule counts as received as soon as its first part is. Granules that are larger than the
 * margin could reach beyond what is set in P.
 */
static void drop_partial_granules(struct dirty_bitmap *received)
{
    uint64_t offset = 0, length, size = dirty_bitmap_size(received);
    uint64_t alignment = common_alignment(received);

    if (alignment <= MARGIN) {
        return;
    }
    while (dirty_bitmap_next_dirty(received, offset, UINT64_MAX, &offset, &length)) {
        uint64_t end = offset + length, drop = MIN(alignment, length);

        if (end < size) {
            dirty_bitmap_clear(received, end - drop, drop);
        }
        offset = end;
    }
}

/* Read a bitmap of the target. Without one, or when it can't be read, `*ret_known` is false. */
static int co_read_target_bitmap(struct mirror *s, const char *name, struct dirty_bitmap **ret_bits,
                                 bool *ret_known, struct error *err)
{
    struct dirty_bitmap *todo = mirror_top_todo(s->top);
    struct dirty_bitmap *bits =
        dirty_bitmap_new(dirty_bitmap_size(todo), dirty_bitmap_granularity(todo));
    ERROR_AUTO(why);
    int r;

    if (!bits) {
        return error_out_of_memory(err);
    }
    r = block_co_read_bitmap(s->params.target, name, bits, &why);
    *ret_known = r == 0;
    *ret_bits = bits;
    if (r < 0) {
        log_warning("mirror '%s': all is copied: %s", job_id(s->job), error_message(&why));
    }
    return 0;
}

/* Set in `to` what is not set in `bits`. */
static void add_inverse(struct dirty_bitmap *to, const struct dirty_bitmap *bits)
{
    uint64_t offset = 0, length, size = dirty_bitmap_size(bits);

    while (offset < size) {
        if (!dirty_bitmap_status(bits, offset, size, &length)) {
            dirty_bitmap_set(to, offset, length);
        }
        offset += length;
    }
}

static void log_plan(struct mirror *s)
{
    struct dirty_bitmap *todo = mirror_top_todo(s->top);
    char size[32], left[32];

    log_info("mirror '%s': of %s, %s are copied, and the rest is in the target", job_id(s->job),
             size_format(dirty_bitmap_size(todo), size, sizeof(size)),
             size_format(dirty_bitmap_count(todo), left, sizeof(left)));
}

/*
 * W = P and what R has not. A new P begins with what R has. The job has not written to the target
 * yet, so that R does not change meanwhile.
 */
static int co_plan_restart(struct mirror *s, struct error *err)
{
    struct mirror_restart *m = &s->restart;
    struct dirty_bitmap *todo = mirror_top_todo(s->top), *received = NULL, *changed = NULL;
    bool known, changes_known = true;
    int r = co_read_target_bitmap(s, s->restart.name, &received, &known, err);

    if (r == 0 && m->changes_name) {
        r = co_read_target_bitmap(s, m->changes_name, &changed, &changes_known, err);
    }
    if (r == 0 && known && changes_known) {
        drop_partial_granules(received);
        add_inverse(todo, received);
        r = m->fresh ? dirty_bitmap_merge(m->bits, received) : 0;
        if (r == 0 && changed) {
            r = error_first(dirty_bitmap_merge(m->bits, changed),
                            dirty_bitmap_merge(todo, changed));
        }
        if (r < 0) {
            r = error_out_of_memory(err);
        }
    } else if (r == 0) {
        dirty_bitmap_set(m->bits, 0, dirty_bitmap_size(m->bits));
    }
    if (r == 0 && dirty_bitmap_merge(todo, m->bits) < 0) {
        r = error_out_of_memory(err);
    }
    dirty_bitmap_free(received);
    dirty_bitmap_free(changed);
    return r;
}

/* --- windows ---------------------------------------------------------------------------------- */

static void add_range(struct dirty_bitmap *to, const struct dirty_bitmap *bits, uint64_t begin,
                      uint64_t end)
{
    uint64_t offset = begin, length;

    while (dirty_bitmap_next_dirty(bits, offset, end, &offset, &length)) {
        dirty_bitmap_set(to, offset, length);
        offset += length;
    }
}

/*
 * The source is drained, and the target was flushed: P keeps, in the range, what W has, and what
 * guests have written on both sides since the flush began.
 */
static void settle_range(struct mirror *s, uint64_t begin, uint64_t end)
{
    struct dirty_bitmap *pending = s->restart.bits;

    dirty_bitmap_clear(pending, begin, end - begin);
    add_range(pending, mirror_top_todo(s->top), begin, end);
    add_range(pending, mirror_top_followed(s->top), begin, end);
}

void mirror_restart_settle(struct mirror *s)
{
    /* The flush was made with the source drained: nothing was written since. */
    if (s->restart.taken) {
        dirty_bitmap_clear_all(mirror_top_followed(s->top));
    }
    if (s->restart.taken && !s->restart.doubtful && !job_is_cancelled(s->job)) {
        settle_range(s, 0, dirty_bitmap_size(s->restart.bits));
    }
}

/* Now and then: P in the image loses what it has lost in memory. The source is drained. */
static void co_note_progress(struct mirror *s)
{
    struct mirror_restart *m = &s->restart;
    ERROR_AUTO(err);

    if (loop_now_ns() < m->noted_ns + NOTE_NS) {
        return;
    }
    m->noted_ns = loop_now_ns();
    if (block_co_bitmap_note_all(m->pending, &err) < 0) { /* it has more than necessary */
        log_warning("mirror '%s': %s", job_id(s->job), error_message(&err));
    }
}

/* Flush the target, and clear bits of P. No piece is in flight. */
static int co_end_window(struct mirror *s, uint64_t begin, uint64_t end)
{
    struct block_drain drain;
    int r;

    dirty_bitmap_clear_all(mirror_top_followed(s->top));
    r = mirror_co_flush_or_fail(s);
    if (r > 0) {
        return 0; /* what is to be sent again is in W, and P keeps its bits */
    }
    if (r == 0 && mirror_co_stop_others(s, &drain)) {
        /* After a cancel W does not get guests' writes any more. */
        if (!s->restart.doubtful && !job_is_cancelled(s->job)) {
            settle_range(s, begin, end);
            co_note_progress(s);
        }
        block_drain_end_but(&drain);
    }
    return r;
}

/* The beginning of the window in which something is to be copied; the size if there is none. */
static uint64_t next_window(struct mirror *s, uint64_t offset, uint64_t window)
{
    struct dirty_bitmap *todo = mirror_top_todo(s->top);
    uint64_t length;

    return dirty_bitmap_next_dirty(todo, offset, UINT64_MAX, &offset, &length)
               ? round_down(offset, window)
               : dirty_bitmap_size(todo);
}

static int co_copy_windows(struct mirror *s, uint64_t window)
{
    struct dirty_bitmap *pending = s->restart.bits;
    uint64_t size = dirty_bitmap_size(pending), settled = 0, begin;
    int r = 0;

    while (r == 0 && (begin = next_window(s, settled, window)) < size) {
        uint64_t end = MIN(begin + window, size);

        dirty_bitmap_set(pending, begin, end - begin + MARGIN);
        r = block_co_bitmap_note_set(s->restart.pending, begin, end - begin + MARGIN);
        mirror_top_set_follow_end(s->top, end);
        s->restart.sending = true;
        UNLESS_FAILED(r, mirror_co_copy_range(s, begin, end, true));
        UNLESS_FAILED(r, co_end_window(s, settled, end));
        settled = end;
    }
    return r;
}

/* Before anything is sent, the image has of P what it begins with. */
static int co_note_plan(struct mirror *s, struct error *err)
{
    struct block_drain drain;
    int r;

    if (!mirror_co_stop_others(s, &drain)) {
        return -ECANCELED;
    }
    r = block_co_bitmap_note_all(s->restart.pending, err);
    block_drain_end_but(&drain);
    return r;
}

int mirror_restart_co_run(struct mirror *s, struct error *err)
{
    uint64_t size = dirty_bitmap_size(mirror_top_todo(s->top));
    uint64_t window = WINDOW_MIN;
    int r;

    while (window < WINDOW_MAX && 2 * window * WINDOWS_OF_DISK <= size) {
        window *= 2;
    }
    window = MAX(window, dirty_bitmap_granularity(mirror_top_todo(s->top)));
    r = co_plan_restart(s, err);
    UNLESS_FAILED(r, co_note_plan(s, err));
    if (r < 0) {
        return r;
    }
    log_plan(s);
    s->restart.noted_ns = loop_now_ns();
    job_progress_set_total(s->job, dirty_bitmap_count(mirror_top_todo(s->top)));
    r = co_copy_windows(s, window);
    if (r == 0) {
        mirror_top_set_follow_end(s->top, UINT64_MAX);
    }
    s->restart.settled_ns = loop_now_ns();
    return r;
}

int mirror_restart_co_idle(struct mirror *s)
{
    struct mirror_restart *m = &s->restart;

    if (!m->taken || loop_now_ns() < m->settled_ns + SETTLE_NS ||
        dirty_bitmap_count(m->bits) == 0) {
        return 0;
    }
    m->settled_ns = loop_now_ns();
    return co_end_window(s, 0, dirty_bitmap_size(m->bits));
}
