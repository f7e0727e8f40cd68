/* SPDX-License-Identifier: Apache-2.0 */
/* The order of writes, and the rules that it keeps, are at the head of image.h. */
#include "qcow2/table/commit.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "qcow2/header/header.h"
#include "qcow2/header/mark_corrupt.h"
#include "qcow2/stats.h"
#include "qcow2/table/alloc.h"
#include "qcow2/table/refcount.h"
#include "trace/events.h"

/* Commit without being asked when more than this waits to be freed. */
#define FREED_BYTES_MAX (256 * MiB)
#define FREE_RUNS_MAX 16384

/* A copy of the dirty sectors of a table in memory (L1 table, refcount table). */
struct sector_snapshot {
    uint8_t *data;     /* SECTOR_SIZE bytes for each */
    uint64_t *numbers; /* sector index in the table */
    size_t count;
};

struct commit {
    bool lazy; /* refcounts are left for a later commit */
    struct cache_snapshot refblocks, l2;
    struct sector_snapshot reftable, l1;
    uint64_t reftable_offset;
    struct cluster_runs frees;
    uint64_t freed_bytes;
};

/* --- snapshot -------------------------------------------------------------------------------- */

static uint64_t reftable_word(struct qcow2 *q, uint64_t i)
{
    return i < q->reftable.size ? q->reftable.entries[i] : 0;
}

static uint64_t l1_word(struct qcow2 *q, uint64_t i)
{
    return i < q->l1.size ? atomic_load_explicit(&q->l1.entries[i], memory_order_relaxed) : 0;
}

/* Copy the dirty sectors of a table of `sectors`, and mark them clean. `word`: reads an entry. */
static int take_sectors(struct qcow2 *q, uint8_t *dirty, size_t sectors, size_t *dirty_count,
                        uint64_t (*word)(struct qcow2 *q, uint64_t i),
                        struct sector_snapshot *ret_snapshot)
{
    struct sector_snapshot s = {0};

    *ret_snapshot = s;
    if (*dirty_count == 0) {
        return 0;
    }
    s.data = malloc(*dirty_count * SECTOR_SIZE);
    s.numbers = malloc(*dirty_count * sizeof(uint64_t));
    if (!s.data || !s.numbers) {
        free(s.data);
        free(s.numbers);
        return -ENOMEM;
    }
    for (size_t sector = 0; sector < sectors; sector++) {
        if (!dirty[sector]) {
            continue;
        }
        dirty[sector] = 0;
        for (size_t w = 0; w < SECTOR_SIZE / 8; w++) {
            store_be64(s.data + s.count * SECTOR_SIZE + w * 8,
                       word(q, sector * (SECTOR_SIZE / 8) + w));
        }
        s.numbers[s.count++] = sector;
    }
    *dirty_count = 0;
    *ret_snapshot = s;
    return 0;
}

/* Unless they were written (`ok`), the sectors are dirty again. Frees the copy. */
static void end_sectors(struct sector_snapshot *s, uint8_t *dirty, size_t *dirty_count, bool ok)
{
    for (size_t i = 0; i < s->count && !ok; i++) {
        if (!dirty[s->numbers[i]]) {
            dirty[s->numbers[i]] = 1;
            (*dirty_count)++;
        }
    }
    free(s->data);
    free(s->numbers);
}

static size_t l1_sectors(const struct qcow2 *q)
{
    return div_round_up((uint64_t)q->l1.size * 8, SECTOR_SIZE);
}

static size_t reftable_sectors(const struct qcow2 *q)
{
    return div_round_up((uint64_t)q->reftable.size * 8, SECTOR_SIZE);
}

static void give_frees_back_locked(struct qcow2 *q, struct commit *c)
{
    CO_ASSERT_HELD(&q->lock);
    for (size_t i = 0; i < c->frees.count; i++) {
        struct cluster_run *run = &c->frees.runs[i];

        (void)qcow2_free_later_locked(q, run->offset, run->length, run->compressed, run->why);
    }
    cluster_runs_clear(&c->frees);
}

static void end_locked(struct qcow2 *q, struct commit *c, bool ok)
{
    CO_ASSERT_HELD(&q->lock);
    cache_snapshot_end(&c->refblocks, ok);
    cache_snapshot_end(&c->l2, ok);
    /* If the refcount table was replaced meanwhile, the new one was written as a whole. */
    end_sectors(&c->reftable, q->reftable.dirty, &q->reftable.dirty_count,
                ok || c->reftable_offset != q->reftable.offset);
    end_sectors(&c->l1, q->l1.dirty, &q->l1.dirty_count, ok);
    if (!ok) {
        give_frees_back_locked(q, c);
        q->alloc.freeing = false;
    }
}

