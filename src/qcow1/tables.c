/* SPDX-License-Identifier: Apache-2.0 */
/* L2 tables: a cache of their entries, the runs that they describe, and new places. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "qcow1/image.h"

/* Whether `length` bytes at `offset` may be a table or a cluster of the image. */
static bool qcow1_is_place(const struct block_node *node, uint64_t offset, uint64_t length)
{
    const struct qcow1 *q = node->opaque;

    return offset >= q->least && range_fits(offset, length, block_edge_size(node->file));
}

void qcow1_locate(const struct qcow1 *q, uint64_t entry, uint64_t *ret_offset, size_t *ret_size)
{
    unsigned shift = 63u - q->header.cluster_bits;

    *ret_offset = entry & ((UINT64_C(1) << shift) - 1);
    *ret_size = (size_t)(entry >> shift & (q->cluster_size - 1));
}

/* --- L2 tables in memory ---------------------------------------------------------------------- */

void qcow1_forget_pages(struct qcow1 *q)
{
    pthread_mutex_lock(&q->page_lock);
    q->generation++;
    for (size_t i = 0; i < QCOW1_PAGES; i++) {
        free(q->pages[i]);
        q->pages[i] = NULL;
    }
    free(q->inflated);
    q->inflated = NULL;
    pthread_mutex_unlock(&q->page_lock);
}

static struct qcow1_page **qcow1_slot_of(struct qcow1 *q, uint64_t offset)
{
    return &q->pages[offset / (q->page_entries * QCOW1_ENTRY_SIZE) % QCOW1_PAGES];
}

static bool qcow1_copy_cached(struct qcow1 *q, uint64_t offset, uint64_t first, size_t count,
                              uint64_t *entries, uint64_t *ret_generation)
{
    const struct qcow1_page *page;
    bool found;

    pthread_mutex_lock(&q->page_lock);
    page = *qcow1_slot_of(q, offset);
    found = page && page->offset == offset;
    if (found) {
        memcpy(entries, page->entry + first, count * sizeof(*entries));
    }
    *ret_generation = q->generation;
    pthread_mutex_unlock(&q->page_lock);
    return found;
}

/* Takes over the page, unless an entry has changed since it was read. */
static void qcow1_keep_page(struct qcow1 *q, struct qcow1_page *page, uint64_t generation)
{
    pthread_mutex_lock(&q->page_lock);
    if (generation == q->generation) {
        struct qcow1_page **slot = qcow1_slot_of(q, page->offset);
        struct qcow1_page *old = *slot;

        *slot = page;
        page = old;
    }
    pthread_mutex_unlock(&q->page_lock);
    free(page);
}

/* Entries [first, first + count) of the L2 table at `table`, in one page. */
static int qcow1_co_get_entries(struct block_node *node, uint64_t table, uint64_t first,
                                size_t count, uint64_t *entries)
{
    struct qcow1 *q = node->opaque;
    uint64_t at = first % q->page_entries, generation;
    uint64_t offset = table + (first - at) * QCOW1_ENTRY_SIZE;
    struct qcow1_page *page;
    int r;

    if (qcow1_copy_cached(q, offset, at, count, entries, &generation)) {
        return 0;
    }
    page = malloc(sizeof(*page));
    if (!page) {
        return -ENOMEM;
    }
    page->offset = offset;
    r = block_co_pread(node->file, offset, page->entry, q->page_entries * QCOW1_ENTRY_SIZE);
    if (r < 0) {
        free(page);
        return r;
    }
    for (size_t i = 0; i < q->page_entries; i++) {
        page->entry[i] = load_be64(&page->entry[i]);
    }
    memcpy(entries, page->entry + at, count * sizeof(*entries));
    qcow1_keep_page(q, page, generation);
    return 0;
}

