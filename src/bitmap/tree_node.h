/* SPDX-License-Identifier: Apache-2.0 */
/* The nodes of a bit tree: their layout, and what both its changers and its scanners need. */
#ifndef TIDEMARK_BITMAP_TREE_NODE_H
#define TIDEMARK_BITMAP_TREE_NODE_H

#include "bitmap/tree.h"

#include "base/checked.h"

/*
 * Memory order: words, summaries and `clears` are sequentially consistent, since "set the entry,
 * then look at its summary bit" must not pass "clear the summary bit, then look at the entry". Only
 * scans of leaf words for their own sake are weaker (acquire). On x86-64 all of these loads are
 * plain ones.
 */

#define ENTRY_SHIFT 9u
#define ENTRIES (1u << ENTRY_SHIFT)
#define SUMMARY_WORDS (ENTRIES / 64)
#define LEAF_SHIFT (ENTRY_SHIFT + 6)
#define HEIGHT_MAX 5u

/* `clears`: how many clearers are at work on the summary, and above that how many ever began. */
#define CLEARS_ACTIVE 0xffffull
#define CLEARS_BEGIN (CLEARS_ACTIVE + 2)
#define CLEARS_END 1ull

typedef _Atomic(struct bit_tree_node *) node_slot;

struct bit_tree_node {
    alignas(64) _Atomic uint64_t summary[SUMMARY_WORDS];
    union {
        _Atomic uint64_t word[ENTRIES]; /* of a leaf */
        node_slot child[ENTRIES];       /* of a directory */
    };
    _Atomic uint64_t clears;
};

extern struct bit_tree_node bit_tree_all_set; /* only its address counts */
#define ALL_SET (&bit_tree_all_set)

/* How many bits lie below a node at `level`, and below one of its entries. */
static inline uint64_t node_span(unsigned level)
{
    return 1ull << (LEAF_SHIFT + level * ENTRY_SHIFT);
}

static inline uint64_t entry_span(unsigned level)
{
    return 1ull << (6 + level * ENTRY_SHIFT);
}

static inline unsigned entry_index(uint64_t bit, unsigned level)
{
    return (bit >> (6 + level * ENTRY_SHIFT)) & (ENTRIES - 1);
}

static inline uint64_t entry_mask(unsigned i)
{
    return 1ull << (i % 64);
}

/* The first bit after the node at `level` that holds `bit`. */
static inline uint64_t node_end(uint64_t bit, unsigned level)
{
    return (bit | (node_span(level) - 1)) + 1;
}

static inline struct bit_tree_node *load_slot(const node_slot *slot)
{
    return atomic_load_explicit(slot, memory_order_acquire);
}

static inline uint64_t load_word(const struct bit_tree_node *leaf, unsigned i)
{
    return atomic_load_explicit(&leaf->word[i], memory_order_acquire);
}

/*
 * The bits of word `i` of a leaf that begins at `base` which lie in [first, end); the word does
 * overlap it.
 */
static inline uint64_t word_mask(uint64_t base, unsigned i, uint64_t first, uint64_t end)
{
    uint64_t start = base + i * 64ull;
    uint64_t mask = ~0ull;

    if (first > start) {
        mask <<= first - start;
    }
    if (end - start < 64) {
        mask &= (1ull << (end - start)) - 1;
    }
    return mask;
}

static inline bool is_marked(const struct bit_tree_node *node, unsigned i)
{
    return atomic_load(&node->summary[i / 64]) & entry_mask(i);
}

/*
 * The first entry at or after `from` that may hold a set bit, or ENTRIES. If a clearer may have
 * hidden an entry from us in the meantime, nothing is skipped: the answer is `from`.
 */
unsigned bit_tree_next_marked(const struct bit_tree_node *node, unsigned from);

/* The leaf that holds `bit`, or the NULL or ALL_SET above it, and its level. */
struct bit_tree_node *bit_tree_lookup(const struct bit_tree *t, uint64_t bit, unsigned *ret_level);

#endif
