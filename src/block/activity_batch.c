/* SPDX-License-Identifier: Apache-2.0 */
/* The activity log: batches, which make regions hot and cold. */
#include "block/activity_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/debug.h"
#include "base/log.h"
#include "block/internal.h"
#include "trace/events.h"

/* Heating goes ahead of writes that go on: at most this number of regions and bytes. */
#define AHEAD_REGIONS 16u
#define AHEAD_BYTES (1ULL << BLOCK_ACTIVITY_REGION_BITS_MAX)
/* In the list of wanted regions: a write goes on there, from the region before. */
#define GOES_ON (1ULL << 63)
/* Victims of one batch. */
#define VICTIMS_MAX 1024u

/* --- batches ---------------------------------------------------------------------------------- */

/* A batch that the caller holds. NULL: no memory. */
static struct activity_batch *batch_new(void)
{
    struct activity_batch *b = calloc(1, sizeof(*b));

    if (b) {
        list_init(&b->link);
        co_queue_init(&b->waiters);
        b->holders = 1;
    }
    return b;
}

static void batch_free(struct activity_batch *b)
{
    free(b->wanted.regions);
    free(b->fresh.regions);
    free(b);
}

/* The regions of a batch are hot in the image, or an error has kept them from that. */
static void end_batch_locked(struct block_activity *log, struct activity_batch *b, int result)
{
    MUTEX_ASSERT_HELD(&log->guard);
    list_remove(&b->link);
    log->pending -= b->fresh.count;
    for (size_t i = 0; i < b->fresh.count; i++) {
        if (result == 0) {
            block_activity_show_hot(log, b->fresh.regions[i]);
        } else {
            /* The image may have it as hot. */
            block_activity_map_set(log, b->fresh.regions[i], false);
        }
    }
    log->stable = result == 0 ? MAX(log->stable, b->number) : log->stable;
    b->ended = true;
    b->result = result;
    log->places--;
    atomic_store(&log->hot_now, log->hot_count + log->pending);
    co_queue_wake_all(&b->waiters);
    co_queue_wake_all(&log->leaders);
}

/* What flying batches have written may not be stable, nor may the map be as they wrote it. */
static void fail_batches_locked(struct block_activity *log, int error)
{
    MUTEX_ASSERT_HELD(&log->guard);
    block_activity_forget_stored(log);
    memset(log->dirty, 1, div_round_up(log->map_bytes, MAP_BLOCK));
    log->unsynced = true;
    while (!list_is_empty(&log->flying)) {
        end_batch_locked(log, LIST_FIRST(&log->flying, struct activity_batch, link), error);
    }
}

/* All that the batch has written is stable, or may not be. */
static void land_batch(struct block_activity *log, struct activity_batch *b, int r)
{
    pthread_mutex_lock(&log->guard);
    b->synced = true;
    if (r < 0) {
        fail_batches_locked(log, r);
    }
    while (!list_is_empty(&log->flying) &&
           LIST_FIRST(&log->flying, struct activity_batch, link)->synced) {
        end_batch_locked(log, LIST_FIRST(&log->flying, struct activity_batch, link), 0);
    }
    pthread_mutex_unlock(&log->guard);
}

/* Wait for the end of a batch that the caller holds, and give it back. */
static int co_await_batch(struct block_activity *log, struct activity_batch *b)
{
    bool last;
    int r;

    pthread_mutex_lock(&log->guard);
    while (!b->ended) {
        co_queue_wait_for_release(&b->waiters, &log->guard, "the activity log of",
                                  block_node_name(log->node), -1);
        pthread_mutex_lock(&log->guard);
    }
    r = b->result;
    last = --b->holders == 0;
    pthread_mutex_unlock(&log->guard);
    if (last) {
        batch_free(b);
    }
    return r;
}

/* --- what an earlier process left ------------------------------------------------------------- */

