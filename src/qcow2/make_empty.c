/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Removing all contents, so that the disk reads as its backing file. The node is drained.
 *
 * If only the disk itself has clusters, no table is walked: the image gets the layout of a new one.
 *
 *   0   header
 *   1   refcount table, one cluster
 *   2   refcount block
 *   3   L1 table
 *       end of the file
 *
 *   dirty bit -> L1 table zeroed in place -> clusters 1 to the end of 3 zeroed
 *   -> header: both tables -> refcounts -> file cut off -> dirty bit cleared
 *
 * Each arrow is a sync. While the dirty bit is stable, refcounts may be wrong (R6). All clusters
 * that the L1 table on disk references are unchanged until all of the table is zeroed; from then
 * on the disk reads as the backing file.
 */
#include "qcow2/make_empty.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/cleanup.h"
#include "qcow2/data/data.h"
#include "qcow2/header/header.h"
#include "qcow2/table/commit.h"
#include "qcow2/table/refcount.h"

#define REFTABLE_CLUSTER 1
#define REFBLOCK_CLUSTER 2
#define L1_CLUSTER 3

static uint64_t l1_clusters(const struct qcow2 *q)
{
    return div_round_up((uint64_t)q->l1.size * 8, q->cluster_size);
}

/* Clusters of the file once it is empty. */
static uint64_t empty_clusters(const struct qcow2 *q)
{
    return L1_CLUSTER + l1_clusters(q);
}

/*
 * Whether the layout of a new image will do: nothing but the disk has clusters, a crash is
 * repaired, and one refcount block counts all clusters.
 */
static bool can_lay_out_again(const struct qcow2 *q)
{
    return q->version >= 3 && q->snapshots.count == 0 && list_is_empty(&q->bitmaps.stored) &&
           list_is_empty(&q->bitmaps.reserve) && q->activity.offset == 0 &&
           q->joint.state == JOINT_NONE && q->header.luks_size == 0 && !q->has_data_file &&
           !atomic_load(&q->broken) && empty_clusters(q) <= 1ULL << q->refcounts.block_bits;
}

static int co_zero_clusters(struct qcow2 *q, uint64_t offset, uint64_t clusters)
{
    int r = block_co_write_zeroes(q->node->file, offset, clusters << q->cluster_bits, 0);

    return r < 0 ? r : block_co_flush(q->node->file);
}

static int co_zero_l1(struct qcow2 *q)
{
    int r;

    block_co_event(q->node->file, BLOCK_EVENT_L1_UPDATE);
    r = co_zero_clusters(q, q->l1.offset, l1_clusters(q));
    for (uint32_t i = 0; i < q->l1.size && r == 0; i++) {
        atomic_store_explicit(&q->l1.entries[i], 0, memory_order_relaxed);
    }
    return r;
}

/* Make empty tables at the beginning of the file, and in memory. */
static int co_new_tables(struct qcow2 *q, struct error *err)
{
    uint64_t entries = q->cluster_size / 8;
    AUTO_FREE uint64_t *table = calloc(entries, sizeof(*table));
    AUTO_FREE uint8_t *dirty = calloc(div_round_up(q->cluster_size, SECTOR_SIZE), 1);
    int r = table && dirty ? 0 : -ENOMEM;

    block_co_event(q->node->file, BLOCK_EVENT_EMPTY_IMAGE_PREPARE);
    UNLESS_FAILED(r, co_zero_clusters(q, REFTABLE_CLUSTER * q->cluster_size,
                                      empty_clusters(q) - REFTABLE_CLUSTER));
    if (r < 0) {
        return r;
    }
    co_mutex_lock(&q->lock);
    free(q->reftable.entries);
    free(q->reftable.dirty);
    q->reftable.entries = TAKE_PTR(table);
    q->reftable.dirty = TAKE_PTR(dirty);
    q->reftable.dirty_count = 0;
    q->reftable.size = (uint32_t)entries;
    q->reftable.offset = REFTABLE_CLUSTER * q->cluster_size;
    q->l1.offset = L1_CLUSTER * q->cluster_size;
    q->alloc.next_free = 0;
    q->alloc.compressed_tail = 0;
    cache_forget_all(&q->caches.l2);
    cache_forget_all(&q->caches.refcounts);
    co_mutex_unlock(&q->lock);
    block_co_event(q->node->file, BLOCK_EVENT_REFTABLE_UPDATE);
    return qcow2_co_write_header(q, err);
}

