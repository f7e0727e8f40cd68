/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writing. Clusters that are not shared are overwritten in place. All others are allocated:
 *
 *   guest range exclusive -> lock: map again, allocate -> unlock
 *                         -> write the data, with the cluster's old head and tail
 *                         -> lock: link, mark dirty, drop the old reference -> unlock
 *
 * The entry changes in memory only after the data was written, so the commit that writes the entry
 * syncs the data before (R7). After an error the new clusters, which nothing references, are freed.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "qcow2/data/crypt.h"
#include "qcow2/data/data.h"
#include "qcow2/table/alloc.h"
#include "qcow2/table/commit.h"
#include "qcow2/table/map.h"
#include "qcow2/table/verdict.h"

#define ZERO_PAGE_SIZE (64 * KiB)
/* Commit first, rather than grow the file, when this many bytes wait to be freed. */
#define REUSE_BYTES_MIN (8 * MiB)

static const uint8_t zero_page[ZERO_PAGE_SIZE] __attribute__((aligned(4096)));

/*
 * How the clusters of one allocating write get their host clusters; the same for all of them.
 *
 *   NEW        no host cluster yet: gets one, in which only the written subclusters are valid
 *   IN_PLACE   has an unshared host cluster: the entry changes if it does not map the data yet
 *   COPY       shared or compressed: gets a new host cluster, to which the old contents are copied,
 *              from the first subcluster that has some to the last one
 *
 * Without extended entries a cluster is one subcluster, and NEW does what COPY would.
 */
enum alloc_kind { ALLOC_NEW, ALLOC_IN_PLACE, ALLOC_COPY };

/* One allocating write: [offset, offset + data.size), in `clusters` clusters from `first` on. */
struct allocation {
    uint64_t offset;
    struct iov data;
    uint64_t first; /* guest offset, cluster aligned */
    uint64_t clusters;
    uint64_t host; /* file offset of the first cluster */
    enum alloc_kind kind;
    bool fresh;        /* the new clusters were never written */
    bool had_contents; /* the old clusters may hold data: head and tail have to be copied */
    /* Whether the first, the last, and all of the clusters are mapped already, and not shared. */
    bool first_overwrites_in_place, last_overwrites_in_place, all_overwrite_in_place;
    uint64_t contents;   /* COPY: bits of the subclusters that have contents */
    uint64_t start, end; /* guest range that is written, with head and tail: subclusters */
};

/* --- data ------------------------------------------------------------------------------------- */

/* The buffers of one write: data with head and tail. */
struct gather {
    struct iovec *vec;
    int count;
    size_t size;
};

static void gather_release(struct gather *g)
{
    free(g->vec);
}

static void add_piece(struct gather *g, const void *buf, size_t size)
{
    if (size > 0) {
        g->vec[g->count++] = (struct iovec){.iov_base = (void *)(uintptr_t)buf, .iov_len = size};
        g->size += size;
    }
}

static void add_zeroes(struct gather *g, size_t size)
{
    for (size_t part; size > 0; size -= part) {
        part = MIN(size, ZERO_PAGE_SIZE);
        add_piece(g, zero_page, part);
    }
}

static void add_data(struct gather *g, struct iov data)
{
    for (int i = 0; i < data.count; i++) {
        add_piece(g, data.vec[i].iov_base, data.vec[i].iov_len);
    }
}

/* Read the old head or tail into a new buffer, *ret_buf; NULL if `size` is 0. */
static int co_read_old_side(struct qcow2 *q, uint64_t offset, size_t size, void **ret_buf)
{
    *ret_buf = NULL;
    if (size == 0) {
        return 0;
    }
    block_co_event(q->node->file, BLOCK_EVENT_COW_READ);
    if (posix_memalign(ret_buf, 4096, size) != 0) {
        *ret_buf = NULL;
        return -ENOMEM;
    }
    return qcow2_co_read_guest_range_held(q, offset, *ret_buf, size);
}

/* Write guest data at `guest` to file offset `host`, unless that is metadata. */
static int co_write_data(struct qcow2 *q, uint64_t guest, uint64_t host, struct iov iov)
{
    int r = qcow2_check_writable(q);

    if (r == 0 && !q->has_data_file) {
        r = qcow2_co_overlap_check(q, host, iov.size, 0);
    }
    if (r < 0) {
        return qcow2_co_conclude(q, r);
    }
    block_co_event(q->node->file, BLOCK_EVENT_WRITE_AIO);
    return q->crypt_method != CRYPT_NONE ? qcow2_co_write_encrypted(q, guest, host, iov)
                                         : block_co_pwritev(q->data, host, iov, 0);
}

