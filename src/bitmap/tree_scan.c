/* SPDX-License-Identifier: Apache-2.0 */
/* Scans of bit trees: search, copy. */
#include "bitmap/bit_words.h"
#include "bitmap/tree_node.h"

#include <assert.h>
#include <string.h>

#include "base/error.h"

/* The first set bit of a leaf, from its bit `from` on, or the number of bits of a leaf. */
static unsigned leaf_find_set(const struct bit_tree_node *leaf, unsigned from)
{
    unsigned i = from / 64;
    uint64_t word = load_word(leaf, i) & (~0ull << (from % 64));

    while (!word) {
        i = leaf_next_word(leaf, i + 1);
        if (i == ENTRIES) {
            return ENTRIES * 64;
        }
        word = load_word(leaf, i);
    }
    return i * 64 + (unsigned)__builtin_ctzll(word);
}

static inline bool eight_words_are_full(const _Atomic uint64_t *words)
{
    uint64_t all = ~0ull;

    for (unsigned k = 0; k < 8; k++) {
        all &= atomic_load_explicit(&words[k], memory_order_acquire);
    }
    return all == ~0ull;
}

/* As leaf_find_set(), for the first clear bit. */
static unsigned leaf_find_clear(const struct bit_tree_node *leaf, unsigned from)
{
    unsigned i = from / 64;
    uint64_t word = ~load_word(leaf, i) & (~0ull << (from % 64));

    while (!word) {
        i++;
        while (i % 8 == 0 && i + 8 <= ENTRIES && eight_words_are_full(&leaf->word[i])) {
            i += 8;
        }
        if (i == ENTRIES) {
            return ENTRIES * 64;
        }
        word = ~load_word(leaf, i);
    }
    return i * 64 + (unsigned)__builtin_ctzll(word);
}

/*
 * Follow the summaries from the root towards *bit, and move *bit forward over clean regions. True
 * if it is at a set bit then; false if it is at the end of a node, where the search continues.
 */
static bool descend_to_set(const struct bit_tree *t, uint64_t *bit)
{
    const struct bit_tree_node *node = load_slot(&t->root);
    uint64_t pos = *bit;

    if (!node) {
        *bit = node_end(pos, t->height);
    }
    for (unsigned level = t->height; node && node != ALL_SET; level--) {
        uint64_t base = round_down(pos, node_span(level));
        unsigned i = entry_index(pos, level);
        unsigned next;

        if (level == 0) {
            next = leaf_find_set(node, (unsigned)(pos - base));
            *bit = base + next;
            return next < node_span(0);
        }
        next = bit_tree_next_marked(const_directory_of(node), i);
        if (next == ENTRIES) {
            *bit = base + node_span(level);
            return false;
        }
        pos = next == i ? pos : base + next * entry_span(level);
        node = load_slot(&node->child[next]);
        /* Cleared in the meantime: the search continues at its end. */
        *bit = node ? pos : node_end(pos, level - 1);
    }
    return node != NULL;
}

uint64_t bit_tree_find_set(const struct bit_tree *t, uint64_t first, uint64_t end)
{
    uint64_t bit = first;

    while (bit < end) {
        if (descend_to_set(t, &bit)) {
            return MIN(bit, end);
        }
    }
    return end;
}

uint64_t bit_tree_find_clear(const struct bit_tree *t, uint64_t first, uint64_t end)
{
    uint64_t bit = first;

    while (bit < end) {
        unsigned level;
        const struct bit_tree_node *node = bit_tree_lookup(t, bit, &level);

        if (!node) {
            return bit;
        }
        if (node == ALL_SET) {
            bit = node_end(bit, level);
        } else {
            uint64_t base = round_down(bit, node_span(0));
            unsigned found = leaf_find_clear(node, (unsigned)(bit - base));

            bit = base + found;
            if (found < node_span(0)) {
                break;
            }
        }
    }
    return MIN(bit, end);
}

bool bit_tree_get(const struct bit_tree *t, uint64_t bit)
{
    unsigned level;
    const struct bit_tree_node *node;

    assert(bit < t->bits);
    node = bit_tree_lookup(t, bit, &level);
    if (!node || node == ALL_SET) {
        return node;
    }
    return load_word(node, entry_index(bit, 0)) >> (bit % 64) & 1;
}

uint64_t bit_tree_count(const struct bit_tree *t)
{
    int64_t count = atomic_load_explicit(&t->set_bits, memory_order_relaxed);

    return count < 0 ? 0 : MIN((uint64_t)count, t->bits);
}

/* The words of a chunk that is set as a whole. */
static uint64_t load_all_set(const struct bit_tree *t, uint64_t first, uint64_t *words)
{
    memset(words, 0xff, BIT_TREE_CHUNK_WORDS * sizeof(*words));
    for (unsigned k = 0; k < BIT_TREE_CHUNK_WORDS && first + BIT_TREE_CHUNK_BITS > t->bits; k++) {
        uint64_t at = first + k * 64ull;

        words[k] = at < t->bits ? word_mask(at, 0, at, t->bits) : 0;
    }
    return MIN(BIT_TREE_CHUNK_BITS, t->bits - first);
}

static uint64_t load_nodes(const struct bit_tree *t, const struct bit_tree_node *a,
                           const struct bit_tree_node *b, uint64_t first, uint64_t *words)
{
    assert(first % BIT_TREE_CHUNK_BITS == 0 && first < t->bits);
    if (a == ALL_SET || b == ALL_SET) {
        return load_all_set(t, first, words);
    }
    if (!a) {
        a = b;
        b = NULL;
    }
    if (!a) {
        memset(words, 0, BIT_TREE_CHUNK_WORDS * sizeof(*words));
        return 0;
    }
    return bit_words_load(words, a->word, b ? b->word : NULL, BIT_TREE_CHUNK_WORDS);
}

uint64_t bit_tree_load(const struct bit_tree *t, uint64_t first, uint64_t *words)
{
    unsigned level;

    return load_nodes(t, bit_tree_lookup(t, first, &level), NULL, first, words);
}

uint64_t bit_tree_load_two(const struct bit_tree *a, const struct bit_tree *b, uint64_t first,
                           uint64_t *words)
{
    unsigned level;
    const struct bit_tree_node *node = bit_tree_lookup(a, first, &level);

    return load_nodes(a, node, bit_tree_lookup(b, first, &level), first, words);
}
