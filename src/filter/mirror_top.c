/* SPDX-License-Identifier: Apache-2.0 */
#include "filter/mirror_top.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "block/options.h"
#include "co/sync.h"
#include "filter/filter.h"

struct mirror_top {
    struct block_node *node;
    struct block_edge *file, *target;
    struct mirror_top_params params; /* the nodes in there are not referenced */
    struct dirty_bitmap *todo;
    /* Granules of the target that are clean zeroes still; NULL: not known of any. */
    struct dirty_bitmap *untouched;
    /* Granules that the target has as a whole; NULL: the backing node has what is missing. */
    struct dirty_bitmap *whole;
    _Atomic bool zeroes_are_data; /* the target has no other zeroes of its own */
    struct range_lock busy;
    /* Blocking writes in flight, by the lowest bit of the turn in which they began. */
    _Atomic unsigned following[2];
    _Atomic unsigned turn;
    /* Copies without an entrance that read the source; what else is in flight to the target. */
    _Atomic unsigned reading, writing;
    _Atomic enum mirror_top_mode mode;
    _Atomic uint64_t follow_end;   /* behind this the target is left alone */
    struct dirty_bitmap *sent;     /* granules that were written to the target */
    struct dirty_bitmap *followed; /* granules that guests wrote on both sides; NULL: not kept */
    bool stopped;
};

/* What mirror_top_co_open() is about to open; users can't open such a node. */
static const struct mirror_top_params *opening;

/* --- open and close --------------------------------------------------------------------------- */

static int mirror_top_init(struct mirror_top *s, uint64_t size, struct error *err)
{
    uint32_t granularity = s->params.granularity;
    bool failed;

    s->todo = dirty_bitmap_new(size, granularity);
    s->sent = dirty_bitmap_new(size, granularity);
    failed = !s->todo || !s->sent;
    if (s->params.target_is_zero) {
        s->untouched = dirty_bitmap_new(size, granularity);
        failed = failed || !s->untouched;
    }
    if (s->params.own_layer) {
        s->whole = dirty_bitmap_new(size, granularity);
        failed = failed || !s->whole;
    }
    if (s->params.notes_followed) {
        s->followed = dirty_bitmap_new(size, granularity);
        failed = failed || !s->followed;
    }
    if (failed) {
        return error_out_of_memory(err);
    }
    if (s->untouched) {
        dirty_bitmap_set(s->untouched, 0, size);
    }
    return 0;
}

static void mirror_top_free_bitmaps(struct mirror_top *s)
{
    dirty_bitmap_free(s->todo);
    dirty_bitmap_free(s->sent);
    dirty_bitmap_free(s->untouched);
    dirty_bitmap_free(s->whole);
    dirty_bitmap_free(s->followed);
}

static int mirror_top_co_open_node(struct block_node *node, struct options *opts, struct error *err)
{
    struct mirror_top *s = node->opaque;
    int r;

    if (!opening) {
        return error_set(err, EINVAL, "Parameter 'driver' does not accept value 'mirror_top'");
    }
    s->params = *opening;
    opening = NULL;
    s->node = node;
    s->stopped = true;
    s->follow_end = UINT64_MAX;
    r = block_co_open_filtered(node, opts, "file", err);
    UNLESS_FAILED(
        r, block_co_open_child(node, opts, "target", BLOCK_ROLE_TARGET, false, &s->target, err));
    if (r < 0) {
        return r;
    }
    s->file = node->filtered;
    node->discard_unmap = s->file->node->discard_unmap;
    r = mirror_top_init(s, block_edge_size(s->file), err);
    if (r < 0) {
        mirror_top_free_bitmaps(s);
        return r;
    }
    range_lock_init(&s->busy);
    return 0;
}

static void mirror_top_co_close(struct block_node *node)
{
    struct mirror_top *s = node->opaque;

    mirror_top_free_bitmaps(s);
    range_lock_destroy(&s->busy);
}

int mirror_top_co_open(const struct mirror_top_params *params, struct block_node **ret_node,
                       struct mirror_top **ret_top, struct error *err)
{
    struct options *opts = options_new();
    int r;