int block_co_activity_begin_locked(struct block_activity *log)
{
    int r = log->live || log->given_up ? 0 : log->node->driver->co_begin_activity(log->node);

    CO_ASSERT_HELD(&log->mutex);
    log->live = log->live || (r == 0 && !log->given_up);
    return r;
}

/* Write what has changed of the map. `fua`: stable at once. */
static int co_write_map_locked(struct block_activity *log, bool fua)
{
    uint8_t block[MAP_BLOCK];
    int r = 0;

    CO_ASSERT_HELD(&log->mutex);
    for (size_t at = 0; at < log->map_bytes && r == 0; at += MAP_BLOCK) {
        size_t size = MIN(MAP_BLOCK, log->map_bytes - at);
        bool dirty;

        pthread_mutex_lock(&log->guard);
        dirty = log->dirty[at / MAP_BLOCK];
        log->dirty[at / MAP_BLOCK] = 0;
        if (dirty) {
            memcpy(block, log->map + at, size);
        }
        pthread_mutex_unlock(&log->guard);
        if (dirty) {
            r = log->node->driver->co_write_activity(log->node, at, block, size, fua);
        }
    }
    return r;
}

/*
 * What an earlier process left may be in the page cache only, the marks and bits included: it was
 * killed before it synced, or did not sync at all. No batch is flying.
 */
static int co_confirm_adopted_locked(struct block_activity *log)
{
    int r;

    CO_ASSERT_HELD(&log->mutex);
    if (!log->adopted) {
        return 0;
    }
    r = co_write_map_locked(log, false);
    if (r == 0 && log->level == BLOCK_DURABILITY_POWER) {
        r = log->node->driver->co_sync_activity(log->node);
    }
    pthread_mutex_lock(&log->guard);
    if (r < 0) {
        fail_batches_locked(log, r);
    } else {
        size_t count = log->hot_count;

        log->adopted = false;
        log->hot_count = 0; /* each takes its own place again */
        for (size_t i = 0; i < count; i++) {
            block_activity_show_hot(log, log->hot[i].region);
        }
    }
    pthread_mutex_unlock(&log->guard);
    return r;
}

/* --- victims ---------------------------------------------------------------------------------- */

static int by_region(const void *a, const void *b)
{
    const struct block_activity_range *x = a, *y = b;

    return x->offset < y->offset ? -1 : x->offset > y->offset;
}

/* Store the bits of victims. On failure they stay hot. */
static int co_store_victims_locked(struct block_activity *log, const size_t *victims, size_t count)
{
    AUTO_FREE struct block_activity_range *ranges = calloc(MAX(count, 1), sizeof(*ranges));
    int r = ranges ? 0 : -ENOMEM;

    CO_ASSERT_HELD(&log->mutex);
    pthread_mutex_lock(&log->guard);
    for (size_t i = 0; ranges && i < count; i++) {
        ranges[i].offset = log->hot[victims[i]].region << log->regions.bits;
        ranges[i].length = 1ULL << log->regions.bits;
    }
    log->unsynced = true;
    pthread_mutex_unlock(&log->guard);
    if (r == 0) {
        qsort(ranges, count, sizeof(*ranges), by_region);
        r = log->node->driver->co_store_bits_of(log->node, ranges, count);
    }
    pthread_mutex_lock(&log->guard);
    for (size_t i = 0; i < count && r < 0; i++) {
        struct hot_region *h = &log->hot[victims[i]];

        log->stored_count -= h->stored > 0; /* a sync that failed has forgotten it */
        h->stored = 0;
    }
    pthread_mutex_unlock(&log->guard);
    return r;
}

/*
 * Store the bits of `count` victims, so that a later batch can make them cold. An error leaves
 * more regions hot than the limit, which costs nothing but precision after a crash.
 */
