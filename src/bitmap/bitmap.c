/* SPDX-License-Identifier: Apache-2.0 */
/* Dirty bitmaps: translate between bytes of a disk and bits of a tree (tree.h). */
#include "bitmap/bitmap.h"

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/error.h"
#include "bitmap/tree.h"

struct dirty_bitmap {
    /* one bit per granule */
    struct bit_tree tree;
    /* of the disk, in bytes */
    uint64_t size;
    /* log2 of the granularity */
    unsigned shift;
};

/* How many granules contain `size` bytes. */
static uint64_t granules_of(uint64_t size, unsigned shift)
{
    return (size >> shift) + ((size & ((1ull << shift) - 1)) != 0);
}

struct dirty_bitmap *dirty_bitmap_new(uint64_t size, uint32_t granularity)
{
    struct dirty_bitmap *b;

    if (size > INT64_MAX || !is_power_of_2(granularity) || granularity < BITMAP_GRANULARITY_MIN ||
        granularity > BITMAP_GRANULARITY_MAX) {
        return NULL;
    }
    b = aligned_alloc(alignof(struct dirty_bitmap), sizeof(*b));
    if (!b) {
        return NULL;
    }
    b->size = size;
    b->shift = (unsigned)__builtin_ctz(granularity);
    bit_tree_init(&b->tree, granules_of(size, b->shift), SIZE_MAX);
    return b;
}

void dirty_bitmap_free(struct dirty_bitmap *b)
{
    if (b) {
        bit_tree_destroy(&b->tree);
        free(b);
    }
}

uint64_t dirty_bitmap_size(const struct dirty_bitmap *b)
{
    return b->size;
}

uint32_t dirty_bitmap_granularity(const struct dirty_bitmap *b)
{
    return 1u << b->shift;
}

uint64_t dirty_bitmap_granules(const struct dirty_bitmap *b)
{
    return b->tree.bits;
}

size_t dirty_bitmap_memory(const struct dirty_bitmap *b)
{
    return sizeof(*b) + atomic_load_explicit(&b->tree.memory, memory_order_relaxed);
}

void dirty_bitmap_set_memory_limit(struct dirty_bitmap *b, size_t bytes)
{
    b->tree.memory_limit = bytes;
}

/* --- set and clear */

void dirty_bitmap_set(struct dirty_bitmap *b, uint64_t offset, uint64_t length)
{
    if (offset < b->size && length > 0) {
        uint64_t end = offset + MIN(length, b->size - offset);

        bit_tree_set(&b->tree, offset >> b->shift, granules_of(end, b->shift));
    }
}

void dirty_bitmap_clear(struct dirty_bitmap *b, uint64_t offset, uint64_t length)
{
    if (offset < b->size && length > 0) {
        uint64_t end = offset + MIN(length, b->size - offset);

        bit_tree_clear(&b->tree, granules_of(offset, b->shift),
                       end == b->size ? b->tree.bits : end >> b->shift);
    }
}

void dirty_bitmap_clear_all(struct dirty_bitmap *b)
{
    bit_tree_clear(&b->tree, 0, b->tree.bits);
}

/* --- read */

bool dirty_bitmap_get(const struct dirty_bitmap *b, uint64_t offset)
{
    return offset < b->size && bit_tree_get(&b->tree, offset >> b->shift);
}

uint64_t dirty_bitmap_count(const struct dirty_bitmap *b)
{
    uint64_t granules = b->tree.bits;
    uint64_t count = bit_tree_count(&b->tree);

    if (count == 0) {
        return 0;
    }
    if (!bit_tree_get(&b->tree, granules - 1)) {
        return MIN(count, granules - 1) << b->shift;
    }
    return (count << b->shift) - ((granules << b->shift) - b->size);
}

bool dirty_bitmap_next_dirty(const struct dirty_bitmap *b, uint64_t offset, uint64_t end,
                             uint64_t *ret_offset, uint64_t *ret_length)
{
    uint64_t first, after, end_bit;

    end = MIN(end, b->size);
    if (offset >= end) {
        return false;
    }
    end_bit = granules_of(end, b->shift);
    first = bit_tree_find_set(&b->tree, offset >> b->shift, end_bit);
    if (first == end_bit) {
        return false;
    }
    /* From the next bit on: this one was set when it was found, even if a clear is in progress. */
    after = bit_tree_find_clear(&b->tree, first + 1, end_bit);
    *ret_offset = MAX(first << b->shift, offset);
    *ret_length = MIN(after << b->shift, end) - *ret_offset;
    return true;
}

