/* SPDX-License-Identifier: Apache-2.0 */
/* Storing persistent bitmaps: what all steps of an attempt use, and how it ends. */
#include <errno.h>

#include "block/bitmaps.h"
#include "qcow2/bitmap/reserve.h"
#include "qcow2/bitmap/store.h"
#include "qcow2/table/alloc.h"
#include "qcow2/table/new_table.h"

void qcow2_store_add_run(struct cluster_runs *list, uint64_t offset, uint64_t length)
{
    /* Out of memory: the clusters are leaked. */
    (void)cluster_runs_add(list, (struct cluster_run){.offset = offset, .length = length});
}

/* Clusters of the old state. A damaged table may name other metadata, which is not freed. */
static void co_free_replaced_run_locked(struct qcow2 *q, const struct cluster_run *run)
{
    CO_ASSERT_HELD(&q->lock);
    for (uint64_t i = 0; i < run->length; i += q->cluster_size) {
        if (!qcow2_co_overlap_hits_locked(q, run->offset + i)) {
            (void)qcow2_free_later_locked(q, run->offset + i, q->cluster_size, false,
                                          QCOW2_FREED_BY_OTHER);
        }
    }
}

void qcow2_co_free_replaced(struct qcow2 *q, struct cluster_runs *old)
{
    co_mutex_lock(&q->lock);
    for (size_t i = 0; i < old->count; i++) {
        co_free_replaced_run_locked(q, &old->runs[i]);
    }
    co_mutex_unlock(&q->lock);
    old->count = 0;
}

void qcow2_co_store_give_back(struct qcow2 *q, struct bitmap_store *st, size_t first)
{
    co_mutex_lock(&q->lock);
    for (size_t i = first; i < st->made.count; i++) {
        qcow2_co_unalloc_locked(q, st->made.runs[i].offset,
                                st->made.runs[i].length >> q->cluster_bits);
    }
    co_mutex_unlock(&q->lock);
    st->made.count = MIN(st->made.count, first);
}

int qcow2_co_store_write_new(struct qcow2 *q, struct bitmap_store *st, const void *data,
                             size_t size, uint64_t *ret_offset)
{
    uint64_t offset;
    int r = qcow2_co_write_new_clusters(q, data, size, &offset);

    if (r == 0) {
        qcow2_store_add_run(&st->made, offset, round_up(size, q->cluster_size));
        *ret_offset = offset;
    }
    return r;
}

int qcow2_co_store_write_reserved(struct qcow2 *q, struct bitmap_store *st, const char *name,
                                  const void *data, size_t size, uint64_t *ret_offset)
{
    uint64_t offset;
    int r;

    CO_ASSERT_HELD(&q->bitmaps.mutex);
    if (!qcow2_co_reserve_use_locked(q, name, size, &offset)) {
        return qcow2_co_store_write_new(q, st, data, size, ret_offset);
    }
    r = block_co_pwrite(q->node->file, offset, data, size, 0);
    if (r == 0) {
        *ret_offset = offset;
    }
    return r;
}

bool qcow2_bitmap_is_stale(const struct stored_bitmap *s, const struct block_bitmap *b)
{
    if (!b->persistent || b->inconsistent || b->read_only) {
        return false; /* these are never stored */
    }
    return !s || b->unstored || (s->flags & BITMAP_FLAG_IN_USE) ||
           b->enabled != !!(s->flags & BITMAP_FLAG_AUTO);
}

void qcow2_adopt_entries(struct qcow2 *q, struct list *entries)
{
    struct stored_bitmap *b;

    qcow2_stored_bitmap_free_list(&q->bitmaps.stored);
    list_splice(&q->bitmaps.stored, entries);
    LIST_FOREACH (b, &q->bitmaps.stored, link) {
        if (b->loaded) {
            b->loaded->driver_state = b;
        }
    }
}

void qcow2_store_begin(struct qcow2 *q, struct bitmap_store *st)
{
    CO_ASSERT_HELD(&q->bitmaps.mutex);
    *st = (struct bitmap_store){0};
    list_init(&st->entries);
    list_init(&st->tables);
    qcow2_reserve_begin_locked(q);
}

static void free_waiting_tables(struct bitmap_store *st)
{
    while (!list_is_empty(&st->tables)) {
        struct waiting_table *table = LIST_FIRST(&st->tables, struct waiting_table, link);

        list_remove(&table->link);
        free(table->entries);
        free(table);
    }
}

int qcow2_co_store_end(struct qcow2 *q, struct bitmap_store *st, int result)
{
    CO_ASSERT_HELD(&q->bitmaps.mutex);
    if (result == 0) {
        qcow2_co_free_replaced(q, &st->old);
    } else if (!st->written) {
        qcow2_co_store_give_back(q, st, 0);
    }
    if (result < 0) {
        qcow2_reserve_begin_locked(q); /* all of it is kept for the next attempt */
    }
    qcow2_stored_bitmap_free_list(&st->entries);
    free_waiting_tables(st);
    cluster_runs_clear(&st->made);
    cluster_runs_clear(&st->old);
    return result;
}