/* Write the data, with head and tail of its clusters around it, as one request. */
static int co_write_padded(struct qcow2 *q, const struct allocation *a, size_t head, size_t tail)
{
    AUTO_FREE void *head_buf = NULL;
    AUTO_FREE void *tail_buf = NULL;
    CLEANUP(gather_release) struct gather g = {0};
    int r;

    g.vec = malloc(((size_t)a->data.count + (head + tail) / ZERO_PAGE_SIZE + 4) * sizeof(*g.vec));
    if (!g.vec) {
        return -ENOMEM;
    }
    if (a->had_contents) {
        if ((r = co_read_old_side(q, a->start, head, &head_buf)) < 0 ||
            (r = co_read_old_side(q, a->offset + a->data.size, tail, &tail_buf)) < 0) {
            return r;
        }
        add_piece(&g, head_buf, head);
        add_data(&g, a->data);
        add_piece(&g, tail_buf, tail);
        block_co_event(q->node->file, BLOCK_EVENT_COW_WRITE);
    } else {
        block_co_event(q->node->file, BLOCK_EVENT_CLUSTER_ALLOC_SPACE);
        add_zeroes(&g, head);
        add_data(&g, a->data);
        add_zeroes(&g, tail);
    }
    return co_write_data(q, a->start, a->host + (a->start - a->first),
                         (struct iov){.vec = g.vec, .count = g.count, .size = g.size});
}

/* Whether the new clusters decrypt to zeroes without being written. */
static bool reads_as_zeroes(const struct qcow2 *q, const struct allocation *a)
{
    return a->fresh && q->crypt_method == CRYPT_NONE;
}

static int co_write_new_data(struct qcow2 *q, const struct allocation *a)
{
    size_t head = a->offset - a->start;
    size_t tail = a->end - a->offset - a->data.size;

    if (head + tail == 0 || (reads_as_zeroes(q, a) && !a->had_contents)) {
        return co_write_data(q, a->offset, a->host + (a->offset - a->first), a->data);
    }
    return co_write_padded(q, a, head, tail);
}

/* --- allocate --------------------------------------------------------------------------------- */

/* What a write does to one cluster. */
struct cluster_plan {
    enum alloc_kind kind;
    uint64_t host;
    bool overwrites_in_place; /* all of it is mapped, and not shared */
    bool has_contents;        /* may read as something else than zeroes */
    uint64_t allocated;       /* bits of the subclusters with contents, if there are any */
};

static int plan_cluster(struct qcow2 *q, const struct cache_entry *slice, unsigned index,
                        struct cluster_plan *ret_plan)
{
    uint64_t entry = qcow2_load_entry(q, slice, index);
    uint64_t bitmap = qcow2_load_bitmap(q, slice, index);
    enum cluster_type type;
    int r = qcow2_decode_entry(q, entry, bitmap, 0, &type, &ret_plan->host);
    bool placed = type == CLUSTER_NORMAL || type == CLUSTER_ZERO_ALLOC ||
                  type == CLUSTER_UNALLOCATED_HAS_HOST;

    if (r < 0) {
        return r;
    }
    ret_plan->overwrites_in_place =
        !q->extended_l2 && type == CLUSTER_NORMAL && (entry & ENTRY_COPIED);
    if (placed && (entry & ENTRY_COPIED)) {
        ret_plan->kind = ALLOC_IN_PLACE;
    } else if (q->extended_l2 && (placed || type == CLUSTER_COMPRESSED)) {
        ret_plan->kind = ALLOC_COPY;
    } else {
        ret_plan->kind = ALLOC_NEW;
    }
    ret_plan->has_contents = q->extended_l2 || type == CLUSTER_NORMAL ||
                             type == CLUSTER_COMPRESSED ||
                             (type == CLUSTER_UNALLOCATED && q->node->backing);
    ret_plan->allocated =
        type == CLUSTER_COMPRESSED ? SUB_ALL_ALLOCATED : bitmap & SUB_ALL_ALLOCATED;
    return 0;
}

/* Whether the n-th cluster after the first one can be written together with it. */
static bool goes_with(const struct qcow2 *q, const struct cluster_plan *first,
                      const struct cluster_plan *other, uint64_t n)
{
    return other->kind == first->kind && first->kind != ALLOC_COPY &&
           (first->kind != ALLOC_IN_PLACE || other->host == first->host + (n << q->cluster_bits));
}

