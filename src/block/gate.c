/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The gate. The order of things for a request:
 *
 *   root_enter            only at roots: in-flight count, drain
 *   serialise             only on nodes whose reads exclude changes
 *   check                 bounds, permission
 *   align                 only on nodes with request_alignment > 1 (gate_align.c)
 *   split                 max_transfer
 *   enter                 activity.h: the first write into a cold region makes it hot
 *   driver                or, of a filter that lets the request pass, what follows "serialise" of
 *                         its child (detour.c)
 *   mark, count           dirty bitmaps, write generation: after the write, also when it failed
 *   root_leave
 *
 * Requests of a node with request_alignment 1 and no limits (page-cached files, qcow2) take no
 * lock, no memory and no copy here.
 */
#include <errno.h>
#include <stdlib.h>

#include "base/checked.h"
#include "block/gate_align.h"
#include "block/internal.h"
#include "block/op.h"
#include "trace/events.h"

/* Longest chunk of explicit zeroes; all its elements point to the same memory. */
#define ZERO_BUFFER_SIZE (64 * KiB)
#define ZERO_CHUNK (1 * MiB)

static const uint8_t zero_buffer[ZERO_BUFFER_SIZE] __attribute__((aligned(4096)));

/* Returns the index of the reactor, for leave() and the counters. */
static inline unsigned co_enter_gate(struct block_edge *edge)
{
    unsigned index = counters_index();

    if (edge->root) {
        block_co_root_enter(edge->root, index);
    }
    return index;
}

static inline void leave(struct block_edge *edge, unsigned index)
{
    if (edge->root) {
        block_root_leave(edge->root, index);
    }
}

/* A request of a node that serialises: reads exclude changes. Held until unserialise(). */
static inline void co_serialise(struct block_node *node, struct range_entry *entry, uint64_t offset,
                                uint64_t length, bool change)
{
    entry->granted = node->serialises;
    if (__builtin_expect(node->serialises, false)) {
        co_range_lock(&node->serial, entry, offset, length, change);
    }
}

static inline void unserialise(struct block_node *node, struct range_entry *entry)
{
    if (__builtin_expect(entry->granted, false)) {
        range_unlock(&node->serial, entry);
    }
}

void block_co_edge_enter(struct block_edge *edge)
{
    co_enter_gate(edge);
}

void block_edge_leave(struct block_edge *edge)
{
    leave(edge, counters_index());
}

bool block_edge_try_enter(struct block_edge *edge)
{
    return !edge->root || block_root_try_enter(edge->root, counters_index());
}

/* block_node_size(), without a call. */
static inline uint64_t gate_size(const struct block_node *node)
{
    return atomic_load_explicit(&node->size, memory_order_relaxed);
}

static inline bool offset_is_sane(uint64_t offset, uint64_t length)
{
    return offset <= INT64_MAX && length <= INT64_MAX - offset;
}

/* --- detours (detour.c) ---------------------------------------------------------------------- */

static inline bool has_detour(const struct block_edge *edge)
{
    return atomic_load_explicit(&edge->node->detour, memory_order_relaxed) != 0;
}

/*
 * The edge at which a request goes on that passes the edge's node, a filter, which has accounted
 * for the request then; NULL: the node handles the request. `bit`: that of the direction.
 */
static struct block_edge *edge_below(const struct block_edge *edge, enum block_detour bit,
                                     uint64_t offset, uint64_t length)
{
    struct block_node *node = edge->node;
    const struct block_node *below;

    if (!(atomic_load_explicit(&node->detour, memory_order_relaxed) & bit)) {
        return NULL;
    }
    below = node->filtered->node;
    if (below->serialises || !range_fits(offset, length, gate_size(node)) ||
        !range_fits(offset, length, gate_size(below)) ||
        (node->driver->lets_pass &&
         !node->driver->lets_pass(node, bit == BLOCK_DETOUR_PASSES_WRITES, length))) {
        return NULL;
    }
    return node->filtered;
}

/* --- read ------------------------------------------------------------------------------------ */

/* A request within the node; aligned here if the node needs that. */
static int co_driver_preadv(struct block_node *node, uint64_t offset, struct iov iov,
                            unsigned flags)
{
    if (__builtin_expect(node->limits.request_alignment > 1 || node->limits.max_transfer, false)) {
        return block_co_preadv_aligned(node, offset, iov, flags);
    }
    return node->driver->co_preadv(node, offset, iov, flags);
}

