/* SPDX-License-Identifier: Apache-2.0 */
#include "block/activity.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "block/control_lock.h"
#include "block/internal.h"
#include "co/sync.h"
#include "loop/loop.h"
#include "trace/events.h"

/* Bytes of the map that are written as a unit. */
#define MAP_BLOCK 4096u
/* Heating goes ahead of writes that go on: at most this number of regions and bytes. */
#define AHEAD_REGIONS 16u
#define AHEAD_BYTES (1ULL << BLOCK_ACTIVITY_REGION_BITS_MAX)
#define LIMIT_MAX (32ULL * GiB)
#define LIMIT_REGIONS_MIN 16u
/* Victims of one batch. */
#define VICTIMS_MAX 1024u
#define TICK_NS (5 * NS_PER_SECOND)

/* Only its address is used. */
_Atomic uint64_t block_activity_several;

/* A hot region. */
struct hot_region {
    uint64_t region;
    uint64_t seen; /* its word when the sweep passed it last, or when its bits were stored */
    bool ready;    /* its bits are stable as of `seen` */
};

struct block_activity {
    /* First: requests see it alone. */
    struct block_activity_words regions;
    struct block_node *node;
    enum block_durability level;
    uint64_t limit; /* regions */

    /* One batch at a time; guards all up to `wanted_guard`. */
    struct co_mutex mutex;
    bool live;            /* the image has a map */
    atomic_bool given_up; /* it can't have one: all words are hot, and mean nothing */
    uint8_t *map;         /* as it is to be in the image */
    uint64_t map_bytes;
    uint8_t *dirty; /* a byte for each MAP_BLOCK: it is not in the image yet */
    struct hot_region *hot;
    size_t hot_count, hot_room;
    size_t hand;        /* where the sweep continues */
    bool unsynced_bits; /* bits of victims were written since the latest sync */
    bool adopted;       /* from an earlier process, and not synced since: words do not show it */

    /* Regions that requests wait for. */
    pthread_mutex_t wanted_guard;
    uint64_t *wanted;
    size_t wanted_count, wanted_room;

    /* Main reactor. */
    struct loop_timer tick;
    bool started;
    atomic_bool ticking;

    _Atomic uint64_t hot_now, heated, cooled, batches;
};

/* --- life ------------------------------------------------------------------------------------- */

unsigned block_activity_region_bits(uint64_t size)
{
    unsigned bits = BLOCK_ACTIVITY_REGION_BITS_MIN;

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
    log->regions.bits = region_bits;
    log->regions.count = MAX(div_round_up(size, 1ULL << region_bits), 1);
    block_activity_set_options(log, level, limit);
    log->map_bytes = block_activity_map_bytes(size, region_bits);
    log->regions.word = calloc(log->regions.count, sizeof(*log->regions.word));
    log->map = calloc(1, round_up(log->map_bytes, MAP_BLOCK));
    log->dirty = calloc(1, div_round_up(log->map_bytes, MAP_BLOCK));
    co_mutex_init(&log->mutex);
    pthread_mutex_init(&log->wanted_guard, NULL);
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
    pthread_mutex_destroy(&log->wanted_guard);
    free((void *)log->regions.word);
    free(log->map);
    free(log->dirty);
    free(log->hot);
    free(log->wanted);
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
}

/* --- the map ---------------------------------------------------------------------------------- */

static bool map_has(const struct block_activity *log, uint64_t region)
{
    return log->map[region / 8] >> (region % 8) & 1;
}

static void map_set(struct block_activity *log, uint64_t region, bool hot)
{
    uint8_t bit = (uint8_t)(1u << (region % 8));

    log->map[region / 8] =
        (uint8_t)(hot ? log->map[region / 8] | bit : log->map[region / 8] & ~bit);
    log->dirty[region / 8 / MAP_BLOCK] = 1;
}

