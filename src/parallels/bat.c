/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The BAT, and the places in the file. A place becomes free when its entry was taken out of the
 * BAT. It is used again only when that is stable, else a crash would leave the entry, and one
 * cluster of the disk would show what was written to another.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "parallels/image.h"

/* Of the map of places: 64 MiB. */
#define PLACES_MAX (UINT64_C(1) << 29)

/* --- places ----------------------------------------------------------------------------------- */

uint64_t parallels_bat_end(uint64_t entries)
{
    return PARALLELS_HEADER_SIZE + entries * sizeof(uint32_t);
}

uint64_t parallels_least_data(const struct parallels *p)
{
    /* In units, since entries count in them. */
    return div_round_up(p->bat_end, p->unit) * p->unit;
}

bool parallels_is_data_valid(const struct block_node *node)
{
    const struct parallels *p = node->opaque;
    uint64_t offset = (uint64_t)p->data_sector * PARALLELS_SECTOR;
    /* Images in sectors may have none: it follows the BAT. */
    bool may_miss = p->unit == PARALLELS_SECTOR;

    return p->data_sector == 0
               ? may_miss
               : offset >= parallels_least_data(p) && offset <= block_edge_size(node->file);
}

uint64_t parallels_place(const struct parallels *p, uint32_t entry)
{
    uint64_t place;

    return mul_overflows(entry, p->unit, &place) ? UINT64_MAX : place;
}

bool parallels_is_place(const struct block_node *node, uint64_t place)
{
    const struct parallels *p = node->opaque;

    /* The last cluster may be cut: what is not there reads as zeroes. */
    return place >= p->bat_end && place < block_edge_size(node->file);
}

static bool place_is_used(const struct parallels *p, uint64_t index)
{
    return !p->used || (p->used[index / 8] & (1u << index % 8));
}

/* Let `used` have `count` places. */
static int make_places(struct parallels *p, uint64_t count)
{
    uint64_t capacity = MAX(p->capacity * 2, count + 1024);
    uint8_t *used;

    if (count <= p->capacity) {
        return 0;
    }
    if (count > PLACES_MAX) {
        free(p->used);
        p->used = NULL;
        p->capacity = UINT64_MAX;
        return 0;
    }
    capacity = round_up(MIN(capacity, PLACES_MAX), 8);
    used = realloc(p->used, capacity / 8);
    if (!used) {
        return -ENOMEM;
    }
    memset(used + p->capacity / 8, 0, (capacity - p->capacity) / 8);
    p->used = used;
    p->capacity = capacity;
    return 0;
}

/* Mark places. *ret_shared becomes true if one was in use already. */
static int take_places(struct parallels *p, uint64_t first, uint64_t last, bool *ret_shared)
{
    int r = make_places(p, last + 1);

    if (r < 0) {
        return r;
    }
    for (uint64_t i = first; i <= last && p->used; i++) {
        uint8_t bit = (uint8_t)(1u << i % 8);

        *ret_shared = *ret_shared || (p->used[i / 8] & bit);
        p->used[i / 8] |= bit;
    }
    p->end = MAX(p->end, last + 1);
    return 0;
}

int parallels_use(struct parallels *p, uint64_t offset, uint64_t length)
{
    uint64_t end = offset + length;
    bool shared = false;

    if (length == 0 || end <= p->origin) {
        return 0;
    }
    offset = MAX(offset, p->origin);
    return take_places(p, (offset - p->origin) / p->cluster_size,
                       (end - 1 - p->origin) / p->cluster_size, &shared);
}

/* Where places begin: with the data area, or where the clusters are that the image has already. */
static void find_origin(struct block_node *node)
{
    struct parallels *p = node->opaque;
    uint64_t data = (uint64_t)p->data_sector * PARALLELS_SECTOR, lowest = UINT64_MAX;

    if (p->data_sector == 0 || !parallels_is_data_valid(node)) {
        data = parallels_least_data(p);
    }
    data = div_round_up(data, p->unit) * p->unit;
    for (uint32_t i = 0; i < p->entries; i++) {
        uint64_t place = parallels_place(p, p->bat[i]);

        if (p->bat[i] != 0 && parallels_is_place(node, place)) {
            lowest = MIN(lowest, place);
        }
    }
    p->origin = data;
    if (lowest != UINT64_MAX) {
        p->origin = lowest < data ? lowest : data + (lowest - data) % p->cluster_size;
    }
}

int parallels_find_places(struct block_node *node)
{
    struct parallels *p = node->opaque;
    int r = 0;

    find_origin(node);
    free(p->used);
    p->used = NULL;
    p->end = p->capacity = p->first_free = 0;
    for (uint32_t i = 0; i < p->entries && r == 0; i++) {
        uint64_t place = parallels_place(p, p->bat[i]);
        bool shared = false;

        if (p->bat[i] == 0) {
            continue;
        }
        if (!parallels_is_place(node, place)) {
            p->needs_repair = true;
            continue;
        }
        r = take_places(p, (place - p->origin) / p->cluster_size,
                        (place + p->cluster_size - 1 - p->origin) / p->cluster_size, &shared);
        /* Of those that are not whole places, a closer look tells. */
        p->needs_repair = p->needs_repair || shared ||
                          !range_fits(place, p->cluster_size, block_edge_size(node->file));
    }
    return r;
}

uint64_t parallels_data_end(const struct parallels *p)
{
    return p->origin + p->end * p->cluster_size;
}

