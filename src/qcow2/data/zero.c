/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Zeroing and discarding: changes of entries only.
 *
 *   before            ZERO_KEEP               ZERO_UNMAP           DISCARD      DROP
 *   unallocated       zero                    zero                 zero         unchanged
 *   zero              unchanged               unchanged            unchanged    unallocated
 *   zero, allocated   unchanged               zero                 zero         unallocated
 *   normal            zero, allocated         zero                 zero         unallocated
 *   compressed        zero                    zero                 zero         unallocated
 *
 * Without a backing file, DISCARD leaves a cluster without host cluster unchanged, even if only
 * some of its subclusters are zero. With one, what the guest has discarded must not be what the
 * backing file has there, now or after a commit. DROP is for clusters that no longer belong to the
 * disk. FORGET is DROP for a discard in version 2, which has no zero flag. With discard-no-unref,
 * ZERO_UNMAP and DISCARD keep the host clusters that ZERO_KEEP would keep.
 */
#include <errno.h>

#include "qcow2/data/data.h"
#include "qcow2/table/alloc.h"
#include "qcow2/table/commit.h"
#include "qcow2/table/map.h"
#include "qcow2/table/verdict.h"

enum change { CHANGE_ZERO_KEEP, CHANGE_ZERO_UNMAP, CHANGE_DISCARD, CHANGE_FORGET, CHANGE_DROP };

/* An L2 entry with its subcluster bitmap. */
struct l2_entry {
    uint64_t entry, bitmap;
};

static bool has_host_cluster(const struct qcow2 *q, uint64_t entry)
{
    return (entry & ENTRY_OFFSET_MASK) || (q->has_data_file && (entry & ENTRY_COPIED));
}

/*
 * Whether discarded clusters keep their place in the file. Then a hole can be punched at once;
 * clusters that lose their reference have to wait for the commit of that.
 */
static bool keeps_discarded(const struct qcow2 *q)
{
    return q->options.discard_no_unref || (q->node->frees_at_once && q->version >= 3);
}

static bool keeps_place(const struct qcow2 *q, enum change change)
{
    return change == CHANGE_ZERO_KEEP || (change <= CHANGE_DISCARD && keeps_discarded(q));
}

/* The entry that replaces `old`; *ret_free: the old host cluster loses its reference. */
static struct l2_entry new_entry(const struct qcow2 *q, struct l2_entry old, enum change change,
                                 bool *ret_free)
{
    struct l2_entry zero =
        q->extended_l2 ? (struct l2_entry){0, SUB_ALL_ZERO} : (struct l2_entry){L2_ZERO, 0};
    struct l2_entry gone = change >= CHANGE_FORGET ? (struct l2_entry){0, 0} : zero;
    bool compressed = old.entry & L2_COMPRESSED;

    *ret_free = false;
    if (!compressed && !has_host_cluster(q, old.entry)) {
        bool unallocated = !(old.entry & L2_ZERO) && old.bitmap == 0;
        bool reads_so = change == CHANGE_DISCARD && !q->node->backing;

        return (unallocated && change >= CHANGE_FORGET) || reads_so ? old : gone;
    }
    if (!compressed && keeps_place(q, change) && (old.entry & ENTRY_COPIED)) {
        return (struct l2_entry){old.entry | zero.entry, zero.bitmap};
    }
    *ret_free = true;
    return gone;
}

/*
 * Drop the reference of a replaced entry. A misaligned offset is no cluster: report, free nothing.
 */
static int free_old_locked(struct qcow2 *q, uint64_t entry, enum change change)
{
    enum qcow2_freed why =
        change == CHANGE_DROP ? QCOW2_FREED_BY_SHRINKING : QCOW2_FREED_BY_REQUEST;
    uint64_t offset, length;
    bool compressed;

    if (!qcow2_entry_extent(q, entry, &offset, &length, &compressed)) {
        return 0;
    }
    if (!compressed && !is_aligned(offset, q->cluster_size)) {
        qcow2_corrupt_nonfatal(q, "Cannot free unaligned cluster %#llx",
                               (unsigned long long)offset);
        return 0;
    }
    return qcow2_free_later_locked(q, offset, length, compressed, why);
}

