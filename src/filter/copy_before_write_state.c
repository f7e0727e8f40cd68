/* SPDX-License-Identifier: Apache-2.0 */
#include "filter/copy_before_write.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/log.h"
#include "base/time_units.h"
#include "co/wait.h"
#include "loop/loop.h"

/* Most copies in flight for one guest write; each may have several requests in flight. */
#define COPIES_PER_WRITE 16u
/*
 * A wait for copies holds a guest up if it is that long, and that many times as long as the guest's
 * write itself.
 */
#define HELD_UP_NS (50 * NS_PER_MS)
#define HELD_UP_TIMES 10
/* A job's copy that has held data with it grows no longer than this, or a cluster. */
#define FILLED_MAX (256 * KiB)

/* A copy in flight of clusters that were UNTOUCHED. */
struct cbw_copy {
    struct range_item item; /* in s->copies while in flight */
    struct list spare;      /* in s->spare_copies while unused */
    struct cbw_state *s;
    uint64_t offset;
    uint64_t length;
    /* The copy in flight, the write that began it, and each write that waits for it. */
    unsigned refs;
    bool finished;
    bool by_job; /* else a guest write needs it */
    /* of a guest write: the old data go there, and not to the target; NULL: they are copied */
    struct held_item *hold;
    struct list held; /* of a job: items that it writes with the rest */
    int result;
    struct block_copy_failure failure;
    struct co_queue waiters;
};

/*
 * A guest write, or a piece of a job, that waits for copies. Its thread owns the fields;
 * `waiting_for` also needs s->lock.
 */
struct cbw_write {
    struct cbw_state *s;
    bool by_job;
    bool held_only;     /* of a job: it copies only what is held */
    uint64_t copied;    /* bytes of own copies that have succeeded */
    int64_t timeout_ns; /* 0: none */
    struct block_copy_failure failure;
    struct loop_timer timer;
    bool timer_armed;
    bool timed_out;               /* guarded by s->lock */
    bool waited;                  /* for a copy */
    struct cbw_copy *waiting_for; /* with a reference */
    struct cbw_copy *own[COPIES_PER_WRITE];
    unsigned own_count;
};

/* --- life ------------------------------------------------------------------------------------- */

int cbw_state_init(struct cbw_state *s, struct error *err)
{
    struct block_copy_params params = {
        .cluster_size = s->cluster_size,
        .zero_flags = BLOCK_REQ_MAY_UNMAP,
    };
    int r;

    s->access = dirty_bitmap_new(s->size, s->cluster_size);
    s->done = dirty_bitmap_new(s->size, s->unit);
    if (!s->access || !s->done) {
        r = error_set(err, ENOMEM, "Out of memory for the bitmaps of node '%s'", s->name);
    } else {
        r = block_copy_new(s->file, s->target, &params, &s->copy, err);
    }
    if (r < 0) {
        dirty_bitmap_free(s->access);
        dirty_bitmap_free(s->done);
        return r;
    }
    dirty_bitmap_set(s->access, 0, s->size);
    co_group_init(&s->copies_running);
    pthread_mutex_init(&s->lock, NULL);
    range_index_init(&s->copies);
    list_init(&s->spare_copies);
    held_init(&s->held);
    range_index_init(&s->readers);
    range_index_init(&s->target_readers);
    discard_parts_init(&s->parts);
    return 0;
}

int cbw_state_set_unit(struct cbw_state *s, uint32_t unit)
{
    struct dirty_bitmap *done;

    if (s->unit == unit) {
        return 0;
    }
    done = dirty_bitmap_new(s->size, unit);
    if (!done) {
        return -ENOMEM;
    }
    dirty_bitmap_free(s->done);
    s->done = done;
    s->unit = unit;
    return 0;
}

void cbw_state_set_access(struct cbw_state *s, struct dirty_bitmap *access)
{
    dirty_bitmap_free(s->access);
    s->access = access;
}

bool cbw_is_busy(struct cbw_state *s, bool writing)
{
    unsigned busy;

    pthread_mutex_lock(&s->lock);
    busy = s->copy_count;
    if (!writing && !s->job.discard_source && !s->job.skip_unallocated) {
        /* A call that ends at this moment counts as busy once more. */
        busy -= MIN(busy, block_copy_writing_only(s->copy) + s->item_count);
    }
    pthread_mutex_unlock(&s->lock);
    return busy > 0;
}