    if (!opts) {
        return error_out_of_memory(err);
    }
    options_set_str(opts, "driver", mirror_top_driver.name);
    if (params->node_name) {
        options_set_str(opts, "node-name", params->node_name);
    }
    options_set_str(opts, "file", block_node_name(params->source));
    options_set_str(opts, "target", block_node_name(params->target));
    opening = params;
    r = block_co_open_hidden(opts, BLOCK_OPEN_RDWR, ret_node, err);
    opening = NULL;
    if (r >= 0) {
        *ret_top = (*ret_node)->opaque;
    }
    return r;
}

/* --- permissions ------------------------------------------------------------------------------ */

void mirror_top_set_stopped(struct mirror_top *s, bool stopped)
{
    s->stopped = stopped;
    block_perm_touch(s->node);
}

/*
 * The target is not claimed for reading: it may get a backing node while the job is pending, as an
 * overlay that nobody reads.
 */
static void mirror_top_target_perm(const struct mirror_top *s, unsigned *ret_perm,
                                   unsigned *ret_shared)
{
    *ret_perm = BLOCK_PERM_WRITE;
    *ret_shared = 0;
    if (s->params.resizes) {
        *ret_perm |= BLOCK_PERM_RESIZE;
    }
    if (s->params.commit) {
        *ret_shared = BLOCK_PERM_CONSISTENT_READ | BLOCK_PERM_WRITE_UNCHANGED;
    }
}

/* Everybody who writes to the source does so through the filter, and nobody resizes it. */
static void mirror_top_child_perm(struct block_node *node, struct block_edge *edge,
                                  unsigned parents_perm, unsigned parents_shared,
                                  unsigned *ret_perm, unsigned *ret_shared)
{
    struct mirror_top *s = node->opaque;

    if (s->stopped) {
        *ret_perm = 0;
        *ret_shared = BLOCK_PERM_ALL | BLOCK_SHARE_CHAIN;
        return;
    }
    if (edge->role & BLOCK_ROLE_TARGET) {
        mirror_top_target_perm(s, ret_perm, ret_shared);
        return;
    }
    *ret_perm = (parents_perm & ~BLOCK_PERM_RESIZE) | BLOCK_PERM_CONSISTENT_READ;
    *ret_shared = parents_shared & ~(BLOCK_PERM_WRITE | BLOCK_PERM_RESIZE);
    if (s->params.commit) {
        /* Others than this filter would see images below that are partly committed. */
        *ret_perm &= ~BLOCK_PERM_CONSISTENT_READ;
        *ret_shared |= BLOCK_SHARE_CHAIN;
    }
}

/* --- what the job uses ------------------------------------------------------------------------ */

void mirror_top_set_mode(struct mirror_top *s, enum mirror_top_mode mode)
{
    atomic_store(&s->mode, mode);
}

void mirror_top_set_follow_end(struct mirror_top *s, uint64_t end)
{
    atomic_store(&s->follow_end, end);
}

bool mirror_top_is_following(const struct mirror_top *s)
{
    return atomic_load(&s->following[0]) + atomic_load(&s->following[1]) > 0;
}

void mirror_top_begin_turn(struct mirror_top *s)
{
    atomic_fetch_add(&s->turn, 1);
}

bool mirror_top_is_following_older(const struct mirror_top *s)
{
    return atomic_load(&s->following[(atomic_load(&s->turn) + 1) % 2]) > 0;
}

struct dirty_bitmap *mirror_top_todo(struct mirror_top *s)
{
    return s->todo;
}

struct dirty_bitmap *mirror_top_sent(struct mirror_top *s)
{
    return s->sent;
}

struct dirty_bitmap *mirror_top_followed(struct mirror_top *s)
{
    return s->followed;
}

struct block_edge *mirror_top_target(struct mirror_top *s)
{
    return s->target;
}

/* --- copy ------------------------------------------------------------------------------------- */

