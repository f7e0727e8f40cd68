/* SPDX-License-Identifier: Apache-2.0 */
#include "block/activity_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "block/control_lock.h"
#include "block/internal.h"

#define LIMIT_MAX (32ULL * GiB)
#define LIMIT_REGIONS_MIN 4u
/* Smaller ones only if 1% of the disk is too little for LIMIT_REGIONS_MIN of these. */
#define REGION_BITS_USUAL 16u
#define TICK_NS (5 * NS_PER_SECOND)

/* Only its address is used. */
_Atomic uint64_t block_activity_several;

/* --- life ------------------------------------------------------------------------------------- */

unsigned block_activity_region_bits(uint64_t size)
{
    unsigned bits = REGION_BITS_USUAL;

    while (bits > BLOCK_ACTIVITY_REGION_BITS_MIN && size / 100 >> bits < LIMIT_REGIONS_MIN) {
        bits--;
    }
    while (bits < BLOCK_ACTIVITY_REGION_BITS_MAX && size >> bits > 1u << 18) {
        bits++;
    }
    return bits;
}

uint64_t block_activity_map_bytes(uint64_t size, unsigned region_bits)
{
    return div_round_up(div_round_up(MAX(size, 1), 1ULL << region_bits), 8);
}

static void arm_tick(struct block_activity *log)
{
    loop_timer_arm(&log->tick, loop_now_ns() + TICK_NS);
}

static void tick(struct loop_timer *timer);

void block_activity_set_options(struct block_activity *log, enum block_durability level,
                                uint64_t limit)
{
    limit = limit ? limit : MIN(block_node_size(log->node) / 100, LIMIT_MAX);
    log->level = level;
    log->limit = MAX(limit >> log->regions.bits, LIMIT_REGIONS_MIN);
}

struct block_activity *block_activity_new(struct block_node *node, enum block_durability level,
                                          unsigned region_bits, uint64_t limit)
{
    struct block_activity *log = calloc(1, sizeof(*log));
    uint64_t size = block_node_size(node);

    if (!log) {
        return NULL;
    }
    log->node = node;
    log->sent = log->stable = 1;
    log->regions.bits = region_bits;
    log->regions.count = MAX(div_round_up(size, 1ULL << region_bits), 1);
    block_activity_set_options(log, level, limit);
    log->map_bytes = block_activity_map_bytes(size, region_bits);
    log->regions.word = calloc(log->regions.count, sizeof(*log->regions.word));
    log->map = calloc(1, round_up(log->map_bytes, MAP_BLOCK));
    log->dirty = calloc(1, div_round_up(log->map_bytes, MAP_BLOCK));
    co_mutex_init(&log->mutex);
    pthread_mutex_init(&log->guard, NULL);
    list_init(&log->flying);
    co_queue_init(&log->leaders);
    loop_timer_init(&log->tick, tick);
    if (!log->regions.word || !log->map || !log->dirty) {
        block_activity_free(log);
        return NULL;
    }
    return log;
}

void block_activity_free(struct block_activity *log)
{
    if (!log) {
        return;
    }
    block_activity_stop(log);
    co_mutex_destroy(&log->mutex);
    pthread_mutex_destroy(&log->guard);
    free((void *)log->regions.word);
    free(log->map);
    free(log->dirty);
    free(log->hot);
    free(log);
}

void block_activity_update(struct block_node *node)
{
    struct block_bitmap *b;
    bool records = false;

    LIST_FOREACH (b, &node->bitmaps, link) {
        records = records || (b->persistent && b->enabled && !b->inconsistent && !b->read_only);
    }
    node->activity = records && !node->read_only ? node->log : NULL;
    block_update_detour(node);
}

int block_activity_adopt(struct block_activity *log, const uint8_t *map)
{
    int r = 0;

    memcpy(log->map, map, log->map_bytes);
    for (uint64_t region = 0; region < log->regions.count && r == 0; region++) {
        if (block_activity_map_has(log, region)) {
            r = block_activity_reserve_hot(log, 1);
            if (r == 0) {
                log->hot[log->hot_count++] = (struct hot_region){.region = region};
            }
        }
    }
    memset(log->dirty, 1, div_round_up(log->map_bytes, MAP_BLOCK));
    log->live = log->adopted = true;
    atomic_store(&log->hot_now, log->hot_count);
    return r;
}

void block_activity_ended(struct block_activity *log)
{
    for (size_t i = 0; i < log->hot_count; i++) {
        atomic_fetch_and(&log->regions.word[log->hot[i].region], ~BLOCK_ACTIVITY_HOT);
    }
    if (log->given_up) {
        for (uint64_t region = 0; region < log->regions.count; region++) {
            atomic_fetch_and(&log->regions.word[region], ~BLOCK_ACTIVITY_HOT);
        }
    }
    memset(log->map, 0, log->map_bytes);
    memset(log->dirty, 0, div_round_up(log->map_bytes, MAP_BLOCK));
    log->hot_count = log->stored_count = log->hand = 0;
    log->live = log->unsynced = log->adopted = false;
    log->given_up = false;
    atomic_store(&log->hot_now, 0);
}

