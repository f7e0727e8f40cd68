/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An index of byte ranges, usually of requests in flight, that finds overlapping ranges without
 * looking at all of them.
 *
 * The first level whose regions are at least as long as a range holds it, in the bucket of the
 * region in which the range begins. So the range reaches into at most one more region, and a search
 * looks at few buckets. Ranges longer than any region are in a list of their own.
 *
 *      level    regions of    a search of 4 KiB looks at
 *        0        64 KiB        2 or 3 buckets
 *        1         4 MiB        2 or 3
 *        2       256 MiB        2 or 3
 *      wide       longer        all of these ranges
 *
 * The owner of an item keeps its memory from add to remove. No allocation and no locks: the owner
 * of the index guards it. None of these functions yields or fails.
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
    /* bytes; offset + length need not fit 64 bits */
    uint64_t offset, length;
    /* grows with each item added */
    uint64_t serial;
};

struct range_index {
    struct list buckets[RANGE_INDEX_LEVELS][RANGE_INDEX_BUCKETS];
    struct list wide;
    /* items per level: a search skips levels without any */
    uint64_t counts[RANGE_INDEX_LEVELS];
    uint64_t next_serial;
};

/* An empty index; nothing has to be freed afterwards. */
void range_index_init(struct range_index *index);

/* Whether the index has no items. */
bool range_index_is_empty(const struct range_index *index);

/* Add a range. The item is memory of the caller until range_index_remove(). */
void range_index_add(struct range_index *index, struct range_item *item, uint64_t offset,
                     uint64_t length);

/* Remove an item, which is in the index. */
void range_index_remove(struct range_index *index, struct range_item *item);

/*
 * Whether two byte ranges share a byte; an empty range shares none. Their ends may exceed 64 bits.
 */
bool range_overlaps(uint64_t offset_a, uint64_t length_a, uint64_t offset_b, uint64_t length_b);

/*
 * An item that overlaps [offset, offset + length) and for which match(item, arg) returns true
 * (`match` NULL: any item). NULL if there is none. If there are several, any of them.
 */
struct range_item *range_index_find(const struct range_index *index, uint64_t offset,
                                    uint64_t length,
                                    bool (*match)(const struct range_item *item, const void *arg),
                                    const void *arg);

#endif
