/* SPDX-License-Identifier: Apache-2.0 */
/* Dirty bitmaps: translate between bytes of a disk and bits of a tree (tree.h). */
#include "bitmap/bitmap.h"

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/error.h"
#include "bitmap/tree.h"

struct dirty_bitmap {
    /* Has the granularity, too. First: dirty_bitmap_set() reads it. */
    struct bitmap_known known;
    /* one bit per granule */
    struct bit_tree tree;
    /* of the disk, in bytes */
    uint64_t size;
    /* log2 of the granularity */
    unsigned shift;
};
static_assert(offsetof(struct dirty_bitmap, known) == 0, "dirty_bitmap_set() reads it there");
static_assert(ARRAY_SIZE(((struct dirty_bitmap_walk *)NULL)->words) == BIT_TREE_CHUNK_WORDS,
              "a walk reads a chunk");

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
    bitmap_known_init(&b->known, b->shift);
    return b;
}

void dirty_bitmap_free(struct dirty_bitmap *b)
{
    if (b) {
        bit_tree_destroy(&b->tree);
        bitmap_known_destroy(&b->known);
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
    return sizeof(*b) + bitmap_known_memory(&b->known) +
           atomic_load_explicit(&b->tree.memory, memory_order_relaxed);
}

void dirty_bitmap_set_memory_limit(struct dirty_bitmap *b, size_t bytes)
{
    b->tree.memory_limit = bytes;
}

/* --- set and clear */

const struct dirty_bitmap *dirty_bitmap_without_knowledge(void)
{
    return (const struct dirty_bitmap *)&bitmap_known_nothing;
}

void dirty_bitmap_set_unknown(struct dirty_bitmap *b, uint64_t offset, uint64_t length)
{
    uint64_t first, end;

    if (offset >= b->size || length == 0) {
        return;
    }
    first = offset >> b->shift;
    end = granules_of(offset + MIN(length, b->size - offset), b->shift);
    if (end == first + 1 && bit_tree_firm_word(&b->tree, first) >> (first % 64) & 1) {
        bitmap_known_hit(&b->known, &b->tree, first);
    } else {
        bit_tree_set(&b->tree, first, end);
    }
}

static void clear_granules(struct dirty_bitmap *b, uint64_t first, uint64_t end)
{
    bit_tree_clear(&b->tree, first, end);
    bitmap_known_cleared(&b->known, first, end);
}

/* The bits were replaced as a whole. */
static void forget_known(struct dirty_bitmap *b)
{
    bitmap_known_cleared(&b->known, 0, BIT_TREE_BITS_MAX);
}

void dirty_bitmap_clear(struct dirty_bitmap *b, uint64_t offset, uint64_t length)
{
    if (offset < b->size && length > 0) {
        uint64_t end = offset + MIN(length, b->size - offset);

        clear_granules(b, granules_of(offset, b->shift),
                       end == b->size ? b->tree.bits : end >> b->shift);
    }
}

void dirty_bitmap_clear_all(struct dirty_bitmap *b)
{
    clear_granules(b, 0, b->tree.bits);
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

/* The first bit in [bit, end), all of which were read, that is not as `value`; `end` if all are. */
static uint64_t find_change(const struct dirty_bitmap_walk *w, uint64_t bit, uint64_t end,
                            bool value)
{
    while (bit < end) {
        uint64_t word = w->words[(bit - w->first) / 64];

        word = (value ? ~word : word) >> (bit % 64);
        if (word != 0) {
            return MIN(bit + (unsigned)__builtin_ctzll(word), end);
        }
        bit = round_down(bit, 64) + 64;
    }
    return end;
}

bool dirty_bitmap_walk_status(struct dirty_bitmap_walk *w, uint64_t offset, uint64_t end,
                              uint64_t *ret_length)
{
    const struct dirty_bitmap *b = w->bitmap;
    uint64_t bit = offset >> b->shift, last, after, end_bit;
    bool dirty;

    assert(offset < b->size && offset < end);
    end = MIN(end, b->size);
    end_bit = granules_of(end, b->shift);
    if (!w->loaded || bit < w->first || bit - w->first >= BIT_TREE_CHUNK_BITS) {
        w->first = round_down(bit, BIT_TREE_CHUNK_BITS);
        bit_tree_load(&b->tree, w->first, w->words);
        w->loaded = true;
    }
    dirty = w->words[(bit - w->first) / 64] >> (bit % 64) & 1;
    last = MIN(end_bit, w->first + BIT_TREE_CHUNK_BITS);
    after = find_change(w, bit + 1, last, dirty);
    if (after == last && last < end_bit) {
        after = dirty ? bit_tree_find_clear(&b->tree, last, end_bit)
                      : bit_tree_find_set(&b->tree, last, end_bit);
    }
    *ret_length = MIN(after << b->shift, end) - offset;
    return dirty;
}

/* --- whole bitmaps */

static bool is_any_dirty(const struct dirty_bitmap *b, uint64_t offset, uint64_t end)
{
    uint64_t end_bit = granules_of(end, b->shift);

    return bit_tree_find_set(&b->tree, offset >> b->shift, end_bit) < end_bit;
}

static int merge_bits(struct dirty_bitmap *dest, const struct dirty_bitmap *src, bool alone)
{
    uint64_t size = MIN(dest->size, src->size), end = granules_of(size, dest->shift);
    uint64_t whole = size >> dest->shift;
    /* Of a last granule that `dest` has in part, `src` may have bits past the end of `dest`. */
    bool is_cut = whole < end && size < src->size && src->shift < dest->shift;
    int r;

    if (dest == src) {
        return 0;
    }
    r = bit_tree_merge(&dest->tree, is_cut ? whole : end, &src->tree,
                       src->shift > dest->shift ? src->shift - dest->shift : 0,
                       dest->shift > src->shift ? dest->shift - src->shift : 0, alone);
    if (is_cut && is_any_dirty(src, whole << dest->shift, size)) {
        r = error_first(r, bit_tree_set(&dest->tree, whole, end));
    }
    return r;
}

int dirty_bitmap_merge(struct dirty_bitmap *dest, const struct dirty_bitmap *src)
{
    return merge_bits(dest, src, false);
}

int dirty_bitmap_merge_alone(struct dirty_bitmap *dest, const struct dirty_bitmap *src)
{
    return merge_bits(dest, src, true);
}

/* `more` may be NULL. */
static int fill_copy(struct dirty_bitmap *copy, const struct dirty_bitmap *b,
                     const struct dirty_bitmap *more)
{
    int r;

    if (more && more->shift == b->shift && more->size == b->size) {
        return bit_tree_merge_two(&copy->tree, &b->tree, &more->tree);
    }
    r = dirty_bitmap_merge_alone(copy, b);
    return more ? UNLESS_FAILED(r, dirty_bitmap_merge_alone(copy, more)) : r;
}

static struct dirty_bitmap *copy_new(const struct dirty_bitmap *b, const struct dirty_bitmap *more)
{
    struct dirty_bitmap *copy = dirty_bitmap_new(b->size, dirty_bitmap_granularity(b));

    if (!copy) {
        return NULL;
    }
    copy->tree.memory_limit = b->tree.memory_limit;
    if (fill_copy(copy, b, more) < 0) {
        dirty_bitmap_free(copy);
        return NULL;
    }
    return copy;
}

struct dirty_bitmap *dirty_bitmap_clone(const struct dirty_bitmap *b)
{
    return copy_new(b, NULL);
}

struct dirty_bitmap *dirty_bitmap_clone_merged(const struct dirty_bitmap *b,
                                               const struct dirty_bitmap *more)
{
    return copy_new(b, more);
}

void dirty_bitmap_swap(struct dirty_bitmap *a, struct dirty_bitmap *b)
{
    assert(a->size == b->size && a->shift == b->shift);
    bit_tree_swap(&a->tree, &b->tree);
    forget_known(a);
    forget_known(b);
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
        r = bit_tree_merge(&resized, MIN(granules, b->tree.bits), &b->tree, 0, 0, true);
        if (r == 0) {
            bit_tree_swap(&resized, &b->tree);
            /* The table was made for another number of groups. */
            bitmap_known_destroy(&b->known);
            bitmap_known_init(&b->known, b->shift);
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

/* Whether `buf` is the words of a whole chunk, as this machine has them. */
static bool is_chunk_of_words(const uint8_t *buf, size_t n)
{
    return __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ && n == BIT_TREE_CHUNK_BITS / 8 &&
           (uintptr_t)buf % alignof(uint64_t) == 0;
}

/* The words of a chunk, of which `n` bytes from `skip` on are in `buf`, and the others 0. */
static void unpack_chunk(uint64_t *words, size_t skip, const uint8_t *buf, size_t n)
{
    memset(words, 0, BIT_TREE_CHUNK_BITS / 8);
    memcpy((uint8_t *)words + skip, buf, n);
    for (unsigned i = 0; i < BIT_TREE_CHUNK_WORDS; i++) {
        words[i] = le64toh(words[i]);
    }
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
        const uint64_t *from = words;
        int merge_r;

        if (is_chunk_of_words(buf, n)) {
            from = (const uint64_t *)(const void *)buf;
        } else {
            unpack_chunk(words, skip, buf, n);
        }
        merge_r = bit_tree_merge_words(&b->tree, chunk,
                                       MIN(chunk + BIT_TREE_CHUNK_BITS, b->tree.bits), from, false);
        r = error_first(r, merge_r);
        first += n * 8;
        buf += n;
        size -= n;
    }
    return r;
}