void cbw_co_state_destroy(struct cbw_state *s)
{
    struct cbw_copy *copy, *next;

    co_group_wait(&s->copies_running);
    LIST_FOREACH_SAFE (copy, next, &s->spare_copies, spare) {
        free(copy);
    }
    block_copy_free(s->copy);
    held_destroy(&s->held);
    discard_parts_clear(&s->parts);
    dirty_bitmap_free(s->access);
    dirty_bitmap_free(s->done);
    pthread_mutex_destroy(&s->lock);
    co_group_destroy(&s->copies_running);
}

/* --- figures ---------------------------------------------------------------------------------- */

enum { COPIED_CLUSTERS, COPIED_BYTES, TARGET_BYTES, WAITS, TIMEOUTS, BROKEN, CBW_STATS };

const struct stat_desc cbw_stats[] = {
    [COPIED_CLUSTERS] = {"copied_clusters", "Clusters copied before guest writes", STAT_COUNTER,
                         STAT_COUNT},
    [COPIED_BYTES] = {"copied_bytes", "Bytes copied before guest writes", STAT_COUNTER, STAT_BYTES},
    [TARGET_BYTES] = {"target_used", "Bytes of old data that the target holds", STAT_GAUGE,
                      STAT_BYTES},
    [WAITS] = {"waits", "Guest writes that waited for a copy", STAT_COUNTER, STAT_COUNT},
    [TIMEOUTS] = {"timeouts", "Guest writes whose copy took longer than cbw-timeout", STAT_COUNTER,
                  STAT_COUNT},
    [BROKEN] = {"broken", "1 if a copy failed and the snapshot was given up", STAT_GAUGE,
                STAT_COUNT},
    [CBW_STATS] = {.name = NULL},
};

void cbw_read_stats(struct cbw_state *s, uint64_t *ret_values)
{
    pthread_mutex_lock(&s->lock);
    ret_values[COPIED_BYTES] = s->copied_bytes;
    ret_values[COPIED_CLUSTERS] = div_round_up(s->copied_bytes, s->unit);
    ret_values[TARGET_BYTES] = dirty_bitmap_count(s->done) - held_bytes(&s->held);
    ret_values[WAITS] = s->waits;
    ret_values[TIMEOUTS] = s->timeouts;
    ret_values[BROKEN] = s->broken;
    pthread_mutex_unlock(&s->lock);
}

/* --- tables ----------------------------------------------------------------------------------- */

/*
 * Find the next run in [offset, end) that may be read and is not in the target; copies in flight
 * count as not there.
 */
static bool next_uncopied_locked(struct cbw_state *s, uint64_t offset, uint64_t end,
                                 uint64_t *ret_offset, uint64_t *ret_length)
{
    uint64_t start, length, run;

    while (dirty_bitmap_next_dirty(s->access, offset, end, &start, &length)) {
        while (length > 0) {
            if (!dirty_bitmap_status(s->done, start, start + length, &run)) {
                *ret_offset = start;
                *ret_length = run;
                return true;
            }
            start += run;
            length -= run;
        }
        offset = start;
    }
    return false;
}

static struct cbw_copy *find_copy_locked(struct cbw_state *s, uint64_t offset, uint64_t length)
{
    struct range_item *item = range_index_find(&s->copies, offset, length, NULL, NULL);

    return item ? container_of(item, struct cbw_copy, item) : NULL;
}

/* Guests' writes need not wait for copies of the job: they may hold the old data themselves. */
static bool guests_pass_job(const struct cbw_state *s)
{
    return s->held.limit > 0;
}

static bool is_for_guest(const struct range_item *item, const void *arg)
{
    (void)arg;
    return !container_of(item, const struct cbw_copy, item)->by_job;
}

/* A copy in flight in the range that `w` cannot pass. */
static struct cbw_copy *find_obstacle_locked(const struct cbw_write *w, uint64_t offset,
                                             uint64_t length)
{
    struct cbw_state *s = w->s;
    bool passes = !w->by_job && guests_pass_job(s);
    struct range_item *item =
        range_index_find(&s->copies, offset, length, passes ? is_for_guest : NULL, NULL);

    return item ? container_of(item, struct cbw_copy, item) : NULL;
}