static void co_prepare_victims_locked(struct block_activity *log, size_t count, bool only_unused)
{
    size_t victims[VICTIMS_MAX], n;
    int r;

    CO_ASSERT_HELD(&log->mutex);
    pthread_mutex_lock(&log->guard);
    n = block_activity_choose(log, MIN(count, VICTIMS_MAX), only_unused, victims);
    pthread_mutex_unlock(&log->guard);
    r = n > 0 ? co_store_victims_locked(log, victims, n) : 0;
    if (r < 0 && r != -EBUSY) {
        log_warning("'%s': the bits of dirty bitmaps can't be stored meanwhile (%s); more than "
                    "necessary will be dirty after a crash",
                    block_node_display_name(log->node), strerror(-r));
    }
}

/* --- send ------------------------------------------------------------------------------------- */

/* A region becomes hot in the map. Its word follows once that is stable. */
static int heat_locked(struct block_activity *log, struct activity_batch *b, uint64_t region)
{
    int r = block_activity_map_has(log, region) ? 1 : block_activity_reserve_hot(log, 1);

    UNLESS_FAILED(r, r > 0 ? r : region_list_add(&b->fresh, region));
    if (r == 0) {
        log->pending++;
        block_activity_map_set(log, region, true);
    }
    return MIN(r, 0);
}

/* A write goes on from a hot region: heat what follows, which costs no further sync. */
static int heat_ahead_locked(struct block_activity *log, struct activity_batch *b, uint64_t region)
{
    uint64_t most = MIN(AHEAD_REGIONS, AHEAD_BYTES >> log->regions.bits);
    int r = 0;

    if (region == 0 || !block_activity_map_has(log, region - 1)) {
        return 0;
    }
    most = MIN(most, MAX(log->limit / 16, 1));
    for (uint64_t k = 1; k < most && region + k < log->regions.count && r == 0; k++) {
        r = heat_locked(log, b, region + k);
    }
    return r;
}

static int heat_wanted_locked(struct block_activity *log, struct activity_batch *b)
{
    int r = 0;

    MUTEX_ASSERT_HELD(&log->guard);
    for (size_t i = 0; i < b->wanted.count && r == 0; i++) {
        uint64_t region = b->wanted.regions[i] & ~GOES_ON;
        bool ahead = (b->wanted.regions[i] & GOES_ON) && !block_activity_map_has(log, region);

        r = heat_locked(log, b, region);
        if (r == 0 && ahead) {
            r = heat_ahead_locked(log, b, region);
        }
    }
    return r;
}

/* How many regions have to become cold, so that a batch finds room; 0: none. */
static size_t missing_room_locked(struct block_activity *log, const struct activity_batch *b)
{
    size_t hot = log->hot_count - log->stored_count + log->pending;

    MUTEX_ASSERT_HELD(&log->guard);
    if (log->hot_count == 0 || log->limit >= log->regions.count ||
        hot + log->limit / 16 <= log->limit) {
        return 0;
    }
    /* Some more, since it costs little more to store the bits of many. */
    return MAX(MAX(hot + log->limit / 16 - log->limit, b->wanted.count), log->limit / 8);
}

/* The batch is flying, and its regions are in the map. Nothing more joins it. */
static int start_batch(struct block_activity *log, struct activity_batch *b, size_t *ret_missing)
{
    int r;

    pthread_mutex_lock(&log->guard);
    log->next = log->next == b ? NULL : log->next;
    b->number = ++log->sent;
    list_append(&log->flying, &b->link);
    trace_block_activity_batch(log->node->name, b->wanted.count, log->hot_count);
    block_activity_retire(log);
    r = heat_wanted_locked(log, b);
    if (r < 0) {
        end_batch_locked(log, b, r);
    }
    *ret_missing = missing_room_locked(log, b);
    pthread_mutex_unlock(&log->guard);
    return r;
}

/*
 * Whether one write to the map is all that a batch needs, no other one is flying, and none is to be
 * expected soon: where several requests waited for the last one, it was of one request that came
 * back first.
 */