/* Something is about to be written to the target. */
static inline void touch(struct mirror_top *s, uint64_t offset, uint64_t length)
{
    if (s->untouched) {
        uint32_t granularity = s->params.granularity;
        uint64_t end = round_up(offset + length, granularity);

        offset = round_down(offset, granularity);
        dirty_bitmap_clear(s->untouched, offset, end - offset);
    }
}

static bool is_all_dirty(const struct dirty_bitmap *b, uint64_t offset, uint64_t length)
{
    uint64_t same;

    return dirty_bitmap_status(b, offset, offset + length, &same) && same >= length;
}

/*
 * Whether the target reads as zeroes at `offset` as it is, for good; *length becomes the length to
 * which that applies. Without an answer it does not.
 */
static bool co_target_zero_run(struct mirror_top *s, uint64_t offset, uint64_t *length)
{
    bool own_layer = s->whole || s->params.backing_unknown;
    unsigned need = own_layer ? BLOCK_STATUS_ALLOCATED | BLOCK_STATUS_ZERO : BLOCK_STATUS_ZERO;
    struct block_status status;
    uint64_t same;
    int r;

    if (s->untouched && dirty_bitmap_status(s->untouched, offset, offset + *length, &same)) {
        *length = same;
        return true;
    }
    r = own_layer ? block_co_status(s->target, offset, *length, &status)
                  : block_co_status_above(s->target, NULL, offset, *length, &status, NULL);
    if (r < 0 || status.length == 0) {
        return false;
    }
    *length = MIN(*length, status.length);
    return (status.flags & need) == need;
}

static bool co_mirror_target_is_zero(struct mirror_top *s, uint64_t offset, uint64_t length)
{
    uint64_t end = offset + length, n;

    for (; offset < end; offset += n) {
        n = end - offset;
        if (!co_target_zero_run(s, offset, &n)) {
            return false;
        }
    }
    return true;
}

/*
 * What reads as zeroes stays, so that a target that is nearly empty does not become allocated
 * because of its first block.
 */
static int co_mirror_zeroes(struct mirror_top *s, uint64_t offset, uint64_t length)
{
    uint64_t end = offset + length, n;
    int r = 0;

    for (; r == 0 && offset < end; offset += n) {
        n = end - offset;
        if (co_target_zero_run(s, offset, &n)) {
            continue;
        }
        n = MIN(round_up(offset + n, s->params.granularity), end) - offset;
        touch(s, offset, n);
        r = block_co_write_zeroes(s->target, offset, n, s->params.unmap ? BLOCK_REQ_MAY_UNMAP : 0);
    }
    return r;
}

/*
 * As far as one run of the target goes, or the granule in which that ends: *length becomes the
 * length of that. Where the target's own layer must have the zeroes, a format without a flag for
 * them may have removed what it had instead, and then gets them as data.
 */
static int co_mirror_zero_run(struct mirror_top *s, uint64_t offset, uint64_t *length, void *buffer,
                              size_t buffer_size)
{
    uint64_t n = atomic_load(&s->zeroes_are_data) ? MIN(*length, buffer_size) : *length;
    uint64_t end = offset + n;
    int r;

    (void)co_target_zero_run(s, offset, &n);
    n = MIN(round_up(offset + n, s->params.granularity), end) - offset;
    r = co_mirror_zeroes(s, offset, n);
    if (r == 0 && s->whole && !co_mirror_target_is_zero(s, offset, n)) {
        atomic_store(&s->zeroes_are_data, true);
        n = MIN(n, buffer_size);
        memset(buffer, 0, n);
        r = block_co_pwrite(s->target, offset, buffer, (size_t)n, 0);
    }
    *length = n;
    return r;
}

/*
 * How the source reads at `offset`; *length becomes the length to which that applies. Without an
 * answer it is data.
 */
static bool co_source_is_zero(struct mirror_top *s, uint64_t offset, uint64_t *length)
{
    struct block_status status;
    int r = block_co_status_above(s->file, NULL, offset, *length, &status, NULL);

    if (r < 0 || status.length == 0) {
        return false;
    }
    *length = MIN(*length, status.length);
    return status.flags & BLOCK_STATUS_ZERO;
}