/*
 * Cut [*offset, *offset + *length) before the first copy in flight that overlaps it, and that `w`
 * cannot pass; false if nothing is left.
 */
static bool clip_to_idle_locked(const struct cbw_write *w, uint64_t *offset, uint64_t *length)
{
    struct cbw_copy *copy;

    while (*length > 0) {
        uint64_t skip;

        copy = find_obstacle_locked(w, *offset, *length);
        if (!copy) {
            return true;
        }
        if (copy->offset > *offset) {
            *length = copy->offset - *offset;
            continue;
        }
        skip = MIN(copy->offset + copy->length - *offset, *length);
        *offset += skip;
        *length -= skip;
    }
    return false;
}

/* Nothing but an item: it need not be read. */
static bool is_held_whole(const struct cbw_copy *copy)
{
    return !list_is_empty(&copy->held) &&
           LIST_FIRST(&copy->held, struct held_item, in_order)->length == copy->length;
}

/* `hold`: where the old data go; consumed, also on failure. NULL: they are copied. */
static struct cbw_copy *copy_new_locked(struct cbw_write *w, uint64_t offset, uint64_t length,
                                        struct held_item *hold)
{
    struct cbw_state *s = w->s;
    struct cbw_copy *copy;

    if (list_is_empty(&s->spare_copies)) {
        copy = malloc(sizeof(*copy));
        if (!copy) {
            if (hold) {
                held_free(&s->held, hold);
            }
            return NULL;
        }
        list_init(&copy->spare);
    } else {
        copy = LIST_FIRST(&s->spare_copies, struct cbw_copy, spare);
        list_remove(&copy->spare);
    }
    copy->s = s;
    copy->offset = offset;
    copy->length = length;
    copy->refs = 2;
    copy->finished = false;
    copy->by_job = w->by_job;
    copy->hold = hold;
    list_init(&copy->held);
    if (w->by_job) {
        held_take(&s->held, offset, offset + length, &copy->held);
    }
    copy->result = 0;
    co_queue_init(&copy->waiters);
    range_index_add(&s->copies, &copy->item, offset, length);
    s->copy_count++;
    s->item_count += is_held_whole(copy);
    co_group_add(&s->copies_running);
    return copy;
}

static void copy_unref_locked(struct cbw_copy *copy)
{
    if (--copy->refs == 0) {
        list_append(&copy->s->spare_copies, &copy->spare);
    }
}

/* --- copying ---------------------------------------------------------------------------------- */

/* Units become COPIED; returns the bytes of those that were not. */
static uint64_t set_done_locked(struct cbw_state *s, uint64_t pos, uint64_t end)
{
    uint64_t run, count = 0;

    while (pos < end) {
        if (!dirty_bitmap_status(s->done, pos, end, &run)) {
            dirty_bitmap_set(s->done, pos, run);
            count += run;
        }
        pos += run;
    }
    s->copied_bytes += count;
    return count;
}

/*
 * Clusters of a copy are in the target: those that may still be read become COPIED. Those released
 * meanwhile are discarded in the target: nobody will read them there, or write them there again.
 */
static void co_mark_done(struct cbw_copy *copy, uint64_t pos, uint64_t end)
{
    struct cbw_state *s = copy->s;
    uint64_t run, copied = 0;

    while (pos < end) {
        bool readable;

        pthread_mutex_lock(&s->lock);
        readable = dirty_bitmap_status(s->access, pos, end, &run);
        if (readable) {
            copied += set_done_locked(s, pos, pos + run);
        }
        pthread_mutex_unlock(&s->lock);
        if (!readable && !s->has_job) {
            (void)cbw_co_discard_copies(s, pos, pos + run); /* space only */
        }
        pos += run;
    }
    if (s->has_job && copied > 0) {
        s->job.copied(s->job.arg, copied, !copy->by_job);
    }
}

/*
 * Find at `pos` whether the disk's own layer has anything in the clusters there, and for how many
 * bytes, whole clusters or up to the end, the answer holds.
 */