void block_activity_give_up(struct block_activity *log)
{
    log->given_up = true;
    for (uint64_t region = 0; region < log->regions.count; region++) {
        atomic_fetch_or(&log->regions.word[region], BLOCK_ACTIVITY_HOT);
    }
}

bool block_activity_is_live(const struct block_activity *log)
{
    return log->live;
}

/* --- requests --------------------------------------------------------------------------------- */

static void leave_regions(struct block_activity *log, uint64_t first, uint64_t end)
{
    for (uint64_t region = first; region < end; region++) {
        atomic_fetch_sub(&log->regions.word[region], BLOCK_ACTIVITY_REQUEST);
    }
}

int block_co_activity_enter_slow(struct block_activity *log, uint64_t offset, uint64_t length)
{
    const uint64_t first = block_activity_first(log, offset);
    const uint64_t end = block_activity_end(log, offset, length);
    uint64_t all = BLOCK_ACTIVITY_HOT;
    int r;

    for (uint64_t region = first; region < end; region++) {
        all &= atomic_fetch_add(&log->regions.word[region],
                                BLOCK_ACTIVITY_REQUEST | BLOCK_ACTIVITY_USE);
    }
    r = all & BLOCK_ACTIVITY_HOT ? 0 : block_co_activity_wait_until_hot(log, offset, length);
    if (r < 0) {
        leave_regions(log, first, end);
    }
    return r;
}

void block_activity_leave_slow(struct block_activity *log, uint64_t offset, uint64_t length)
{
    leave_regions(log, block_activity_first(log, offset), block_activity_end(log, offset, length));
}

int block_co_activity_begin(struct block_activity *log)
{
    int r;

    co_mutex_lock(&log->mutex);
    r = block_co_activity_begin_locked(log);
    co_mutex_unlock(&log->mutex);
    return r;
}

int block_co_activity_heat(struct block_activity *log, uint64_t offset, uint64_t length)
{
    block_activity_entry entry;
    int r = block_co_activity_enter(log, offset, length, &entry);

    if (r == 0) {
        block_activity_leave(log, entry, offset, length);
    }
    return r;
}

/* --- background ------------------------------------------------------------------------------- */

/*
 * The image could not have a log. If it has room now: with no request in flight, store all bits;
 * then all regions are cold, and the next write begins the log. `arg`: the name of the node, which
 * may be gone. Owned.
 */
static void co_come_back(void *arg)
{
    AUTO_FREE char *name = arg;
    struct block_node *node;
    ERROR_AUTO(err);

    block_co_control_lock();
    node = block_node_find(name);
    if (node && node->log && node->log->given_up && node->driver->co_activity_has_room(node)) {
        block_co_drain_begin(node);
        if (node->log && node->log->given_up && node->driver->co_commit_bitmaps(node, &err) == 0) {
            block_activity_ended(node->log);
            log_notice("'%s': there is room for the activity log again: dirty bitmaps survive a "
                       "crash",
                       block_node_display_name(node));
        }
        block_drain_end(node);
    }
    block_control_unlock();
}

/* Not as a part of the tick, which a drain waits for. Without memory: with the next one. */
static void try_to_come_back(const struct block_activity *log)
{
    char *name = strdup(block_node_name(log->node));

    if (name && reactor_spawn(reactor_main(), co_come_back, name) < 0) {
        free(name);
    }
}

/* Regions that were not used since the last tick become cold. */
static void co_tick(void *arg)
{
    struct block_activity *log = arg;

    block_co_activity_cool_idle(log);
    if (log->given_up) {
        try_to_come_back(log);
    }
    atomic_store(&log->ticking, false);
    if (log->started) {
        arm_tick(log);
    }
}

static void tick(struct loop_timer *timer)
{
    struct block_activity *log = container_of(timer, struct block_activity, tick);

    if (!log->started) {
        return;
    }
    atomic_store(&log->ticking, true);
    if (reactor_spawn(reactor_main(), co_tick, log) < 0) {
        atomic_store(&log->ticking, false);
        arm_tick(log);
    }
}

void block_activity_start(struct block_activity *log)
{
    if (!log->started && !log->node->quiesced) {
        log->started = true;
        arm_tick(log);
    }
}

void block_activity_stop(struct block_activity *log)
{
    log->started = false;
    loop_timer_disarm(&log->tick);
}

bool block_activity_is_busy(const struct block_activity *log)
{
    return atomic_load(&log->ticking);
}

/* --- figures ---------------------------------------------------------------------------------- */

void block_activity_read_figures(const struct block_activity *log,
                                 struct block_activity_figures *ret_figures)
{
    *ret_figures = (struct block_activity_figures){
        .region_size = 1ULL << log->regions.bits,
        .limit = log->limit << log->regions.bits,
        .hot = atomic_load(&log->hot_now) << log->regions.bits,
        .heated = atomic_load(&log->heated),
        .cooled = atomic_load(&log->cooled),
        .batches = atomic_load(&log->batches),
        .given_up = log->given_up,
    };
}

uint64_t block_activity_region_size(const struct block_activity *log)
{
    return 1ULL << log->regions.bits;
}

const uint8_t *block_activity_map(const struct block_activity *log)
{
    return log->map;
}