/*
 * Count as a reader, unless the source is drained: as a request of the job's root, for which some
 * drains do not wait; without an entrance, in `reading`.
 */
static bool begin_reading(struct mirror_top *s, struct block_edge *entrance)
{
    if (entrance) {
        return block_edge_try_enter(entrance);
    }
    atomic_fetch_add(&s->reading, 1);
    return true;
}

static void stop_reading(struct mirror_top *s, struct block_edge *entrance)
{
    if (entrance) {
        block_edge_leave(entrance);
    } else {
        atomic_fetch_sub(&s->reading, 1);
    }
}

/* From now on the copy concerns the target. */
static void end_reading(struct mirror_top *s, struct block_edge *entrance)
{
    atomic_fetch_add(&s->writing, 1);
    stop_reading(s, entrance);
}

/* Of [offset, offset + length): a part that reads as zeroes as a whole (true), or is data. */
static bool co_source_part(struct mirror_top *s, const struct mirror_top_copy *c, uint64_t offset,
                           uint64_t *length)
{
    uint32_t granularity = s->params.granularity;
    uint64_t end = offset + *length, n = *length;
    bool zero = co_source_is_zero(s, offset, &n);

    /* Whole granules, so that no cluster is written in parts. */
    if (zero && offset + n < end) {
        n = round_down(offset + n, granularity) - round_down(offset, granularity);
        zero = n > 0;
    }
    if (!zero) {
        n = MIN(MIN(round_up(n + (n == 0), granularity), end - offset), c->buffer_size);
    }
    *length = n;
    return zero;
}

/*
 * How much to lock, so that guests who write to the rest do not wait for this part. While the
 * source is drained that is not known, nor is anything copied.
 */
static uint64_t co_part_to_lock(struct mirror_top *s, const struct mirror_top_copy *c,
                                uint64_t offset, uint64_t length)
{
    struct block_edge *entrance = c->entrance;
    uint64_t n = length;

    if (length <= s->params.granularity || !begin_reading(s, entrance)) {
        return MIN(length, s->params.granularity);
    }
    (void)co_source_part(s, c, offset, &n);
    stop_reading(s, entrance);
    return n;
}

/*
 * With the lock of it: a part that reads as zeroes as a whole, or is data; *length becomes its
 * length. `entrance`: that of begin_reading(), which the caller of the copy may change meanwhile.
 */
static int co_mirror_part(struct mirror_top *s, struct mirror_top_copy *c,
                          struct block_edge *entrance, uint64_t offset, uint64_t *length)
{
    bool zero = co_source_part(s, c, offset, length);
    int r = zero ? 0 : block_co_pread(s->file, offset, c->buffer, (size_t)*length);

    end_reading(s, entrance);
    c->reading = r < 0;
    if (r == 0 && zero) {
        r = co_mirror_zero_run(s, offset, length, c->buffer, c->buffer_size);
    } else if (r == 0) {
        touch(s, offset, *length);
        r = block_co_pwrite(s->target, offset, c->buffer, (size_t)*length, 0);
    }
    if (r == 0 && s->whole) {
        dirty_bitmap_set(s->whole, offset, *length);
    }
    dirty_bitmap_set(s->sent, offset, *length);
    atomic_fetch_sub(&s->writing, 1);
    return r;
}

/* A drain may wait for a guest that waits for the lock: nobody waits for its end with the lock. */
int mirror_top_co_copy(struct mirror_top *s, struct mirror_top_copy *c)
{
    uint64_t offset = c->offset, end = c->offset + c->length, look = c->length;
    struct range_entry range;
    int r = 0;

    while (r == 0 && offset < end) {
        uint64_t n = co_part_to_lock(s, c, offset, MIN(end - offset, look));
        struct block_edge *entrance;
        bool reads;

        co_range_lock(&s->busy, &range, offset, n, true);
        entrance = c->entrance;
        reads = begin_reading(s, entrance);
        if (reads) {
            r = co_mirror_part(s, c, entrance, offset, &n);
            offset += n;
            look = MAX(4 * n, c->buffer_size); /* many short parts: not all of it for each */
        }
        range_unlock(&s->busy, &range);
        if (!reads) {
            block_co_edge_enter(c->entrance);
            block_edge_leave(c->entrance);
        } else if (r == 0 && offset < end && c->is_cancelled && c->is_cancelled(c->arg)) {
            r = -ECANCELED;
        }
    }
    return r;
}