/* Append to the list of hot regions. -ENOMEM */
static int add_hot(struct block_activity *log, uint64_t region)
{
    if (log->hot_count == log->hot_room) {
        size_t room = MAX(log->hot_room * 2, 64);
        struct hot_region *grown = realloc(log->hot, room * sizeof(*grown));

        if (!grown) {
            return -ENOMEM;
        }
        log->hot = grown;
        log->hot_room = room;
    }
    log->hot[log->hot_count++] =
        (struct hot_region){.region = region, .seen = atomic_load(&log->regions.word[region])};
    return 0;
}

int block_activity_adopt(struct block_activity *log, const uint8_t *map)
{
    int r = 0;

    memcpy(log->map, map, log->map_bytes);
    for (uint64_t region = 0; region < log->regions.count && r == 0; region++) {
        if (map_has(log, region)) {
            r = add_hot(log, region);
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
    log->hot_count = log->hand = 0;
    log->live = log->unsynced_bits = log->adopted = false;
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

/* --- victims ---------------------------------------------------------------------------------- */

/*
 * Regions whose bits are stable become cold, unless they were used since. From the last to the
 * first, since the last one takes the place of one that leaves the list.
 */
static void retire_ready(struct block_activity *log)
{
    for (size_t i = log->hot_count; i-- > 0;) {
        struct hot_region *h = &log->hot[i];
        uint64_t seen = h->seen;

        if (!h->ready) {
            continue;
        }
        h->ready = false;
        if (!atomic_compare_exchange_strong(&log->regions.word[h->region], &seen,
                                            seen & ~BLOCK_ACTIVITY_HOT)) {
            h->seen = seen;
            continue;
        }
        map_set(log, h->region, false);
        atomic_fetch_add(&log->cooled, 1);
        *h = log->hot[--log->hot_count];
    }
    log->hand = log->hand < log->hot_count ? log->hand : 0;
    atomic_store(&log->hot_now, log->hot_count);
}

/*
 * Choose up to `count` regions that nobody is writing to; first those that were not used since the
 * sweep passed them. Their bits are what has to be stored. Returns how many.
 */
static size_t choose_victims(struct block_activity *log, size_t count, bool only_unused,
                             struct hot_region **ret_victims)
{
    size_t chosen = 0, steps = only_unused ? log->hot_count : 2 * log->hot_count;

    for (size_t i = 0; i < steps && chosen < count; i++) {
        struct hot_region *h = &log->hot[log->hand];
        uint64_t word = atomic_load(&log->regions.word[h->region]);
        bool unused = word == h->seen || i >= log->hot_count;

        log->hand = (log->hand + 1) % log->hot_count;
        h->seen = h->ready ? h->seen : word; /* chosen before: as it was then */
        if (unused && !h->ready && !(word & BLOCK_ACTIVITY_REQUESTS_MASK)) {
            h->ready = true;
            ret_victims[chosen++] = h;
        }
    }
    return chosen;
}

static int by_region(const void *a, const void *b)
{
    const struct block_activity_range *x = a, *y = b;

    return x->offset < y->offset ? -1 : x->offset > y->offset;
}

/* Store the bits of victims. On failure they stay hot. */
static int co_store_victims(struct block_activity *log, struct hot_region **victims, size_t count)
{
    AUTO_FREE struct block_activity_range *ranges = calloc(MAX(count, 1), sizeof(*ranges));
    int r = ranges ? 0 : -ENOMEM;

    for (size_t i = 0; ranges && i < count; i++) {
        ranges[i].offset = victims[i]->region << log->regions.bits;
        ranges[i].length = 1ULL << log->regions.bits;
    }
    if (r == 0 && count > 0) {
        qsort(ranges, count, sizeof(*ranges), by_region);
        r = log->node->driver->co_store_bits_of(log->node, ranges, count);
        log->unsynced_bits = true;
    }
    for (size_t i = 0; i < count; i++) {
        victims[i]->ready = r == 0;
    }
    return r;
}

/*
 * Store the bits of `count` victims, so that the next batch can make them cold. An error leaves
 * more regions hot than the limit, which costs nothing but precision after a crash.
 */
static void co_prepare_victims(struct block_activity *log, size_t count, bool only_unused)
{
    struct hot_region *victims[VICTIMS_MAX];
    size_t n = choose_victims(log, MIN(count, VICTIMS_MAX), only_unused, victims);
    int r = co_store_victims(log, victims, n);

    if (r < 0 && r != -EBUSY) {
        log_warning("'%s': the bits of dirty bitmaps can't be stored meanwhile (%s); more than "
                    "necessary will be dirty after a crash",
                    block_node_display_name(log->node), strerror(-r));
    }
}

/* --- batches ---------------------------------------------------------------------------------- */

/*
 * A sync has failed, or the map before it: bits that were written may not be stable. Nothing is
 * ready that counts on them.
 */
static void forget_ready(struct block_activity *log)
{
    for (size_t i = 0; i < log->hot_count; i++) {
        log->hot[i].ready = false;
    }
}

/* Write what has changed of the map, and sync. */
static int co_write_map(struct block_activity *log)
{
    const struct block_driver *driver = log->node->driver;
    size_t blocks = div_round_up(log->map_bytes, MAP_BLOCK), writes = 0;
    bool sync = log->level == BLOCK_DURABILITY_POWER, alone;
    int r = 0;

    for (size_t i = 0; i < blocks; i++) {
        writes += log->dirty[i];
    }
    alone = writes == 1 && !log->unsynced_bits;
    for (size_t i = 0; i < blocks && r == 0; i++) {
        size_t at = i * MAP_BLOCK, size = MIN(MAP_BLOCK, log->map_bytes - at);

        if (log->dirty[i]) {
            r = driver->co_write_activity(log->node, at, log->map + at, size, sync && alone);
        }
    }
    if (r == 0 && sync && !alone && (writes > 0 || log->unsynced_bits)) {
        r = driver->co_sync_activity(log->node);
    }
    if (r == 0) {
        memset(log->dirty, 0, blocks);
        log->unsynced_bits = false;
    } else {
        forget_ready(log);
    }
    return r;
}

/* Take the list of wanted regions. The caller frees it. */
static uint64_t *take_wanted(struct block_activity *log, size_t *ret_count)
{
    uint64_t *wanted;

    pthread_mutex_lock(&log->wanted_guard);
    wanted = log->wanted;
    *ret_count = log->wanted_count;
    log->wanted = NULL;
    log->wanted_count = log->wanted_room = 0;
    pthread_mutex_unlock(&log->wanted_guard);
    return wanted;
}

/* A region becomes hot in the map. Its word follows once that is stable. */
static int heat(struct block_activity *log, uint64_t region)
{
    int r = map_has(log, region) ? 0 : add_hot(log, region);

    if (r == 0) {
        map_set(log, region, true);
    }
    return r;
}

/* A write that goes on from a hot region: heat what follows, which costs no further sync. */
static int heat_ahead(struct block_activity *log, uint64_t region)
{
    uint64_t most = MIN(AHEAD_REGIONS, AHEAD_BYTES >> log->regions.bits);
    int r = 0;

    if (region == 0 || !map_has(log, region - 1)) {
        return 0;
    }
    most = MIN(most, MAX(log->limit / 16, 1));
    for (uint64_t k = 1; k < most && region + k < log->regions.count && r == 0; k++) {
        r = heat(log, region + k);
    }
    return r;
}

/* The map is in the image: words follow. From `first` on the regions of the list are new. */
static void show_hot(struct block_activity *log, size_t first)
{
    for (size_t i = first; i < log->hot_count; i++) {
        uint64_t word = atomic_fetch_add(&log->regions.word[log->hot[i].region],
                                         BLOCK_ACTIVITY_HOT | BLOCK_ACTIVITY_USE);

        log->hot[i].seen = word + (BLOCK_ACTIVITY_HOT | BLOCK_ACTIVITY_USE);
        atomic_fetch_add(&log->heated, 1);
    }
    atomic_store(&log->hot_now, log->hot_count);
}

/* The map could not be written: what was added is taken back. The image may have it as hot. */
static void take_back(struct block_activity *log, size_t first)
{
    while (log->hot_count > first) {
        map_set(log, log->hot[--log->hot_count].region, false);
    }
    log->hand = log->hand < log->hot_count ? log->hand : 0;
}

static int co_begin_log(struct block_activity *log)
{
    int r = log->live || log->given_up ? 0 : log->node->driver->co_begin_activity(log->node);

    log->live = log->live || (r == 0 && !log->given_up);
    return r;
}

/*
 * What an earlier process left may be in the page cache only, the marks and bits included: it was
 * killed before it synced, or did not sync at all.
 */
static int co_confirm_adopted(struct block_activity *log)
{
    int r;

    if (!log->adopted) {
        return 0;
    }
    log->unsynced_bits = true;
    r = co_write_map(log);
    if (r == 0) {
        log->adopted = false;
        show_hot(log, 0);
    }
    return r;
}

static int co_heat_all(struct block_activity *log, const uint64_t *wanted, size_t count)
{
    size_t first = log->hot_count, excess;
    int r = 0;

    for (size_t i = 0; i < count && r == 0; i++) {
        bool is_new = !map_has(log, wanted[i]);

        r = heat(log, wanted[i]);
        if (r == 0 && is_new) {
            r = heat_ahead(log, wanted[i]);
        }
    }
    excess = log->hot_count + log->limit / 16;
    if (r == 0 && excess > log->limit && log->limit < log->regions.count) {
        /* Of the regions that were hot before: the new ones are not in their words yet. */
        size_t all = log->hot_count;

        log->hot_count = first;
        log->hand = log->hand < first ? log->hand : 0;
        if (first > 0) {
            co_prepare_victims(log, MAX(excess - log->limit, count), false);
        }
        log->hot_count = all;
    }
    UNLESS_FAILED(r, co_write_map(log));
    if (r < 0) {
        take_back(log, first);
        return r;
    }
    show_hot(log, first);
    return 0;
}

/* Make all regions hot that requests wait for. The mutex is held. */
static int co_run_batch(struct block_activity *log)
{
    size_t count;
    AUTO_FREE uint64_t *wanted = take_wanted(log, &count);
    int r = co_begin_log(log);

    UNLESS_FAILED(r, co_confirm_adopted(log));
    if (r < 0 || log->given_up) {
        return r;
    }
    trace_block_activity_batch(log->node->name, count, log->hot_count);
    atomic_fetch_add(&log->batches, 1);
    retire_ready(log);
    return co_heat_all(log, wanted, count);
}

/* --- requests --------------------------------------------------------------------------------- */

static uint64_t first_region(const struct block_activity *log, uint64_t offset)
{
    return offset >> log->regions.bits;
}

/* The end of the regions of a range. A part beyond the disk has none. */
static uint64_t end_region(const struct block_activity *log, uint64_t offset, uint64_t length)
{
    return MIN(div_round_up(offset + length, 1ULL << log->regions.bits), log->regions.count);
}

static bool is_hot(struct block_activity *log, uint64_t region)
{
    return atomic_load(&log->regions.word[region]) & BLOCK_ACTIVITY_HOT;
}

/* Ask for the cold regions of a range. Returns 1 if there are any, or -ENOMEM. */
static int want_cold(struct block_activity *log, uint64_t first, uint64_t end)
{
    int r = 0;

    pthread_mutex_lock(&log->wanted_guard);
    for (uint64_t region = first; region < end && r >= 0; region++) {
        if (is_hot(log, region)) {
            continue;
        }
        if (log->wanted_count == log->wanted_room) {
            size_t room = MAX(log->wanted_room * 2, 64);
            uint64_t *grown = realloc(log->wanted, room * sizeof(*grown));

            r = grown ? r : -ENOMEM;
            log->wanted = grown ? grown : log->wanted;
            log->wanted_room = grown ? room : log->wanted_room;
        }
        if (r >= 0) {
            log->wanted[log->wanted_count++] = region;
            r = 1;
        }
    }
    pthread_mutex_unlock(&log->wanted_guard);
    return r;
}

/* Some region is cold: wait for a batch, or run one. */
static __attribute__((noinline)) int co_wait_until_hot(struct block_activity *log, uint64_t first,
                                                       uint64_t end)
{
    int r;

    do {
        r = want_cold(log, first, end);
        if (r <= 0) {
            break;
        }
        co_mutex_lock(&log->mutex);
        r = 0;
        for (uint64_t region = first; region < end && r == 0; region++) {
            if (!is_hot(log, region)) {
                r = co_run_batch(log);
                break;
            }
        }
        co_mutex_unlock(&log->mutex);
    } while (r == 0);
    return r;
}

static void leave_regions(struct block_activity *log, uint64_t first, uint64_t end)
{
    for (uint64_t region = first; region < end; region++) {
        atomic_fetch_sub(&log->regions.word[region], BLOCK_ACTIVITY_REQUEST);
    }
}

static int co_enter_regions(struct block_activity *log, uint64_t first, uint64_t end)
{
    uint64_t all = BLOCK_ACTIVITY_HOT;
    int r;

    for (uint64_t region = first; region < end; region++) {
        all &= atomic_fetch_add(&log->regions.word[region],
                                BLOCK_ACTIVITY_REQUEST | BLOCK_ACTIVITY_USE);
    }
    r = all & BLOCK_ACTIVITY_HOT ? 0 : co_wait_until_hot(log, first, end);
    if (r < 0) {
        leave_regions(log, first, end);
    }
    return r;
}

int block_co_activity_enter_slow(struct block_activity *log, uint64_t offset, uint64_t length)
{
    return co_enter_regions(log, first_region(log, offset), end_region(log, offset, length));
}

void block_activity_leave_slow(struct block_activity *log, uint64_t offset, uint64_t length)
{
    leave_regions(log, first_region(log, offset), end_region(log, offset, length));
}

int block_co_activity_begin(struct block_activity *log)
{
    int r;

    co_mutex_lock(&log->mutex);
    r = co_begin_log(log);
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
static void co_cool_idle(void *arg)
{
    struct block_activity *log = arg;

    co_mutex_lock(&log->mutex);
    if (log->live && log->hot_count > 0 && co_confirm_adopted(log) == 0) {
        retire_ready(log);
        if (log->hot_count > 0) {
            co_prepare_victims(log, VICTIMS_MAX, true);
        }
        if (co_write_map(log) == 0) {
            retire_ready(log);
            (void)co_write_map(log); /* an error leaves regions hot in the image */
        }
    }
    if (log->given_up) {
        try_to_come_back(log);
    }
    co_mutex_unlock(&log->mutex);
    atomic_store(&log->ticking, false);
    if (log->started) {
        arm_tick(log);
    }
}

void block_co_activity_cool(struct block_activity *log)
{
    co_mutex_lock(&log->mutex);
    if (log->live && co_confirm_adopted(log) == 0) {
        for (size_t i = 0; i < log->hot_count; i++) {
            log->hot[i].seen = atomic_load(&log->regions.word[log->hot[i].region]);
            log->hot[i].ready = !(log->hot[i].seen & BLOCK_ACTIVITY_REQUESTS_MASK);
        }
        retire_ready(log);
        (void)co_write_map(log); /* an error leaves regions hot in the image */
    }
    co_mutex_unlock(&log->mutex);
}

static void tick(struct loop_timer *timer)
{
    struct block_activity *log = container_of(timer, struct block_activity, tick);

    if (!log->started) {
        return;
    }
    atomic_store(&log->ticking, true);
    if (reactor_spawn(reactor_main(), co_cool_idle, log) < 0) {
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
