/* SPDX-License-Identifier: Apache-2.0 */
#include "qcow2/snapshot/references.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "qcow2/table/verdict.h"
#include "qcow2/table/alloc.h"
#include "qcow2/table/commit.h"
#include "qcow2/table/map.h"
#include "qcow2/table/refcount.h"

static int co_write_clusters(struct qcow2 *q, const void *data, uint64_t clusters,
                             enum block_event event, uint64_t *ret_offset)
{
    uint64_t got;
    bool fresh;
    int r;

    co_mutex_lock(&q->lock);
    r = qcow2_co_alloc_locked(q, clusters, true, ret_offset, &got, &fresh);
    co_mutex_unlock(&q->lock);
    if (r < 0) {
        return r;
    }
    if (event != BLOCK_EVENT_NONE) {
        block_co_event(q->node->file, event);
    }
    r = block_co_pwrite(q->node->file, *ret_offset, data, clusters << q->cluster_bits, 0);
    if (r < 0) {
        qcow2_co_free_new_clusters(q, *ret_offset, clusters << q->cluster_bits);
    }
    return r;
}

/* `event` is announced before the write; NONE: not. */
static int co_write_new(struct qcow2 *q, const void *data, size_t size, enum block_event event,
                        uint64_t *ret_offset)
{
    uint64_t clusters = div_round_up(size, q->cluster_size), offset = 0;
    AUTO_FREE uint8_t *padded = calloc(MAX(clusters, 1), q->cluster_size);
    int r;

    if (!padded) {
        return -ENOMEM;
    }
    memcpy(padded, data, size);
    do {
        r = co_write_clusters(q, padded, clusters, event, &offset);
    } while (qcow2_co_make_room(q, r));
    if (r == 0) {
        *ret_offset = offset;
    }
    return r;
}

int qcow2_co_write_new_clusters(struct qcow2 *q, const void *data, size_t size,
                                uint64_t *ret_offset)
{
    return co_write_new(q, data, size, BLOCK_EVENT_NONE, ret_offset);
}

void qcow2_co_free_new_clusters(struct qcow2 *q, uint64_t offset, uint64_t size)
{
    co_mutex_lock(&q->lock);
    qcow2_co_unalloc_locked(q, offset, div_round_up(size, q->cluster_size));
    co_mutex_unlock(&q->lock);
}

int qcow2_set_active_l1(struct qcow2 *q, const uint64_t *l1, uint32_t entries)
{
    _Atomic uint64_t *table = calloc(entries + 1u, 8);
    uint8_t *dirty = calloc(div_round_up((uint64_t)entries * 8, SECTOR_SIZE) + 1, 1);

    if (!table || !dirty) {
        free((void *)table);
        free(dirty);
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < entries; i++) {
        atomic_init(&table[i], l1[i]);
    }
    qcow2_overlap_note_tables_locked(q, OVERLAP_ACTIVE_L2, l1, entries);
    free((void *)q->l1.entries);
    free(q->l1.dirty);
    q->l1.entries = table;
    q->l1.dirty = dirty;
    q->l1.dirty_count = 0;
    q->l1.size = entries;
    return 0;
}

int qcow2_co_write_l1_copy(struct qcow2 *q, const uint64_t *l1, uint32_t entries, bool keep_copied,
                           uint64_t *ret_offset)
{
    AUTO_FREE uint64_t *be = calloc(entries + 1u, 8);

    if (!be) {
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < entries; i++) {
        be[i] = htobe64(keep_copied ? l1[i] : l1[i] & ~ENTRY_COPIED);
    }
    /* A copy that keeps the flags is to become the active table. */
    return co_write_new(q, be, MAX((size_t)entries * 8, 8),
                        keep_copied ? BLOCK_EVENT_L1_GROW_WRITE_TABLE : BLOCK_EVENT_NONE,
                        ret_offset);
}

/* --- walking --------------------------------------------------------------------------------- */

/* What is done with the clusters of a reference. */
typedef int reference_fn(struct qcow2 *q, uint64_t offset, uint64_t length, bool compressed);

static int co_add_locked(struct qcow2 *q, uint64_t offset, uint64_t length, bool compressed)
{
    uint64_t first = qcow2_cluster_index(q, offset);

    return qcow2_co_refcount_add_locked(q, first,
                                        qcow2_cluster_index(q, offset + length - 1) - first + 1, 1);
}

static int co_sub_locked(struct qcow2 *q, uint64_t offset, uint64_t length, bool compressed)
{
    uint64_t first = qcow2_cluster_index(q, offset);

    return qcow2_co_refcount_add_locked(
        q, first, qcow2_cluster_index(q, offset + length - 1) - first + 1, -1);
}

static int free_later_locked(struct qcow2 *q, uint64_t offset, uint64_t length, bool compressed)
{
    return qcow2_free_later_locked(q, offset, length, compressed, QCOW2_FREED_BY_SNAPSHOT);
}

static int co_visit_entry_locked(struct qcow2 *q, uint64_t entry, reference_fn *fn)
{
    uint64_t offset, length;
    bool compressed;

    if (!qcow2_entry_extent(q, entry, &offset, &length, &compressed)) {
        return 0;
    }
    if (!compressed && !is_aligned(offset, q->cluster_size)) {
        return qcow2_corrupt(q, "Cluster allocation offset %#llx unaligned",
                             (unsigned long long)offset);
    }
    return fn(q, offset, length, compressed);
}

/* A table's references: those of its entries, then the one to itself. */
static uint64_t references_of_table(const struct qcow2 *q)
{
    return qcow2_table_entries(q) + 1;
}