static int take_refcounts_locked(struct qcow2 *q, struct commit *c)
{
    int r;

    CO_ASSERT_HELD(&q->lock);
    r = cache_snapshot_begin(&q->caches.refcounts, &c->refblocks);
    return r < 0 ? r
                 : take_sectors(q, q->reftable.dirty, reftable_sectors(q), &q->reftable.dirty_count,
                                reftable_word, &c->reftable);
}

static int begin_locked(struct qcow2 *q, struct commit *c)
{
    int r;

    CO_ASSERT_HELD(&q->lock);
    c->refblocks.cache = &q->caches.refcounts;
    c->l2.cache = &q->caches.l2;
    c->reftable_offset = q->reftable.offset;
    if ((!c->lazy && (r = take_refcounts_locked(q, c)) < 0) ||
        (r = cache_snapshot_begin(&q->caches.l2, &c->l2)) < 0 ||
        (r = take_sectors(q, q->l1.dirty, l1_sectors(q), &q->l1.dirty_count, l1_word, &c->l1)) <
            0) {
        end_locked(q, c, false);
        return r;
    }
    c->frees = q->alloc.frees;
    q->alloc.frees = (struct cluster_runs){0};
    c->freed_bytes = q->alloc.freed_bytes;
    q->alloc.freed_bytes = 0;
    q->alloc.freeing = c->frees.count > 0;
    return 0;
}

/* --- writing --------------------------------------------------------------------------------- */

static int co_write_sectors(struct qcow2 *q, uint64_t table, const struct sector_snapshot *s,
                            enum overlap_kind kind, enum block_event event)
{
    int r = 0;

    for (size_t i = 0; i < s->count && r == 0; i++) {
        uint64_t offset = table + s->numbers[i] * SECTOR_SIZE;

        block_co_event(q->node->file, event);
        r = qcow2_co_overlap_check(q, offset, SECTOR_SIZE, OVERLAP_BIT(kind));
        UNLESS_FAILED(
            r, block_co_pwrite(q->node->file, offset, s->data + i * SECTOR_SIZE, SECTOR_SIZE, 0));
    }
    return r;
}

/* Make guest data, in the data file or the image's own, and metadata stable. */
static int co_sync(struct qcow2 *q)
{
    int r = q->data != q->node->file ? block_co_flush(q->data) : 0;

    counters_count(&q->counters, QCOW2_STAT_SYNCS);
    return r < 0 ? r : block_co_flush(q->node->file);
}

/* Set the dirty bit, stably, before any entry is written whose reference is not counted on disk. */
static int co_mark_behind(struct qcow2 *q)
{
    int r = q->commit.refcounts_behind ? 0 : qcow2_co_set_incompatible(q, INCOMPAT_DIRTY);

    q->commit.refcounts_behind = r == 0;
    return r;
}

static int co_write_snapshot(struct qcow2 *q, struct commit *c)
{
    struct block_edge *file = q->node->file;
    int r = cache_co_snapshot_write(&c->refblocks);

    if (r == 0 && c->reftable.count > 0) {
        /* The contents of a new refcount block are stable before the table references it. */
        r = block_co_flush(file);
        UNLESS_FAILED(r,
                      co_write_sectors(q, c->reftable_offset, &c->reftable, OVERLAP_REFCOUNT_TABLE,
                                       BLOCK_EVENT_REFBLOCK_ALLOC_HOOKUP));
    }
    if (r == 0 && (c->l2.count > 0 || c->l1.count > 0)) {
        r = co_sync(q); /* R1, R7 */
        UNLESS_FAILED(r, cache_co_snapshot_write(&c->l2));
        UNLESS_FAILED(
            r, co_write_sectors(q, q->l1.offset, &c->l1, OVERLAP_ACTIVE_L1, BLOCK_EVENT_L1_UPDATE));
    }
    return r < 0 ? r : co_sync(q); /* R4 */
}

/* --- freeing --------------------------------------------------------------------------------- */

static int co_lower_locked(struct qcow2 *q, const struct cluster_run *run)
{
    uint64_t first = qcow2_cluster_index(q, run->offset);
    uint64_t last = qcow2_cluster_index(q, run->offset + run->length - 1);
    struct counter *stats = counters_shard(&q->counters);

    counter_add(&stats[QCOW2_STAT_FREED], last - first + 1);
    CO_ASSERT_HELD(&q->lock);
    return qcow2_co_refcount_add_locked(q, first, last - first + 1, -1);
}

/*
 * Empty the clusters of a run that are not shared. Their refcount is 1, and stays 1: only a commit
 * lowers refcounts, and only a snapshot of a drained node raises them.
 */