int mirror_top_co_flush_target(struct mirror_top *s, struct block_edge *entrance)
{
    int r;

    if (entrance) {
        block_co_edge_enter(entrance);
    }
    atomic_fetch_add(&s->writing, 1);
    if (entrance) {
        block_edge_leave(entrance);
    }
    r = block_co_flush(s->target);
    atomic_fetch_sub(&s->writing, 1);
    return r;
}

/* What only has to be written, or flushed, holds up no change of the source. */
static bool mirror_top_drain_busy(struct block_node *node, const struct block_node *drained)
{
    const struct mirror_top *s = node->opaque;

    return atomic_load(&s->reading) > 0 ||
           (atomic_load(&s->writing) > 0 &&
            block_node_reaches(block_edge_node(s->target), drained));
}

/* --- the guest -------------------------------------------------------------------------------- */

/* After a write to the source: whether the target has to have it now. */
static bool follows_now(struct mirror_top *s, uint64_t offset, uint64_t length)
{
    if (offset + length > atomic_load(&s->follow_end)) {
        dirty_bitmap_set(s->todo, offset, length);
        return false;
    }
    if (s->whole) {
        uint32_t granularity = s->params.granularity;
        uint64_t first = round_down(offset, granularity);
        uint64_t end = MIN(round_up(offset + length, granularity), dirty_bitmap_size(s->todo));

        if (!is_all_dirty(s->whole, first, end - first)) {
            dirty_bitmap_set(s->todo, offset, length); /* the copy takes the whole granule */
            return false;
        }
    }
    return !is_all_dirty(s->todo, offset, length);
}

/* What a guest does, to one side. */
struct change {
    enum { CHANGE_WRITE, CHANGE_ZEROES, CHANGE_DISCARD } kind;
    uint64_t offset, length;
    struct iov iov;
    unsigned flags;
};

static int co_apply_change(struct block_edge *edge, const struct change *c, unsigned flags)
{
    switch (c->kind) {
    case CHANGE_WRITE:
        return block_co_pwritev(edge, c->offset, c->iov, flags);
    case CHANGE_ZEROES:
        return block_co_write_zeroes(edge, c->offset, c->length, flags);
    default:
        return block_co_discard(edge, c->offset, c->length);
    }
}

/*
 * Guests can rely on nothing where they have discarded, but what they read must not change when
 * they move to the target: it gets zeroes if the source has zeroes now.
 */
static int co_follow_discard(struct mirror_top *s, const struct change *c)
{
    uint64_t length = c->length;

    if (!co_source_is_zero(s, c->offset, &length) || length < c->length) {
        return -EAGAIN;
    }
    return co_mirror_zeroes(s, c->offset, c->length);
}

/* Whether the target's own layer has something everywhere: what was written last. */
static bool co_target_is_allocated(struct mirror_top *s, uint64_t offset, uint64_t length)
{
    uint64_t end = offset + length;

    while (offset < end) {
        struct block_status status;
        int r = block_co_status(s->target, offset, end - offset, &status);

        if (r < 0 || status.length == 0 || !(status.flags & BLOCK_STATUS_ALLOCATED)) {
            return false;
        }
        offset += MIN(status.length, end - offset);
    }
    return true;
}

/*
 * A flush concerns the source: the target is flushed before guests move there. Where its own layer
 * must have zeroes that it can't have as such, the copy writes them.
 */
