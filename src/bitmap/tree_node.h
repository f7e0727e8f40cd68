/* SPDX-License-Identifier: Apache-2.0 */
/* The nodes of a bit tree: their layout, and functions for both changes and scans. None yields. */
#ifndef TIDEMARK_BITMAP_TREE_NODE_H
#define TIDEMARK_BITMAP_TREE_NODE_H

#include "bitmap/tree.h"

#include "base/checked.h"

/*
 * Memory order: accesses to words, summaries and `clears` are sequentially consistent, since "set
 * the entry, then read its summary bit" and "clear the summary bit, then read the entry" must not
 * both miss the change of the other. Only scans that read leaf words alone are weaker (acquire). On
 * x86-64 all of these loads are plain loads.
 */

#define ENTRY_SHIFT 9u
#define ENTRIES (1u << ENTRY_SHIFT)
#define SUMMARY_WORDS (ENTRIES / 64)
#define LEAF_SHIFT (ENTRY_SHIFT + 6)
#define HEIGHT_MAX 5u

/* `clears`: the low 16 bits count clears of summary bits in progress, the rest those ever begun. */
#define CLEARS_ACTIVE 0xffffull
#define CLEARS_BEGIN (CLEARS_ACTIVE + 2)
#define CLEARS_END 1ull

typedef _Atomic(struct bit_tree_node *) node_slot;

/* A leaf, or the beginning of a directory. */
struct bit_tree_node {
    union {
        /* of a leaf */
        alignas(64) _Atomic uint64_t word[ENTRIES];
        /* of a directory */
        node_slot child[ENTRIES];
    };
};

struct bit_tree_directory {
    struct bit_tree_node node;
    _Atomic uint64_t summary[SUMMARY_WORDS];
    _Atomic uint64_t clears;
};

/* For a node whose level is not 0. */
static inline struct bit_tree_directory *directory_of(struct bit_tree_node *node)
{
    return (struct bit_tree_directory *)node;
}

/* Likewise. */
static inline const struct bit_tree_directory *const_directory_of(const struct bit_tree_node *node)
{
    return (const struct bit_tree_directory *)node;
}

/* Only its address is used. */
extern struct bit_tree_node bit_tree_all_set;
#define ALL_SET (&bit_tree_all_set)

/* How many bits are below a node at `level`. */
static inline uint64_t node_span(unsigned level)
{
    return 1ull << (LEAF_SHIFT + level * ENTRY_SHIFT);
}

/* How many bits are below one entry of a node at `level`. */
static inline uint64_t entry_span(unsigned level)
{
    return 1ull << (6 + level * ENTRY_SHIFT);
}

/* The entry, of the node at `level`, that contains `bit`. */
static inline unsigned entry_index(uint64_t bit, unsigned level)
{
    return (bit >> (6 + level * ENTRY_SHIFT)) & (ENTRIES - 1);
}

/* The bit of entry `i` in its summary word. */
static inline uint64_t entry_mask(unsigned i)
{
    return 1ull << (i % 64);
}

/* The first bit after the node at `level` that contains `bit`. */
static inline uint64_t node_end(uint64_t bit, unsigned level)
{
    return (bit | (node_span(level) - 1)) + 1;
}

/* The node that a slot points to; NULL or ALL_SET is possible. */
static inline struct bit_tree_node *load_slot(const node_slot *slot)
{
    return atomic_load_explicit(slot, memory_order_acquire);
}

/* Word `i` of a leaf. */
static inline uint64_t load_word(const struct bit_tree_node *leaf, unsigned i)
{
    return atomic_load_explicit(&leaf->word[i], memory_order_acquire);
}

/* The bits of word `i`, of a leaf that begins at `base`, that are in [first, end), at least one. */
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

/* How many bits are set, without a call where the processor has no instruction for it. */
static inline unsigned bit_count(uint64_t word)
{
    word -= word >> 1 & 0x5555555555555555;
    word = (word & 0x3333333333333333) + (word >> 2 & 0x3333333333333333);
    word = (word + (word >> 4)) & 0x0f0f0f0f0f0f0f0f;
    return (unsigned)(word * 0x0101010101010101 >> 56);
}

/* Whether the summary bit of entry `i` is set. */
static inline bool is_marked(const struct bit_tree_directory *dir, unsigned i)
{
    return atomic_load(&dir->summary[i / 64]) & entry_mask(i);
}

/* Whether none of 8 words has a bit. */
static inline bool eight_words_are_empty(const _Atomic uint64_t *words)
{
    uint64_t any = 0;

    for (unsigned k = 0; k < 8; k++) {
        any |= atomic_load(&words[k]);
    }
    return any == 0;
}

/* The first word of a leaf, from `from` on, that has a bit, or ENTRIES. */
static inline unsigned leaf_next_word(const struct bit_tree_node *leaf, unsigned from)
{
    unsigned i = from;

    while (i < ENTRIES) {
        if (i % 8 == 0 && eight_words_are_empty(&leaf->word[i])) {
            i += 8;
        } else if (atomic_load(&leaf->word[i])) {
            break;
        } else {
            i++;
        }
    }
    return i;
}

/*
 * The first entry, from `from` on, below which a bit may be set, or ENTRIES. If a clear may have
 * hidden a summary bit in the meantime, the answer is `from`, so nothing is skipped.
 */
static inline unsigned bit_tree_next_marked(const struct bit_tree_directory *dir, unsigned from)
{
    unsigned found = ENTRIES;
    uint64_t clears;

    if (from >= ENTRIES) {
        return ENTRIES;
    }
    clears = atomic_load(&dir->clears);
    for (unsigned w = from / 64; w < SUMMARY_WORDS; w++) {
        uint64_t marks = atomic_load(&dir->summary[w]);

        if (w == from / 64) {
            marks &= ~0ull << (from % 64);
        }
        if (marks) {
            found = w * 64 + (unsigned)__builtin_ctzll(marks);
            break;
        }
    }
    if (found != from && ((clears & CLEARS_ACTIVE) || atomic_load(&dir->clears) != clears)) {
        return from;
    }
    return found;
}

/* The leaf that contains `bit`, or the NULL or ALL_SET above it, and the level of that. */
static inline struct bit_tree_node *bit_tree_lookup(const struct bit_tree *t, uint64_t bit,
                                                    unsigned *ret_level)
{
    struct bit_tree_node *node = load_slot(&t->root);
    unsigned level = t->height;

    while (level > 0 && node && node != ALL_SET) {
        node = load_slot(&node->child[entry_index(bit, level)]);
        level--;
    }
    *ret_level = level;
    return node;
}

#endif