/*
 * On an interior edge: format metadata and data may lie at the ragged end of a file; bytes beyond
 * the end read as zeroes.
 */
static int co_read_past_end(struct block_edge *edge, uint64_t offset, struct iov iov,
                            unsigned flags)
{
    uint64_t size = block_node_size(edge->node);
    size_t inside = offset < size ? MIN(size - offset, iov.size) : 0;
    IOV_PART_AUTO(part);
    int r = 0;

    if (inside > 0) {
        r = iov_part_set(&part, iov, 0, inside);
        UNLESS_FAILED(r, co_driver_preadv(edge->node, offset, part.iov, flags));
    }
    iov_fill(iov, inside, 0, iov.size - inside);
    return r;
}

static inline int co_preadv_entered(struct block_edge *edge, struct block_node_shard *shard,
                                    uint64_t offset, struct iov iov, unsigned flags)
{
    struct block_node *node = edge->node;
    struct block_op op;
    int r;

    block_op_begin_at(&op, node, shard);
    if (__builtin_expect(!node->driver->co_preadv, false)) {
        r = -ENOTSUP;
    } else if (iov.size == 0) {
        r = 0;
    } else if (__builtin_expect(range_fits(offset, iov.size, gate_size(node)), true)) {
        r = co_driver_preadv(node, offset, iov, flags);
    } else {
        op.invalid = edge->root || !offset_is_sane(offset, iov.size);
        r = op.invalid ? -EIO : co_read_past_end(edge, offset, iov, flags);
    }
    block_op_end(&op, BLOCK_OP_READ, offset, iov.size, r);
    return r;
}

/* With what few requests need: the trace point, and the order of a node that serialises. */
static __attribute__((noinline)) int co_preadv_slow(struct block_edge *edge, unsigned index,
                                                    uint64_t offset, struct iov iov, unsigned flags)
{
    struct range_entry serial;
    int r;

    co_serialise(edge->node, &serial, offset, iov.size, false);
    trace_block_read_begin(edge->node->name, offset, iov.size, flags);
    r = co_preadv_entered(edge, counters_shard_at(&edge->node->counters, index), offset, iov,
                          flags);
    trace_block_read_end(edge->node->name, offset, iov.size, r);
    unserialise(edge->node, &serial);
    return r;
}

/* edge_below() for a read. */
static __attribute__((noinline)) struct block_edge *
read_edge_below(const struct block_edge *edge, uint64_t offset, uint64_t length)
{
    return trace_block_read_is_on() ? NULL
                                    : edge_below(edge, BLOCK_DETOUR_PASSES_READS, offset, length);
}

int block_co_preadv(struct block_edge *edge, uint64_t offset, struct iov iov, unsigned flags)
{
    unsigned index = co_enter_gate(edge);
    struct counters *counters = &edge->node->counters;
    struct block_edge *at = edge;
    int r;

    if (__builtin_expect(trace_block_read_is_on() || has_detour(edge), false)) {
        at = read_edge_below(edge, offset, iov.size);
        counters = edge->node->passed;
    }
    r = __builtin_expect(at != NULL, true)
            ? co_preadv_entered(at, counters_shard_at(counters, index), offset, iov, flags)
            : co_preadv_slow(edge, index, offset, iov, flags);

    leave(edge, index);
    return r;
}

int block_co_pread(struct block_edge *edge, uint64_t offset, void *buf, size_t size)
{
    struct iovec vec;

    return block_co_preadv(edge, offset, iov_from_buf(&vec, buf, size), 0);
}

/* --- common to all changes of contents  ------------------------------------------------------- */

static inline bool edge_may_write(const struct block_edge *edge, unsigned flags)
{
    unsigned need = flags & BLOCK_REQ_UNCHANGED ? BLOCK_PERM_WRITE | BLOCK_PERM_WRITE_UNCHANGED
                                                : BLOCK_PERM_WRITE;

    return edge->perm & need;
}

/*
 * A format extends its file by writing beyond the end. If the file can't be longer, that is as a
 * device that is full.
 */