static int co_empty_run(struct qcow2 *q, const struct cluster_run *run,
                        int (*co_empty)(struct qcow2 *q, uint64_t offset, uint64_t length))
{
    uint64_t first = run->offset, end = run->offset + run->length;
    int r = 0;

    while (first < end) {
        uint64_t last = first, refcount = 0;

        co_mutex_lock(&q->lock);
        while (last < end &&
               qcow2_co_refcount_get_locked(q, qcow2_cluster_index(q, last), &refcount) == 0 &&
               refcount == 1 && !qcow2_co_overlap_hits_locked(q, last)) {
            last += q->cluster_size;
        }
        co_mutex_unlock(&q->lock);
        if (last > first) {
            r = error_first(r, co_empty(q, first, last - first));
        }
        first = last + (last < end ? q->cluster_size : 0);
    }
    return r;
}

static int co_punch_clusters(struct qcow2 *q, uint64_t offset, uint64_t length)
{
    return block_co_discard(q->node->file, offset, length);
}

/* The file gets other pages there; those that were lent keep their contents. */
static int co_detach_pages(struct qcow2 *q, uint64_t offset, uint64_t length)
{
    return block_co_write_zeroes(q->node->file, offset, length, BLOCK_REQ_NO_FALLBACK);
}

/*
 * Before the clusters of a run are freed. False: they must not be used again. They leak then, which
 * a repair mends.
 */
static bool co_give_up_run(struct qcow2 *q, const struct cluster_run *run)
{
    if (run->compressed) {
        return true;
    }
    if (atomic_load(&q->pages_lent) && co_empty_run(q, run, co_detach_pages) < 0) {
        return false;
    }
    if (q->options.pass_discard[run->why]) {
        (void)co_empty_run(q, run, co_punch_clusters);
    }
    return true;
}

/*
 * Free clusters that nothing on disk references any more. Holes are punched first, while the
 * refcounts keep the clusters from being allocated (R8).
 */
static void co_free_runs(struct qcow2 *q, struct cluster_runs *frees)
{
    size_t kept = 0;

    for (size_t i = 0; i < frees->count; i++) {
        if (co_give_up_run(q, &frees->runs[i])) {
            frees->runs[kept++] = frees->runs[i];
        }
    }
    if (frees->count > 0) {
        co_mutex_lock(&q->lock);
        for (size_t i = 0; i < kept; i++) {
            block_co_event(q->node->file, BLOCK_EVENT_CLUSTER_FREE);
            (void)co_lower_locked(q, &frees->runs[i]); /* a failure leaves a leak */
        }
        q->alloc.freeing = false;
        co_mutex_unlock(&q->lock);
    }
    cluster_runs_clear(frees);
}

/* --- commit ---------------------------------------------------------------------------------- */

static bool is_clean_locked(const struct qcow2 *q, bool lazy)
{
    CO_ASSERT_HELD(&q->lock);
    return (lazy || (q->caches.refcounts.dirty_count == 0 && q->reftable.dirty_count == 0)) &&
           q->caches.l2.dirty_count == 0 && q->l1.dirty_count == 0 && q->alloc.frees.count == 0;
}

bool qcow2_co_is_untouched(struct qcow2 *q)
{
    bool untouched =
        !block_node_was_written(q->node->file->node) && !block_node_was_written(q->data->node);

    if (!untouched) {
        return false;
    }
    co_mutex_lock(&q->lock);
    untouched = is_clean_locked(q, false);
    co_mutex_unlock(&q->lock);
    return untouched;
}

/*
 * Extend the file to the end of its last cluster. A write that allocates writes only the data that
 * it has, so the file may end within a cluster; other programs want to read whole clusters. A
 * failure is ignored, since we read zeroes there.
 */
static void co_cover_clusters_locked(struct qcow2 *q)
{
    struct block_edge *file = q->node->file;
    uint64_t size = block_edge_size(file), end = q->alloc.zero_from, refcount = 1;

    CO_ASSERT_HELD(&q->lock);
    if (end == UINT64_MAX) {
        return; /* new clusters are written as a whole, or the file can't grow */
    }
    /* A write that failed may have given back the last clusters. */
    while (end > size &&
           qcow2_co_refcount_get_locked(q, qcow2_cluster_index(q, end - 1), &refcount) == 0 &&
           refcount == 0) {
        end -= q->cluster_size;
    }
    /* Writes are within allocated clusters, so none is beyond `end` while we hold the lock. */
    (void)block_co_extend(file, end);
}

