/* SPDX-License-Identifier: Apache-2.0 */
/* The activity log: the map, and the list of hot regions. */
#include "block/activity_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/debug.h"

int region_list_add(struct region_list *l, uint64_t region)
{
    if (l->count == l->room) {
        size_t room = MAX(l->room * 2, 64);
        uint64_t *grown = realloc(l->regions, room * sizeof(*grown));

        if (!grown) {
            return -ENOMEM;
        }
        l->regions = grown;
        l->room = room;
    }
    l->regions[l->count++] = region;
    return 0;
}

bool block_activity_map_has(const struct block_activity *log, uint64_t region)
{
    return log->map[region / 8] >> (region % 8) & 1;
}

void block_activity_map_set(struct block_activity *log, uint64_t region, bool hot)
{
    uint8_t bit = (uint8_t)(1u << (region % 8));

    log->map[region / 8] =
        (uint8_t)(hot ? log->map[region / 8] | bit : log->map[region / 8] & ~bit);
    log->dirty[region / 8 / MAP_BLOCK] = 1;
}

int block_activity_reserve_hot(struct block_activity *log, size_t more)
{
    size_t needed = log->hot_count + log->pending + more;
    size_t room = MAX(MAX(log->hot_room * 2, 64), needed);
    struct hot_region *grown;

    if (needed <= log->hot_room) {
        return 0;
    }
    grown = realloc(log->hot, room * sizeof(*grown));
    if (!grown) {
        return -ENOMEM;
    }
    log->hot = grown;
    log->hot_room = room;
    return 0;
}

void block_activity_show_hot(struct block_activity *log, uint64_t region)
{
    uint64_t word =
        atomic_fetch_add(&log->regions.word[region], BLOCK_ACTIVITY_HOT | BLOCK_ACTIVITY_USE);

    log->hot[log->hot_count++] = (struct hot_region){
        .region = region, .seen = word + (BLOCK_ACTIVITY_HOT | BLOCK_ACTIVITY_USE)};
    atomic_fetch_add(&log->heated, 1);
}

/*
 * From the last to the first, since the last one takes the place of one that leaves the list.
 */
void block_activity_retire(struct block_activity *log)
{
    for (size_t i = log->stored_count > 0 ? log->hot_count : 0; i-- > 0;) {
        struct hot_region *h = &log->hot[i];
        uint64_t seen = h->seen;

        if (h->stored == 0 || h->stored > log->stable) {
            continue;
        }
        h->stored = 0;
        log->stored_count--;
        if (!atomic_compare_exchange_strong(&log->regions.word[h->region], &seen,
                                            seen & ~BLOCK_ACTIVITY_HOT)) {
            h->seen = seen;
            continue;
        }
        block_activity_map_set(log, h->region, false);
        atomic_fetch_add(&log->cooled, 1);
        *h = log->hot[--log->hot_count];
    }
    log->hand = log->hand < log->hot_count ? log->hand : 0;
    atomic_store(&log->hot_now, log->hot_count + log->pending);
}

size_t block_activity_choose(struct block_activity *log, size_t count, bool only_unused,
                             size_t *ret_victims)
{
    size_t chosen = 0, steps = only_unused ? log->hot_count : 2 * log->hot_count;

    for (size_t i = 0; i < steps && chosen < count; i++) {
        struct hot_region *h = &log->hot[log->hand];
        uint64_t word = atomic_load(&log->regions.word[h->region]);
        bool unused = word == h->seen || i >= log->hot_count;

        if (h->stored == 0) { /* otherwise it was chosen before: `seen` is as it was then */
            h->seen = word;
            if (unused && !(word & BLOCK_ACTIVITY_REQUESTS_MASK)) {
                h->stored = log->sent;
                log->stored_count++;
                ret_victims[chosen++] = log->hand;
            }
        }
        log->hand = log->hand + 1 < log->hot_count ? log->hand + 1 : 0;
    }
    return chosen;
}

void block_activity_forget_stored(struct block_activity *log)
{
    for (size_t i = 0; i < log->hot_count; i++) {
        log->hot[i].stored = 0;
    }
    log->stored_count = 0;
}
