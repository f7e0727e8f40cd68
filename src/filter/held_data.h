/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Old data in memory: what guests' writes have read before they overwrote the disk, and what is not
 * in the target of the copy yet. Used by copy_before_write_state.c.
 *
 *      held_reserve() -- filled by a read --> held_add()      in the table, IDLE
 *            |                                   |    ^
 *            | held_free()       held_take()     |    | held_put_back()   the copy has failed
 *            v                                   v    |
 *           gone <---- held_drop() ---------- TAKEN by a copy that writes it to the target
 *
 * Items do not overlap, and none crosses a cluster. The owner of the table guards it by a lock. No
 * function yields.
 */
#ifndef TIDEMARK_FILTER_HELD_DATA_H
#define TIDEMARK_FILTER_HELD_DATA_H

#include <stdbool.h>
#include <stdint.h>

#include "base/checked.h"
#include "base/list.h"
#include "bitmap/bitmap.h"

/* The longest item, in bytes. */
#define HELD_MAX (64 * KiB)

struct held_item {
    struct list in_bucket, in_order;
    uint64_t offset, length; /* bytes */
    uint8_t *data;           /* aligned to 4096 */
    bool taken;
};

struct held_data {
    struct list *buckets; /* of clusters; NULL: nothing may be held */
    struct list order;    /* of IDLE items, oldest first */
    struct list spare;    /* of items of one unit */
    unsigned spare_count;
    struct list slabs; /* of struct held_slab: memory of all items of one unit */
    uint64_t slab_bytes;
    uint64_t count;       /* items in the table */
    uint64_t table_bytes; /* of these */
    uint64_t bytes;       /* of all items, also of those reserved */
    uint64_t limit;       /* of `bytes` */
    uint32_t cluster, unit;
};

/* Nothing may be held. */
void held_init(struct held_data *h);
/*
 * Hold at most `limit` bytes, once at most; `unit` is the usual length of an item. (Nothing if that
 * is more than HELD_MAX.) -ENOMEM
 */
int held_allow(struct held_data *h, uint32_t cluster, uint32_t unit, uint64_t limit);
/* No item is reserved or taken. */
void held_destroy(struct held_data *h);

/* Whether the table has no items. */
bool held_is_empty(const struct held_data *h);
/* Bytes in the table. */
uint64_t held_bytes(const struct held_data *h);
/* Whether more may be held. */
bool held_has_room(const struct held_data *h);

/*
 * Memory for more items of one unit, if few are left. Guests' writes should find memory that the
 * system has given already. held_wants_slab() says whether; held_new_slab() needs no lock, and
 * takes the longest (NULL: no memory); held_add_slab() takes the memory over.
 */
struct held_slab;
bool held_wants_slab(const struct held_data *h);
struct held_slab *held_new_slab(uint32_t unit);
void held_add_slab(struct held_data *h, struct held_slab *slab);

/* An item for [offset, offset + length), in bytes; NULL: too long, no room, or no memory. */
struct held_item *held_reserve(struct held_data *h, uint64_t offset, uint64_t length);
void held_free(struct held_data *h, struct held_item *item);
/* A reserved item has its data. */
void held_add(struct held_data *h, struct held_item *item);

/* The first IDLE item in [offset, end), as far as it lies there; false: there is none. */
bool held_next(const struct held_data *h, uint64_t offset, uint64_t end, uint64_t *ret_offset,
               uint64_t *ret_length);
/* Take the IDLE items in [offset, end), none of which crosses its ends: they go to `items`. */
void held_take(struct held_data *h, uint64_t offset, uint64_t end, struct list *items);
/* Items of held_take(), all of the list: as before, or written. */
void held_put_back(struct held_data *h, struct list *items);
void held_drop(struct held_data *h, struct list *items);
/* Copy from items of held_take() what they have of [offset, offset + length) to `buf`. */
void held_fill(const struct list *items, uint64_t offset, void *buf, uint64_t length);

/*
 * The item, IDLE or TAKEN, that has `offset`. NULL: none; *ret_run is the length from there, up to
 * `length`, without any.
 */
const struct held_item *held_at(const struct held_data *h, uint64_t offset, uint64_t length,
                                uint64_t *ret_run);
/* The oldest IDLE item, if more than half of the limit is in use; else NULL. */
const struct held_item *held_oldest(const struct held_data *h);
/* Set in `dest` what the table has. */
void held_mark(const struct held_data *h, struct dirty_bitmap *dest);

#endif