static __attribute__((noinline)) int check_extending_write(const struct block_edge *edge,
                                                           uint64_t offset, uint64_t length)
{
    if (edge->root || !(edge->perm & BLOCK_PERM_RESIZE) || !offset_is_sane(offset, length)) {
        return -EIO;
    }
    return block_node_grows(edge->node) ? 0 : -ENOSPC;
}

static inline int check_write(struct block_edge *edge, uint64_t offset, uint64_t length,
                              unsigned flags)
{
    if (!edge_may_write(edge, flags)) {
        return edge->node->read_only ? -EROFS : -EPERM;
    }
    if (__builtin_expect(range_fits(offset, length, gate_size(edge->node)), true)) {
        return 0;
    }
    return check_extending_write(edge, offset, length);
}

/* A write that is permitted begins. */
static inline void watch_threshold(struct block_node *node, uint64_t offset, uint64_t length)
{
    if (__builtin_expect(atomic_load_explicit(&node->write_threshold, memory_order_relaxed) != 0,
                         false)) {
        block_check_write_threshold(node, offset + length);
    }
}

/* A write of a leaf has ended beyond its end. */
static __attribute__((noinline)) void grow_for_write(struct block_node *node, uint64_t end)
{
    uint64_t size = gate_size(node);

    while (end > size && !atomic_compare_exchange_weak(&node->size, &size, end)) {
    }
}

/* The driver has ended a change, with success or not: a failed change may have written a part. */
static inline void account_change(struct block_node *node, uint64_t offset, uint64_t length,
                                  int result, unsigned flags)
{
    if (!(flags & BLOCK_REQ_UNCHANGED) &&
        __builtin_expect(!block_bitmaps_are_marked(node, offset, length), false)) {
        block_bitmaps_mark(node, offset, length);
    }
    if (__builtin_expect(offset + length > gate_size(node), false) && result == 0) {
        grow_for_write(node, offset + length);
    }
    atomic_fetch_add(&node->write_generation, 1);
}

/*
 * A change begins: if persistent bitmaps record it, its regions are hot. *ret_entry is for
 * leave_activity().
 */
static inline int co_enter_activity(struct block_node *node, uint64_t offset, uint64_t length,
                                    unsigned flags, block_activity_entry *ret_entry)
{
    *ret_entry = NULL;
    if (__builtin_expect(!node->activity, true) || (flags & BLOCK_REQ_UNCHANGED)) {
        return 0;
    }
    return block_co_activity_enter(node->activity, offset, length, ret_entry);
}

/* After the bitmaps were marked. The node has the same log: that changes only while drained. */
static inline void leave_activity(struct block_node *node, block_activity_entry entry,
                                  uint64_t offset, uint64_t length)
{
    if (__builtin_expect(entry != NULL, false)) {
        block_activity_leave(node->activity, entry, offset, length);
    }
}

static int co_flush_node(struct block_node *node);
static int co_zero_range(struct block_node *node, uint64_t offset, uint64_t length, unsigned flags);

/* --- write ----------------------------------------------------------------------------------- */

/* The option detect-zeroes. Flags that write_zeroes does not have are left out. */
static int co_write_found_zeroes(struct block_node *node, uint64_t offset, uint64_t length,
                                 unsigned flags)
{
    flags &= BLOCK_REQ_FUA | BLOCK_REQ_UNCHANGED;
    if (node->detect_zeroes == BLOCK_DETECT_ZEROES_UNMAP) {
        flags |= BLOCK_REQ_MAY_UNMAP;
    }
    return co_zero_range(node, offset, length, flags);
}

static __attribute__((noinline)) int co_driver_write_slow(struct block_node *node, uint64_t offset,
                                                          struct iov iov, unsigned flags)
{
    return node->limits.request_alignment > 1 || node->limits.max_transfer
               ? block_co_pwritev_aligned(node, offset, iov, flags)
               : block_co_driver_write(node, offset, iov, flags);
}

/* The write itself; then what it has changed. */
static inline int co_write_and_account(struct block_node *node, uint64_t offset, struct iov iov,
                                       unsigned flags, unsigned driver_flags)
{
    bool is_rare = node->limits.request_alignment > 1 || node->limits.max_transfer || node->events;
    int r;

    if (__builtin_expect(is_rare, false)) {
        r = co_driver_write_slow(node, offset, iov, driver_flags);
    } else {
        r = node->driver->co_pwritev(node, offset, iov, driver_flags);
    }
    account_change(node, offset, iov.size, r, flags);
    return r;
}

