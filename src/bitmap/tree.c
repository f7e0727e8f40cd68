/* SPDX-License-Identifier: Apache-2.0 */
/* Changes of bit trees: allocation, summaries, set, clear. */
#include "bitmap/bit_words.h"
#include "bitmap/tree_leaves.h"
#include "bitmap/tree_node.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"

struct bit_tree_node bit_tree_all_set;

/* --- nodes */

static size_t node_bytes(unsigned level)
{
    return level > 0 ? sizeof(struct bit_tree_directory) : sizeof(struct bit_tree_node);
}

static struct bit_tree_node *directory_new(void)
{
    struct bit_tree_directory *dir =
        aligned_alloc(alignof(struct bit_tree_directory), sizeof(struct bit_tree_directory));

    if (!dir) {
        return NULL;
    }
    memset(dir, 0, sizeof(*dir));
    return &dir->node;
}

/* An empty node. `soon`: all of it will be written, and others like it. */
static struct bit_tree_node *tree_node_new(struct bit_tree *t, unsigned level, bool soon)
{
    struct bit_tree_node *node = NULL;
    size_t bytes = node_bytes(level), before = atomic_fetch_add(&t->memory, bytes);

    if (before <= t->memory_limit && t->memory_limit - before >= bytes) {
        node = level > 0 ? directory_new() : bit_tree_leaf_new(&t->leaves, soon);
    }
    if (!node) {
        atomic_fetch_sub(&t->memory, bytes);
    }
    return node;
}

/* Free a node that nobody else has seen, or, when the tree is freed, a directory. */
static void tree_node_free(struct bit_tree *t, struct bit_tree_node *node, unsigned level)
{
    atomic_fetch_sub(&t->memory, node_bytes(level));
    if (level > 0) {
        free(node);
    } else {
        bit_tree_leaf_give(&t->leaves, node);
    }
}

/* A node at `level`, beginning with bit `base`, that has the same bits as ALL_SET there. */
static struct bit_tree_node *tree_node_new_all_set(struct bit_tree *t, unsigned level,
                                                   uint64_t base)
{
    struct bit_tree_node *node = tree_node_new(t, level, false);

    for (unsigned i = 0; node && i < ENTRIES; i++) {
        if (base + i * entry_span(level) >= t->bits) {
            break;
        }
        if (level == 0) {
            atomic_init(&node->word[i], word_mask(base, i, base, t->bits));
        } else {
            atomic_init(&node->child[i], ALL_SET);
            atomic_fetch_or_explicit(&directory_of(node)->summary[i / 64], entry_mask(i),
                                     memory_order_relaxed);
        }
    }
    return node;
}

/*
 * Replace `expected` by `node`, at `level`, in a slot. If another thread was faster, free `node`.
 * Returns the slot.
 */
static struct bit_tree_node *tree_node_install(struct bit_tree *t, node_slot *slot,
                                               struct bit_tree_node *expected,
                                               struct bit_tree_node *node, unsigned level)
{
    if (atomic_compare_exchange_strong(slot, &expected, node)) {
        return node;
    }
    tree_node_free(t, node, level);
    return expected;
}

static void free_directories(struct bit_tree *t, struct bit_tree_node *node, unsigned level)
{
    if (!node || node == ALL_SET || level == 0) {
        return;
    }
    for (unsigned i = 0; level > 1 && i < ENTRIES; i++) {
        free_directories(t, load_slot(&node->child[i]), level - 1);
    }
    tree_node_free(t, node, level);
}

/* --- summaries */

/* Set summary bits that are not set yet, after the change of their entries. */
static inline void mark_entries(struct bit_tree_directory *dir, unsigned summary_word,
                                uint64_t mask)
{
    if ((atomic_load(&dir->summary[summary_word]) & mask) != mask) {
        atomic_fetch_or(&dir->summary[summary_word], mask);
    }
}

/* Whether what entry `i` of a directory at `level` points to has no bits. */
static bool entry_is_empty(const struct bit_tree_directory *dir, unsigned level, unsigned i)
{
    const struct bit_tree_node *child = atomic_load(&dir->node.child[i]);

    if (!child || child == ALL_SET) {
        return !child;
    }
    if (level == 1) {
        return leaf_next_word(child, 0) == ENTRIES;
    }
    for (unsigned k = bit_tree_next_marked(const_directory_of(child), 0); k < ENTRIES;
         k = bit_tree_next_marked(const_directory_of(child), k + 1)) {
        if (!entry_is_empty(const_directory_of(child), level - 1, k)) {
            return false;
        }
    }
    return true;
}

