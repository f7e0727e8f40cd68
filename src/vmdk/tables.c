/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Grain tables: 32-bit sectors of the grains; 0 is a grain that the image does not have, 1 one of
 * zeroes if the header says so.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/debug.h"
#include "vmdk/image.h"

#define ZERO_GRAIN 1
/* Grain tables that an extent keeps in memory. */
#define CACHED_TABLES 64

struct vmdk_cached_table {
    /* 0: none; else the sector of the table */
    uint32_t sector;
    uint32_t entry[VMDK_TABLE_MAX];
};

int vmdk_make_table_cache(struct vmdk_extent *e)
{
    e->cache = calloc(CACHED_TABLES, sizeof(*e->cache));
    return e->cache ? 0 : -ENOMEM;
}

void vmdk_forget_tables_locked(struct vmdk_extent *e)
{
    MUTEX_ASSERT_HELD(&e->cache_lock);
    e->generation++;
    for (unsigned i = 0; i < CACHED_TABLES; i++) {
        e->cache[i].sector = 0;
    }
}

static struct vmdk_cached_table *slot_of(struct vmdk_extent *e, uint32_t sector)
{
    return &e->cache[sector / (VMDK_TABLE_MAX * 4 / VMDK_SECTOR) % CACHED_TABLES];
}

/* Copy `count` entries from `first` of a table that is in the cache. */
static bool copy_cached(struct vmdk_extent *e, uint32_t sector, uint32_t first, uint32_t count,
                        uint32_t *entries, uint64_t *ret_generation)
{
    struct vmdk_cached_table *slot = slot_of(e, sector);
    bool found;

    pthread_mutex_lock(&e->cache_lock);
    found = slot->sector == sector;
    if (found) {
        memcpy(entries, slot->entry + first, count * sizeof(*entries));
    }
    *ret_generation = e->generation;
    pthread_mutex_unlock(&e->cache_lock);
    return found;
}

/* Entries [first, first + count) of a table. */
static int co_get_entries(struct vmdk_extent *e, uint32_t sector, uint32_t first, uint32_t count,
                          uint32_t *entries)
{
    uint32_t table[VMDK_TABLE_MAX];
    uint64_t generation;
    int r;

    if (copy_cached(e, sector, first, count, entries, &generation)) {
        return 0;
    }
    r = block_co_pread(e->edge, (uint64_t)sector * VMDK_SECTOR, table,
                       e->table_entries * sizeof(*table));
    if (r < 0) {
        return r;
    }
    for (uint32_t i = 0; i < e->table_entries; i++) {
        table[i] = load_le32(&table[i]);
    }
    memcpy(entries, table + first, count * sizeof(*entries));
    pthread_mutex_lock(&e->cache_lock);
    if (generation == e->generation) {
        struct vmdk_cached_table *slot = slot_of(e, sector);

        slot->sector = sector;
        memcpy(slot->entry, table, e->table_entries * sizeof(*table));
    }
    pthread_mutex_unlock(&e->cache_lock);
    return 0;
}

int vmdk_co_get_entry(struct vmdk_extent *e, uint64_t within, uint32_t *ret_entry)
{
    uint64_t grain = within / e->grain_size;
    uint32_t sector = e->directory[grain / e->table_entries];

    if (sector == 0) {
        *ret_entry = 0;
        return 0;
    }
    return co_get_entries(e, sector, (uint32_t)(grain % e->table_entries), 1, ret_entry);
}