static inline int co_driver_pwritev(struct block_node *node, uint64_t offset, struct iov iov,
                                    unsigned flags)
{
    unsigned driver_flags = flags & (node->supported_write_flags | BLOCK_REQ_COMPRESSED);
    block_activity_entry entry;
    int r;

    if (__builtin_expect(node->detect_zeroes != BLOCK_DETECT_ZEROES_OFF, false) &&
        node->driver->co_write_zeroes && iov_is_zero(iov)) {
        return co_write_found_zeroes(node, offset, iov.size, flags);
    }
    r = co_enter_activity(node, offset, iov.size, flags, &entry);
    if (__builtin_expect(r < 0, false)) {
        return r;
    }
    r = co_write_and_account(node, offset, iov, flags, driver_flags);
    leave_activity(node, entry, offset, iov.size);
    if (__builtin_expect(flags & ~driver_flags & BLOCK_REQ_FUA, false) && r == 0) {
        r = co_flush_node(node);
    }
    return r;
}

static inline int co_pwritev_entered(struct block_edge *edge, struct block_node_shard *shard,
                                     uint64_t offset, struct iov iov, unsigned flags)
{
    struct block_op op;
    int r;

    block_op_begin_at(&op, edge->node, shard);
    r = check_write(edge, offset, iov.size, flags);
    op.invalid = r < 0;
    if (r == 0 && iov.size > 0) {
        watch_threshold(edge->node, offset, iov.size);
        r = edge->node->driver->co_pwritev ? co_driver_pwritev(edge->node, offset, iov, flags)
                                           : -ENOTSUP;
    }
    block_op_end(&op, BLOCK_OP_WRITE, offset, iov.size, r);
    return r;
}

/* With what few requests need: the trace point, and the order of a node that serialises. */
static __attribute__((noinline)) int co_pwritev_slow(struct block_edge *edge, unsigned index,
                                                     uint64_t offset, struct iov iov,
                                                     unsigned flags)
{
    struct range_entry serial;
    int r;

    co_serialise(edge->node, &serial, offset, iov.size, true);
    trace_block_write_begin(edge->node->name, offset, iov.size, flags);
    r = co_pwritev_entered(edge, counters_shard_at(&edge->node->counters, index), offset, iov,
                           flags);
    trace_block_write_end(edge->node->name, offset, iov.size, r);
    unserialise(edge->node, &serial);
    return r;
}

/* edge_below() for a write. The filter's generation does not grow: it is flushed in any case. */
static __attribute__((noinline)) struct block_edge *
write_edge_below(const struct block_edge *edge, uint64_t offset, uint64_t length, unsigned flags)
{
    struct block_node *node = edge->node;
    struct block_edge *below = NULL;

    if (!trace_block_write_is_on() && edge_may_write(edge, flags)) {
        below = edge_below(edge, BLOCK_DETOUR_PASSES_WRITES, offset, length);
    }
    if (below) {
        DEBUG_ASSERT(node->recorders == 0 && !node->activity);
        watch_threshold(node, offset, length);
    }
    return below;
}

int block_co_pwritev(struct block_edge *edge, uint64_t offset, struct iov iov, unsigned flags)
{
    unsigned index = co_enter_gate(edge);
    struct counters *counters = &edge->node->counters;
    struct block_edge *at = edge;
    int r;

    if (__builtin_expect(trace_block_write_is_on() || has_detour(edge), false)) {
        at = write_edge_below(edge, offset, iov.size, flags);
        counters = edge->node->passed;
    }
    r = __builtin_expect(at != NULL, true)
            ? co_pwritev_entered(at, counters_shard_at(counters, index), offset, iov, flags)
            : co_pwritev_slow(edge, index, offset, iov, flags);

    leave(edge, index);
    return r;
}

int block_co_pwrite(struct block_edge *edge, uint64_t offset, const void *buf, size_t size,
                    unsigned flags)
{
    struct iovec vec;

    return block_co_pwritev(edge, offset, iov_from_buf(&vec, (void *)(uintptr_t)buf, size), flags);
}

/* --- zeroes ---------------------------------------------------------------------------------- */