/* `guest`: guest offset of the cluster. */
static int change_entry_locked(struct qcow2 *q, struct cache_entry *slice, unsigned index,
                               uint64_t guest, enum change change)
{
    struct l2_entry old = {qcow2_load_entry(q, slice, index), qcow2_load_bitmap(q, slice, index)};
    struct l2_entry new;
    enum cluster_type type;
    uint64_t host;
    bool drop, bad = qcow2_decode_entry(q, old.entry, old.bitmap, 0, &type, &host) < 0;

    /* Dropping a compressed cluster that is invalid because there is a data file repairs it. */
    if (bad && !(old.entry & L2_COMPRESSED) &&
        (is_aligned(old.entry & ENTRY_OFFSET_MASK, q->cluster_size) || keeps_place(q, change))) {
        return qcow2_corrupt_entry(q, slice, index, guest, true);
    }
    new = new_entry(q, old, change, &drop);
    if (new.entry != old.entry || new.bitmap != old.bitmap) {
        qcow2_store_entry(q, slice, index, new.entry, new.bitmap);
        cache_mark_dirty(&q->caches.l2, slice);
    }
    return drop ? free_old_locked(q, old.entry, change) : 0;
}

/* Change clusters from `offset` on to the end of their slice; *ret_done: how many. */
static int co_change_slice_locked(struct qcow2 *q, uint64_t offset, uint64_t clusters,
                                  enum change change, uint64_t *ret_done)
{
    unsigned end = qcow2_slice_entries(q);
    struct cache_entry *slice;
    uint64_t n;
    unsigned index;
    int r = qcow2_co_l2_slice_locked(q, offset, &slice, &index);

    if (r < 0) {
        return r;
    }
    for (n = 0; n < clusters && index + n < end && r == 0; n++) {
        r = change_entry_locked(q, slice, index + (unsigned)n, offset + (n << q->cluster_bits),
                                change);
    }
    cache_put(slice);
    *ret_done = n;
    return r;
}

/* Make some subclusters of one cluster zero. */
static int co_zero_subclusters_locked(struct qcow2 *q, uint64_t offset, uint64_t length)
{
    uint64_t in_cluster = offset & (q->cluster_size - 1);
    unsigned from = (unsigned)(in_cluster >> q->subcluster_bits);
    unsigned to = (unsigned)div_round_up(in_cluster + length, qcow2_subcluster_size(q));
    uint64_t mask = ((1ULL << to) - 1) & ~((1ULL << from) - 1), entry, bitmap;
    struct cache_entry *slice;
    unsigned index;
    int r = qcow2_co_l2_slice_locked(q, offset, &slice, &index);

    if (r < 0) {
        return r;
    }
    entry = qcow2_load_entry(q, slice, index);
    bitmap = qcow2_load_bitmap(q, slice, index);
    if (entry & L2_COMPRESSED) {
        r = -ENOTSUP; /* the rest of the cluster would have to move */
    } else {
        qcow2_store_entry(q, slice, index, entry, (bitmap & ~mask) | mask << SUBCLUSTERS);
        cache_mark_dirty(&q->caches.l2, slice);
    }
    cache_put(slice);
    return r;
}

/* Bytes of the range in its first cluster, unless that is a whole one: then 0. */
static uint64_t partial_length(const struct qcow2 *q, uint64_t offset, uint64_t end)
{
    uint64_t next = round_down(offset, q->cluster_size) + q->cluster_size;
    bool whole =
        is_aligned(offset, q->cluster_size) && (end >= next || end == block_node_size(q->node));

    return whole || !q->extended_l2 ? 0 : MIN(end, next) - offset;
}

/* Skip clusters that are zero, or unmapped, already: no L2 table has to be made for them. */
static int co_skip_empty(struct qcow2 *q, uint64_t offset, uint64_t length, enum change change,
                         uint64_t *ret_skip)
{
    enum change forgetful = q->node->backing ? CHANGE_FORGET : CHANGE_DISCARD;
    struct qcow2_run run;
    int r = qcow2_co_map_tolerating_corruption(q, offset, length, &run);

    *ret_skip = 0;
    if (r == 0 && is_aligned(offset, q->cluster_size) &&
        ((run.type == CLUSTER_ZERO && change < CHANGE_FORGET) ||
         (run.type == CLUSTER_UNALLOCATED && change >= forgetful))) {
        *ret_skip = round_down(run.length, q->cluster_size);
        if (run.length == length) {
            *ret_skip = length;
        }
    }
    return r;
}