static bool co_clusters_allocated(struct cbw_state *s, uint64_t pos, uint64_t end,
                                  uint64_t *ret_length)
{
    bool allocated;
    uint64_t run;

    *ret_length = MIN(end - pos, s->cluster_size);
    if (block_co_is_allocated(s->file, pos, end - pos, &allocated, &run) < 0 || run == 0) {
        return true; /* the copy meets the error again, or not */
    }
    if (allocated) {
        *ret_length = MIN(round_up(run, s->cluster_size), end - pos);
        return true;
    }
    if (run < end - pos) {
        run = round_down(run, s->cluster_size);
    }
    *ret_length = MAX(run, *ret_length);
    return run == 0;
}

/* Only this copy uses the items. */
static void fill_from_held(void *arg, uint64_t offset, void *buf, uint64_t length)
{
    const struct cbw_copy *copy = arg;

    held_fill(&copy->held, offset, buf, length);
}

static int co_copy_clusters(struct cbw_copy *copy, uint64_t pos, uint64_t length)
{
    struct cbw_state *s = copy->s;
    bool filled = !list_is_empty(&copy->held);
    int r = block_co_copy_filled(s->copy, pos, length, filled ? fill_from_held : NULL, copy,
                                 &copy->failure);

    if (r == 0 && s->job.discard_source) {
        (void)block_co_discard(s->file, pos, length); /* space only; no guest write is under way */
    }
    if (r == 0) {
        co_mark_done(copy, pos, pos + length);
    }
    return r;
}

void cbw_skip(struct cbw_state *s, uint64_t offset, uint64_t length)
{
    uint64_t end = MIN(offset + length, s->size), start = round_up(offset, s->cluster_size), run;

    if (end < s->size) {
        end = round_down(end, s->cluster_size);
    }
    pthread_mutex_lock(&s->lock);
    while (start < end) {
        if (!dirty_bitmap_status(s->done, start, end, &run)) {
            dirty_bitmap_clear(s->access, start, run);
        }
        start += run;
    }
    pthread_mutex_unlock(&s->lock);
}

/* Copy what the disk's own layer has; the rest needs no copy. */
static int co_copy_allocated(struct cbw_copy *copy)
{
    uint64_t pos = copy->offset, end = copy->offset + copy->length, run;
    int r = 0;

    while (pos < end && r == 0) {
        if (co_clusters_allocated(copy->s, pos, end, &run)) {
            r = co_copy_clusters(copy, pos, run);
        } else {
            cbw_skip(copy->s, pos, run);
        }
        pos += run;
    }
    return r;
}

static int co_write_item(struct cbw_copy *copy)
{
    struct cbw_state *s = copy->s;
    const struct held_item *item = LIST_FIRST(&copy->held, struct held_item, in_order);
    struct iovec vec;
    struct iov iov = iov_from_buf(&vec, item->data, item->length);
    int r = iov_is_zero(iov)
                ? block_co_write_zeroes(s->target, item->offset, item->length, BLOCK_REQ_MAY_UNMAP)
                : block_co_pwritev(s->target, item->offset, iov, 0);

    if (r < 0) {
        copy->failure = (struct block_copy_failure){.reading = false, .offset = item->offset};
    }
    return r;
}

/* Read the old data into memory: the guest's write may go on, and the job writes them. */
static int co_hold(struct cbw_copy *copy)
{
    struct cbw_state *s = copy->s;
    uint64_t pos = copy->offset, end = copy->offset + copy->length, run, held = 0;
    int r = block_co_pread(s->file, pos, copy->hold->data, copy->length);

    pthread_mutex_lock(&s->lock);
    if (r < 0) {
        copy->failure = (struct block_copy_failure){.reading = true, .offset = pos};
        held_free(&s->held, copy->hold);
    } else {
        held_add(&s->held, copy->hold);
        for (; pos < end; pos += run) {
            if (dirty_bitmap_status(s->access, pos, end, &run)) {
                held += set_done_locked(s, pos, pos + run);
            }
        }
    }
    pthread_mutex_unlock(&s->lock);
    if (held > 0) {
        s->job.copied(s->job.arg, held, true);
    }
    return r;
}

/* A copy has ended: what is held of it is needed no longer, or still. */
static void end_held_locked(struct cbw_copy *copy)
{
    if (copy->result == 0) {
        held_drop(&copy->s->held, &copy->held);
    } else {
        held_put_back(&copy->s->held, &copy->held);
    }
}