static int co_write_zero_buffer(struct block_node *node, uint64_t offset, uint64_t length)
{
    struct iovec vec[ZERO_CHUNK / ZERO_BUFFER_SIZE];
    int r = 0;

    if (!node->driver->co_pwritev) {
        return -ENOTSUP;
    }
    while (length > 0 && r == 0) {
        size_t chunk = MIN(length, ZERO_CHUNK), filled = 0;
        int n = 0;

        while (filled < chunk) {
            size_t part = MIN(chunk - filled, ZERO_BUFFER_SIZE);

            vec[n++] = (struct iovec){.iov_base = (void *)(uintptr_t)zero_buffer, .iov_len = part};
            filled += part;
        }
        r = block_co_pwritev_aligned(node, offset,
                                     (struct iov){.vec = vec, .count = n, .size = chunk}, 0);
        offset += chunk;
        length -= chunk;
    }
    return r;
}

/*
 * Zero whole blocks, excluding unaligned writes of the same blocks meanwhile: those read a block,
 * change a part and write the whole block, so they would write old bytes back. The lock is not held
 * over a fallback, which takes the same lock.
 */
static int co_zero_blocks(struct block_node *node, uint64_t offset, uint64_t length, unsigned flags)
{
    struct range_entry entry;
    int r;

    if (__builtin_expect(node->limits.request_alignment <= 1, true)) {
        return node->driver->co_write_zeroes(node, offset, length, flags);
    }
    co_range_lock(&node->rmw, &entry, offset, length, false);
    r = node->driver->co_write_zeroes(node, offset, length, flags);
    range_unlock(&node->rmw, &entry);
    return r;
}

static int co_discard_blocks(struct block_node *node, uint64_t offset, uint64_t length)
{
    struct range_entry entry;
    int r;

    if (__builtin_expect(node->limits.request_alignment <= 1, true)) {
        return node->driver->co_discard(node, offset, length);
    }
    co_range_lock(&node->rmw, &entry, offset, length, false);
    r = node->driver->co_discard(node, offset, length);
    range_unlock(&node->rmw, &entry);
    return r;
}

/* A part that is aligned to zeroes_alignment, or a head or tail that is not. */
static int co_zero_part(struct block_node *node, uint64_t offset, uint64_t length, unsigned flags,
                        bool aligned)
{
    int r = -ENOTSUP;

    if (length == 0) {
        return 0;
    }
    /* A format may know that the unaligned rest of a block is zero already. */
    if ((aligned || node->driver->is_format) && node->driver->co_write_zeroes) {
        unsigned driver_flags = flags & (node->supported_zero_flags | BLOCK_REQ_NO_FALLBACK);

        r = co_zero_blocks(node, offset, length, driver_flags);
    }
    if (r == -ENOTSUP && !(flags & BLOCK_REQ_NO_FALLBACK)) {
        r = co_write_zero_buffer(node, offset, length);
    }
    return r;
}

/* Like round_down() and round_up(), for units that are not powers of two. */
static uint64_t multiple_down(uint64_t value, uint64_t unit)
{
    return value - value % unit;
}

static uint64_t multiple_up(uint64_t value, uint64_t unit)
{
    return multiple_down(value + unit - 1, unit);
}

static int co_zero_node(struct block_node *node, uint64_t offset, uint64_t length, unsigned flags)
{
    uint64_t unit = MAX(node->limits.zeroes_alignment, node->limits.request_alignment);
    uint64_t max = node->limits.max_zeroes ? node->limits.max_zeroes : length;
    uint64_t end = offset + length;
    /* The end of the node may be ragged: a request up to the end counts as aligned. */
    uint64_t head_end = MIN(multiple_up(offset, unit), end);
    uint64_t tail = end == block_node_size(node) ? end : MAX(multiple_down(end, unit), head_end);
    int r = co_zero_part(node, offset, head_end - offset, flags, false);

    max = MAX(multiple_down(max, unit), unit);
    for (uint64_t at = head_end; at < tail && r == 0; at += max) {
        r = co_zero_part(node, at, MIN(max, tail - at), flags, true);
    }
    return r < 0 ? r : co_zero_part(node, tail, end - tail, flags, false);
}