/*
 * The range is aligned to clusters, or to subclusters, or ends at the end of the disk. The guest
 * range is held exclusively.
 */
static int co_change_clusters(struct qcow2 *q, uint64_t offset, uint64_t length, enum change change)
{
    uint64_t end = offset + length;
    int r = 0;

    while (offset < end && r == 0) {
        uint64_t done = 0, partial = partial_length(q, offset, end);

        if (partial > 0) {
            co_mutex_lock(&q->lock);
            r = co_zero_subclusters_locked(q, offset, partial);
            co_mutex_unlock(&q->lock);
            done = partial;
        } else {
            r = co_skip_empty(q, offset, end - offset, change, &done);
        }
        if (r == 0 && done == 0) {
            /* Less than a cluster is left only at the end of the disk. */
            uint64_t clusters = MAX((end - offset) >> q->cluster_bits, 1);

            co_mutex_lock(&q->lock);
            r = co_change_slice_locked(q, offset, clusters, change, &done);
            co_mutex_unlock(&q->lock);
            done <<= q->cluster_bits;
        }
        if (qcow2_co_make_room(q, r)) {
            r = 0; /* there was no room for an L2 table */
            continue;
        }
        offset += done;
        UNLESS_FAILED(r, qcow2_co_commit_if_much_dirty(q));
    }
    return r;
}

/* A raw data file has to read as the disk does, whatever the entries are; another may get holes. */
static int co_change_data_file(struct qcow2 *q, uint64_t offset, uint64_t length,
                               enum change change)
{
    if (!q->has_data_file || change >= CHANGE_FORGET) {
        return 0;
    }
    if (q->data_file_raw) {
        return block_co_write_zeroes(q->data, offset, length,
                                     change == CHANGE_ZERO_KEEP ? 0 : BLOCK_REQ_MAY_UNMAP);
    }
    return change != CHANGE_ZERO_KEEP && q->options.pass_discard[QCOW2_FREED_BY_REQUEST]
               ? block_co_discard(q->data, offset, length)
               : 0;
}

/*
 * Clusters that keep their place give back their space at once, before anything is written there
 * again.
 */
static int co_punch_kept(struct qcow2 *q, uint64_t offset, uint64_t length)
{
    uint64_t at = round_up(offset, q->cluster_size), end = offset + length;
    int r = 0;

    end = end == block_node_size(q->node) ? round_up(end, q->cluster_size)
                                          : round_down(end, q->cluster_size);
    while (at < end && r == 0) {
        struct qcow2_run run;

        r = qcow2_co_map_tolerating_corruption(q, at, end - at, &run);
        if (r == 0 && run.type == CLUSTER_ZERO_ALLOC && run.copied) {
            r = qcow2_co_overlap_check(q, run.host, run.length, 0);
            UNLESS_FAILED(r, block_co_discard(q->node->file, run.host, run.length));
        }
        at += run.length;
    }
    return r;
}

static int co_change_range(struct qcow2 *q, uint64_t offset, uint64_t length, enum change change)
{
    uint64_t first = round_down(offset, q->cluster_size);
    struct range_entry range;
    int r = qcow2_co_begin_change(q);

    if (r < 0) {
        return r;
    }
    co_range_lock(&q->guest, &range, first, round_up(offset + length, q->cluster_size) - first,
                  true);
    r = co_change_data_file(q, offset, length, change);
    UNLESS_FAILED(r, co_change_clusters(q, offset, length, change));
    if (r == 0 && keeps_discarded(q) && !q->has_data_file && change != CHANGE_ZERO_KEEP &&
        change <= CHANGE_DISCARD && q->options.pass_discard[QCOW2_FREED_BY_REQUEST]) {
        r = co_punch_kept(q, offset, length);
    }
    range_unlock(&q->guest, &range);
    return r;
}

/* Whether block status knows that [offset, offset + length) of the backing chain is zero. */
static int co_backing_is_zero(struct qcow2 *q, uint64_t offset, uint64_t length, bool *ret_flag)
{
    uint64_t end = offset + length;

    if (!q->node->backing) {
        *ret_flag = true;
        return 0;
    }
    end = MIN(end, block_edge_size(q->node->backing));
    *ret_flag = false;
    while (offset < end) {
        struct block_status status;
        int depth;
        int r =
            block_co_status_above(q->node->backing, NULL, offset, end - offset, &status, &depth);

        if (r < 0 || !(status.flags & BLOCK_STATUS_ZERO)) {
            return r;
        }
        offset += status.length;
    }
    *ret_flag = true;
    return 0;
}