int qcow1_co_set_entries(struct block_node *node, uint64_t table, uint64_t index,
                         const uint64_t *values, size_t count)
{
    struct qcow1 *q = node->opaque;
    uint64_t at = index % q->page_entries;
    uint64_t offset = table + (index - at) * QCOW1_ENTRY_SIZE;
    uint8_t bytes[QCOW1_PAGE_ENTRIES * QCOW1_ENTRY_SIZE];
    struct qcow1_page **slot;
    int r;

    for (size_t i = 0; i < count; i++) {
        store_be64(bytes + i * QCOW1_ENTRY_SIZE, values[i]);
    }
    r = block_co_pwrite(node->file, table + index * QCOW1_ENTRY_SIZE, bytes,
                        count * QCOW1_ENTRY_SIZE, 0);
    pthread_mutex_lock(&q->page_lock);
    q->generation++;
    slot = qcow1_slot_of(q, offset);
    if (*slot && (*slot)->offset == offset) {
        if (r == 0) {
            memcpy((*slot)->entry + at, values, count * sizeof(*values));
        } else {
            (*slot)->offset = 0; /* it may have been written */
        }
    }
    pthread_mutex_unlock(&q->page_lock);
    return r;
}

static int qcow1_co_set_l1_locked(struct block_node *node, uint64_t index, uint64_t table)
{
    struct qcow1 *q = node->opaque;
    uint8_t bytes[QCOW1_ENTRY_SIZE];
    int r;

    CO_ASSERT_HELD(&q->map.lock);
    store_be64(bytes, table);
    r = block_co_pwrite(node->file, q->header.l1_offset + index * QCOW1_ENTRY_SIZE, bytes,
                        sizeof(bytes), 0);
    if (r == 0) {
        __atomic_store_n(&q->l1[index], table, __ATOMIC_RELEASE);
    }
    return r;
}

/* --- runs ------------------------------------------------------------------------------------- */

/* What an entry of an L2 table is. -EIO: it leads to no cluster. */
static int qcow1_kind_of(const struct block_node *node, uint64_t entry,
                         enum blockmap_kind *ret_kind)
{
    uint64_t offset = entry, length = 1; /* the last cluster may be cut */
    size_t size;

    *ret_kind = entry == 0                 ? BLOCKMAP_ABSENT
                : entry < QCOW1_COMPRESSED ? BLOCKMAP_DATA
                                           : BLOCKMAP_COMPRESSED;
    if (*ret_kind == BLOCKMAP_COMPRESSED) {
        qcow1_locate(node->opaque, entry, &offset, &size);
        length = size;
        if (size == 0) {
            return -EIO;
        }
    }
    return *ret_kind != BLOCKMAP_ABSENT && !qcow1_is_place(node, offset, length) ? -EIO : 0;
}

/* How many of the entries belong to one run: of a compressed cluster one. */
static size_t count_run_entries(const struct block_node *node, const uint64_t *entries,
                                size_t count, enum blockmap_kind kind)
{
    const struct qcow1 *q = node->opaque;
    size_t n = 1;

    while (n < count && kind != BLOCKMAP_COMPRESSED &&
           entries[n] == (kind == BLOCKMAP_DATA ? entries[n - 1] + q->cluster_size : 0) &&
           (kind == BLOCKMAP_ABSENT || qcow1_is_place(node, entries[n], 1))) {
        n++;
    }
    return n;
}

int qcow1_co_find(struct block_node *node, uint64_t offset, uint64_t length,
                  struct blockmap_run *ret_run)
{
    const struct qcow1 *q = node->opaque;
    uint64_t size = q->cluster_size, within = offset % size, entries[QCOW1_PAGE_ENTRIES];
    uint64_t first = offset / size % q->table_entries;
    uint64_t table = __atomic_load_n(&q->l1[offset / size / q->table_entries], __ATOMIC_ACQUIRE);
    size_t count =
        (size_t)MIN(div_round_up(within + length, size), q->page_entries - first % q->page_entries);
    enum blockmap_kind kind;
    int r = 0;