/* The range is within bounds, and permitted. */
static int co_zero_range(struct block_node *node, uint64_t offset, uint64_t length, unsigned flags)
{
    block_activity_entry entry;
    int r;

    if (!node->discard_unmap) {
        flags &= ~BLOCK_REQ_MAY_UNMAP;
    }
    r = co_enter_activity(node, offset, length, flags, &entry);
    if (r < 0) {
        return r;
    }
    block_co_gate_event(node, BLOCK_EVENT_PWRITEV_ZERO);
    r = co_zero_node(node, offset, length, flags);
    block_co_gate_event(node, BLOCK_EVENT_PWRITEV_DONE);
    account_change(node, offset, length, r, flags);
    leave_activity(node, entry, offset, length);
    if (r == 0 && (flags & BLOCK_REQ_FUA)) {
        r = co_flush_node(node);
    }
    return r;
}

int block_co_write_zeroes(struct block_edge *edge, uint64_t offset, uint64_t length, unsigned flags)
{
    struct range_entry serial;
    struct block_op op;
    unsigned index;
    int r;

    index = co_enter_gate(edge);
    co_serialise(edge->node, &serial, offset, length, true);
    trace_block_zeroes_begin(edge->node->name, offset, length, flags);
    block_op_begin(&op, edge->node, index);
    r = check_write(edge, offset, length, flags);
    op.invalid = r < 0;
    if (r == 0 && length > 0) {
        watch_threshold(edge->node, offset, length);
        r = co_zero_range(edge->node, offset, length, flags);
    }
    block_op_end(&op, BLOCK_OP_ZEROES, offset, length, r);
    trace_block_zeroes_end(edge->node->name, offset, length, r);
    unserialise(edge->node, &serial);
    leave(edge, index);
    return r;
}

/* --- copying by the system ------------------------------------------------------------------- */

static bool may_copy(const struct block_node *node, uint64_t offset, uint64_t length)
{
    uint64_t unit = MAX(node->limits.request_alignment, 1);

    return node->driver->co_copy_from && node->detect_zeroes == BLOCK_DETECT_ZEROES_OFF &&
           is_aligned(offset, unit) && is_aligned(length, unit);
}

static int co_copy_range(struct block_node *node, uint64_t offset, struct block_node *source,
                         uint64_t source_offset, uint64_t length, unsigned flags)
{
    block_activity_entry entry;
    int r = co_enter_activity(node, offset, length, flags, &entry);

    if (r == 0) {
        r = node->driver->co_copy_from(node, offset, source, source_offset, length);
        account_change(node, offset, length, r, flags);
        leave_activity(node, entry, offset, length);
    }
    return r;
}

int block_co_copy_from(struct block_edge *edge, uint64_t offset, struct block_node *source,
                       uint64_t source_offset, uint64_t length, unsigned flags)
{
    struct block_node *node = edge->node;
    struct range_entry serial;
    struct block_op op;
    unsigned index;
    int r;

    index = co_enter_gate(edge);
    co_serialise(node, &serial, offset, length, true);
    trace_block_copy_begin(node->name, offset, length, source->name, source_offset);
    block_op_begin(&op, node, index);
    r = check_write(edge, offset, length, flags);
    op.invalid = r < 0;
    if (r == 0 && length > 0) {
        watch_threshold(node, offset, length);
        r = may_copy(node, offset, length)
                ? co_copy_range(node, offset, source, source_offset, length, flags)
                : -ENOTSUP;
    }
    if (r == 0 && (flags & BLOCK_REQ_FUA)) {
        r = co_flush_node(node);
    }
    block_op_end(&op, BLOCK_OP_WRITE, offset, length, r);
    trace_block_copy_end(node->name, offset, length, r);
    unserialise(node, &serial);
    leave(edge, index);
    return r;
}

int block_co_copy_range(struct block_edge *from, uint64_t from_offset, struct block_edge *to,
                        uint64_t to_offset, uint64_t *length, unsigned flags)
{
    const unsigned plain = BLOCK_STATUS_DATA | BLOCK_STATUS_OFFSET;
    struct block_status status;
    int r = block_co_status_above(from, NULL, from_offset, *length, &status, NULL);

    if (r < 0) {
        return r;
    }
    if (status.length == 0 || (status.flags & plain) != plain ||
        (status.flags & (BLOCK_STATUS_ZERO | BLOCK_STATUS_COMPRESSED))) {
        return -ENOTSUP;
    }
    *length = status.length;
    return block_co_copy_from(to, to_offset, status.file, status.map, status.length, flags);
}

/* --- discard --------------------------------------------------------------------------------- */