/* Whether the subcluster, apart from [offset, offset + length), is zero, and has no data here. */
static int co_rest_is_zero(struct qcow2 *q, uint64_t offset, uint64_t length, bool *ret_flag)
{
    uint64_t unit = qcow2_subcluster_size(q), start = round_down(offset, unit);
    uint64_t end = offset + length, unit_end = MIN(start + unit, block_node_size(q->node));
    struct qcow2_run run;
    int r = qcow2_co_map(q, start, 1, &run);

    *ret_flag = false;
    if (r < 0 || run.type == CLUSTER_NORMAL || run.type == CLUSTER_COMPRESSED) {
        return r;
    }
    if (run.type != CLUSTER_UNALLOCATED && run.type != CLUSTER_UNALLOCATED_HAS_HOST) {
        *ret_flag = true;
        return 0;
    }
    r = co_backing_is_zero(q, start, offset - start, ret_flag);
    if (r == 0 && *ret_flag && unit_end > end) {
        r = co_backing_is_zero(q, end, unit_end - end, ret_flag);
    }
    return r;
}

/*
 * Zero a part of a subcluster: all of it if the rest is zero already, else -ENOTSUP, and the gate
 * writes zeroes. The guest range is held meanwhile, since another write may be about to put data
 * into the rest.
 */
static int co_zero_partial(struct qcow2 *q, uint64_t offset, uint64_t length, enum change change)
{
    uint64_t unit = qcow2_subcluster_size(q), start = round_down(offset, unit);
    uint64_t size = MIN(unit, block_node_size(q->node) - start);
    struct range_entry range;
    bool zero;
    int r = qcow2_co_begin_change(q);

    if (r < 0) {
        return r;
    }
    co_range_lock(&q->guest, &range, round_down(offset, q->cluster_size), q->cluster_size, true);
    r = co_rest_is_zero(q, offset, length, &zero);
    if (r == 0) {
        r = zero ? co_change_data_file(q, start, size, change) : -ENOTSUP;
    }
    UNLESS_FAILED(r, co_change_clusters(q, start, size, change));
    range_unlock(&q->guest, &range);
    return r;
}

int qcow2_co_write_zeroes(struct block_node *node, uint64_t offset, uint64_t length, unsigned flags)
{
    struct qcow2 *q = qcow2_state(node);
    enum change change = flags & BLOCK_REQ_MAY_UNMAP ? CHANGE_ZERO_UNMAP : CHANGE_ZERO_KEEP;
    bool ends_at_end = offset + length == block_node_size(node);

    if (q->version < 3) {
        /* There is no zero flag; without a backing file the mapping can be removed. */
        return flags & BLOCK_REQ_MAY_UNMAP ? qcow2_co_discard(node, offset, length) : -ENOTSUP;
    }
    if (!is_aligned(offset, qcow2_subcluster_size(q)) ||
        (!is_aligned(length, qcow2_subcluster_size(q)) && !ends_at_end)) {
        return co_zero_partial(q, offset, length, change);
    }
    return co_change_range(q, offset, length, change);
}

int qcow2_co_discard(struct block_node *node, uint64_t offset, uint64_t length)
{
    struct qcow2 *q = qcow2_state(node);

    if (q->version >= 3) {
        return co_change_range(q, offset, length, CHANGE_DISCARD);
    }
    /* Without the zero flag a discard would expose the backing file. */
    if (node->backing || !is_aligned(offset, q->cluster_size) ||
        (!is_aligned(length, q->cluster_size) && offset + length != block_node_size(node))) {
        return -ENOTSUP;
    }
    return co_change_range(q, offset, length, CHANGE_FORGET);
}

int qcow2_co_zero_clusters(struct qcow2 *q, uint64_t offset, uint64_t length)
{
    return co_change_range(q, offset, length, CHANGE_ZERO_KEEP);
}

int qcow2_co_drop_clusters(struct qcow2 *q, uint64_t offset, uint64_t length)
{
    return co_change_range(q, offset, length, CHANGE_DROP);
}