/* Find the clusters from slice[index] on, at most `want`, that can be written together. */
static int plan_allocation(struct qcow2 *q, const struct cache_entry *slice, unsigned index,
                           uint64_t want, struct allocation *a)
{
    unsigned entries = qcow2_slice_entries(q);
    struct cluster_plan first = {0}, plan;
    uint64_t n;

    a->all_overwrite_in_place = true;
    for (n = 0; n < want && index + n < entries; n++) {
        int r = plan_cluster(q, slice, index + (unsigned)n, &plan);

        if (r < 0) {
            return qcow2_corrupt_entry(q, slice, index + (unsigned)n,
                                       a->first + (n << q->cluster_bits), true);
        }
        if (n == 0) {
            first = plan;
            a->first_overwrites_in_place = plan.overwrites_in_place;
        } else if (!goes_with(q, &first, &plan, n)) {
            break;
        }
        a->last_overwrites_in_place = plan.overwrites_in_place;
        a->all_overwrite_in_place &= plan.overwrites_in_place;
        a->had_contents |= plan.has_contents && !plan.overwrites_in_place;
    }
    a->clusters = n;
    a->host = first.host;
    a->contents = first.allocated;
    a->kind = first.kind;
    return 0;
}

/*
 * Get host clusters for the allocation; there may be fewer than planned. -EAGAIN, unless
 * `committed`: a commit has to be made first, since the file would grow although REUSE_BYTES_MIN
 * wait to be freed, or since a new L2 table is not counted on disk: lazy refcounts may not be late
 * for tables.
 */
static int co_reserve_locked(struct qcow2 *q, struct allocation *a, bool committed)
{
    int r;

    CO_ASSERT_HELD(&q->lock);
    if (q->has_data_file) {
        a->host = a->first; /* the offset in a data file is given; old data may be there */
        return 0;
    }
    if (a->kind == ALLOC_IN_PLACE) {
        return 0;
    }
    if (q->commit.lazy_refcounts && q->l1.dirty_count > 0 && !committed) {
        return -EAGAIN;
    }
    r = qcow2_co_alloc_locked(q, a->clusters, false, &a->host, &a->clusters, &a->fresh);
    if (r == 0 && a->fresh && q->alloc.freed_bytes >= REUSE_BYTES_MIN && !committed) {
        qcow2_co_unalloc_locked(q, a->host, a->clusters);
        q->alloc.zero_from = a->host;
        return -EAGAIN;
    }
    return r;
}

/* Plan the write of the first part of the request, and reserve its clusters. */
static int co_prepare_allocation(struct qcow2 *q, struct allocation *a, uint64_t want)
{
    struct cache_entry *slice;
    unsigned index;
    int r;

    for (bool committed = false;; committed = true) {
        co_mutex_lock(&q->lock);
        r = qcow2_co_l2_slice_locked(q, a->first, &slice, &index);
        if (r == 0) {
            r = plan_allocation(q, slice, index, want, a);
            cache_put(slice);
        }
        UNLESS_FAILED(r, co_reserve_locked(q, a, committed));
        co_mutex_unlock(&q->lock);
        if (r != -EAGAIN || committed) {
            return r;
        }
        (void)qcow2_co_commit(q); /* if it fails, the file grows */
    }
}

static void drop_old_locked(struct qcow2 *q, uint64_t entry)
{
    uint64_t offset, length;
    bool compressed;

    if (qcow2_entry_extent(q, entry, &offset, &length, &compressed)) {
        /* A failure leaves a leak. */
        (void)qcow2_free_later_locked(q, offset, length, compressed, QCOW2_FREED_BY_WRITE);
    }
}

/* The subcluster bitmap of the cluster at guest offset `guest` after the write. */
static uint64_t new_bitmap(const struct qcow2 *q, const struct allocation *a, uint64_t guest,
                           uint64_t old)
{
    uint64_t first = MAX(a->start, guest), end = MIN(a->end, guest + q->cluster_size);
    unsigned from = (unsigned)((first - guest) >> q->subcluster_bits);
    unsigned to = (unsigned)((end - guest) >> q->subcluster_bits);
    uint64_t written = ((1ULL << to) - 1) & ~((1ULL << from) - 1);

    return (old | written) & ~(written << SUBCLUSTERS);
}

static int co_link_new(struct qcow2 *q, const struct allocation *a)
{
    struct cache_entry *slice;
    unsigned index;
    int r;

    co_mutex_lock(&q->lock);
    r = qcow2_co_l2_slice_locked(q, a->first, &slice, &index);
    for (uint64_t i = 0; i < a->clusters && r == 0; i++) {
        unsigned at = index + (unsigned)i;
        uint64_t old = qcow2_load_entry(q, slice, at);

        qcow2_store_entry(
            q, slice, at, (a->host + (i << q->cluster_bits)) | ENTRY_COPIED,
            new_bitmap(q, a, a->first + (i << q->cluster_bits), qcow2_load_bitmap(q, slice, at)));
        if (a->kind != ALLOC_IN_PLACE) {
            drop_old_locked(q, old);
        }
    }
    if (r == 0) {
        cache_mark_dirty(&q->caches.l2, slice);
        cache_put(slice);
    }
    co_mutex_unlock(&q->lock);
    return r;
}

