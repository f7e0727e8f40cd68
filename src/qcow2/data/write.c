/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writing. Clusters that are ours alone are overwritten in place. All others get new clusters:
 *
 *   guest range exclusive -> lock: map again, allocate -> write data with the cluster's old head and tail
 *                         -> lock: link, mark dirty; drop the old reference -> unlock all
 *
 * The entry is changed in memory only after the data was written, so that the commit that writes the entry syncs the
 * data before (R7). On an error the new clusters, which nothing refers to, are given back.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "qcow2/bitmap/bitmap.h"
#include "qcow2/data/compress.h"
#include "qcow2/data/crypt.h"
#include "qcow2/data/data.h"
#include "qcow2/table/verdict.h"
#include "qcow2/table/alloc.h"
#include "qcow2/table/commit.h"
#include "qcow2/table/map.h"

#define ZERO_PAGE_SIZE (64 * KiB)
/* The file is not to grow while so much waits to be free. */
#define REUSE_BYTES_MIN (8 * MiB)

static const uint8_t zero_page[ZERO_PAGE_SIZE] __attribute__((aligned(4096)));

/*
 * What becomes of the clusters of one allocating write; the same for all of them.
 *
 *   NEW     no host cluster yet: gets one, of which only the subclusters that are written count
 *   PLACE   has a host cluster of its own already: only entries change, if they don't count the data already
 *   MOVE    shared or compressed: gets a new one with all of its contents: the subclusters from the first to the last that has some
 *
 * Without extended entries a cluster is one subcluster, and NEW and MOVE are the same.
 */
enum placing { PLACING_NEW, PLACING_PLACE, PLACING_MOVE };

/* One allocating write: [offset, offset + data.size) lies in `clusters` clusters from guest offset `first` on. */
struct allocation {
    uint64_t offset;
    struct iov data;
    uint64_t first; /* guest offset, cluster aligned */
    uint64_t clusters;
    uint64_t host; /* file offset of the first cluster */
    enum placing placing;
    bool fresh;        /* the new clusters were never written */
    bool had_contents; /* the old clusters may hold data: head and tail have to be copied */
    bool first_ours, last_ours, all_ours; /* of the clusters: the data is overwritten in place */
    uint64_t contents;                    /* MOVE: bits of the subclusters that have some */
    uint64_t start, end; /* guest range that is written with head and tail: subclusters */
};

/* --- data ---------------------------------------------------------------------------------------- */

/* A growing vector with room for what one allocating write can need. */
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

/* Old contents of the head or tail; NULL in *ret if `size` is 0. */
static int co_read_side(struct qcow2 *q, uint64_t offset, size_t size, void **ret)
{
    *ret = NULL;
    if (size == 0) {
        return 0;
    }
    block_co_event(q->node->file, BLOCK_EVENT_COW_READ);
    if (posix_memalign(ret, 4096, size) != 0) {
        *ret = NULL;
        return -ENOMEM;
    }
    return qcow2_co_read_guest_range_held(q, offset, *ret, size);
}

static int co_write_data(struct qcow2 *q, uint64_t guest, uint64_t host, struct iov iov)
{
    int r = qcow2_check_writable(q);

    if (r == 0 && !q->has_data_file) {
        r = qcow2_co_overlap_check(q, host, iov.size, 0);
    }
    if (r < 0) {
        return qcow2_co_conclude(q, r);
    }
    block_co_event(q->data, BLOCK_EVENT_WRITE_AIO);
    return q->crypt_method != CRYPT_NONE ? qcow2_co_write_encrypted(q, guest, host, iov)
                                         : block_co_pwritev(q->data, host, iov, 0);
}

/* The data with head and tail of its clusters around it, as one write. */
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
        if ((r = co_read_side(q, a->start, head, &head_buf)) < 0 ||
            (r = co_read_side(q, a->offset + a->data.size, tail, &tail_buf)) < 0) {
            return r;
        }
        add_piece(&g, head_buf, head);
        add_data(&g, a->data);
        add_piece(&g, tail_buf, tail);
        block_co_event(q->data, BLOCK_EVENT_COW_WRITE);
    } else {
        block_co_event(q->data, BLOCK_EVENT_CLUSTER_ALLOC_SPACE);
        add_zeroes(&g, head);
        add_data(&g, a->data);
        add_zeroes(&g, tail);
    }
    return co_write_data(q, a->start, a->host + (a->start - a->first),
                         (struct iov){.vec = g.vec, .count = g.count, .size = g.size});
}

