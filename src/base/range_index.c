/* SPDX-License-Identifier: Apache-2.0 */
#include "base/range_index.h"

#include "base/checked.h"

/* log2 of the bytes of a region of each level */
static const unsigned level_bits[RANGE_INDEX_LEVELS] = {16, 22, 28};

void range_index_init(struct range_index *index)
{
    for (unsigned level = 0; level < RANGE_INDEX_LEVELS; level++) {
        for (unsigned i = 0; i < RANGE_INDEX_BUCKETS; i++) {
            list_init(&index->buckets[level][i]);
        }
        index->counts[level] = 0;
    }
    list_init(&index->wide);
    index->next_serial = 1;
}

bool range_index_is_empty(const struct range_index *index)
{
    return index->counts[0] + index->counts[1] + index->counts[2] == 0 &&
           list_is_empty(&index->wide);
}

/* The level that holds ranges of this length; RANGE_INDEX_LEVELS for wide ones. */
static unsigned level_of(uint64_t length)
{
    unsigned level = 0;

    while (level < RANGE_INDEX_LEVELS && length > 1ULL << level_bits[level]) {
        level++;
    }
    return level;
}

void range_index_add(struct range_index *index, struct range_item *item, uint64_t offset,
                     uint64_t length)
{
    unsigned level = level_of(length);

    item->offset = offset;
    item->length = length;
    item->serial = index->next_serial++;
    if (level == RANGE_INDEX_LEVELS) {
        list_append(&index->wide, &item->link);
    } else {
        index->counts[level]++;
        list_append(&index->buckets[level][(offset >> level_bits[level]) % RANGE_INDEX_BUCKETS],
                    &item->link);
    }
}

void range_index_remove(struct range_index *index, struct range_item *item)
{
    unsigned level = level_of(item->length);

    list_remove(&item->link);
    if (level < RANGE_INDEX_LEVELS) {
        index->counts[level]--;
    }
}

bool range_overlaps(uint64_t offset_a, uint64_t length_a, uint64_t offset_b, uint64_t length_b)
{
    if (length_a == 0 || length_b == 0) {
        return false;
    }
    return offset_a <= offset_b ? offset_b - offset_a < length_a : offset_a - offset_b < length_b;
}

typedef bool match_fn(const struct range_item *item, const void *arg);

static struct range_item *find_in(const struct list *bucket, uint64_t offset, uint64_t length,
                                  match_fn *match, const void *arg)
{
    struct range_item *item;

    LIST_FOREACH (item, bucket, link) {
        if (range_overlaps(item->offset, item->length, offset, length) &&
            (!match || match(item, arg))) {
            return item;
        }
    }
    return NULL;
}

static struct range_item *find_on_level(const struct range_index *index, unsigned level,
                                        uint64_t offset, uint64_t length, match_fn *match,
                                        const void *arg)
{
    uint64_t last = length - 1 > UINT64_MAX - offset ? UINT64_MAX : offset + (length - 1);
    uint64_t first_region = offset >> level_bits[level], last_region = last >> level_bits[level];
    uint64_t regions;
    struct range_item *item = NULL;

    first_region -= first_region > 0; /* ranges that begin there may reach over */
    regions = MIN(last_region - first_region + 1, RANGE_INDEX_BUCKETS);
    for (uint64_t i = 0; i < regions && !item; i++) {
        item = find_in(&index->buckets[level][(first_region + i) % RANGE_INDEX_BUCKETS], offset,
                       length, match, arg);
    }
    return item;
}

struct range_item *range_index_find(const struct range_index *index, uint64_t offset,
                                    uint64_t length, match_fn *match, const void *arg)
{
    struct range_item *item = NULL;

    if (length == 0) {
        return NULL;
    }
    for (unsigned level = 0; level < RANGE_INDEX_LEVELS && !item; level++) {
        if (index->counts[level] > 0) {
            item = find_on_level(index, level, offset, length, match, arg);
        }
    }
    return item ? item : find_in(&index->wide, offset, length, match, arg);
}
