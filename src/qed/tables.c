/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tables: from the disk to places in the file, and new places at its end. A new L2 table is zero,
 * stably, before the L1 table leads to it.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "qed/image.h"

bool qed_is_place(const struct block_node *node, uint64_t offset, uint64_t length)
{
    const struct qed *q = node->opaque;
    uint64_t least = (uint64_t)q->header.header_clusters * q->header.cluster_size;

    return is_aligned(offset, q->header.cluster_size) && offset >= least &&
           range_fits(offset, length, block_edge_size(node->file));
}

/* --- L2 tables in memory ---------------------------------------------------------------------- */

void qed_forget_pages(struct qed *q)
{
    pthread_mutex_lock(&q->page_lock);
    q->generation++;
    for (size_t i = 0; i < QED_PAGES; i++) {
        free(q->pages[i]);
        q->pages[i] = NULL;
    }
    pthread_mutex_unlock(&q->page_lock);
}

static struct qed_page **qed_slot_of(struct qed *q, uint64_t offset)
{
    return &q->pages[offset / ((uint64_t)QED_PAGE_ENTRIES * QED_ENTRY_SIZE) % QED_PAGES];
}

static bool qed_copy_cached(struct qed *q, uint64_t offset, uint64_t first, size_t count,
                            uint64_t *entries, uint64_t *ret_generation)
{
    const struct qed_page *page;
    bool found;

    pthread_mutex_lock(&q->page_lock);
    page = *qed_slot_of(q, offset);
    found = page && page->offset == offset;
    if (found) {
        memcpy(entries, page->entry + first, count * sizeof(*entries));
    }
    *ret_generation = q->generation;
    pthread_mutex_unlock(&q->page_lock);
    return found;
}

/* Takes over the page, unless an entry has changed since it was read. */
static void keep_page(struct qed *q, struct qed_page *page, uint64_t generation)
{
    pthread_mutex_lock(&q->page_lock);
    if (generation == q->generation) {
        struct qed_page **slot = qed_slot_of(q, page->offset);
        struct qed_page *old = *slot;

        *slot = page;
        page = old;
    }
    pthread_mutex_unlock(&q->page_lock);
    free(page);
}

int qed_co_get_entries(struct block_node *node, uint64_t table, uint64_t first, size_t count,
                       uint64_t *entries)
{
    struct qed *q = node->opaque;
    uint64_t at = first % QED_PAGE_ENTRIES, generation;
    uint64_t offset = table + (first - at) * QED_ENTRY_SIZE;
    struct qed_page *page;
    int r;

    if (qed_copy_cached(q, offset, at, count, entries, &generation)) {
        return 0;
    }
    page = malloc(sizeof(*page));
    if (!page) {
        return -ENOMEM;
    }
    page->offset = offset;
    r = block_co_pread(node->file, offset, page->entry, sizeof(page->entry));
    if (r < 0) {
        free(page);
        return r;
    }
    for (size_t i = 0; i < QED_PAGE_ENTRIES; i++) {
        page->entry[i] = load_le64(&page->entry[i]);
    }
    memcpy(entries, page->entry + at, count * sizeof(*entries));
    keep_page(q, page, generation);
    return 0;
}

int qed_co_set_entry(struct block_node *node, uint64_t table, uint64_t index, uint64_t value)
{
    struct qed *q = node->opaque;
    uint64_t at = index % QED_PAGE_ENTRIES;
    uint64_t offset = table + (index - at) * QED_ENTRY_SIZE;
    struct qed_page **slot;
    uint8_t bytes[QED_ENTRY_SIZE];
    int r;

    store_le64(bytes, value);
    r = block_co_pwrite(node->file, table + index * QED_ENTRY_SIZE, bytes, sizeof(bytes), 0);
    pthread_mutex_lock(&q->page_lock);
    q->generation++;
    slot = qed_slot_of(q, offset);
    if (*slot && (*slot)->offset == offset) {
        if (r == 0) {
            (*slot)->entry[at] = value;
        } else {
            (*slot)->offset = 0; /* it may have been written */
        }
    }
    pthread_mutex_unlock(&q->page_lock);
    return r;
}

int qed_co_set_l1_locked(struct block_node *node, uint64_t index, uint64_t table)
{
    struct qed *q = node->opaque;
    uint8_t bytes[QED_ENTRY_SIZE];
    int r;

    store_le64(bytes, table);
    r = block_co_pwrite(node->file, q->header.l1_offset + index * QED_ENTRY_SIZE, bytes,
                        sizeof(bytes), 0);
    if (r == 0) {
        __atomic_store_n(&q->l1[index], table, __ATOMIC_RELEASE);
    }
    return r;
}

/* --- runs ------------------------------------------------------------------------------------- */