static void co_run_copy(struct cbw_copy *copy)
{
    struct cbw_state *s = copy->s;
    struct co_wait wait;
    int r;

    co_wait_begin(&wait, "a copy before write to node", block_node_name(block_edge_node(s->target)),
                  -1);
    if (copy->hold) {
        r = co_hold(copy);
    } else if (is_held_whole(copy)) {
        r = co_write_item(copy);
    } else if (s->job.skip_unallocated) {
        r = co_copy_allocated(copy);
    } else {
        r = co_copy_clusters(copy, copy->offset, copy->length);
    }
    co_wait_end(&wait);
    pthread_mutex_lock(&s->lock);
    copy->result = r;
    copy->finished = true;
    s->item_count -= is_held_whole(copy);
    end_held_locked(copy);
    range_index_remove(&s->copies, &copy->item);
    s->copy_count--;
    co_queue_wake_all(&copy->waiters);
    copy_unref_locked(copy);
    pthread_mutex_unlock(&s->lock);
    co_group_done(&s->copies_running);
}

static void co_copy_entry(void *arg)
{
    co_run_copy(arg);
}

/* --- guest writes ----------------------------------------------------------------------------- */

static void write_timer_fired(struct loop_timer *timer)
{
    struct cbw_write *w = container_of(timer, struct cbw_write, timer);

    pthread_mutex_lock(&w->s->lock);
    w->timed_out = true;
    w->s->timeouts++;
    if (w->waiting_for) {
        /* The other writes that wait for this copy check again, and continue to wait. */
        co_queue_wake_all(&w->waiting_for->waiters);
    }
    pthread_mutex_unlock(&w->s->lock);
}

/*
 * Wait for the end of `copy` or of the time limit; may return early. The lock is released
 * meanwhile.
 */
static void co_wait_locked(struct cbw_write *w, struct cbw_copy *copy)
{
    struct cbw_state *s = w->s;

    copy->refs++;
    w->waiting_for = copy;
    co_queue_wait_for_release(&copy->waiters, &s->lock, "a copy before write, by node", s->name,
                              -1);
    pthread_mutex_lock(&s->lock);
    w->waiting_for = NULL;
    copy_unref_locked(copy);
}

/* The next run in [offset, end) of what is UNTOUCHED or COPYING, or, for a job, held. */
static bool next_work_locked(const struct cbw_write *w, uint64_t offset, uint64_t end,
                             uint64_t *ret_offset, uint64_t *ret_length)
{
    struct cbw_state *s = w->s;
    bool found = !w->held_only && next_uncopied_locked(s, offset, end, ret_offset, ret_length);

    if (!w->by_job) {
        return found;
    }
    return held_next(&s->held, offset, found ? *ret_offset : end, ret_offset, ret_length) || found;
}

/*
 * How long a copy at `start`, which has `length`, becomes: what is held is copied together with
 * what is next to it, and a guest's write holds no data of several clusters.
 */
static uint64_t join_or_cut_locked(const struct cbw_write *w, uint64_t start, uint64_t length,
                                   uint64_t end)
{
    struct cbw_state *s = w->s;
    uint64_t most = MAX(FILLED_MAX, s->cluster_size), at, run;

    if (!w->by_job) {
        return s->held.limit == 0
                   ? length
                   : MIN(length, round_down(start, s->cluster_size) + s->cluster_size - start);
    }
    end = MIN(end, round_down(start, s->cluster_size) + most);
    while (!held_is_empty(&s->held) && start + length < end &&
           next_work_locked(w, start + length, end, &at, &run) && at == start + length &&
           clip_to_idle_locked(w, &at, &run) && at == start + length) {
        length += run;
    }
    return length;
}

/*
 * Make copies, own[0 .. own_count), of the UNTOUCHED clusters in [offset, end): they are COPYING
 * now. Those of a job also have what is held. -ENOMEM
 */