/* Clear the summary bit of entry `i`, which seems empty, and set it again if it is not. */
static void unmark_entry(struct bit_tree_directory *dir, unsigned level, unsigned i)
{
    uint64_t mask = entry_mask(i);

    if (!is_marked(dir, i)) {
        return;
    }
    atomic_fetch_add(&dir->clears, CLEARS_BEGIN);
    atomic_fetch_and(&dir->summary[i / 64], ~mask);
    if (!entry_is_empty(dir, level, i)) {
        atomic_fetch_or(&dir->summary[i / 64], mask);
    }
    atomic_fetch_sub(&dir->clears, CLEARS_END);
}

/* --- set */

static void count_bits(struct bit_tree *t, int64_t change)
{
    if (change) {
        atomic_fetch_add_explicit(&t->set_bits, change, memory_order_relaxed);
    }
}

/*
 * Reads from the leaf upwards, in the order in which they are set: only then does a set summary bit
 * mean that a clear of it will see the word.
 */
uint64_t bit_tree_firm_word(const struct bit_tree *t, uint64_t bit)
{
    const struct bit_tree_directory *path[HEIGHT_MAX + 1];
    const struct bit_tree_node *node = load_slot(&t->root);
    unsigned level = t->height;
    uint64_t word = ~0ull;

    while (level > 0 && node && node != ALL_SET) {
        path[level] = const_directory_of(node);
        node = atomic_load(&node->child[entry_index(bit, level)]);
        level--;
    }
    if (!node) {
        return 0;
    }
    if (node != ALL_SET) {
        word = atomic_load(&node->word[entry_index(bit, 0)]);
    }
    while (level++ < t->height) {
        if (!is_marked(path[level], entry_index(bit, level))) {
            return 0;
        }
    }
    return word;
}

/* Set [first, end) in a leaf. */
static void set_in_leaf(struct bit_tree *t, struct bit_tree_node *leaf, uint64_t base,
                        uint64_t first, uint64_t end)
{
    unsigned last = entry_index(end - 1, 0);
    int64_t added = 0;

    for (unsigned i = entry_index(first, 0); i <= last; i++) {
        uint64_t mask = word_mask(base, i, first, end);

        if ((atomic_load(&leaf->word[i]) & mask) != mask) {
            uint64_t old = atomic_fetch_or(&leaf->word[i], mask);

            added += bit_count(mask & ~old);
        }
    }
    count_bits(t, added);
}

/*
 * The node in a slot, at `level`; a new one if there is none; or ALL_SET, also if the whole node is
 * set. Returns as bit_tree_set().
 */
static int tree_node_for_set(struct bit_tree *t, node_slot *slot, unsigned level, uint64_t base,
                             bool whole, struct bit_tree_node **ret_node)
{
    struct bit_tree_node *expected = load_slot(slot);
    struct bit_tree_node *node = ALL_SET;
    int r = 0;

    while (!expected) {
        if (!whole) {
            node = tree_node_new(t, level, false);
        }
        if (node && node != ALL_SET) {
            *ret_node = tree_node_install(t, slot, NULL, node, level);
            return 0;
        }
        if (atomic_compare_exchange_strong(slot, &expected, ALL_SET)) {
            count_bits(t, (int64_t)(MIN(base + node_span(level), t->bits) - base));
            r = whole ? 0 : -ENOMEM;
            expected = ALL_SET;
        }
    }
    *ret_node = expected;
    return r;
}

/* Set [first, end) below `slot`, whose node is at `level` and begins with bit `base`. */
static int set_below(struct bit_tree *t, node_slot *slot, unsigned level, uint64_t base,
                     uint64_t first, uint64_t end)
{
    bool whole = first == base && end == MIN(base + node_span(level), t->bits);
    struct bit_tree_node *node;
    int r = tree_node_for_set(t, slot, level, base, whole, &node);

    if (!node || node == ALL_SET) {
        return r;
    }
    if (level == 0) {
        set_in_leaf(t, node, base, first, end);
        return 0;
    }
    for (uint64_t pos = first; pos < end;) {
        unsigned i = entry_index(pos, level);
        uint64_t child_end = MIN(end, node_end(pos, level - 1));
        int child_r = set_below(t, &node->child[i], level - 1,
                                round_down(pos, node_span(level - 1)), pos, child_end);

        mark_entries(directory_of(node), i / 64, entry_mask(i));
        r = error_first(r, child_r);
        pos = child_end;
    }
    return r;
}

