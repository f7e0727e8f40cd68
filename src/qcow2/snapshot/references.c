/* SPDX-License-Identifier: Apache-2.0 */
#include "qcow2/snapshot/references.h"

#include <errno.h>
#include <stdlib.h>

#include "base/cleanup.h"
#include "qcow2/table/alloc.h"
#include "qcow2/table/commit.h"
#include "qcow2/table/map.h"
#include "qcow2/table/refcount.h"
#include "qcow2/table/verdict.h"

/* --- walking ---------------------------------------------------------------------------------- */

/* Changes one reference to the bytes [offset, offset + length) of the file. q->lock is held. */
typedef int reference_fn(struct qcow2 *q, uint64_t offset, uint64_t length, bool compressed);

static int co_add_reference_locked(struct qcow2 *q, uint64_t offset, uint64_t length,
                                   bool compressed)
{
    uint64_t first = qcow2_cluster_index(q, offset);

    CO_ASSERT_HELD(&q->lock);
    return qcow2_co_refcount_add_locked(q, first,
                                        qcow2_cluster_index(q, offset + length - 1) - first + 1, 1);
}

static int co_remove_reference_locked(struct qcow2 *q, uint64_t offset, uint64_t length,
                                      bool compressed)
{
    uint64_t first = qcow2_cluster_index(q, offset);

    CO_ASSERT_HELD(&q->lock);
    return qcow2_co_refcount_add_locked(
        q, first, qcow2_cluster_index(q, offset + length - 1) - first + 1, -1);
}

static int free_reference_later_locked(struct qcow2 *q, uint64_t offset, uint64_t length,
                                       bool compressed)
{
    CO_ASSERT_HELD(&q->lock);
    return qcow2_free_later_locked(q, offset, length, compressed, QCOW2_FREED_BY_SNAPSHOT);
}

/* Calls `fn` for the clusters of an L2 entry, if it has any. */
static int visit_l2_entry_locked(struct qcow2 *q, uint64_t entry, reference_fn *fn)
{
    uint64_t offset, length;
    bool compressed;

    CO_ASSERT_HELD(&q->lock);
    if (!qcow2_entry_extent(q, entry, &offset, &length, &compressed)) {
        return 0;
    }
    if (!compressed && !is_aligned(offset, q->cluster_size)) {
        return qcow2_corrupt(q, "Cluster allocation offset %#llx unaligned",
                             (unsigned long long)offset);
    }
    return fn(q, offset, length, compressed);
}

/*
 * The references that an L2 table is visited for: those of its entries, then the one to the table
 * itself.
 */
static uint64_t references_of_table(const struct qcow2 *q)
{
    return qcow2_table_entries(q) + 1;
}

/*
 * Visits the first `count` references of an L2 table. *ret_done is how many were visited, so that a
 * failure can be undone.
 */
static int co_visit_l2_table(struct qcow2 *q, uint64_t offset, uint64_t *table, uint64_t count,
                             reference_fn *fn, uint64_t *ret_done)
{
    int r = block_co_pread(q->node->file, offset, table, q->cluster_size);

    co_mutex_lock(&q->lock);
    for (*ret_done = 0; *ret_done < count && r == 0; *ret_done += r == 0) {
        r = *ret_done < qcow2_table_entries(q)
                ? visit_l2_entry_locked(q, be64toh(table[*ret_done << q->extended_l2]), fn)
                : fn(q, offset, q->cluster_size, false);
    }
    co_mutex_unlock(&q->lock);
    return UNLESS_FAILED(r, qcow2_co_commit_if_much_dirty(q));
}

/*
 * Undoes the first `done` references of the table at L1 index `last`, and all references of the
 * tables before it. Those that can't be undone leak.
 */
static void co_undo_visit(struct qcow2 *q, const uint64_t *l1, uint32_t last, uint64_t done,
                          uint64_t *table, reference_fn *undo)
{
    for (uint32_t i = last + 1; i-- > 0;) {
        uint64_t offset = l1[i] & ENTRY_OFFSET_MASK, ignored;

        if (offset != 0 && is_aligned(offset, q->cluster_size)) {
            (void)co_visit_l2_table(q, offset, table, i == last ? done : references_of_table(q),
                                    undo, &ignored);
        }
    }
}

/*
 * Calls `fn` for all references of an L1 table; after a failure `undo`, unless it is NULL, for
 * those visited.
 */