/* The range to write for `size` bytes of data: whole subclusters, with all that is copied. */
static void set_written_range(const struct qcow2 *q, struct allocation *a, size_t size)
{
    uint64_t unit = qcow2_subcluster_size(q), end = a->offset + size;

    a->start = a->first_overwrites_in_place ? a->offset : round_down(a->offset, unit);
    a->end = a->last_overwrites_in_place ? end : round_up(end, unit);
    if (a->kind == ALLOC_COPY && a->contents) {
        uint64_t first = (uint64_t)__builtin_ctzll(a->contents);
        uint64_t last = 63 - (uint64_t)__builtin_clzll(a->contents);

        a->start = MIN(a->start, a->first + first * unit);
        a->end = MAX(a->end, a->first + (last + 1) * unit);
    }
}

/*
 * Write the first part of [offset, offset + iov.size), *ret_done bytes: as far as one allocation
 * goes. The guest range is held exclusively.
 */
static int co_write_piece(struct qcow2 *q, uint64_t offset, struct iov iov, size_t *ret_done)
{
    struct allocation a = {.offset = offset, .first = round_down(offset, q->cluster_size)};
    uint64_t want = (round_up(offset + iov.size, q->cluster_size) - a.first) >> q->cluster_bits;
    IOV_PART_AUTO(part);
    size_t size;
    int r;

    *ret_done = 0;
    r = co_prepare_allocation(q, &a, want);
    if (r < 0) {
        return r;
    }
    size = MIN(iov.size, a.first + (a.clusters << q->cluster_bits) - offset);
    set_written_range(q, &a, size);
    r = iov_part_set(&part, iov, 0, size);
    a.data = part.iov;
    UNLESS_FAILED(r, co_write_new_data(q, &a));
    if (r == 0 && !a.all_overwrite_in_place) {
        r = co_link_new(q, &a);
    }
    if (r < 0) {
        if (a.kind != ALLOC_IN_PLACE && !q->has_data_file) {
            co_mutex_lock(&q->lock);
            qcow2_co_unalloc_locked(q, a.host, a.clusters);
            co_mutex_unlock(&q->lock);
        }
        return r;
    }
    *ret_done = size;
    return a.all_overwrite_in_place ? 0 : qcow2_co_commit_if_much_dirty(q);
}

/* --- write ----------------------------------------------------------------------------------- */

/* Whether the run can be overwritten in place. */
static bool is_unshared(const struct qcow2_run *run)
{
    return run->type == CLUSTER_NORMAL && run->copied;
}

/* Write clusters of any kinds. The guest range is held exclusively. */
static int co_write_pieces(struct qcow2 *q, uint64_t offset, struct iov iov)
{
    IOV_PART_AUTO(part);
    size_t size = 0;

    for (size_t done = 0; done < iov.size; done += size) {
        int r = iov_part_set(&part, iov, done, iov.size - done);

        UNLESS_FAILED(r, co_write_piece(q, offset + done, part.iov, &size));
        if (r < 0 && !qcow2_co_make_room(q, r)) {
            return qcow2_co_conclude(q, r);
        }
    }
    return 0;
}

static int co_write_range(struct qcow2 *q, uint64_t offset, struct iov iov)
{
    struct range_entry range;
    struct qcow2_run run;
    uint64_t first;
    int r;

    co_range_lock(&q->guest, &range, offset, iov.size, false);
    r = qcow2_co_map_to_write(q, offset, iov.size, &run);
    if (r == 0 && is_unshared(&run) && run.length == iov.size) {
        do { /* the host cluster may be a hole, so there may be no room for it */
            r = co_write_data(q, offset, run.host, iov);
        } while (qcow2_co_make_room(q, r));
        range_unlock(&q->guest, &range);
        return r;
    }
    range_unlock(&q->guest, &range);
    if (r < 0) {
        return qcow2_co_conclude(q, r);
    }
    first = round_down(offset, q->cluster_size);
    co_range_lock(&q->guest, &range, first, round_up(offset + iov.size, q->cluster_size) - first,
                  true);
    r = co_write_pieces(q, offset, iov);
    range_unlock(&q->guest, &range);
    return r;
}

int qcow2_co_pwritev(struct block_node *node, uint64_t offset, struct iov iov, unsigned flags)
{
    struct qcow2 *q = qcow2_state(node);
    int r = qcow2_co_begin_change(q);

    return r < 0 ? r : co_write_range(q, offset, iov);
}
