/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The activity log of a node: which regions of a disk may have been written since the bits of its
 * persistent dirty bitmaps were last stored. So a bitmap survives a crash:
 *
 *     dirty after a crash = bits in the image, and all regions that are hot in the log
 *
 * A region is *hot* or *cold*. It becomes hot, on stable storage, before the first write into it
 * reaches the driver. It becomes cold again only when the bits of all bitmaps that record are
 * stable for it, and nobody has written to it since. The number of hot regions has a limit, which
 * bounds what is dirty in excess after a crash.
 *
 *   write        gate: enter -> driver -> mark bitmaps -> leave
 *   enter        one atomic addition for each region, if all of them are hot. Otherwise the request
 *                waits for a batch, together with all others that wait
 *   batch        regions that were asked for -> map; bits of victims -> image; the changed parts
 *                of the map -> image; sync; the victims can become cold in the next batch. Several
 *                batches sync at the same time (activity_internal.h)
 *   tick         a batch every few seconds for regions that were not used meanwhile
 *
 * Durability has levels: `power` syncs, `process` does not, so that it covers the death of the
 * process only.
 *
 * The log knows nothing of the image: the driver keeps the map and the bits (block_driver,
 * "activity log"). Private to the block layer and drivers.
 */
#ifndef TIDEMARK_BLOCK_ACTIVITY_H
#define TIDEMARK_BLOCK_ACTIVITY_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

struct block_node;
struct block_activity;

/*
 * The state of a region: one word, so that a request takes part in it by one atomic addition.
 *
 *   bit 0        hot
 *   bits 1..20   requests in flight
 *   bits 21..63  number of requests so far. A region whose word has not changed has not been used
 */
#define BLOCK_ACTIVITY_HOT 1ULL
#define BLOCK_ACTIVITY_REQUEST (1ULL << 1)
#define BLOCK_ACTIVITY_REQUESTS_MASK (((1ULL << 20) - 1) << 1)
#define BLOCK_ACTIVITY_USE (1ULL << 21)

/* The first member of a log: what requests see of it. */
struct block_activity_words {
    _Atomic uint64_t *word; /* of each region */
    uint64_t count;
    unsigned bits; /* log2 of the size of a region */
};

/* Bytes of a disk. */
struct block_activity_range {
    uint64_t offset, length;
};

enum block_durability {
    BLOCK_DURABILITY_OFF,     /* bitmaps do not survive a crash */
    BLOCK_DURABILITY_PROCESS, /* they survive the death of the process */
    BLOCK_DURABILITY_POWER,   /* and a loss of power */
};

/* Regions have 4 KiB to 16 MiB. The latter is also how far heating goes ahead of a write. */
#define BLOCK_ACTIVITY_REGION_BITS_MIN 12u
#define BLOCK_ACTIVITY_REGION_BITS_MAX 24u

/* --- life: main reactor; the node is drained, or hidden --- */

/* log2 of the region size that suits a disk of `size` bytes. */
unsigned block_activity_region_bits(uint64_t size);
/* Bytes of the map of a disk of `size` bytes: one bit per region. */
uint64_t block_activity_map_bytes(uint64_t size, unsigned region_bits);

/*
 * A log for a node of its present size; all regions are cold, and nothing is in the image yet.
 * `limit`: bytes that may be hot; 0: 1% of the disk, at most 32 GiB. NULL: no memory.
 */
struct block_activity *block_activity_new(struct block_node *node, enum block_durability level,
                                          unsigned region_bits, uint64_t limit);
/* Other values of the same. */
void block_activity_set_options(struct block_activity *log, enum block_durability level,
                                uint64_t limit);
/* The log has no tick running (block_activity_stop()). NULL is fine. */
void block_activity_free(struct block_activity *log);
/*
 * Take over the map that an earlier process has left in the image: its hot regions are hot, and
 * count as such once they are synced, before the first write. `map` has block_activity_map_bytes().
 * -ENOMEM: the log can only be freed.
 */
int block_activity_adopt(struct block_activity *log, const uint8_t *map);
/*
 * The image has no map any more: all bits are stored. No request is in flight. All regions are
 * cold.
 */
void block_activity_ended(struct block_activity *log);
/*
 * The image can't have a log: requests pass, and nothing is durable, until block_activity_ended().
 * The background looks every few seconds whether there is room again.
 */
