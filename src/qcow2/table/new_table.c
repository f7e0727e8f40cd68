/* SPDX-License-Identifier: Apache-2.0 */
#include "qcow2/table/new_table.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/cleanup.h"
#include "qcow2/table/alloc.h"
#include "qcow2/table/commit.h"

/* One attempt. `event` is announced before the write; BLOCK_EVENT_NONE: none. */
static int co_write_clusters_once(struct qcow2 *q, const void *data, uint64_t clusters,
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

static int co_write_padded_table(struct qcow2 *q, const void *data, size_t size,
                                 enum block_event event, uint64_t *ret_offset)
{
    uint64_t clusters = div_round_up(size, q->cluster_size), offset = 0;
    AUTO_FREE uint8_t *padded = calloc(MAX(clusters, 1), q->cluster_size);
    int r;

    if (!padded) {
        return -ENOMEM;
    }
    memcpy(padded, data, size);
    do {
        r = co_write_clusters_once(q, padded, clusters, event, &offset);
    } while (qcow2_co_make_room(q, r));
    if (r == 0) {
        *ret_offset = offset;
    }
    return r;
}

int qcow2_co_write_new_clusters(struct qcow2 *q, const void *data, size_t size,
                                uint64_t *ret_offset)
{
    return co_write_padded_table(q, data, size, BLOCK_EVENT_NONE, ret_offset);
}

void qcow2_co_free_new_clusters(struct qcow2 *q, uint64_t offset, uint64_t size)
{
    co_mutex_lock(&q->lock);
    qcow2_co_unalloc_locked(q, offset, div_round_up(size, q->cluster_size));
    co_mutex_unlock(&q->lock);
}

int qcow2_co_set_active_l1(struct qcow2 *q, const uint64_t *l1, uint32_t entries)
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
    co_mutex_lock(&q->lock);
    qcow2_overlap_note_tables_locked(q, OVERLAP_ACTIVE_L2, l1, entries);
    free((void *)q->l1.entries);
    free(q->l1.dirty);
    q->l1.entries = table;
    q->l1.dirty = dirty;
    q->l1.dirty_count = 0;
    q->l1.size = entries;
    co_mutex_unlock(&q->lock);
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
    /* A copy that keeps the flags becomes the active table. */
    return co_write_padded_table(q, be, MAX((size_t)entries * 8, 8),
                                 keep_copied ? BLOCK_EVENT_L1_GROW_WRITE_TABLE : BLOCK_EVENT_NONE,
                                 ret_offset);
}