int bit_tree_set(struct bit_tree *t, uint64_t first, uint64_t end)
{
    assert(end <= t->bits);
    if (first >= end) {
        return 0;
    }
    if (first / 64 == (end - 1) / 64) {
        uint64_t mask = word_mask(round_down(first, 64), 0, first, end);

        if ((bit_tree_firm_word(t, first) & mask) == mask) {
            return 0;
        }
    }
    return set_below(t, &t->root, t->height, 0, first, end);
}

/* --- merge words */

/* Words to be set in a leaf: bits outside the range are clear. */
struct leaf_words {
    const uint64_t *words;
    /* of the leaf: the first, and how many */
    unsigned first, count;
    /* how many bits they have */
    uint64_t bits;
};

/* Returns how many bits were clear. */
static uint64_t merge_in_leaf(struct bit_tree_node *leaf, const struct leaf_words *w, bool alone)
{
    uint64_t added = 0;

    if (alone) {
        return bit_words_merge(&leaf->word[w->first], w->words, w->count);
    }
    for (unsigned k = 0; k < w->count; k++) {
        _Atomic uint64_t *word = &leaf->word[w->first + k];

        if (w->words[k] & ~atomic_load(word)) {
            added += bit_count(w->words[k] & ~atomic_fetch_or(word, w->words[k]));
        }
    }
    return added;
}

/* Set the words in the leaf in `slot`, which is made if there is none. As bit_tree_set(). */
static int merge_in_slot(struct bit_tree *t, node_slot *slot, uint64_t base,
                         const struct leaf_words *w, bool alone)
{
    struct bit_tree_node *leaf = load_slot(slot);
    int r = 0;

    if (!leaf) {
        struct bit_tree_node *fresh = tree_node_new(t, 0, true);

        if (fresh) {
            memcpy((void *)&fresh->word[w->first], w->words, w->count * sizeof(*w->words));
            leaf = tree_node_install(t, slot, NULL, fresh, 0);
            if (leaf == fresh) {
                count_bits(t, (int64_t)w->bits);
                return 0;
            }
        } else {
            r = tree_node_for_set(t, slot, 0, base, false, &leaf); /* most likely all set */
        }
    }
    if (leaf != ALL_SET) {
        count_bits(t, (int64_t)merge_in_leaf(leaf, w, alone));
    }
    return r;
}

/* Set the words of the leaf that begins with bit `base`, below `slot`. As bit_tree_set(). */
static int merge_below(struct bit_tree *t, node_slot *slot, unsigned level, uint64_t base,
                       const struct leaf_words *w, bool alone)
{
    struct bit_tree_node *node;
    unsigned i = entry_index(base, level);
    int r, child_r;

    if (level == 0) {
        return merge_in_slot(t, slot, base, w, alone);
    }
    r = tree_node_for_set(t, slot, level, round_down(base, node_span(level)), false, &node);
    if (node == ALL_SET) {
        return r;
    }
    child_r = merge_below(t, &node->child[i], level - 1, base, w, alone);
    mark_entries(directory_of(node), i / 64, entry_mask(i));
    return error_first(r, child_r);
}

/* Merge words into the leaf that begins with bit `base`. As bit_tree_set(). */
static int merge_leaf_words(struct bit_tree *t, uint64_t base, const struct leaf_words *w,
                            bool alone)
{
    if (w->bits == BIT_TREE_CHUNK_BITS) {
        return bit_tree_set(t, base, base + BIT_TREE_CHUNK_BITS);
    }
    return w->bits > 0 ? merge_below(t, &t->root, t->height, base, w, alone) : 0;
}

int bit_tree_merge_chunk(struct bit_tree *t, uint64_t first, const uint64_t *words, uint64_t bits,
                         bool alone)
{
    const struct leaf_words w = {words, 0, BIT_TREE_CHUNK_WORDS, bits};

    assert(first < t->bits && first % BIT_TREE_CHUNK_BITS == 0);
    return merge_leaf_words(t, first, &w, alone);
}

int bit_tree_merge_words(struct bit_tree *t, uint64_t first, uint64_t end, const uint64_t *words,
                         bool alone)
{
    const uint64_t base = round_down(first, BIT_TREE_CHUNK_BITS);
    uint64_t clean[BIT_TREE_CHUNK_WORDS];
    struct leaf_words w = {.words = words, .first = entry_index(first, 0)};

    assert(end <= t->bits && first % 64 == 0);
    assert(first >= end || base == round_down(end - 1, BIT_TREE_CHUNK_BITS));
    if (first >= end) {
        return 0;
    }
    w.count = entry_index(end - 1, 0) - w.first + 1;
    if (end % 64 != 0) {
        /* Without what is past the end. */
        memcpy(clean, words, w.count * sizeof(*words));
        clean[w.count - 1] &= word_mask(base, w.first + w.count - 1, first, end);
        w.words = clean;
    }
    w.bits = bit_words_count(w.words, w.count);
    return merge_leaf_words(t, base, &w, alone);
}