static int co_visit_l1_table(struct qcow2 *q, const uint64_t *l1, uint32_t entries,
                             reference_fn *fn, reference_fn *undo)
{
    AUTO_FREE uint64_t *table = malloc(q->cluster_size);
    int r = table ? 0 : -ENOMEM;

    for (uint32_t i = 0; i < entries && r == 0; i++) {
        uint64_t offset = l1[i] & ENTRY_OFFSET_MASK, done = 0;

        if (offset == 0) {
            continue;
        }
        if (is_aligned(offset, q->cluster_size)) {
            r = co_visit_l2_table(q, offset, table, references_of_table(q), fn, &done);
        } else {
            r = qcow2_corrupt(q, "L2 table offset %#llx unaligned (L1 index: %#x)",
                              (unsigned long long)offset, i);
        }
        if (r < 0 && undo) {
            co_undo_visit(q, l1, i, done, table, undo);
        }
    }
    return r;
}

int qcow2_co_reference_all(struct qcow2 *q, const uint64_t *l1, uint32_t entries)
{
    return co_visit_l1_table(q, l1, entries, co_add_reference_locked, co_remove_reference_locked);
}

int qcow2_co_unreference_all(struct qcow2 *q, const uint64_t *l1, uint32_t entries)
{
    return co_visit_l1_table(q, l1, entries, co_remove_reference_locked, co_add_reference_locked);
}

int qcow2_co_release_all(struct qcow2 *q, const uint64_t *l1, uint32_t entries)
{
    return co_visit_l1_table(q, l1, entries, free_reference_later_locked, NULL);
}

/* --- COPIED ----------------------------------------------------------------------------------- */

/* *ret_entry is the entry with the flag that fits the refcount. */
static int co_correct_entry_locked(struct qcow2 *q, uint64_t entry, uint64_t *ret_entry)
{
    uint64_t host = entry & ENTRY_OFFSET_MASK, refcount;
    int r;

    CO_ASSERT_HELD(&q->lock);
    *ret_entry = entry;
    if ((entry & L2_COMPRESSED) || host == 0) {
        return 0;
    }
    r = qcow2_co_refcount_get_locked(q, qcow2_cluster_index(q, host), &refcount);
    if (r == 0) {
        *ret_entry = refcount == 1 ? entry | ENTRY_COPIED : entry & ~ENTRY_COPIED;
    }
    return r;
}

static int co_update_copied_in_slice_locked(struct qcow2 *q, uint64_t offset)
{
    unsigned count = qcow2_slice_entries(q);
    struct cache_entry *slice;
    int r = cache_co_get(&q->caches.l2, offset, &slice);

    CO_ASSERT_HELD(&q->lock);
    if (r < 0) {
        return r;
    }
    for (unsigned i = 0; i < count && r == 0; i++) {
        uint64_t entry = qcow2_load_entry(q, slice, i), correct;

        r = co_correct_entry_locked(q, entry, &correct);
        if (r == 0 && correct != entry) {
            r = qcow2_co_overlap_check_locked(q, offset, q->caches.l2.entry_size,
                                              OVERLAP_BIT(OVERLAP_ACTIVE_L2) |
                                                  OVERLAP_BIT(OVERLAP_INACTIVE_L2));
        }
        if (r == 0 && correct != entry) {
            qcow2_store_entry(q, slice, i, correct, qcow2_load_bitmap(q, slice, i));
            cache_mark_dirty(&q->caches.l2, slice);
        }
    }
    cache_put(slice);
    return r;
}

static int co_update_copied_in_table(struct qcow2 *q, uint32_t l1_index)
{
    uint64_t entry = atomic_load_explicit(&q->l1.entries[l1_index], memory_order_relaxed), correct;
    uint64_t table = entry & ENTRY_OFFSET_MASK;
    int r;

    if (table == 0) {
        return 0;
    }
    co_mutex_lock(&q->lock);
    r = co_correct_entry_locked(q, entry, &correct);
    for (uint64_t at = 0; at < q->cluster_size && r == 0; at += q->caches.l2.entry_size) {
        r = co_update_copied_in_slice_locked(q, table + at);
    }
    if (r == 0 && correct != entry) {
        atomic_store_explicit(&q->l1.entries[l1_index], correct, memory_order_relaxed);
        if (!q->l1.dirty[(uint64_t)l1_index * 8 / SECTOR_SIZE]) {
            q->l1.dirty[(uint64_t)l1_index * 8 / SECTOR_SIZE] = 1;
            q->l1.dirty_count++;
        }
    }
    co_mutex_unlock(&q->lock);
    return UNLESS_FAILED(r, qcow2_co_commit_if_much_dirty(q));
}

int qcow2_co_update_copied(struct qcow2 *q)
{
    int r = 0;

    for (uint32_t i = 0; i < q->l1.size && r == 0; i++) {
        r = co_update_copied_in_table(q, i);
    }
    return r;
}
