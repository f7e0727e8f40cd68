/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A sparse set of bit numbers, which many threads may change and scan at the same time without a
 * lock. Dirty bitmaps are made of it. Private to this folder.
 *
 * The set is a radix tree. Every node has 512 entries. The entries of a leaf are words of 64 bits
 * (so a leaf has 32768 bits), those of a directory are nodes, with one summary bit for each:
 *
 *   directory   512 pointers | summary 512 bits        height, height - 1, ... 1
 *   leaf        512 words                              0
 *
 * A pointer is NULL (no bit below is set), a node, or ALL_SET (every bit below, up to the size of
 * the tree, is set). A range that covers a whole empty node becomes ALL_SET, and so does a node
 * that can't be allocated. Nodes are freed only with the tree, so a pointer that was read stays
 * valid. The leaves, one page each, come from blocks (tree_leaves.h): all bits of a tree take an
 * eighth of a byte each, and 0.2% more.
 *
 * Invariants:
 *  1. For a bit that bit_tree_set() has set, and that was not cleared since, the summary bit of its
 *     entry is set in each directory above, except while a clear that is counted in the
 *     directory's `clears` checks that summary bit.
 *  2. Bits at or beyond the size of the tree are never set.
 *  3. Each change of a word or pointer adds to `set_bits` the number of bits that it really set, or
 *     subtracts the number that it really cleared.
 *
 * In all functions first <= end <= t->bits. None of them yields.
 */
#ifndef TIDEMARK_BITMAP_TREE_H
#define TIDEMARK_BITMAP_TREE_H

#include <stdalign.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define BIT_TREE_BITS_MAX (1ULL << 54)

/* The unit of bit_tree_load() and bit_tree_merge_words(): the words of a leaf. */
#define BIT_TREE_CHUNK_WORDS 512u
#define BIT_TREE_CHUNK_BITS (64ull * BIT_TREE_CHUNK_WORDS)

struct bit_tree_node;
struct bit_tree_block;

/* What leaves are made of (tree_leaves.h). */
struct bit_tree_leaves {
    _Atomic(struct bit_tree_block *) blocks;
    /* leaves that were given back */
    _Atomic(struct bit_tree_node *) spare;
};

struct bit_tree {
    _Atomic(struct bit_tree_node *) root;
    /* of the root; 0 is a leaf */
    unsigned height;
    /* the size */
    uint64_t bits;
    /* bytes that the nodes may take */
    size_t memory_limit;

    /* On another cache line than the members above, which every call reads. */
    /* negative for a moment when a clear counts earlier than the set of the same bit */
    alignas(64) _Atomic int64_t set_bits;
    /* bytes that the nodes take */
    _Atomic size_t memory;
    struct bit_tree_leaves leaves;
};

/* An empty tree of `bits` <= BIT_TREE_BITS_MAX bits. Allocates nothing. */
void bit_tree_init(struct bit_tree *t, uint64_t bits, size_t memory_limit);

/* Free the nodes. No other call on the tree runs. */
void bit_tree_destroy(struct bit_tree *t);

/* Exchange the contents of two trees. No other call on them runs. */
void bit_tree_swap(struct bit_tree *a, struct bit_tree *b);

/* Set bits [first, end). 0, or -ENOMEM if more bits were set, because there was no memory. */
int bit_tree_set(struct bit_tree *t, uint64_t first, uint64_t end);

/* Clear bits [first, end), except where that needs memory and there is none. */
void bit_tree_clear(struct bit_tree *t, uint64_t first, uint64_t end);

/* Whether a bit, below t->bits, is set. */
bool bit_tree_get(const struct bit_tree *t, uint64_t bit);

/*
 * The bits of the word that contains `bit`, below t->bits, if all summary bits above it are set, so
 * that a set of them has nothing to do; 0 if not. Bits past the size may be set, too.
 */
uint64_t bit_tree_firm_word(const struct bit_tree *t, uint64_t bit);

/* How many bits are set; a counter, without a scan. */
uint64_t bit_tree_count(const struct bit_tree *t);

/* The first set bit in [first, end), or `end` if there is none. */
uint64_t bit_tree_find_set(const struct bit_tree *t, uint64_t first, uint64_t end);

/* The first clear bit in [first, end), or `end` if there is none. */
uint64_t bit_tree_find_clear(const struct bit_tree *t, uint64_t first, uint64_t end);

/*
 * Read BIT_TREE_CHUNK_WORDS words from bit `first`, a multiple of BIT_TREE_CHUNK_BITS; 0 past the
 * size. Returns how many bits they have.
 */
uint64_t bit_tree_load(const struct bit_tree *t, uint64_t first, uint64_t *words);
/* The same for what is set in one of two trees of the same size, or in both. */
uint64_t bit_tree_load_two(const struct bit_tree *a, const struct bit_tree *b, uint64_t first,
                           uint64_t *words);

/*
 * Set the bits of [first, end) that are set in `words`. The range is within one chunk; `first` is a
 * multiple of 64, and is bit 0 of words[0]. `alone`: no other call changes the tree meanwhile,
 * which saves the locked instructions. Returns as bit_tree_set().
 */
int bit_tree_merge_words(struct bit_tree *t, uint64_t first, uint64_t end, const uint64_t *words,
                         bool alone);
/* The same for a chunk from bit `first` on, whose words have `bits` bits, none past the size. */
int bit_tree_merge_chunk(struct bit_tree *t, uint64_t first, const uint64_t *words, uint64_t bits,
                         bool alone);

/*
 * Set in `dest`, below its bit `end`, all bits of `src`. A bit of `src` is 2^up bits of `dest`, or
 * 2^down bits of `src` are one of `dest`; one of the two is 0. Otherwise as above.
 */
int bit_tree_merge(struct bit_tree *dest, uint64_t end, const struct bit_tree *src, unsigned up,
                   unsigned down, bool alone);

/*
 * Set in `dest`, which nobody else uses, all bits of `a` and of `b`, which have its size. Faster
 * than two merges: each leaf is made once. Returns as bit_tree_set().
 */
int bit_tree_merge_two(struct bit_tree *dest, const struct bit_tree *a, const struct bit_tree *b);

#endif