/* What was never written to the file; encrypted zeroes have to be written. */
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

/* --- allocate ------------------------------------------------------------------------------------ */

struct kind {
    enum placing placing;
    uint64_t host;
    bool ours;          /* wholly allocated and not shared: the caller overwrites it */
    bool contents;      /* may read as something else than zeroes */
    uint64_t allocated; /* bits of the subclusters with contents, if there are any */
};

static int kind_of(struct qcow2 *q, const struct cache_entry *slice, unsigned index,
                   struct kind *ret)
{
    uint64_t entry = qcow2_load_entry(q, slice, index);
    uint64_t bitmap = qcow2_load_bitmap(q, slice, index);
    enum cluster_type type;
    int r = qcow2_decode_entry(q, entry, bitmap, 0, &type, &ret->host);
    bool placed = type == CLUSTER_NORMAL || type == CLUSTER_ZERO_ALLOC ||
                  type == CLUSTER_UNALLOCATED_HAS_HOST;

    if (r < 0) {
        return r;
    }
    ret->ours = !q->extended_l2 && type == CLUSTER_NORMAL && (entry & ENTRY_COPIED);
    if (placed && (entry & ENTRY_COPIED)) {
        ret->placing = PLACING_PLACE;
    } else if (q->extended_l2 && (placed || type == CLUSTER_COMPRESSED)) {
        ret->placing = PLACING_MOVE;
    } else {
        ret->placing = PLACING_NEW;
    }
    ret->contents = q->extended_l2 || type == CLUSTER_NORMAL || type == CLUSTER_COMPRESSED ||
                    (type == CLUSTER_UNALLOCATED && q->node->backing);
    ret->allocated = type == CLUSTER_COMPRESSED ? SUB_ALL_ALLOCATED : bitmap & SUB_ALL_ALLOCATED;
    return 0;
}

/* Whether the cluster `n` places on can be written together with the first. */
static bool goes_with(const struct qcow2 *q, const struct kind *first, const struct kind *kind,
                      uint64_t n)
{
    return kind->placing == first->placing && first->placing != PLACING_MOVE &&
           (first->placing != PLACING_PLACE || kind->host == first->host + (n << q->cluster_bits));
}

/* How many clusters from slice[index] on are of the kind of the first, at most `want`. */
static int co_classify(struct qcow2 *q, const struct cache_entry *slice, unsigned index,
                       uint64_t want, struct allocation *a)
{
    unsigned entries = qcow2_slice_entries(q);
    struct kind first = {0}, kind;
    uint64_t n;

    a->all_ours = true;
    for (n = 0; n < want && index + n < entries; n++) {
        int r = kind_of(q, slice, index + (unsigned)n, &kind);

        if (r < 0) {
            return qcow2_corrupt_entry(q, slice, index + (unsigned)n,
                                       a->first + (n << q->cluster_bits), true);
        }
        if (n == 0) {
            first = kind;
            a->first_ours = kind.ours;
        } else if (!goes_with(q, &first, &kind, n)) {
            break;
        }
        a->last_ours = kind.ours;
        a->all_ours &= kind.ours;
        a->had_contents |= kind.contents && !kind.ours;
    }
    a->clusters = n;
    a->host = first.host;
    a->contents = first.allocated;
    a->placing = first.placing;
    return 0;
}

/*
 * Get clusters for what classify() found. -EAGAIN: first a commit has to be made, since the file would grow although much
 * waits to be free, or since a new table is not counted on disk, which lazy refcounts are not for.
 */
