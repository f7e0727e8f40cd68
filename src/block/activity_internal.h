/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The activity log of a node, from within: activity.c has its life and its requests,
 * activity_batch.c the batches that make regions hot and cold, activity_hot.c the map and the list
 * of hot regions.
 *
 * A batch has two parts. It first writes bits of victims and the map, one batch after the other;
 * then it syncs, and up to BATCHES_FLYING of them sync at the same time. So a request waits for
 * little more than one sync, whenever it comes.
 *
 *   join     requests add their regions to the next batch, and wait; the first one leads it
 *   send     the leader, once a place is free: regions -> map; bits of victims -> image; map ->
 *            image. The batch is flying
 *   land     sync; then batches end in the order in which they were sent: their regions are hot in
 *            the words, and the bits of their victims are stable
 *
 * A write or a sync that fails ends all flying batches with the error, since it may have concerned
 * data of any of them. Nothing that they wrote counts as stable, and the whole map is written
 * again.
 */
#ifndef TIDEMARK_BLOCK_ACTIVITY_INTERNAL_H
#define TIDEMARK_BLOCK_ACTIVITY_INTERNAL_H

#include <pthread.h>

#include "base/checked.h"
#include "base/list.h"
#include "block/activity.h"
#include "co/sync.h"
#include "loop/loop.h"

/* Bytes of the map that are written as a unit. */
#define MAP_BLOCK 4096u
#define BATCHES_FLYING 16u

/* A hot region. */
struct hot_region {
    uint64_t region;
    uint64_t seen;   /* its word when the sweep passed it last, or when its bits were stored */
    uint64_t stored; /* number of the batch that stored its bits as of `seen`; 0: none */
};

struct region_list {
    uint64_t *regions; /* owned */
    size_t count, room;
};

/* Regions that become hot together, and what waits for that. Owned by those that hold it. */
struct activity_batch {
    struct list link; /* of log->flying, from its first write to its end */
    uint64_t number;
    unsigned holders;          /* requests that have joined [guard] */
    struct region_list wanted; /* [guard], until it is sent */
    struct region_list fresh;  /* those that were cold [guard] */
    bool synced, ended;        /* [guard] */
    int result;                /* at its end [guard] */
    struct co_queue waiters;   /* [guard] */
};

struct block_activity {
    /* First: requests see it alone. */
    struct block_activity_words regions;
    struct block_node *node;
    enum block_durability level;
    uint64_t limit;       /* regions */
    atomic_bool given_up; /* the image can't have a log: all words are hot, and mean nothing */

    /* One batch at a time is sent. Guards these, and entries that leave the list of hot regions. */
    struct co_mutex mutex;
    bool live;    /* the image has a map */
    bool adopted; /* from an earlier process, and not synced since: words do not show it */
    size_t hand;  /* where the sweep continues */
    bool crowd;   /* several requests waited for the latest batch */

    /* Guards all up to `tick`. Not held over I/O. */
    pthread_mutex_t guard;
    uint8_t *map; /* as it is to be in the image */
    uint64_t map_bytes;
    uint8_t *dirty; /* a byte for each MAP_BLOCK: it is not in the image yet */
    bool unsynced;  /* something was written since the latest batch that syncs was sent */
    struct hot_region *hot;
    size_t hot_count, hot_room;
    size_t stored_count;         /* entries with `stored` */
    size_t pending;              /* regions of flying batches, which are not in the list yet */
    struct activity_batch *next; /* what requests can join; NULL: none */
    struct list flying;          /* in the order in which they were sent */
    unsigned places;             /* of leaders, from before the batch is sent until its end */
    struct co_queue leaders;     /* that wait for a place */
    uint64_t sent, stable; /* numbers of the latest batch; of the latest that has ended well */

    /* Main reactor. */
    struct loop_timer tick;
    bool started;
    atomic_bool ticking;

    _Atomic uint64_t hot_now, heated, cooled, batches;
};

/* The first region of a range. */
static inline uint64_t block_activity_first(const struct block_activity *log, uint64_t offset)
{
    return offset >> log->regions.bits;
}
/* The end of the regions of a range. A part beyond the disk has none. */
static inline uint64_t block_activity_end(const struct block_activity *log, uint64_t offset,
                                          uint64_t length)
{
    return MIN(div_round_up(offset + length, 1ULL << log->regions.bits), log->regions.count);
}

/* --- activity_hot.c: the map, and the list of hot regions. `guard` is held; none yields --- */

/* Append to a list. -ENOMEM */
int region_list_add(struct region_list *l, uint64_t region);

/* Of the map: whether a region is hot; and make it hot or cold there. */
bool block_activity_map_has(const struct block_activity *log, uint64_t region);
void block_activity_map_set(struct block_activity *log, uint64_t region, bool hot);
/* Room for `more` entries of the list, besides those of flying batches. -ENOMEM */
int block_activity_reserve_hot(struct block_activity *log, size_t more);
/* Append a region to the list, for which there is room, and show it to requests. */
void block_activity_show_hot(struct block_activity *log, uint64_t region);
/* Regions whose bits are stable become cold, unless they were used since. `mutex` is held. */
void block_activity_retire(struct block_activity *log);
/*
 * Choose up to `count` regions that nobody is writing to; first those that were not used since the
 * sweep passed them. Their bits are what has to be stored. Returns how many; `mutex` is held, and
 * the indices are valid as long as it is.
 */
size_t block_activity_choose(struct block_activity *log, size_t count, bool only_unused,
                             size_t *ret_victims);
/* What was written may not be stable: no region can become cold for it. */
void block_activity_forget_stored(struct block_activity *log);

/* --- activity_batch.c: coroutines; `mutex` and `guard` are not held --- */

/* All cold regions of a range become hot. An error of writing the map. */
int block_co_activity_wait_until_hot(struct block_activity *log, uint64_t offset, uint64_t length);
/* Regions that were not used since the last call become cold. */
void block_co_activity_cool_idle(struct block_activity *log);
/* The image has a log, or can't have one. `mutex` is held. */
int block_co_activity_begin_locked(struct block_activity *log);

#endif