/* After a place became free. */
static void find_end(struct parallels *p)
{
    while (p->used && p->end > 0 && !place_is_used(p, p->end - 1)) {
        p->end--;
    }
    p->first_free = MIN(p->first_free, p->end);
}

static void free_place(struct parallels *p, uint64_t place)
{
    uint64_t index = (place - p->origin) / p->cluster_size;

    /* One that is not on the grid may share a place with its neighbours: it is lost. */
    if ((place - p->origin) % p->cluster_size == 0 && p->used) {
        p->used[index / 8] &= (uint8_t) ~(1u << index % 8);
        p->first_free = MIN(p->first_free, index);
        find_end(p);
    }
}

/* --- runs ------------------------------------------------------------------------------------- */

static uint32_t bat_entry(const struct parallels *p, uint64_t index)
{
    return __atomic_load_n(&p->bat[index], __ATOMIC_ACQUIRE);
}

int parallels_co_find(struct block_node *node, uint64_t offset, uint64_t length,
                      struct blockmap_run *ret_run)
{
    const struct parallels *p = node->opaque;
    uint64_t index = offset / p->cluster_size, within = offset % p->cluster_size;
    uint64_t end = offset - within + p->cluster_size, place, last;
    uint32_t entry;

    if (!p->bat) {
        return -EFBIG;
    }
    entry = bat_entry(p, index);
    place = last = parallels_place(p, entry);
    if (entry != 0 && !parallels_is_place(node, place)) {
        return -EIO;
    }
    while (end < offset + length) {
        uint32_t next = bat_entry(p, ++index);

        last += p->cluster_size;
        if (entry == 0 ? next != 0
                       : parallels_place(p, next) != last || !parallels_is_place(node, last)) {
            break;
        }
        end += p->cluster_size;
    }
    *ret_run = (struct blockmap_run){.kind = entry == 0 ? BLOCKMAP_ABSENT : BLOCKMAP_DATA,
                                     .length = MIN(length, end - offset),
                                     .edge = node->file,
                                     .host = entry == 0 ? 0 : place + within};
    return 0;
}

/* --- changes ---------------------------------------------------------------------------------- */

int parallels_co_set_entry_locked(struct block_node *node, uint64_t index, uint32_t entry)
{
    struct parallels *p = node->opaque;
    uint8_t bytes[sizeof(entry)];
    int r;

    CO_ASSERT_HELD(&p->map.lock);
    store_le32(bytes, entry);
    r = block_co_pwrite(node->file, parallels_bat_end(index), bytes, sizeof(bytes), 0);
    if (r == 0) {
        __atomic_store_n(&p->bat[index], entry, __ATOMIC_RELEASE);
    }
    return r;
}

static uint64_t find_free(struct parallels *p)
{
    uint64_t index = p->used ? p->first_free : p->end;

    while (index < p->end && place_is_used(p, index)) {
        index++;
    }
    p->first_free = index;
    return index;
}

int parallels_co_reserve_locked(struct block_node *node, uint64_t offset, uint64_t length,
                                struct blockmap_place *ret_place)
{
    struct parallels *p = node->opaque;
    uint64_t index = find_free(p), place = p->origin + index * p->cluster_size;
    bool shared = false;
    int r = 0;

    if (place / p->unit > UINT32_MAX) {
        return -EFBIG;
    }
    if (p->has_unlinked) {
        r = block_co_flush(node->file);
        p->has_unlinked = r < 0;
    }
    UNLESS_FAILED(
        r, blockmap_co_make_room_locked(node->file, &p->room, place + p->cluster_size, NULL));
    UNLESS_FAILED(r, take_places(p, index, index, &shared));
    if (r < 0) {
        return r;
    }
    *ret_place = (struct blockmap_place){
        .edge = node->file, .host = place, .is_zero = place >= p->zero_from};
    p->zero_from = MAX(p->zero_from, place + p->cluster_size);
    return 0;
}

void parallels_co_give_back_locked(struct block_node *node, const struct blockmap_place *place)
{
    struct parallels *p = node->opaque;

    if (!p->used && place->host == p->origin + (p->end - 1) * p->cluster_size) {
        p->end--;
    }
    free_place(p, place->host);
}

int parallels_co_link_locked(struct block_node *node, uint64_t offset,
                             const struct blockmap_place *place)
{
    const struct parallels *p = node->opaque;

    return parallels_co_set_entry_locked(node, offset / p->cluster_size,
                                         (uint32_t)(place->host / p->unit));
}

static int co_unlink_locked(struct block_node *node, uint64_t index)
{
    struct parallels *p = node->opaque;
    uint64_t place = parallels_place(p, p->bat[index]);
    int r = parallels_co_set_entry_locked(node, index, 0);

    if (r < 0) {
        return r;
    }
    p->has_unlinked = true;
    p->room.is_used = true; /* it may have been the last one of the file */
    /* Gives the space back. If that fails nothing is lost: the place has no owner. */
    (void)block_co_discard(node->file, place, p->cluster_size);
    free_place(p, place);
    return 0;
}

int parallels_co_unlink(struct block_node *node, uint64_t offset)
{
    struct parallels *p = node->opaque;
    uint64_t index = offset / p->cluster_size;
    struct range_entry entry;
    int r = 0;

    co_range_lock(&p->requests, &entry, offset, p->cluster_size, true);
    co_mutex_lock(&p->map.lock);
    if (p->bat[index] != 0) {
        r = co_unlink_locked(node, index);
    }
    co_mutex_unlock(&p->map.lock);
    range_unlock(&p->requests, &entry);
    return r;
}
