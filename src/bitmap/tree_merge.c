/* SPDX-License-Identifier: Apache-2.0 */
/* Merging bit trees, whose bits may stand for more or less of the disk: a leaf at a time. */
#include "bitmap/tree_node.h"

#include <assert.h>
#include <string.h>

#include "base/error.h"

/* --- words ------------------------------------------------------------------------------------ */

/* The low 32 bits, with a clear bit above each. */
static uint64_t spread_bits(uint64_t word)
{
    word &= 0xffffffff;
    word = (word | word << 16) & 0x0000ffff0000ffff;
    word = (word | word << 8) & 0x00ff00ff00ff00ff;
    word = (word | word << 4) & 0x0f0f0f0f0f0f0f0f;
    word = (word | word << 2) & 0x3333333333333333;
    return (word | word << 1) & 0x5555555555555555;
}

/* The even bits, as the low 32 bits. */
static uint64_t gather_bits(uint64_t word)
{
    word &= 0x5555555555555555;
    word = (word | word >> 1) & 0x3333333333333333;
    word = (word | word >> 2) & 0x0f0f0f0f0f0f0f0f;
    word = (word | word >> 4) & 0x00ff00ff00ff00ff;
    word = (word | word >> 8) & 0x0000ffff0000ffff;
    return (word | word >> 16) & 0xffffffff;
}

/* A word that has each of the low 64 >> up bits 2^up times. up <= 6. */
static uint64_t widen_bits(uint64_t bits, unsigned up)
{
    if (up == 6) {
        return bits & 1 ? ~0ull : 0;
    }
    for (unsigned k = 0; k < up; k++) {
        bits = spread_bits(bits);
    }
    for (unsigned k = 0; k < up; k++) {
        bits |= bits << (1u << k);
    }
    return bits;
}

/* One bit for each 2^down bits, the low 64 >> down bits of the result. down <= 6. */
static uint64_t narrow_bits(uint64_t word, unsigned down)
{
    if (down == 6) {
        return word != 0;
    }
    for (unsigned k = 0; k < down; k++) {
        word = gather_bits(word | word >> 1);
    }
    return word;
}

/* --- leaves ----------------------------------------------------------------------------------- */

struct merge {
    struct bit_tree *dest;
    const struct bit_tree *src;
    /* log2: of the bits of `dest` for one of `src`, of the bits of `src` for one of `dest` */
    unsigned up, down;
    /* of `dest`: the bits to be changed are below it */
    uint64_t end;
    bool alone;
};

/* The bit of `dest` that has the first part of bit `bit` of `src`, and that after the last part. */
static uint64_t first_in_dest(const struct merge *m, uint64_t bit)
{
    return bit << m->up >> m->down;
}

static uint64_t end_in_dest(const struct merge *m, uint64_t end)
{
    uint64_t low = (1ull << m->down) - 1;

    return (end << m->up >> m->down) + ((end & low) != 0);
}

/* Set in `dest` all of [first, end) of `src`. */
static int merge_range(const struct merge *m, uint64_t first, uint64_t end)
{
    return bit_tree_set(m->dest, MIN(first_in_dest(m, first), m->end),
                        MIN(end_in_dest(m, end), m->end));
}

/* Set in `dest`, from its bit `first` on, `count` words. */
static int merge_words(const struct merge *m, uint64_t first, unsigned count, const uint64_t *words)
{
    return first >= m->end
               ? 0
               : bit_tree_merge_words(m->dest, first, MIN(first + count * 64ull, m->end), words,
                                      m->alone);
}

/* A leaf of `src` becomes 2^up leaves, up <= 6. `words` are those of the leaf at bit `start`. */
static int merge_widened(const struct merge *m, uint64_t start, const uint64_t *words)
{
    const unsigned per_word = 1u << m->up; /* words of `dest` for one of `src` */
    const unsigned per_part = BIT_TREE_CHUNK_WORDS >> m->up;
    uint64_t wide[BIT_TREE_CHUNK_WORDS];
    int r = 0;

    for (unsigned part = 0; part < per_word; part++, words += per_part) {
        uint64_t first = (start << m->up) + part * BIT_TREE_CHUNK_BITS;
        int part_r;

        for (unsigned i = 0; i < per_part; i++) {
            for (unsigned k = 0; k < per_word; k++) {
                uint64_t bits = words[i] >> k * (64u >> m->up);

                wide[i * per_word + k] = words[i] ? widen_bits(bits, m->up) : 0;
            }
        }
        part_r = merge_words(m, first, BIT_TREE_CHUNK_WORDS, wide);
        r = error_first(r, part_r);
    }
    return r;
}

