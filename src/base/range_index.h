/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Byte ranges of requests in flight, found by overlap without looking at all of them. What gate, formats and filters know of
 * who reads and writes where.
 *
 * A range lies in the bucket of the region that it begins in, on the level whose regions are at least as long as it is; so it
 * reaches into one more region at most, and a search looks at few buckets. Ranges longer than any region lie in a list of their
 * own.
 *
 *      level    regions of    a search of 4 KiB looks at
 *        0        64 KiB        2 or 3 buckets
 *        1         4 MiB        2 or 3
 *        2       256 MiB        2 or 3
 *      wide       longer        all of these
 *
 * The memory of an item is its owner's. No locks, no allocation: the owner of the index guards it.
 */
#ifndef TIDEMARK_BASE_RANGE_INDEX_H
#define TIDEMARK_BASE_RANGE_INDEX_H

#include <stdbool.h>
#include <stdint.h>

#include "base/list.h"

#define RANGE_INDEX_LEVELS 3
#define RANGE_INDEX_BUCKETS 32u

struct range_item {
    struct list link;
    uint64_t offset, length; /* bytes; offset + length need not fit 64 bits */
    uint64_t serial;         /* in the order of adding */
};

struct range_index {
    struct list buckets[RANGE_INDEX_LEVELS][RANGE_INDEX_BUCKETS];
    struct list wide;
    uint64_t counts[RANGE_INDEX_LEVELS]; /* items per level: levels without any are passed over */
    uint64_t next_serial;
};

void range_index_init(struct range_index *index);
bool range_index_is_empty(const struct range_index *index);
void range_index_add(struct range_index *index, struct range_item *item, uint64_t offset,
                     uint64_t length);
void range_index_remove(struct range_index *index, struct range_item *item);

/* Whether two ranges share a byte. An empty one shares none. */
bool range_overlaps(uint64_t offset_a, uint64_t length_a, uint64_t offset_b, uint64_t length_b);

/*
 * An item that overlaps [offset, offset + length) and that `match` (NULL: any) accepts; NULL if there is none. Which one, if
 * there are several, is not defined.
 */
struct range_item *range_index_find(const struct range_index *index, uint64_t offset,
                                    uint64_t length,
                                    bool (*match)(const struct range_item *item, const void *arg),
                                    const void *arg);

#endif