static int claim_clusters_locked(struct cbw_write *w, uint64_t offset, uint64_t end)
{
    uint64_t start, length;

    w->own_count = 0;
    while (w->own_count < COPIES_PER_WRITE && next_work_locked(w, offset, end, &start, &length)) {
        uint64_t run_end = start + length;

        if (clip_to_idle_locked(w, &start, &length)) {
            struct held_item *hold;
            struct cbw_copy *copy;

            length = join_or_cut_locked(w, start, length, end);
            offset = start + length;
            hold = w->by_job ? NULL : held_reserve(&w->s->held, start, length);
            if (!hold && !w->by_job && find_copy_locked(w->s, start, length)) {
                continue; /* no room: this waits for the job's copy */
            }
            copy = copy_new_locked(w, start, length, hold);
            if (!copy) {
                return w->own_count > 0 ? 0 : -ENOMEM;
            }
            w->own[w->own_count++] = copy;
        } else {
            offset = run_end;
        }
    }
    return 0;
}

/*
 * Run the copies just claimed. The last one runs in this coroutine, unless there is a time limit or
 * the end of a job: then this coroutine must be free to give up. (Not a read of the disk, on which
 * the guest's write depends in any case.)
 */
static void co_start_own(struct cbw_write *w)
{
    struct co_home *home = co_get_home(co_self());

    for (unsigned i = 0; i < w->own_count; i++) {
        bool may_give_up = w->timeout_ns != 0 || (w->s->has_job && !w->by_job);
        bool here = i + 1 == w->own_count && (!may_give_up || w->own[i]->hold);

        if (here || co_spawn(home, co_copy_entry, w->own[i]) < 0) {
            co_run_copy(w->own[i]);
        }
    }
}

/* The snapshot is broken, so no guest's write needs a copy. A job's piece waits for its end. */
static bool may_stop_waiting_locked(const struct cbw_write *w)
{
    return w->s->broken && !w->by_job;
}

/*
 * Wait for the claimed copies. Returns the first error, except of copies whose clusters were all
 * released meanwhile.
 */
static int co_finish_own_locked(struct cbw_write *w)
{
    int r = 0;

    for (unsigned i = 0; i < w->own_count; i++) {
        struct cbw_copy *copy = w->own[i];
        uint64_t start, length;

        while (!copy->finished && !w->timed_out && !may_stop_waiting_locked(w)) {
            co_wait_locked(w, copy);
        }
        if (copy->finished && copy->result < 0 && r == 0 &&
            next_work_locked(w, copy->offset, copy->offset + copy->length, &start, &length)) {
            r = copy->result;
            w->failure = copy->failure;
        }
        w->copied += copy->finished && copy->result == 0 ? copy->length : 0;
        copy_unref_locked(copy);
    }
    w->own_count = 0;
    return r == 0 && w->timed_out ? -ETIMEDOUT : r;
}

static void arm_write_timer(struct cbw_write *w)
{
    if (w->timeout_ns > 0 && !w->timer_armed) {
        loop_timer_arm(&w->timer, loop_now_ns() + w->timeout_ns);
        w->timer_armed = true;
    }
}

/*
 * A copy in flight that `w` has to wait for, when it has nothing to copy itself; NULL: none. A
 * guest passes a copy of what is held, which need not be read from the disk. Copies for guests end
 * first; they may still read units that are COPIED by a copy of the job, which they have passed.
 */
static struct cbw_copy *find_copy_to_wait_for_locked(const struct cbw_write *w, uint64_t offset,
                                                     uint64_t end)
{
    struct cbw_state *s = w->s;
    struct cbw_copy *copy = find_obstacle_locked(w, offset, end - offset);
    uint64_t run;

    if (w->by_job || !guests_pass_job(s)) {
        return copy;
    }
    for (; offset < end && !copy; offset += run) {
        if (!dirty_bitmap_status(s->done, offset, end, &run)) {
            copy = find_copy_locked(s, offset, run);
        }
    }
    return copy;
}

/*
 * claim_clusters_locked(), while the root of the job is not drained. From then on the copies count
 * as in flight by themselves, and by what they do: the target of a job may hang.
 */
static int co_claim_clusters_locked(struct cbw_write *w, uint64_t offset, uint64_t end)
{
    struct cbw_state *s = w->s;
    struct block_edge *entrance = w->by_job ? s->entrance : NULL;
    int r = 0;

    if (!entrance) {
        return claim_clusters_locked(w, offset, end);
    }
    pthread_mutex_unlock(&s->lock);
    block_co_edge_enter(entrance);
    pthread_mutex_lock(&s->lock);
    if (!s->broken) {
        r = claim_clusters_locked(w, offset, end);
    }
    block_edge_leave(entrance);
    return r;
}