bool dirty_bitmap_status(const struct dirty_bitmap *b, uint64_t offset, uint64_t end,
                         uint64_t *ret_length)
{
    uint64_t bit = offset >> b->shift;
    uint64_t after, end_bit;
    bool dirty;

    assert(offset < b->size && offset < end);
    end = MIN(end, b->size);
    end_bit = granules_of(end, b->shift);
    dirty = bit_tree_get(&b->tree, bit);
    after = dirty ? bit_tree_find_clear(&b->tree, bit + 1, end_bit)
                  : bit_tree_find_set(&b->tree, bit + 1, end_bit);
    *ret_length = MIN(after << b->shift, end) - offset;
    return dirty;
}

/* --- whole bitmaps */

int dirty_bitmap_merge(struct dirty_bitmap *dest, const struct dirty_bitmap *src)
{
    uint64_t end = MIN(dest->size, src->size);
    uint64_t offset = 0;
    uint64_t length;
    int r = 0;

    if (dest == src) {
        return 0;
    }
    if (dest->shift == src->shift) {
        return bit_tree_merge(&dest->tree, &src->tree);
    }
    while (dirty_bitmap_next_dirty(src, offset, end, &offset, &length)) {
        int set_r = bit_tree_set(&dest->tree, offset >> dest->shift,
                                 granules_of(offset + length, dest->shift));

        r = error_first(r, set_r);
        offset += length;
    }
    return r;
}

struct dirty_bitmap *dirty_bitmap_clone(const struct dirty_bitmap *b)
{
    struct dirty_bitmap *copy = dirty_bitmap_new(b->size, dirty_bitmap_granularity(b));

    if (!copy) {
        return NULL;
    }
    copy->tree.memory_limit = b->tree.memory_limit;
    if (dirty_bitmap_merge(copy, b) < 0) {
        dirty_bitmap_free(copy);
        return NULL;
    }
    return copy;
}

void dirty_bitmap_swap(struct dirty_bitmap *a, struct dirty_bitmap *b)
{
    assert(a->size == b->size && a->shift == b->shift);
    bit_tree_swap(&a->tree, &b->tree);
}

int dirty_bitmap_resize(struct dirty_bitmap *b, uint64_t new_size)
{
    uint64_t granules = granules_of(new_size, b->shift);
    int r = 0;

    if (new_size > INT64_MAX) {
        return -EFBIG;
    }
    if (granules != b->tree.bits) {
        struct bit_tree resized;

        bit_tree_init(&resized, granules, b->tree.memory_limit);
        r = bit_tree_merge(&resized, &b->tree);
        if (r == 0) {
            bit_tree_swap(&resized, &b->tree);
        }
        bit_tree_destroy(&resized);
    }
    if (r == 0) {
        b->size = new_size;
    }
    return r;
}

/* --- serialized form */

bool dirty_bitmap_serialize(const struct dirty_bitmap *b, uint64_t first, uint8_t *buf, size_t size)
{
    uint64_t words[BIT_TREE_CHUNK_WORDS];
    uint8_t any = 0;

    assert(first % 8 == 0);
    while (size > 0 && first < b->tree.bits) {
        uint64_t chunk = round_down(first, BIT_TREE_CHUNK_BITS);
        size_t skip = (size_t)(first - chunk) / 8;
        size_t n = MIN(size, sizeof(words) - skip);

        bit_tree_load(&b->tree, chunk, words);
        for (unsigned i = 0; i < BIT_TREE_CHUNK_WORDS; i++) {
            words[i] = htole64(words[i]);
        }
        memcpy(buf, (const uint8_t *)words + skip, n);
        for (size_t i = 0; i < n; i++) {
            any |= buf[i];
        }
        first += n * 8;
        buf += n;
        size -= n;
    }
    memset(buf, 0, size);
    return any;
}

int dirty_bitmap_deserialize(struct dirty_bitmap *b, uint64_t first, const uint8_t *buf,
                             size_t size)
{
    uint64_t words[BIT_TREE_CHUNK_WORDS];
    int r = 0;

    assert(first % 8 == 0);
    while (size > 0 && first < b->tree.bits) {
        uint64_t chunk = round_down(first, BIT_TREE_CHUNK_BITS);
        size_t skip = (size_t)(first - chunk) / 8;
        size_t n = MIN(size, sizeof(words) - skip);
        int merge_r;

        memset(words, 0, sizeof(words));
        memcpy((uint8_t *)words + skip, buf, n);
        for (unsigned i = 0; i < BIT_TREE_CHUNK_WORDS; i++) {
            words[i] = le64toh(words[i]);
        }
        merge_r = bit_tree_merge_words(&b->tree, chunk,
                                       MIN(chunk + BIT_TREE_CHUNK_BITS, b->tree.bits), words);
        r = error_first(r, merge_r);
        first += n * 8;
        buf += n;
        size -= n;
    }
    return r;
}