static int co_reserve_locked(struct qcow2 *q, struct allocation *a, bool committed)
{
    int r;

    if (q->has_data_file) {
        a->host = a->first; /* the place in a data file is given; it may hold anything */
        return 0;
    }
    if (a->placing == PLACING_PLACE) {
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

/* Decide on and reserve the clusters for the first part of the request. */
static int co_prepare(struct qcow2 *q, struct allocation *a, uint64_t want)
{
    struct cache_entry *slice;
    unsigned index;
    int r;

    for (bool committed = false;; committed = true) {
        co_mutex_lock(&q->lock);
        r = qcow2_co_l2_slice_locked(q, a->first, &slice, &index);
        if (r == 0) {
            r = co_classify(q, slice, index, want, a);
            cache_put(slice);
        }
        r = r < 0 ? r : co_reserve_locked(q, a, committed);
        co_mutex_unlock(&q->lock);
        if (r != -EAGAIN || committed) {
            return r;
        }
        (void)qcow2_co_commit(q); /* if it fails, the file grows */
    }
}

static int co_drop_old_locked(struct qcow2 *q, uint64_t entry)
{
    uint64_t offset, length;
    bool compressed;

    return qcow2_entry_extent(q, entry, &offset, &length, &compressed)
               ? qcow2_free_later_locked(q, offset, length, compressed, QCOW2_FREED_BY_WRITE)
               : 0;
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
        if (a->placing != PLACING_PLACE) {
            co_drop_old_locked(q, old);
        }
    }
    if (r == 0) {
        cache_mark_dirty(&q->caches.l2, slice);
        cache_put(slice);
    }
    co_mutex_unlock(&q->lock);
    return r;
}

/* What is written for `size` bytes of data: whole subclusters, with all that moves. */
static void set_written_range(const struct qcow2 *q, struct allocation *a, size_t size)
{
    uint64_t unit = qcow2_subcluster_size(q), end = a->offset + size;

    a->start = a->first_ours ? a->offset : round_down(a->offset, unit);
    a->end = a->last_ours ? end : round_up(end, unit);
    if (a->placing == PLACING_MOVE && a->contents) {
        uint64_t first = (uint64_t)__builtin_ctzll(a->contents);
        uint64_t last = 63 - (uint64_t)__builtin_clzll(a->contents);

        a->start = MIN(a->start, a->first + first * unit);
        a->end = MAX(a->end, a->first + (last + 1) * unit);
    }
}

/*
 * The part of [offset, offset + iov.size) from its beginning for which clusters can be had in one piece. *ret_done: how
 * many bytes. Guest range held exclusively.
 */
static int co_write_piece(struct qcow2 *q, uint64_t offset, struct iov iov, size_t *ret_done)
{
    struct allocation a = {.offset = offset, .first = round_down(offset, q->cluster_size)};
    uint64_t want = (round_up(offset + iov.size, q->cluster_size) - a.first) >> q->cluster_bits;
    IOV_PART_AUTO(part);
    size_t size;
    int r;

    *ret_done = 0;
    r = co_prepare(q, &a, want);
    if (r < 0) {
        return r;
    }
    size = MIN(iov.size, a.first + (a.clusters << q->cluster_bits) - offset);
    set_written_range(q, &a, size);
    r = iov_part_set(&part, iov, 0, size);
    a.data = part.iov;
    r = r < 0 ? r : co_write_new_data(q, &a);
    if (r == 0 && !a.all_ours) {
        r = co_link_new(q, &a);
    }
    if (r < 0) {
        if (a.placing != PLACING_PLACE && !q->has_data_file) {
            co_mutex_lock(&q->lock);
            qcow2_co_unalloc_locked(q, a.host, a.clusters);
            co_mutex_unlock(&q->lock);
        }
        return r;
    }
    *ret_done = size;
    return a.all_ours ? 0 : qcow2_co_commit_if_much_dirty(q);
}

/* --- write ----------------------------------------------------------------------------------- */

static bool is_ours(const struct qcow2_run *run)
{
    return run->type == CLUSTER_NORMAL && run->copied;
}

/* Any mixture of clusters. Guest range held exclusively. */
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
    if (r == 0 && is_ours(&run) && run.length == iov.size) {
        do { /* its place may be a hole */
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

    if (r < 0) {
        return r;
    }
    if (flags & BLOCK_REQ_COMPRESSED) {
        return qcow2_co_write_compressed(q, offset, iov);
    }
    return co_write_range(q, offset, iov);
}