static bool is_alone_locked(struct block_activity *log, const struct activity_batch *b)
{
    bool crowd = b->wanted.count > 1, alone = !crowd && !log->crowd;
    size_t writes = 0;

    CO_ASSERT_HELD(&log->mutex);
    log->crowd = crowd;

    pthread_mutex_lock(&log->guard);
    for (size_t i = 0; i < div_round_up(log->map_bytes, MAP_BLOCK); i++) {
        writes += log->dirty[i];
    }
    alone = alone && writes == 1 && !log->unsynced && log->flying.next == &b->link &&
            log->flying.prev == &b->link;
    log->unsynced = log->unsynced || writes > 0;
    pthread_mutex_unlock(&log->guard);
    return alone;
}

/*
 * Write the map. *ret_sync: a sync has to follow, without the mutex. A batch that is alone is
 * written and synced at once.
 */
static int co_send_locked(struct block_activity *log, struct activity_batch *b, bool *ret_sync)
{
    bool sync = log->level == BLOCK_DURABILITY_POWER, alone = is_alone_locked(log, b);
    int r = co_write_map_locked(log, sync && alone);

    pthread_mutex_lock(&log->guard);
    *ret_sync = r == 0 && sync && !alone && log->unsynced && !b->ended;
    log->unsynced = r < 0 || (log->unsynced && b->ended);
    pthread_mutex_unlock(&log->guard);
    return r;
}

/* After all that has been written for a batch; `mutex` is released. */
static void co_land_batch(struct block_activity *log, struct activity_batch *b, bool sync, int r)
{
    if (sync) {
        r = log->node->driver->co_sync_activity(log->node);
    }
    land_batch(log, b, r);
}

/* A batch ends that has not been sent. */
static void end_unsent(struct block_activity *log, struct activity_batch *b, int r)
{
    pthread_mutex_lock(&log->guard);
    log->next = log->next == b ? NULL : log->next;
    end_batch_locked(log, b, r);
    pthread_mutex_unlock(&log->guard);
}

/* Make all regions hot that a batch wants. */
static void co_run_batch(struct block_activity *log, struct activity_batch *b)
{
    bool sync = false;
    size_t missing;
    int r;

    co_mutex_lock(&log->mutex);
    r = block_co_activity_begin_locked(log);
    UNLESS_FAILED(r, co_confirm_adopted_locked(log));
    if (r < 0 || log->given_up) {
        end_unsent(log, b, r);
        co_mutex_unlock(&log->mutex);
        return;
    }
    atomic_fetch_add(&log->batches, 1);
    r = start_batch(log, b, &missing);
    if (r == 0 && missing > 0) {
        co_prepare_victims_locked(log, missing, false);
    }
    if (r == 0) {
        r = co_send_locked(log, b, &sync);
        co_mutex_unlock(&log->mutex);
        co_land_batch(log, b, sync, r);
    } else {
        co_mutex_unlock(&log->mutex);
    }
}

/* --- requests --------------------------------------------------------------------------------- */

/*
 * Add the cold regions of a range to the next batch. A write goes on in a region whose first byte
 * it has: one at random rarely does. *ret_batch: the caller holds it, also after an
 * error; NULL: none. *ret_leads: the caller has to run it. Returns 1 if there are any, or -ENOMEM.
 */
static int join_batch(struct block_activity *log, uint64_t offset, uint64_t length,
                      struct activity_batch **ret_batch, bool *ret_leads)
{
    const uint64_t first = block_activity_first(log, offset);
    const uint64_t end = block_activity_end(log, offset, length);
    struct activity_batch *b = NULL;
    bool goes_on;
    int r = 0;

    pthread_mutex_lock(&log->guard);
    *ret_leads = false;
    for (uint64_t region = first; region < end && r >= 0; region++) {
        if (atomic_load(&log->regions.word[region]) & BLOCK_ACTIVITY_HOT) {
            continue;
        }
        if (!b && log->next) {
            b = log->next;
            b->holders++;
        } else if (!b) {
            b = log->next = batch_new();
            *ret_leads = b != NULL;
        }
        goes_on = offset <= region << log->regions.bits;
        r = b ? region_list_add(&b->wanted, region | (goes_on ? GOES_ON : 0)) : -ENOMEM;
        r = r == 0 ? 1 : r;
    }
    pthread_mutex_unlock(&log->guard);
    *ret_batch = b;
    return r;
}