/* What an entry of an L2 table is. -EIO: it leads to no cluster. */
static int qed_kind_of(const struct block_node *node, uint64_t entry, enum blockmap_kind *ret_kind)
{
    *ret_kind = entry == 0 ? BLOCKMAP_ABSENT : entry == QED_ZERO ? BLOCKMAP_ZERO : BLOCKMAP_DATA;
    /* The last cluster may be cut: what is not there reads as zeroes. */
    return *ret_kind == BLOCKMAP_DATA && !qed_is_place(node, entry, 1) ? -EIO : 0;
}

int qed_co_find(struct block_node *node, uint64_t offset, uint64_t length,
                struct blockmap_run *ret_run)
{
    const struct qed *q = node->opaque;
    uint64_t size = q->header.cluster_size, within = offset % size, entries[QED_PAGE_ENTRIES];
    uint64_t first = offset / size % q->table_entries;
    uint64_t table = __atomic_load_n(&q->l1[offset / size / q->table_entries], __ATOMIC_ACQUIRE);
    size_t count = (size_t)MIN(div_round_up(within + length, size),
                               QED_PAGE_ENTRIES - first % QED_PAGE_ENTRIES);
    enum blockmap_kind kind;
    size_t n = 1;
    int r = 0;

    if (table == 0) {
        *ret_run = (struct blockmap_run){
            .length = MIN(length, (q->table_entries - first) * size - within)};
        return 0;
    }
    if (!qed_is_place(node, table, q->table_entries * QED_ENTRY_SIZE)) {
        return -EIO;
    }
    r = qed_co_get_entries(node, table, first, count, entries);
    UNLESS_FAILED(r, qed_kind_of(node, entries[0], &kind));
    if (r < 0) {
        return r;
    }
    while (n < count &&
           entries[n] == (kind == BLOCKMAP_DATA ? entries[n - 1] + size : entries[0]) &&
           (kind != BLOCKMAP_DATA || qed_is_place(node, entries[n], 1))) {
        n++;
    }
    *ret_run = (struct blockmap_run){.kind = kind,
                                     .length = MIN(length, n * size - within),
                                     .edge = node->file,
                                     .host = kind == BLOCKMAP_DATA ? entries[0] + within : 0};
    return 0;
}

/* --- new places ------------------------------------------------------------------------------- */

static int co_take_place_locked(struct block_node *node, uint64_t length, uint64_t *ret_place)
{
    struct qed *q = node->opaque;
    int r = blockmap_co_make_room_locked(node->file, &q->room, q->end + length, NULL);

    if (r == 0) {
        *ret_place = q->end;
        q->end += length;
    }
    return r;
}

/* The L2 table for an offset of the disk, which is made if there is none. */
static int qed_co_make_table_locked(struct block_node *node, uint64_t offset, uint64_t *ret_table)
{
    struct qed *q = node->opaque;
    uint64_t index = offset / q->header.cluster_size / q->table_entries;
    uint64_t length = q->table_entries * QED_ENTRY_SIZE;
    int r;

    *ret_table = q->l1[index];
    if (*ret_table != 0) {
        return 0;
    }
    r = co_take_place_locked(node, length, ret_table);
    if (r == 0 && *ret_table < q->zero_from) {
        r = block_co_write_zeroes(node->file, *ret_table, length, 0);
        UNLESS_FAILED(r, block_co_flush(node->file));
    }
    UNLESS_FAILED(r, qed_co_set_l1_locked(node, index, *ret_table));
    return r;
}

int qed_co_reserve_locked(struct block_node *node, uint64_t offset, uint64_t length,
                          struct blockmap_place *ret_place)
{
    struct qed *q = node->opaque;
    uint64_t place, table;
    int r = qed_co_make_table_locked(node, offset, &table);

    UNLESS_FAILED(r, co_take_place_locked(node, q->header.cluster_size, &place));
    if (r == 0) {
        *ret_place = (struct blockmap_place){
            .edge = node->file, .host = place, .is_zero = place >= q->zero_from};
    }
    return r;
}

void qed_co_give_back_locked(struct block_node *node, const struct blockmap_place *place)
{
    struct qed *q = node->opaque;

    q->zero_from = MAX(q->zero_from, q->end);
    q->end = place->host;
}

int qed_co_link_locked(struct block_node *node, uint64_t offset, const struct blockmap_place *place)
{
    const struct qed *q = node->opaque;
    uint64_t index = offset / q->header.cluster_size;

    return qed_co_set_entry(node, q->l1[index / q->table_entries], index % q->table_entries,
                            place->host);
}

int qed_co_zero_locked(struct block_node *node, uint64_t offset)
{
    const struct qed *q = node->opaque;
    uint64_t table, index = offset / q->header.cluster_size % q->table_entries;
    int r = qed_co_make_table_locked(node, offset, &table);

    return r < 0 ? r : qed_co_set_entry(node, table, index, QED_ZERO);
}