/* --- clear */

static void clear_in_leaf(struct bit_tree *t, struct bit_tree_node *leaf, uint64_t base,
                          uint64_t first, uint64_t end)
{
    unsigned last = entry_index(end - 1, 0);
    int64_t removed = 0;

    for (unsigned i = entry_index(first, 0); i <= last; i++) {
        uint64_t mask = word_mask(base, i, first, end);

        if (atomic_load(&leaf->word[i]) & mask) {
            removed += bit_count(atomic_fetch_and(&leaf->word[i], ~mask) & mask);
        }
    }
    count_bits(t, -removed);
}

/* The node in which to clear [first, end); NULL if nothing has to be done, or can be, there. */
static struct bit_tree_node *tree_node_for_clear(struct bit_tree *t, node_slot *slot,
                                                 unsigned level, uint64_t base, uint64_t first,
                                                 uint64_t end)
{
    uint64_t span_end = MIN(base + node_span(level), t->bits);
    struct bit_tree_node *node = load_slot(slot);

    while (node == ALL_SET) {
        if (first == base && end == span_end) {
            if (atomic_compare_exchange_strong(slot, &node, NULL)) {
                count_bits(t, -(int64_t)(span_end - base));
                return NULL;
            }
        } else {
            struct bit_tree_node *expanded = tree_node_new_all_set(t, level, base);

            if (!expanded) {
                return NULL;
            }
            node = tree_node_install(t, slot, ALL_SET, expanded, level);
        }
    }
    return node;
}

static void clear_below(struct bit_tree *t, node_slot *slot, unsigned level, uint64_t base,
                        uint64_t first, uint64_t end)
{
    struct bit_tree_node *node = tree_node_for_clear(t, slot, level, base, first, end);
    struct bit_tree_directory *dir;
    unsigned last = entry_index(end - 1, level);

    if (!node) {
        return;
    }
    if (level == 0) {
        clear_in_leaf(t, node, base, first, end);
        return;
    }
    dir = directory_of(node);
    for (unsigned i = bit_tree_next_marked(dir, entry_index(first, level)); i <= last;
         i = bit_tree_next_marked(dir, i + 1)) {
        uint64_t child_base = base + i * entry_span(level);

        clear_below(t, &node->child[i], level - 1, child_base, MAX(first, child_base),
                    MIN(end, child_base + entry_span(level)));
        if (entry_is_empty(dir, level, i)) {
            unmark_entry(dir, level, i);
        }
    }
}

void bit_tree_clear(struct bit_tree *t, uint64_t first, uint64_t end)
{
    assert(end <= t->bits);
    if (first < end) {
        clear_below(t, &t->root, t->height, 0, first, end);
    }
}

/* --- the tree */

void bit_tree_init(struct bit_tree *t, uint64_t bits, size_t memory_limit)
{
    assert(bits <= BIT_TREE_BITS_MAX);
    *t = (struct bit_tree){.bits = bits, .memory_limit = memory_limit};
    while (node_span(t->height) < bits) {
        t->height++;
    }
    assert(t->height <= HEIGHT_MAX);
}

void bit_tree_destroy(struct bit_tree *t)
{
    free_directories(t, atomic_exchange(&t->root, NULL), t->height);
    bit_tree_leaves_free(&t->leaves);
    atomic_store(&t->memory, 0);
    atomic_store(&t->set_bits, 0);
}

void bit_tree_swap(struct bit_tree *a, struct bit_tree *b)
{
    struct bit_tree old_a = {.height = a->height, .bits = a->bits, .memory_limit = a->memory_limit};

    a->height = b->height;
    a->bits = b->bits;
    a->memory_limit = b->memory_limit;
    b->height = old_a.height;
    b->bits = old_a.bits;
    b->memory_limit = old_a.memory_limit;
    atomic_store(&b->root, atomic_exchange(&a->root, atomic_load(&b->root)));
    atomic_store(&b->set_bits, atomic_exchange(&a->set_bits, atomic_load(&b->set_bits)));
    atomic_store(&b->memory, atomic_exchange(&a->memory, atomic_load(&b->memory)));
    bit_tree_leaves_swap(&a->leaves, &b->leaves);
}