static int co_commit_now(struct qcow2 *q, bool lazy)
{
    struct commit c = {.lazy = lazy};
    int r;

    co_mutex_lock(&q->lock);
    if (is_clean_locked(q, lazy)) {
        co_mutex_unlock(&q->lock);
        return co_sync(q);
    }
    trace_qcow2_commit_begin(q->node->name, q->caches.refcounts.dirty_count,
                             q->caches.l2.dirty_count, lazy);
    r = begin_locked(q, &c);
    if (r == 0) {
        co_cover_clusters_locked(q);
    }
    co_mutex_unlock(&q->lock);
    if (r < 0) {
        trace_qcow2_commit_end(q->node->name, 0, r);
        return r;
    }
    r = lazy ? co_mark_behind(q) : 0;
    UNLESS_FAILED(r, co_write_snapshot(q, &c));
    co_mutex_lock(&q->lock);
    end_locked(q, &c, r == 0);
    co_mutex_unlock(&q->lock);
    if (r == 0) {
        co_free_runs(q, &c.frees);
    }
    trace_qcow2_commit_end(q->node->name, r == 0 ? c.freed_bytes : 0, r);
    counters_count(&q->counters, QCOW2_STAT_COMMITS);
    return r;
}

/* Share a commit of the wanted kind, or make one. */
static int co_commit(struct qcow2 *q, bool lazy)
{
    struct commit_kind *kind = &q->commit.kinds[lazy];
    /* A commit that begins from here on covers all writes acknowledged to our caller. */
    unsigned need = atomic_load(&kind->begun) + 1;
    int r;

    co_mutex_lock(&q->commit.mutex);
    if ((int)(atomic_load(&kind->begun) - need) >= 0) {
        r = kind->result;
    } else {
        atomic_fetch_add(&q->commit.kinds[true].begun, 1);
        atomic_fetch_add(&q->commit.kinds[false].begun, !lazy);
        /* A corrupt image is marked before anything more is written. */
        (void)qcow2_co_conclude(q, 0);
        r = qcow2_co_conclude(q, co_commit_now(q, lazy));
        q->commit.kinds[true].result = r;
        q->commit.kinds[false].result = lazy ? q->commit.kinds[false].result : r;
    }
    co_mutex_unlock(&q->commit.mutex);
    return r;
}

int qcow2_co_commit(struct qcow2 *q)
{
    return co_commit(q, false);
}

int qcow2_co_commit_guest(struct qcow2 *q)
{
    bool room;

    if (!q->commit.lazy_refcounts) {
        return co_commit(q, false);
    }
    co_mutex_lock(&q->lock);
    room = q->caches.refcounts.dirty_count <= q->caches.refcounts.dirty_limit;
    co_mutex_unlock(&q->lock);
    return co_commit(q, room);
}

int qcow2_co_write_lazy_refcounts(struct qcow2 *q, struct error *err)
{
    int r = qcow2_co_commit(q);

    if (r < 0) {
        return error_set_errno(err, -r, "Could not write the metadata of '%s'",
                               block_node_display_name(q->node));
    }
    if (!q->commit.refcounts_behind || atomic_load(&q->broken)) {
        return 0;
    }
    q->header.incompatible &= ~INCOMPAT_DIRTY;
    r = qcow2_co_write_header(q, err);
    q->commit.refcounts_behind = r < 0;
    return r;
}

int qcow2_co_commit_if_much_dirty(struct qcow2 *q)
{
    bool much;

    co_mutex_lock(&q->lock);
    much = q->caches.l2.dirty_count > q->caches.l2.dirty_limit ||
           q->caches.refcounts.dirty_count > q->caches.refcounts.dirty_limit ||
           q->alloc.freed_bytes > FREED_BYTES_MAX || q->alloc.frees.count > FREE_RUNS_MAX;
    co_mutex_unlock(&q->lock);
    return much ? qcow2_co_commit(q) : 0;
}

/* Whether freeing a run makes a cluster free: one that is not shared with a snapshot. */
static bool co_will_free_locked(struct qcow2 *q, const struct cluster_run *run)
{
    uint64_t first = qcow2_cluster_index(q, run->offset), refcount = 0;
    uint64_t last = qcow2_cluster_index(q, run->offset + run->length - 1);

    CO_ASSERT_HELD(&q->lock);
    if (run->compressed) {
        return true; /* all runs that share its clusters may be about to be freed */
    }
    for (uint64_t i = first; i <= last && refcount != 1; i++) {
        if (qcow2_co_refcount_get_locked(q, i, &refcount) < 0) {
            return false;
        }
    }
    return refcount == 1;
}

bool qcow2_co_make_room(struct qcow2 *q, int result)
{
    bool waits;

    if (__builtin_expect(!qcow2_is_no_room(result), true)) {
        return false;
    }
    co_mutex_lock(&q->lock);
    waits = q->alloc.freeing;
    for (size_t i = 0; i < q->alloc.frees.count && !waits; i++) {
        waits = q->alloc.frees.runs[i].why != QCOW2_FREED_BY_OTHER &&
                co_will_free_locked(q, &q->alloc.frees.runs[i]);
    }
    co_mutex_unlock(&q->lock);
    return waits && qcow2_co_commit(q) == 0;
}