    if (table == 0) {
        *ret_run = (struct blockmap_run){
            .length = MIN(length, (q->table_entries - first) * size - within)};
        return 0;
    }
    if (!qcow1_is_place(node, table, q->table_entries * QCOW1_ENTRY_SIZE)) {
        return -EIO;
    }
    r = qcow1_co_get_entries(node, table, first, count, entries);
    UNLESS_FAILED(r, qcow1_kind_of(node, entries[0], &kind));
    if (r < 0) {
        return r;
    }
    *ret_run = (struct blockmap_run){
        .kind = kind,
        .length = MIN(length, count_run_entries(node, entries, count, kind) * size - within),
        .edge = node->file,
        .host = kind == BLOCKMAP_DATA         ? entries[0] + within
                : kind == BLOCKMAP_COMPRESSED ? entries[0]
                                              : 0};
    return 0;
}

/* --- new places ------------------------------------------------------------------------------- */

int qcow1_co_take_place_locked(struct block_node *node, uint64_t length, uint64_t unit,
                               struct blockmap_place *ret_place)
{
    struct qcow1 *q = node->opaque;
    uint64_t place = round_up(q->end, unit);
    int r = place + length >= QCOW1_COMPRESSED >> q->header.cluster_bits
                ? -EFBIG
                : blockmap_co_make_room_locked(node->file, &q->room, place + length, NULL);

    if (r == 0) {
        *ret_place = (struct blockmap_place){
            .edge = node->file, .host = place, .is_zero = place >= q->zero_from};
        q->end = place + length;
    }
    return r;
}

void qcow1_co_give_back_locked(struct block_node *node, const struct blockmap_place *place)
{
    struct qcow1 *q = node->opaque;

    q->zero_from = MAX(q->zero_from, q->end);
    q->end = place->host;
}

/* A new table, which is empty, stably if that had to be written. */
static int co_take_table_locked(struct block_node *node, uint64_t length, uint64_t *ret_table)
{
    const struct qcow1 *q = node->opaque;
    struct blockmap_place place = {0};
    int r = qcow1_co_take_place_locked(node, length, q->cluster_size, &place);

    if (r < 0) {
        return r;
    }
    if (!place.is_zero) {
        r = block_co_write_zeroes(node->file, place.host, length, 0);
        UNLESS_FAILED(r, block_co_flush(node->file));
    }
    if (r < 0) {
        qcow1_co_give_back_locked(node, &place);
        return r;
    }
    *ret_table = place.host;
    return 0;
}

int qcow1_co_make_table_locked(struct block_node *node, uint64_t offset, uint64_t *ret_table)
{
    struct qcow1 *q = node->opaque;
    uint64_t index = offset / q->cluster_size / q->table_entries;
    uint64_t length = q->table_entries * QCOW1_ENTRY_SIZE;
    int r;

    *ret_table = q->l1[index];
    if (*ret_table != 0) {
        return 0;
    }
    if (q->spare_table != 0 && q->spare_index == index) {
        *ret_table = q->spare_table;
    } else {
        r = co_take_table_locked(node, length, ret_table);
        if (r < 0) {
            return r;
        }
    }
    r = qcow1_co_set_l1_locked(node, index, *ret_table);
    q->spare_table = r < 0 ? *ret_table : 0;
    q->spare_index = index;
    return r;
}

int qcow1_co_reserve_locked(struct block_node *node, uint64_t offset, uint64_t length,
                            struct blockmap_place *ret_place)
{
    const struct qcow1 *q = node->opaque;
    uint64_t table;
    int r = qcow1_co_make_table_locked(node, offset, &table);

    return r < 0 ? r
                 : qcow1_co_take_place_locked(node, q->cluster_size, q->cluster_size, ret_place);
}

int qcow1_co_link_locked(struct block_node *node, uint64_t offset,
                         const struct blockmap_place *place)
{
    const struct qcow1 *q = node->opaque;
    uint64_t index = offset / q->cluster_size;

    return qcow1_co_set_entries(node, q->l1[index / q->table_entries], index % q->table_entries,
                                &place->host, 1);
}