/* Heads and tails that are not whole units have no effect, except that filters pass them on. */
static int co_discard_rest(struct block_node *node, uint64_t from, uint64_t to)
{
    int r =
        from < to && node->driver->is_filter ? node->driver->co_discard(node, from, to - from) : 0;

    return r == -ENOTSUP ? 0 : r;
}

/*
 * The alignment of reads and writes is none of discards: a file whose requests are direct can have
 * holes of any length.
 */
static int co_discard_node(struct block_node *node, uint64_t offset, uint64_t length)
{
    uint64_t unit = MAX(node->limits.discard_alignment, 1);
    uint64_t max = node->limits.max_discard ? node->limits.max_discard : length;
    uint64_t end = offset + length;
    uint64_t first = MIN(multiple_up(offset, unit), end);
    uint64_t last = end == block_node_size(node) ? end : MAX(multiple_down(end, unit), first);
    int r = co_discard_rest(node, offset, first);

    max = MAX(multiple_down(max, unit), unit);
    for (uint64_t at = first; at < last && r == 0; at += max) {
        r = co_discard_blocks(node, at, MIN(max, last - at));
    }
    r = r == -ENOTSUP ? 0 : r;
    return r < 0 ? r : co_discard_rest(node, last, end);
}

static int co_discard_range(struct block_node *node, uint64_t offset, uint64_t length)
{
    block_activity_entry entry;
    uint64_t size;
    int r = co_enter_activity(node, offset, length, 0, &entry);

    if (r < 0) {
        return r;
    }
    r = co_discard_node(node, offset, length);
    /*
     * A discard never extends a node, though a format may discard a cluster that crosses the end.
     */
    size = block_node_size(node);
    account_change(node, offset, MIN(length, size - MIN(offset, size)), r, 0);
    leave_activity(node, entry, offset, length);
    return r;
}

int block_co_discard(struct block_edge *edge, uint64_t offset, uint64_t length)
{
    struct block_node *node;
    struct range_entry serial;
    struct block_op op;
    unsigned index;
    int r;

    index = co_enter_gate(edge);
    node = edge->node;
    co_serialise(node, &serial, offset, length, true);
    trace_block_discard_begin(node->name, offset, length);
    block_op_begin(&op, node, index);
    r = check_write(edge, offset, length, 0);
    op.invalid = r < 0;
    if (r == 0 && length > 0 && node->driver->co_discard && node->discard_unmap) {
        r = co_discard_range(node, offset, length);
    }
    block_op_end(&op, BLOCK_OP_DISCARD, offset, length, r);
    trace_block_discard_end(node->name, offset, length, r);
    unserialise(node, &serial);
    leave(edge, index);
    return r;
}

/* --- flush ----------------------------------------------------------------------------------- */

bool block_node_was_written(const struct block_node *node)
{
    const struct block_edge *edge;
    bool written = atomic_load(&node->write_generation) > BLOCK_NOTHING_WRITTEN ||
                   atomic_load(&node->backing_unflushed);

    LIST_FOREACH (edge, &node->children, sibling) {
        written = written || (edge != node->backing && block_node_was_written(edge->node));
    }
    return written;
}

int block_co_flush_children(struct block_node *node)
{
    struct block_edge *edge;
    int r = 0;

    LIST_FOREACH (edge, &node->children, sibling) {
        /* One that was written to: the writer may have gone since, and with him the permission. */
        if (block_node_was_written(edge->node)) {
            r = error_first(r, block_co_flush(edge));
        }
    }
    return r;
}

/* Nobody writes to the backing node any more. */
static int co_flush_below_overlay(struct block_node *node)
{
    int r = node->backing ? co_flush_node(node->backing->node) : 0;

    if (r == 0) {
        atomic_store(&node->backing_unflushed, false);
    }
    return r;
}

/*
 * A filter is always flushed: its contents may have been written by another way, which it does not
 * count.
 */