static int co_follow(struct mirror_top *s, const struct change *c)
{
    bool own_zeroes = s->whole && c->kind != CHANGE_WRITE;
    int r;

    if (own_zeroes && atomic_load(&s->zeroes_are_data)) {
        return -EAGAIN;
    }
    if (c->kind == CHANGE_DISCARD) {
        r = co_follow_discard(s, c);
    } else {
        touch(s, c->offset, c->length);
        r = co_apply_change(
            s->target, c,
            c->kind == CHANGE_ZEROES && s->params.unmap ? c->flags & BLOCK_REQ_MAY_UNMAP : 0);
    }
    return r == 0 && own_zeroes && !co_target_is_allocated(s, c->offset, c->length) ? -EAGAIN : r;
}

static int co_change_both(struct mirror_top *s, const struct change *c)
{
    _Atomic unsigned *following = &s->following[atomic_load(&s->turn) % 2];
    struct range_entry range;
    int r;

    atomic_fetch_add(following, 1);
    co_range_lock(&s->busy, &range, c->offset, c->length, true);
    r = co_apply_change(s->file, c, c->flags);
    if (r < 0 || (follows_now(s, c->offset, c->length) && co_follow(s, c) < 0)) {
        dirty_bitmap_set(s->todo, c->offset, c->length);
    }
    dirty_bitmap_set(s->sent, c->offset, c->length);
    if (s->followed) {
        dirty_bitmap_set(s->followed, c->offset, c->length);
    }
    range_unlock(&s->busy, &range);
    atomic_fetch_sub(following, 1);
    return r;
}

static int co_change(struct block_node *node, const struct change *c)
{
    struct mirror_top *s = node->opaque;
    enum mirror_top_mode mode = atomic_load(&s->mode);
    int r;

    if (mode == MIRROR_TOP_BLOCKING && c->length > 0) {
        return co_change_both(s, c);
    }
    r = co_apply_change(s->file, c, c->flags);
    if (mode == MIRROR_TOP_BACKGROUND) {
        dirty_bitmap_set(s->todo, c->offset, c->length);
    }
    return r;
}

static int mirror_top_co_pwritev(struct block_node *node, uint64_t offset, struct iov iov,
                                 unsigned flags)
{
    struct mirror_top *s = node->opaque;

    if (flags & BLOCK_REQ_UNCHANGED) {
        return block_co_pwritev(s->file, offset, iov, flags);
    }
    return co_change(node, &(struct change){.kind = CHANGE_WRITE,
                                            .offset = offset,
                                            .length = iov.size,
                                            .iov = iov,
                                            .flags = flags});
}

static int mirror_top_co_write_zeroes(struct block_node *node, uint64_t offset, uint64_t length,
                                      unsigned flags)
{
    struct mirror_top *s = node->opaque;

    if (flags & BLOCK_REQ_UNCHANGED) {
        return block_co_write_zeroes(s->file, offset, length, flags);
    }
    return co_change(
        node, &(struct change){
                  .kind = CHANGE_ZEROES, .offset = offset, .length = length, .flags = flags});
}

static int mirror_top_co_discard(struct block_node *node, uint64_t offset, uint64_t length)
{
    return co_change(node,
                     &(struct change){.kind = CHANGE_DISCARD, .offset = offset, .length = length});
}

static int mirror_top_co_flush(struct block_node *node)
{
    struct mirror_top *s = node->opaque;

    return block_co_flush(s->file);
}

static int mirror_top_co_truncate(struct block_node *node, uint64_t size,
                                  enum block_prealloc prealloc, struct error *err)
{
    return error_set(err, EBUSY, "Node '%s' is being mirrored and cannot be resized",
                     block_node_name(block_edge_node(node->filtered)));
}

const struct block_driver mirror_top_driver = {
    .name = "mirror_top",
    .is_internal = true,
    .instance_size = sizeof(struct mirror_top),
    .is_filter = true,
    .co_open = mirror_top_co_open_node,
    .co_close = mirror_top_co_close,
    .child_perm = mirror_top_child_perm,
    .drain_busy = mirror_top_drain_busy,
    .co_pwritev = mirror_top_co_pwritev,
    .co_write_zeroes = mirror_top_co_write_zeroes,
    .co_discard = mirror_top_co_discard,
    .co_flush = mirror_top_co_flush,
    .co_truncate = mirror_top_co_truncate,
};