/* Until a batch can be sent. Requests join it meanwhile. */
static void co_take_place(struct block_activity *log)
{
    pthread_mutex_lock(&log->guard);
    while (log->places >= BATCHES_FLYING) {
        co_queue_wait_for_release(&log->leaders, &log->guard, "the activity log of",
                                  block_node_name(log->node), -1);
        pthread_mutex_lock(&log->guard);
    }
    log->places++;
    pthread_mutex_unlock(&log->guard);
}

int block_co_activity_wait_until_hot(struct block_activity *log, uint64_t offset, uint64_t length)
{
    struct activity_batch *b;
    bool leads;
    int r;

    do {
        r = join_batch(log, offset, length, &b, &leads);
        if (leads) {
            co_take_place(log);
            co_run_batch(log, b);
        }
        if (b) {
            int batch_r = co_await_batch(log, b);

            r = r < 0 ? r : batch_r < 0 ? batch_r : 1;
        }
    } while (r > 0);
    return r;
}

/* --- background ------------------------------------------------------------------------------- */

/* What a batch does that no request waits for; each makes regions cold whose bits are stable. */
enum idle_batch {
    IDLE_STORE,      /* and stores the bits of regions that were not used lately */
    IDLE_RETIRE,     /* nothing else */
    IDLE_ALL_STABLE, /* all bits were stored just now */
};

/* All regions become cold that nobody is writing to. */
static void note_all_stable(struct block_activity *log)
{
    pthread_mutex_lock(&log->guard);
    for (size_t i = 0; i < log->hot_count; i++) {
        struct hot_region *h = &log->hot[i];
        uint64_t word = atomic_load(&log->regions.word[h->region]);

        if (!(word & BLOCK_ACTIVITY_REQUESTS_MASK)) {
            log->stored_count += h->stored == 0;
            h->seen = word;
            h->stored = log->stable;
        }
    }
    pthread_mutex_unlock(&log->guard);
}

/* -ENOENT: the image has no map. */
static int co_run_idle_batch(struct block_activity *log, enum idle_batch what)
{
    struct activity_batch *b = batch_new();
    bool sync = false;
    size_t missing;
    int r;

    if (!b) {
        return -ENOMEM;
    }
    co_mutex_lock(&log->mutex);
    pthread_mutex_lock(&log->guard);
    log->places++; /* beyond the limit: nobody waits for this one */
    pthread_mutex_unlock(&log->guard);
    r = log->live ? co_confirm_adopted_locked(log) : -ENOENT;
    if (r < 0) {
        end_unsent(log, b, r);
        co_mutex_unlock(&log->mutex);
        return co_await_batch(log, b);
    }
    if (what == IDLE_ALL_STABLE) {
        note_all_stable(log);
    }
    (void)start_batch(log, b, &missing); /* without regions nothing can fail */
    if (what == IDLE_STORE) {
        co_prepare_victims_locked(log, VICTIMS_MAX, true);
    }
    r = co_send_locked(log, b, &sync);
    co_mutex_unlock(&log->mutex);
    co_land_batch(log, b, sync, r);
    return co_await_batch(log, b);
}

void block_co_activity_cool_idle(struct block_activity *log)
{
    /* An error leaves regions hot in the image. */
    if (co_run_idle_batch(log, IDLE_STORE) == 0) {
        (void)co_run_idle_batch(log, IDLE_RETIRE);
    }
}

void block_co_activity_cool(struct block_activity *log)
{
    (void)co_run_idle_batch(log, IDLE_ALL_STABLE); /* likewise */
}