/* The first `count` references of a table. *done counts them, so that a failure can be undone up to there. */
static int co_visit_table(struct qcow2 *q, uint64_t offset, uint64_t *table, uint64_t count,
                          reference_fn *fn, uint64_t *done)
{
    int r = block_co_pread(q->node->file, offset, table, q->cluster_size);

    co_mutex_lock(&q->lock);
    for (*done = 0; *done < count && r == 0; *done += r == 0) {
        r = *done < qcow2_table_entries(q)
                ? co_visit_entry_locked(q, be64toh(table[*done << q->extended_l2]), fn)
                : fn(q, offset, q->cluster_size, false);
    }
    co_mutex_unlock(&q->lock);
    return r < 0 ? r : qcow2_co_commit_if_much_dirty(q);
}

/* Undo the first `done` references of the table of entry `last`, and all of those before it. What fails leaks. */
static void co_undo(struct qcow2 *q, const uint64_t *l1, uint32_t last, uint64_t done,
                    uint64_t *table, reference_fn *undo)
{
    for (uint32_t i = last + 1; i-- > 0;) {
        uint64_t offset = l1[i] & ENTRY_OFFSET_MASK, ignored;

        if (offset != 0 && is_aligned(offset, q->cluster_size)) {
            (void)co_visit_table(q, offset, table, i == last ? done : references_of_table(q), undo,
                                 &ignored);
        }
    }
}

static int co_visit(struct qcow2 *q, const uint64_t *l1, uint32_t entries, reference_fn *fn,
                    reference_fn *undo)
{
    AUTO_FREE uint64_t *table = malloc(q->cluster_size);
    int r = table ? 0 : -ENOMEM;

    for (uint32_t i = 0; i < entries && r == 0; i++) {
        uint64_t offset = l1[i] & ENTRY_OFFSET_MASK, done = 0;

        if (offset == 0) {
            continue;
        }
        if (is_aligned(offset, q->cluster_size)) {
            r = co_visit_table(q, offset, table, references_of_table(q), fn, &done);
        } else {
            r = qcow2_corrupt(q, "L2 table offset %#llx unaligned (L1 index: %#x)",
                              (unsigned long long)offset, i);
        }
        if (r < 0 && undo) {
            co_undo(q, l1, i, done, table, undo);
        }
    }
    return r;
}

int qcow2_co_reference_all(struct qcow2 *q, const uint64_t *l1, uint32_t entries)
{
    return co_visit(q, l1, entries, co_add_locked, co_sub_locked);
}

int qcow2_co_unreference_all(struct qcow2 *q, const uint64_t *l1, uint32_t entries)
{
    return co_visit(q, l1, entries, co_sub_locked, co_add_locked);
}

int qcow2_co_release_all(struct qcow2 *q, const uint64_t *l1, uint32_t entries)
{
    return co_visit(q, l1, entries, free_later_locked, NULL);
}

/* --- COPIED ---------------------------------------------------------------------------------- */

/* *ret: the entry as it should be. */
static int co_right_entry_locked(struct qcow2 *q, uint64_t entry, uint64_t *ret)
{
    uint64_t host = entry & ENTRY_OFFSET_MASK, refcount;
    int r;

    *ret = entry;
    if ((entry & L2_COMPRESSED) || host == 0) {
        return 0;
    }
    r = qcow2_co_refcount_get_locked(q, qcow2_cluster_index(q, host), &refcount);
    if (r == 0) {
        *ret = refcount == 1 ? entry | ENTRY_COPIED : entry & ~ENTRY_COPIED;
    }
    return r;
}

static int co_update_slice_locked(struct qcow2 *q, uint64_t offset)
{
    unsigned count = qcow2_slice_entries(q);
    struct cache_entry *slice;
    int r = cache_co_get(&q->caches.l2, offset, &slice);

    if (r < 0) {
        return r;
    }
    for (unsigned i = 0; i < count && r == 0; i++) {
        uint64_t entry = qcow2_load_entry(q, slice, i), right;

        r = co_right_entry_locked(q, entry, &right);
        if (r == 0 && right != entry) {
            r = qcow2_co_overlap_check_locked(q, offset, q->caches.l2.entry_size,
                                              OVERLAP_BIT(OVERLAP_ACTIVE_L2) |
                                                  OVERLAP_BIT(OVERLAP_INACTIVE_L2));
        }
        if (r == 0 && right != entry) {
            qcow2_store_entry(q, slice, i, right, qcow2_load_bitmap(q, slice, i));
            cache_mark_dirty(&q->caches.l2, slice);
        }
    }
    cache_put(slice);
    return r;
}

static int co_update_table(struct qcow2 *q, uint32_t l1_index)
{
    uint64_t entry = atomic_load_explicit(&q->l1.entries[l1_index], memory_order_relaxed), right;
    uint64_t table = entry & ENTRY_OFFSET_MASK;
    int r;

    if (table == 0) {
        return 0;
    }
    co_mutex_lock(&q->lock);
    r = co_right_entry_locked(q, entry, &right);
    for (uint64_t at = 0; at < q->cluster_size && r == 0; at += q->caches.l2.entry_size) {
        r = co_update_slice_locked(q, table + at);
    }
    if (r == 0 && right != entry) {
        atomic_store_explicit(&q->l1.entries[l1_index], right, memory_order_relaxed);
        if (!q->l1.dirty[(uint64_t)l1_index * 8 / SECTOR_SIZE]) {
            q->l1.dirty[(uint64_t)l1_index * 8 / SECTOR_SIZE] = 1;
            q->l1.dirty_count++;
        }
    }
    co_mutex_unlock(&q->lock);
    return r < 0 ? r : qcow2_co_commit_if_much_dirty(q);
}

int qcow2_co_update_copied(struct qcow2 *q)
{
    int r = 0;

    for (uint32_t i = 0; i < q->l1.size && r == 0; i++) {
        r = co_update_table(q, i);
    }
    return r;
}