/* Copy until no cluster of [offset, end) is UNTOUCHED or COPYING, or the snapshot is broken. */
static int co_copy_range_locked(struct cbw_write *w, uint64_t offset, uint64_t end)
{
    struct cbw_state *s = w->s;
    int r = 0;

    while (r == 0 && !s->broken) {
        struct cbw_copy *copy;

        r = co_claim_clusters_locked(w, offset, end);
        if (r == 0 && w->own_count > 0) {
            arm_write_timer(w);
            w->waited = true;
            pthread_mutex_unlock(&s->lock);
            co_start_own(w);
            pthread_mutex_lock(&s->lock);
            r = co_finish_own_locked(w);
            continue;
        }
        copy = r < 0 ? NULL : find_copy_to_wait_for_locked(w, offset, end);
        if (!copy) {
            break;
        }
        arm_write_timer(w);
        w->waited = true;
        co_wait_locked(w, copy);
        if (w->timed_out) {
            r = -ETIMEDOUT;
        }
    }
    return s->broken ? 0 : r;
}

void cbw_note_write(struct cbw_state *s, int64_t ns)
{
    int64_t average = atomic_load_explicit(&s->own_write_ns, memory_order_relaxed);

    /* A sample that another thread's overwrites is no loss. */
    atomic_store_explicit(&s->own_write_ns, average + (ns - average) / 16, memory_order_relaxed);
}

/*
 * A guest write has waited for copies from `begun` to `ended`. Time in which guests were held up
 * adds to the sum, time in which they were not is taken off it. True if the sum has come to the
 * time limit: guests have been held up for more than half of the time, although no write for that
 * long.
 */
static bool held_up_too_long_locked(struct cbw_state *s, int64_t begun, int64_t ended)
{
    int64_t own = atomic_load_explicit(&s->own_write_ns, memory_order_relaxed);
    int64_t from = MAX(begun, s->held_up_until_ns), gap = from - s->held_up_until_ns;

    if (s->timeout_ns == 0 || ended - begun < MAX(HELD_UP_NS, HELD_UP_TIMES * own) ||
        ended <= from) {
        return false;
    }
    s->held_up_ns = MAX(s->held_up_ns - gap, 0) + (ended - from);
    s->held_up_until_ns = ended;
    return s->held_up_ns >= s->timeout_ns;
}

/* Of a copy; never the one that is looked for. */
static bool wake_waiters_locked(const struct range_item *item, const void *arg)
{
    co_queue_wake_all(
        &container_of((struct range_item *)(uintptr_t)item, struct cbw_copy, item)->waiters);
    return false;
}

/* Guests' writes wait for copies no longer. */
static bool break_snapshot_locked(struct cbw_state *s, int cause, struct block_copy_failure at)
{
    bool first = !s->broken;

    if (first) {
        s->broken = true;
        s->broken_by = cause;
        s->broken_at = at;
        (void)range_index_find(&s->copies, 0, UINT64_MAX, wake_waiters_locked, NULL);
    }
    return first;
}

static void report_broken(struct cbw_state *s, uint64_t offset, int cause)
{
    log_warning("node '%s': copying old data before a guest write at offset %llu failed: %s; "
                "the snapshot can't be read any more",
                s->name, (unsigned long long)offset, strerror(-cause));
    if (s->has_job) {
        s->job.broken(s->job.arg);
    }
}

/*
 * How far the copy for a write to [start, end) goes: where the units before it have been copied,
 * the guest writes sequentially, and the next ones will be needed, too. To hold them costs little.
 */
static uint64_t end_of_copy_locked(struct cbw_state *s, uint64_t start, uint64_t end)
{
    if (s->unit == s->cluster_size || start == 0 || held_has_room(&s->held)) {
        return end;
    }
    if (dirty_bitmap_get(s->done, start - 1) || find_copy_locked(s, start - 1, 1)) {
        end = MIN(round_up(end, s->cluster_size), s->size);
    }
    return end;
}