int vmdk_co_set_entry(struct vmdk_extent *e, uint64_t within, uint32_t entry)
{
    uint64_t grain = within / e->grain_size;
    uint32_t index = (uint32_t)(grain % e->table_entries), sector, copy;
    struct vmdk_cached_table *slot;
    uint8_t bytes[4];
    int r = 0;

    sector = e->directory[grain / e->table_entries];
    copy = e->copies ? e->copies[grain / e->table_entries] : 0;
    if (sector == 0) {
        return -ENOTSUP;
    }
    store_le32(bytes, entry);
    if (copy != 0) {
        r = block_co_pwrite(e->edge, (uint64_t)copy * VMDK_SECTOR + index * sizeof(bytes), bytes,
                            sizeof(bytes), 0);
    }
    UNLESS_FAILED(r,
                  block_co_pwrite(e->edge, (uint64_t)sector * VMDK_SECTOR + index * sizeof(bytes),
                                  bytes, sizeof(bytes), 0));
    pthread_mutex_lock(&e->cache_lock);
    e->generation++;
    slot = slot_of(e, sector);
    if (slot->sector == sector) {
        if (r == 0) {
            slot->entry[index] = entry;
        } else {
            slot->sector = 0; /* it may have been written */
        }
    }
    pthread_mutex_unlock(&e->cache_lock);
    return r;
}

/* What an entry is. -EIO: a grain outside the file. */
static int kind_of(const struct vmdk_extent *e, uint32_t entry, enum blockmap_kind *ret_kind)
{
    if (entry == 0) {
        *ret_kind = BLOCKMAP_ABSENT;
    } else if (entry == ZERO_GRAIN && e->has_zero_grains) {
        *ret_kind = BLOCKMAP_ZERO;
    } else if ((uint64_t)entry * VMDK_SECTOR >= block_edge_size(e->edge)) {
        return -EIO;
    } else {
        *ret_kind = e->compressed ? BLOCKMAP_COMPRESSED : BLOCKMAP_DATA;
    }
    return 0;
}

/* Whether the grain that the entry `next` is for continues the one before. */
static bool continues_grain(const struct vmdk_extent *e, enum blockmap_kind kind, uint32_t entry,
                            uint32_t next)
{
    switch (kind) {
    case BLOCKMAP_ABSENT:
        return next == 0;
    case BLOCKMAP_ZERO:
        return next == ZERO_GRAIN;
    case BLOCKMAP_DATA:
        return next == entry + e->grain_size / VMDK_SECTOR;
    case BLOCKMAP_COMPRESSED:
        break;
    }
    return false;
}

int vmdk_co_find_grains(struct vmdk_extent *e, uint64_t within, uint64_t length,
                        struct blockmap_run *ret_run)
{
    uint64_t grain = within / e->grain_size, lead = within % e->grain_size;
    uint32_t first = (uint32_t)(grain % e->table_entries), n = 1;
    uint32_t sector = e->directory[grain / e->table_entries];
    uint32_t count =
        (uint32_t)MIN(div_round_up(lead + length, e->grain_size), e->table_entries - first);
    uint32_t entries[VMDK_TABLE_MAX];
    enum blockmap_kind kind;
    int r = 0;

    if (sector == 0) {
        *ret_run = (struct blockmap_run){
            .length = MIN(length, (e->table_entries - first) * e->grain_size - lead)};
        return 0;
    }
    r = co_get_entries(e, sector, first, count, entries);
    UNLESS_FAILED(r, kind_of(e, entries[0], &kind));
    if (r < 0) {
        return r;
    }
    while (n < count && continues_grain(e, kind, entries[n - 1], entries[n])) {
        n++;
    }
    *ret_run = (struct blockmap_run){.kind = kind,
                                     .length = MIN(length, n * e->grain_size - lead),
                                     .edge = e->edge,
                                     .host = (uint64_t)entries[0] * VMDK_SECTOR};
    if (kind == BLOCKMAP_DATA) {
        ret_run->host += lead;
    }
    return 0;
}

int vmdk_co_check_extent(struct block_node *node, struct vmdk_extent *e,
                         struct block_check_result *result)
{
    for (uint64_t within = 0; within < e->size; within += e->grain_size) {
        enum blockmap_kind kind;
        uint32_t entry;
        int r = vmdk_co_get_entry(e, within, &entry);

        if (r < 0) {
            result->check_errors++;
            return r;
        }
        if (kind_of(e, entry, &kind) < 0) {
            result->corruptions++;
        }
    }
    return 0;
}