static int co_flush_node(struct block_node *node)
{
    uint64_t written = atomic_load(&node->write_generation);
    uint64_t flushed = node->driver->is_filter ? 0 : atomic_load(&node->flushed_generation);
    int r;

    if (node->file) {
        block_co_event(node->file, BLOCK_EVENT_FLUSH_TO_OS);
    }
    if (__builtin_expect(atomic_load(&node->backing_unflushed), false)) {
        r = co_flush_below_overlay(node);
        if (r < 0) {
            return r;
        }
    }
    if (flushed >= written) {
        return 0;
    }
    if (node->cache_no_flush && !node->driver->flushes_always) {
        return block_co_flush_children(node);
    }
    if (node->file) {
        block_co_event(node->file, BLOCK_EVENT_FLUSH_TO_DISK);
    }
    r = node->driver->co_flush(node);
    while (r == 0 && flushed < written) {
        if (atomic_compare_exchange_weak(&node->flushed_generation, &flushed, written)) {
            break;
        }
    }
    return r;
}

int block_co_flush_node(struct block_node *node)
{
    return co_flush_node(node);
}

int block_co_flush(struct block_edge *edge)
{
    struct block_op op;
    unsigned index;
    int r;

    index = co_enter_gate(edge);
    trace_block_flush_begin(edge->node->name);
    block_op_begin(&op, edge->node, index);
    r = co_flush_node(edge->node);
    block_op_end(&op, BLOCK_OP_FLUSH, 0, 0, r);
    trace_block_flush_end(edge->node->name, r);
    leave(edge, index);
    return r;
}

/* --- size ------------------------------------------------------------------------------------ */

int block_co_extend(struct block_edge *edge, uint64_t size)
{
    struct block_node *node = edge->node;
    int r;

    if (size <= block_node_size(node)) {
        return 0;
    }
    if (!(edge->perm & BLOCK_PERM_RESIZE) || !node->driver->co_extend || size > INT64_MAX) {
        return -ENOTSUP;
    }
    r = node->driver->co_extend(node, size);
    account_change(node, size, 0, r, BLOCK_REQ_UNCHANGED);
    return r;
}

/* --- point-in-time access -------------------------------------------------------------------- */

int block_co_preadv_snapshot(struct block_edge *edge, uint64_t offset, struct iov iov)
{
    struct block_node *node;
    struct block_op op;
    unsigned index;
    int r = -ENOTSUP;

    index = co_enter_gate(edge);
    node = edge->node;
    trace_block_snapshot_read_begin(node->name, offset, iov.size);
    block_op_begin(&op, node, index);
    op.invalid = !range_fits(offset, iov.size, block_node_size(node));
    if (op.invalid) {
        r = -EIO;
    } else if (node->driver->co_preadv_snapshot) {
        r = node->driver->co_preadv_snapshot(node, offset, iov);
    }
    block_op_end(&op, BLOCK_OP_READ, offset, iov.size, r);
    trace_block_snapshot_read_end(node->name, offset, iov.size, r);
    leave(edge, index);
    return r;
}

int block_co_snapshot_status(struct block_edge *edge, uint64_t offset, uint64_t length,
                             struct block_status *ret_status)
{
    struct block_node *node;
    unsigned index;
    int r = -ENOTSUP;

    index = co_enter_gate(edge);
    node = edge->node;
    trace_block_snapshot_status_begin(node->name, offset, length);
    if (offset >= block_node_size(node)) {
        *ret_status = (struct block_status){.flags = BLOCK_STATUS_EOF};
        r = 0;
    } else if (node->driver->co_snapshot_status) {
        length = MIN(length, block_node_size(node) - offset);
        r = node->driver->co_snapshot_status(node, offset, length, ret_status);
    }
    trace_block_snapshot_status_end(node->name, offset, r < 0 ? 0 : ret_status->length,
                                    r < 0 ? 0 : ret_status->flags, r);
    leave(edge, index);
    return r;
}

int block_co_discard_snapshot(struct block_edge *edge, uint64_t offset, uint64_t length)
{
    struct block_node *node;
    struct block_op op;
    unsigned index;
    int r = -ENOTSUP;

    index = co_enter_gate(edge);
    node = edge->node;
    trace_block_snapshot_discard_begin(node->name, offset, length);
    block_op_begin(&op, node, index);
    op.invalid = !range_fits(offset, length, block_node_size(node));
    if (op.invalid) {
        r = -EIO;
    } else if (node->driver->co_discard_snapshot) {
        r = node->driver->co_discard_snapshot(node, offset, length);
    }
    block_op_end(&op, BLOCK_OP_DISCARD, offset, length, r);
    trace_block_snapshot_discard_end(node->name, offset, length, r);
    leave(edge, index);
    return r;
}