/* A leaf of `src` becomes a part of a leaf, of whole words: down <= 6. */
static int merge_narrowed(const struct merge *m, uint64_t start, const uint64_t *words)
{
    const unsigned count = BIT_TREE_CHUNK_WORDS >> m->down, per_word = 1u << m->down;
    uint64_t narrow[BIT_TREE_CHUNK_WORDS];

    for (unsigned i = 0; i < count; i++) {
        narrow[i] = 0;
        for (unsigned k = 0; k < per_word; k++) {
            uint64_t word = words[i * per_word + k];

            if (word) {
                narrow[i] |= narrow_bits(word, m->down) << k * (64u >> m->down);
            }
        }
    }
    return merge_words(m, start >> m->down, count, narrow);
}

/* Merge the leaf of `src` that begins with bit `start`. */
static int merge_leaf(const struct merge *m, uint64_t start)
{
    uint64_t words[BIT_TREE_CHUNK_WORDS];
    uint64_t bits = bit_tree_load(m->src, start, words);

    if (m->up > 0) {
        return merge_widened(m, start, words);
    }
    if (m->down > 0) {
        return merge_narrowed(m, start, words);
    }
    if (m->end - start >= MIN(BIT_TREE_CHUNK_BITS, m->src->bits - start)) {
        return bit_tree_merge_chunk(m->dest, start, words, bits, m->alone);
    }
    return merge_words(m, start, BIT_TREE_CHUNK_WORDS, words);
}

int bit_tree_merge(struct bit_tree *dest, uint64_t end, const struct bit_tree *src, unsigned up,
                   unsigned down, bool alone)
{
    const struct merge m = {dest, src, up, down, end, alone};
    uint64_t next;
    int r = 0;

    assert((up == 0 || down == 0) && end <= dest->bits);
    for (uint64_t bit = bit_tree_find_set(src, 0, src->bits); bit < src->bits;
         bit = bit_tree_find_set(src, next, src->bits)) {
        unsigned level;
        int merge_r;

        if (first_in_dest(&m, bit) >= end) {
            break;
        }
        if (bit_tree_lookup(src, bit, &level) == ALL_SET) {
            next = MIN(src->bits, node_end(bit, level));
            merge_r = merge_range(&m, bit, next);
        } else if (up > 6 || down > 6) {
            next = bit_tree_find_clear(src, bit + 1, src->bits);
            merge_r = merge_range(&m, bit, next);
        } else {
            uint64_t start = round_down(bit, BIT_TREE_CHUNK_BITS);

            next = MIN(src->bits, start + BIT_TREE_CHUNK_BITS);
            merge_r = merge_leaf(&m, start);
        }
        r = error_first(r, merge_r);
    }
    return r;
}

/* --- two at once ------------------------------------------------------------------------------ */

/* The end of what is set as a whole in `t` from `bit` on; `bit` itself if that is not so. */
static uint64_t whole_end(const struct bit_tree *t, uint64_t bit)
{
    unsigned level;

    return bit_tree_lookup(t, bit, &level) == ALL_SET ? MIN(t->bits, node_end(bit, level)) : bit;
}

/* Merge the leaves that begin with bit `start`. */
static int merge_two_leaves(struct bit_tree *dest, const struct bit_tree *a,
                            const struct bit_tree *b, uint64_t start)
{
    uint64_t words[BIT_TREE_CHUNK_WORDS];
    uint64_t bits = bit_tree_load_two(a, b, start, words);

    return bit_tree_merge_chunk(dest, start, words, bits, true);
}

int bit_tree_merge_two(struct bit_tree *dest, const struct bit_tree *a, const struct bit_tree *b)
{
    const uint64_t bits = dest->bits;
    uint64_t bit = 0;
    int r = 0;

    assert(a->bits == bits && b->bits == bits);
    for (;;) {
        uint64_t in_a = bit_tree_find_set(a, bit, bits), in_b = bit_tree_find_set(b, bit, bits);
        uint64_t whole, end;
        int leaf_r;

        bit = MIN(in_a, in_b);
        if (bit >= bits) {
            return r;
        }
        whole = MAX(whole_end(a, bit), whole_end(b, bit));
        end = whole > bit ? whole : MIN(bits, node_end(bit, 0));
        leaf_r = whole > bit ? bit_tree_set(dest, bit, end)
                             : merge_two_leaves(dest, a, b, round_down(bit, BIT_TREE_CHUNK_BITS));
        r = error_first(r, leaf_r);
        bit = end;
    }
}