static int co_write_empty_refcounts(struct qcow2 *q)
{
    struct block_edge *file = q->node->file;
    AUTO_FREE uint8_t *block = calloc(1, q->cluster_size);
    uint8_t word[8];
    int r;

    if (!block) {
        return -ENOMEM;
    }
    for (uint64_t i = 0; i < empty_clusters(q); i++) {
        qcow2_refcount_store(block, q->refcounts.order, i, 1);
    }
    block_co_event(file, BLOCK_EVENT_REFBLOCK_ALLOC);
    r = block_co_pwrite(file, REFBLOCK_CLUSTER * q->cluster_size, block, q->cluster_size, 0);
    UNLESS_FAILED(r, block_co_flush(file));
    if (r < 0) {
        return r;
    }
    co_mutex_lock(&q->lock);
    q->reftable.entries[0] = REFBLOCK_CLUSTER * q->cluster_size;
    qcow2_overlap_note_refblocks_locked(q);
    co_mutex_unlock(&q->lock);
    store_be64(word, q->reftable.entries[0]);
    block_co_event(file, BLOCK_EVENT_REFBLOCK_ALLOC_HOOKUP);
    r = block_co_pwrite(file, q->reftable.offset, word, sizeof(word), 0);
    return r < 0 ? r : block_co_flush(file);
}

/*
 * Free the space after the tables, by cutting off the file if possible. It may have old contents.
 */
static void co_cut_emptied_file(struct qcow2 *q)
{
    struct block_edge *file = q->node->file;
    uint64_t end = empty_clusters(q) << q->cluster_bits, size = block_edge_size(file);

    if (block_co_truncate(file, end, BLOCK_PREALLOC_OFF, NULL) == 0) {
        q->alloc.zero_from = q->alloc.zero_from == UINT64_MAX ? UINT64_MAX : block_edge_size(file);
    } else if (size > end) {
        (void)block_co_discard(file, end, size - end);
    }
}

/* The dirty bit is stable. */
static int co_lay_out_again(struct qcow2 *q, struct error *err)
{
    int r = co_zero_l1(q);

    UNLESS_FAILED(r, co_new_tables(q, err));
    UNLESS_FAILED(r, co_write_empty_refcounts(q));
    if (r < 0) {
        /* Memory and disk differ: nothing is written at close, and the next open repairs. */
        atomic_store(&q->broken, true);
        q->close_failure_reported = q->node->close_reported = true;
        return r;
    }
    co_cut_emptied_file(q);
    q->header.incompatible &= ~INCOMPAT_DIRTY;
    r = qcow2_co_write_header(q, err);
    if (r < 0) {
        q->header.incompatible |= INCOMPAT_DIRTY;
    }
    return r;
}

/* What the disk reads as stays, so bitmaps stay right as they are stored: none is marked in use. */
static int co_drop_all(struct qcow2 *q, uint64_t size)
{
    bool marked = atomic_exchange(&q->bitmaps.marked, true);
    int r = size ? qcow2_co_drop_clusters(q, 0, size) : 0;

    UNLESS_FAILED(r, qcow2_co_commit(q));
    atomic_store(&q->bitmaps.marked, marked);
    return r;
}

int qcow2_co_make_empty(struct block_node *node, struct error *err)
{
    struct qcow2 *q = qcow2_state(node);
    uint64_t size = block_node_size(node);
    ERROR_AUTO(cause);
    int r = qcow2_co_write_lazy_refcounts(q, &cause);

    if (r == 0 && can_lay_out_again(q)) {
        q->header.incompatible |= INCOMPAT_DIRTY;
        r = qcow2_co_write_header(q, &cause);
        if (r < 0) {
            q->header.incompatible &= ~INCOMPAT_DIRTY;
        }
        UNLESS_FAILED(r, co_lay_out_again(q, &cause));
    } else if (r == 0) {
        r = co_drop_all(q, size);
    }
    return r < 0 ? error_set_errno(err, -r, "Failed to empty %s", block_node_display_name(node))
                 : 0;
}