void block_activity_give_up(struct block_activity *log);
/* Whether the image has a map. */
bool block_activity_is_live(const struct block_activity *log);

/*
 * Begin and end to make idle regions cold in the background. Stopped: none begins. In a drained
 * section it does not start: the end of that does it.
 */
void block_activity_start(struct block_activity *log);
void block_activity_stop(struct block_activity *log);
/* Whether work of the background is running. Does not yield. */
bool block_activity_is_busy(const struct block_activity *log);

/* The bitmaps of the node, or their flags, have changed: whether requests have to enter the log. */
void block_activity_update(struct block_node *node);

/* --- figures: any thread --- */

struct block_activity_figures {
    uint64_t region_size, limit, hot; /* bytes */
    uint64_t heated, cooled, batches; /* numbers since the log was made */
    bool given_up;                    /* the image can't have a log now */
};
/* Read them. */
void block_activity_read_figures(const struct block_activity *log,
                                 struct block_activity_figures *ret_figures);
/* Bytes of a region. */
uint64_t block_activity_region_size(const struct block_activity *log);
/* One bit per region, the first in the least significant bit of the first byte. While drained. */
const uint8_t *block_activity_map(const struct block_activity *log);

/* --- requests: any reactor, coroutine --- */

/* For ranges in several regions, and cold ones: the functions below without `_slow`. */
int block_co_activity_enter_slow(struct block_activity *log, uint64_t offset, uint64_t length);
void block_activity_leave_slow(struct block_activity *log, uint64_t offset, uint64_t length);

/* What a request has entered: the word of its only region, or BLOCK_ACTIVITY_SEVERAL. */
typedef _Atomic uint64_t *block_activity_entry;
extern _Atomic uint64_t block_activity_several;
#define BLOCK_ACTIVITY_SEVERAL (&block_activity_several)

/*
 * A change of [offset, offset + length), not empty, begins: its regions are hot when this returns
 * 0, and stay hot until block_activity_leave(), which is called only then. An error of writing the
 * map, with nothing entered. Yields only if a region is cold: one that is entered does not become
 * cold, so that it has to be made hot only once.
 */
static inline int block_co_activity_enter(struct block_activity *log, uint64_t offset,
                                          uint64_t length, block_activity_entry *ret_entry)
{
    const struct block_activity_words *words = (const struct block_activity_words *)log;
    unsigned bits = words->bits;
    uint64_t region = offset >> bits, last = (offset + length - 1) >> bits;
    block_activity_entry entry = BLOCK_ACTIVITY_SEVERAL;

    /* Most requests have one region. */
    if (__builtin_expect(region == last && region < words->count, true)) {
        entry = &words->word[region];
        if (__builtin_expect(atomic_fetch_add(entry, BLOCK_ACTIVITY_REQUEST | BLOCK_ACTIVITY_USE) &
                                 BLOCK_ACTIVITY_HOT,
                             true)) {
            *ret_entry = entry;
            return 0;
        }
        atomic_fetch_sub(entry, BLOCK_ACTIVITY_REQUEST);
    }
    *ret_entry = entry;
    return block_co_activity_enter_slow(log, offset, length);
}

/* The change has ended. */
static inline void block_activity_leave(struct block_activity *log, block_activity_entry entry,
                                        uint64_t offset, uint64_t length)
{
    if (__builtin_expect(entry != BLOCK_ACTIVITY_SEVERAL, true)) {
        atomic_fetch_sub(entry, BLOCK_ACTIVITY_REQUEST);
    } else {
        block_activity_leave_slow(log, offset, length);
    }
}

/*
 * The image has a log, or can't have one, before it is written in a way that enters none: the disk
 * reads as before (BLOCK_REQ_UNCHANGED), or what is written is not of the disk. Yields.
 */
int block_co_activity_begin(struct block_activity *log);
/*
 * Make a range hot before something other than a request changes it or the bitmaps there. They stay
 * hot for a while.
 */
int block_co_activity_heat(struct block_activity *log, uint64_t offset, uint64_t length);
/* All bits were stored just now, stably, and the node is drained: all regions become cold. */
void block_co_activity_cool(struct block_activity *log);

#endif
