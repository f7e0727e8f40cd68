/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A sparse set of bit numbers that many threads may change and scan at one time without a lock;
 * what dirty bitmaps are made of. Private to this folder.
 *
 * A radix tree. Every node has 512 entries and one summary bit for each of them; a leaf's entries
 * are words of 64 bits (so a leaf has 32768), a directory's entries are nodes:
 *
 *   directory   summary 512 bits | 512 pointers        height, height - 1, ... 1
 *   leaf        summary 512 bits | 512 words           0
 *
 * A pointer is NULL (no bit set below), a node, or ALL_SET: every bit below it, up to the size of
 * the tree, is set. ALL_SET is what a range that covers a whole empty node becomes, and what is
 * left of a node that could not be allocated. Nodes are freed only with the tree, so a pointer once
 * read stays valid.
 *
 * Invariants:
 *  1. A bit for which bit_tree_set() has returned, not cleared since, has the summary bit of its
 *     entry set in each node above it, except while a clearer that is counted in that node's
 *     `clears` is checking that very bit.
 *  2. Bits at or beyond the size of the tree are never set.
 *  3. `set_bits` gets, for every change of a word or pointer, what that change really added or
 *     took.
 */
#ifndef TIDEMARK_BITMAP_TREE_H
#define TIDEMARK_BITMAP_TREE_H

#include <stdalign.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define BIT_TREE_BITS_MAX (1ULL << 54)
/*
 * The granularity of bit_tree_load() and bit_tree_merge_words(): one summary word's worth of a
 * leaf.
 */
#define BIT_TREE_CHUNK_WORDS 64u
#define BIT_TREE_CHUNK_BITS (64ull * BIT_TREE_CHUNK_WORDS)

struct bit_tree_node;

struct bit_tree {
    _Atomic(struct bit_tree_node *) root;
    unsigned height;     /* of the root; 0 is a leaf */
    uint64_t bits;       /* the size */
    size_t memory_limit; /* of the nodes, in bytes */

    /* Written by whoever changes a bit; apart from what everyone reads. */
    alignas(64) _Atomic int64_t set_bits; /* below 0 for a moment when a clear overtakes its set */
    _Atomic size_t memory;                /* bytes of all nodes */
};

/* An empty tree of `bits` <= BIT_TREE_BITS_MAX bits. Allocates nothing. */
void bit_tree_init(struct bit_tree *t, uint64_t bits, size_t memory_limit);
/* Free the nodes. Excludes all others, as does bit_tree_swap(). */
void bit_tree_destroy(struct bit_tree *t);
void bit_tree_swap(struct bit_tree *a, struct bit_tree *b);

/*
 * In all that follows, first <= end <= t->bits.
 *
 * Set bits [first, end). -ENOMEM if more than that had to be set for want of memory, else 0.
 */
int bit_tree_set(struct bit_tree *t, uint64_t first, uint64_t end);

/* Clear bits [first, end), except where that would need memory and there is none. */
void bit_tree_clear(struct bit_tree *t, uint64_t first, uint64_t end);

bool bit_tree_get(const struct bit_tree *t, uint64_t bit);
uint64_t bit_tree_count(const struct bit_tree *t);

/* The first set (clear) bit in [first, end), or `end` if there is none. */
uint64_t bit_tree_find_set(const struct bit_tree *t, uint64_t first, uint64_t end);
uint64_t bit_tree_find_clear(const struct bit_tree *t, uint64_t first, uint64_t end);

/*
 * Read BIT_TREE_CHUNK_WORDS words from bit `first`, a multiple of BIT_TREE_CHUNK_BITS; zero past
 * the size.
 */
void bit_tree_load(const struct bit_tree *t, uint64_t first, uint64_t *words);

/*
 * OR words into [first, end), which lies in one chunk; `first` is a multiple of 64 and bit 0 of
 * words[0]. Returns as bit_tree_set() does.
 */
int bit_tree_merge_words(struct bit_tree *t, uint64_t first, uint64_t end, const uint64_t *words);

/* Set in dest all bits of src that dest has room for. Returns as bit_tree_set() does. */
int bit_tree_merge(struct bit_tree *dest, const struct bit_tree *src);

#endif