int cbw_co_before_write(struct cbw_state *s, uint64_t offset, uint64_t length)
{
    struct cbw_write w = {.s = s, .timeout_ns = s->timeout_ns};
    uint64_t start = round_down(offset, s->unit);
    uint64_t end = MIN(round_up(offset + length, s->unit), s->size);
    bool newly_broken = false;
    int64_t begun = s->timeout_ns ? loop_now_ns() : 0;
    int r, cause;

    if (length == 0 || start >= end) {
        return 0;
    }
    loop_timer_init(&w.timer, write_timer_fired);
    pthread_mutex_lock(&s->lock);
    end = end_of_copy_locked(s, start, end);
    r = cause = co_copy_range_locked(&w, start, end);
    s->waits += w.waited;
    if (r == 0 && w.waited && s->on_error == CBW_BREAK_SNAPSHOT && !s->broken &&
        held_up_too_long_locked(s, begun, loop_now_ns())) {
        s->timeouts++;
        r = cause = -ETIMEDOUT;
    }
    if (r < 0 && s->on_error == CBW_BREAK_SNAPSHOT) {
        newly_broken = break_snapshot_locked(s, cause, w.failure);
        r = 0;
    }
    if (r == 0) {
        cbw_co_wait_readers_release(s, &s->readers, offset, length);
    } else {
        pthread_mutex_unlock(&s->lock);
    }
    if (w.timer_armed) {
        loop_timer_disarm(&w.timer);
    }
    if (newly_broken) {
        report_broken(s, offset, cause);
    }
    return r;
}

/* --- jobs ------------------------------------------------------------------------------------- */

int cbw_co_copy(struct cbw_state *s, uint64_t offset, uint64_t length, bool *ret_reading)
{
    struct cbw_write w = {.s = s, .by_job = true};
    uint64_t start = round_down(offset, s->cluster_size);
    uint64_t end = MIN(round_up(offset + length, s->cluster_size), s->size);
    int r;

    if (length == 0 || start >= end) {
        return 0;
    }
    pthread_mutex_lock(&s->lock);
    r = co_copy_range_locked(&w, start, end);
    if (s->broken) {
        r = s->broken_by;
        w.failure = s->broken_at;
    }
    pthread_mutex_unlock(&s->lock);
    if (r < 0) {
        *ret_reading = w.failure.reading;
    }
    return r;
}

/* Here rather than in a guest's write. */
static void add_memory_to_hold(struct cbw_state *s)
{
    struct held_slab *slab = held_new_slab(s->unit);

    if (slab) {
        pthread_mutex_lock(&s->lock);
        held_add_slab(&s->held, slab);
        pthread_mutex_unlock(&s->lock);
    }
}

int cbw_co_write_held(struct cbw_state *s, struct cbw_held_step *step)
{
    struct cbw_write w = {.s = s, .by_job = true, .held_only = step->held_only};
    uint64_t area = MAX(FILLED_MAX, s->cluster_size), start;
    const struct held_item *item;
    bool wants;
    int r = 0;

    pthread_mutex_lock(&s->lock);
    wants = held_wants_slab(&s->held);
    item = held_oldest(&s->held);
    step->more = item && !s->broken;
    if (step->more) {
        start = round_down(item->offset, area);
        r = co_copy_range_locked(&w, start, MIN(start + area, s->size));
    }
    pthread_mutex_unlock(&s->lock);
    if (wants) {
        add_memory_to_hold(s);
    }
    if (r < 0) {
        step->reading = w.failure.reading;
    }
    step->copied += w.copied;
    return r;
}

bool cbw_next_uncopied(struct cbw_state *s, uint64_t offset, uint64_t end, uint64_t *ret_offset,
                       uint64_t *ret_length)
{
    bool found;

    pthread_mutex_lock(&s->lock);
    found = next_uncopied_locked(s, offset, MIN(end, s->size), ret_offset, ret_length);
    pthread_mutex_unlock(&s->lock);
    return found;
}

void cbw_stop(struct cbw_state *s)
{
    pthread_mutex_lock(&s->lock);
    (void)break_snapshot_locked(s, -ECANCELED, (struct block_copy_failure){.reading = false});
    pthread_mutex_unlock(&s->lock);
}
