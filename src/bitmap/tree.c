/* SPDX-License-Identifier: Apache-2.0 */
/* Changes of bit trees: allocation, summaries, set, clear. */
#include "bitmap/tree_node.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"

struct bit_tree_node bit_tree_all_set;

/* --- nodes */

static struct bit_tree_node *tree_node_new(struct bit_tree *t)
{
    struct bit_tree_node *node = NULL;
    size_t before = atomic_fetch_add(&t->memory, sizeof(*node));

    if (before <= t->memory_limit && t->memory_limit - before >= sizeof(*node)) {
        node = aligned_alloc(alignof(struct bit_tree_node), sizeof(*node));
    }
    if (!node) {
        atomic_fetch_sub(&t->memory, sizeof(*node));
        return NULL;
    }
    memset(node, 0, sizeof(*node));
    return node;
}

static void tree_node_free(struct bit_tree *t, struct bit_tree_node *node)
{
    if (node && node != ALL_SET) {
        atomic_fetch_sub(&t->memory, sizeof(*node));
        free(node);
    }
}

/* A node at `level`, beginning with bit `base`, that has the same bits as ALL_SET there. */
static struct bit_tree_node *tree_node_new_all_set(struct bit_tree *t, unsigned level,
                                                   uint64_t base)
{
    struct bit_tree_node *node = tree_node_new(t);

    for (unsigned i = 0; node && i < ENTRIES; i++) {
        if (base + i * entry_span(level) >= t->bits) {
            break;
        }
        if (level == 0) {
            atomic_init(&node->word[i], word_mask(base, i, base, t->bits));
        } else {
            atomic_init(&node->child[i], ALL_SET);
        }
        atomic_fetch_or_explicit(&node->summary[i / 64], entry_mask(i), memory_order_relaxed);
    }
    return node;
}

/*
 * Replace `expected` by `node` in a slot. If another thread was faster, free `node`. Returns the
 * slot.
 */
static struct bit_tree_node *tree_node_install(struct bit_tree *t, node_slot *slot,
                                               struct bit_tree_node *expected,
                                               struct bit_tree_node *node)
{
    if (atomic_compare_exchange_strong(slot, &expected, node)) {
        return node;
    }
    tree_node_free(t, node);
    return expected;
}

static void free_subtree(struct bit_tree *t, struct bit_tree_node *node, unsigned level)
{
    if (!node || node == ALL_SET) {
        return;
    }
    for (unsigned i = 0; level > 0 && i < ENTRIES; i++) {
        free_subtree(t, load_slot(&node->child[i]), level - 1);
    }
    tree_node_free(t, node);
}

/* --- summaries */

/* Set summary bits that are not set yet, after the change of their entries. */
static inline void mark_entries(struct bit_tree_node *node, unsigned summary_word, uint64_t mask)
{
    if ((atomic_load(&node->summary[summary_word]) & mask) != mask) {
        atomic_fetch_or(&node->summary[summary_word], mask);
    }
}

static bool entry_is_empty(const struct bit_tree_node *node, unsigned level, unsigned i)
{
    const struct bit_tree_node *child;

    if (level == 0) {
        return atomic_load(&node->word[i]) == 0;
    }
    child = atomic_load(&node->child[i]);
    if (!child || child == ALL_SET) {
        return !child;
    }
    for (unsigned k = bit_tree_next_marked(child, 0); k < ENTRIES;
         k = bit_tree_next_marked(child, k + 1)) {
        if (!entry_is_empty(child, level - 1, k)) {
            return false;
        }
    }
    return true;
}

/* Clear the summary bits of entries that seem empty, and set them again if they are not. */
static void unmark_entries(struct bit_tree_node *node, unsigned level, unsigned summary_word,
                           uint64_t mask)
{
    uint64_t restore = 0;

    mask &= atomic_load(&node->summary[summary_word]);
    if (!mask) {
        return;
    }
    atomic_fetch_add(&node->clears, CLEARS_BEGIN);
    atomic_fetch_and(&node->summary[summary_word], ~mask);
    for (uint64_t rest = mask; rest; rest &= rest - 1) {
        unsigned i = (unsigned)__builtin_ctzll(rest);

        if (!entry_is_empty(node, level, summary_word * 64 + i)) {
            restore |= entry_mask(i);
        }
    }
    if (restore) {
        atomic_fetch_or(&node->summary[summary_word], restore);
    }
    atomic_fetch_sub(&node->clears, CLEARS_END);
}

/* --- set */

static void count_bits(struct bit_tree *t, int64_t change)
{
    if (change) {
        atomic_fetch_add_explicit(&t->set_bits, change, memory_order_relaxed);
    }
}

/*
 * Whether the bits `mask` of the word that contains `bit` are set, and all summary bits above.
 * Reads from the leaf upwards, in the order in which they are set: only then does a set summary bit
 * mean that a clear of it will see the word.
 */
static bool is_already_set(const struct bit_tree *t, uint64_t bit, uint64_t mask)
{
    const struct bit_tree_node *path[HEIGHT_MAX + 1];
    const struct bit_tree_node *node = load_slot(&t->root);
    unsigned level = t->height;

    while (level > 0 && node && node != ALL_SET) {
        path[level] = node;
        node = atomic_load(&node->child[entry_index(bit, level)]);
        level--;
    }
    if (!node) {
        return false;
    }
    if (node != ALL_SET) {
        unsigned i = entry_index(bit, 0);

        if ((atomic_load(&node->word[i]) & mask) != mask || !is_marked(node, i)) {
            return false;
        }
    }
    while (level++ < t->height) {
        if (!is_marked(path[level], entry_index(bit, level))) {
            return false;
        }
    }
    return true;
}

/*
 * Set [first, end) in a leaf; with `words`, only bits set there (words[0] is the word of `first`).
 */
static void set_in_leaf(struct bit_tree *t, struct bit_tree_node *leaf, uint64_t base,
                        uint64_t first, uint64_t end, const uint64_t *words)
{
    unsigned begin = entry_index(first, 0);
    unsigned last = entry_index(end - 1, 0);
    uint64_t marks = 0;
    int64_t added = 0;

    for (unsigned i = begin; i <= last; i++) {
        uint64_t mask = word_mask(base, i, first, end);

        if (words) {
            mask &= words[i - begin];
        }
        if ((atomic_load(&leaf->word[i]) & mask) != mask) {
            uint64_t old = atomic_fetch_or(&leaf->word[i], mask);

            added += __builtin_popcountll(mask & ~old);
        }
        if (mask) {
            marks |= entry_mask(i);
        }
        if (i % 64 == 63 || i == last) {
            mark_entries(leaf, i / 64, marks);
            marks = 0;
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
            node = tree_node_new(t);
        }
        if (node && node != ALL_SET) {
            *ret_node = tree_node_install(t, slot, NULL, node);
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
                     uint64_t first, uint64_t end, const uint64_t *words)
{
    bool whole = !words && first == base && end == MIN(base + node_span(level), t->bits);
    struct bit_tree_node *node;
    int r = tree_node_for_set(t, slot, level, base, whole, &node);

    if (!node || node == ALL_SET) {
        return r;
    }
    if (level == 0) {
        set_in_leaf(t, node, base, first, end, words);
        return 0;
    }
    for (uint64_t pos = first; pos < end;) {
        unsigned i = entry_index(pos, level);
        uint64_t child_end = MIN(end, node_end(pos, level - 1));
        int child_r = set_below(t, &node->child[i], level - 1,
                                round_down(pos, node_span(level - 1)), pos, child_end, words);

        mark_entries(node, i / 64, entry_mask(i));
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
    if (first / 64 == (end - 1) / 64 &&
        is_already_set(t, first, word_mask(round_down(first, 64), 0, first, end))) {
        return 0;
    }
    return set_below(t, &t->root, t->height, 0, first, end, NULL);
}

int bit_tree_merge_words(struct bit_tree *t, uint64_t first, uint64_t end, const uint64_t *words)
{
    uint64_t any = 0;

    assert(end <= t->bits && first % 64 == 0);
    assert(first >= end || first / BIT_TREE_CHUNK_BITS == (end - 1) / BIT_TREE_CHUNK_BITS);
    for (uint64_t pos = first; pos < end; pos += 64) {
        any |= words[(pos - first) / 64] & word_mask(pos, 0, pos, end);
    }
    return any ? set_below(t, &t->root, t->height, 0, first, end, words) : 0;
}

/* --- clear */

static void clear_in_leaf(struct bit_tree *t, struct bit_tree_node *leaf, uint64_t base,
                          uint64_t first, uint64_t end)
{
    unsigned last = entry_index(end - 1, 0);
    uint64_t empty = 0;
    int64_t removed = 0;

    for (unsigned i = entry_index(first, 0); i <= last; i++) {
        uint64_t mask = word_mask(base, i, first, end);
        uint64_t old = atomic_load(&leaf->word[i]);

        if (old & mask) {
            old = atomic_fetch_and(&leaf->word[i], ~mask);
            removed += __builtin_popcountll(old & mask);
        }
        if (!(old & ~mask)) {
            empty |= entry_mask(i);
        }
        if (i % 64 == 63 || i == last) {
            unmark_entries(leaf, 0, i / 64, empty);
            empty = 0;
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
            node = tree_node_install(t, slot, ALL_SET, expanded);
        }
    }
    return node;
}

static void clear_below(struct bit_tree *t, node_slot *slot, unsigned level, uint64_t base,
                        uint64_t first, uint64_t end)
{
    struct bit_tree_node *node = tree_node_for_clear(t, slot, level, base, first, end);
    unsigned last = entry_index(end - 1, level);

    if (!node) {
        return;
    }
    if (level == 0) {
        clear_in_leaf(t, node, base, first, end);
        return;
    }
    for (unsigned i = bit_tree_next_marked(node, entry_index(first, level)); i <= last;
         i = bit_tree_next_marked(node, i + 1)) {
        uint64_t child_base = base + i * entry_span(level);

        clear_below(t, &node->child[i], level - 1, child_base, MAX(first, child_base),
                    MIN(end, child_base + entry_span(level)));
        if (entry_is_empty(node, level, i)) {
            unmark_entries(node, level, i / 64, entry_mask(i));
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
    free_subtree(t, atomic_exchange(&t->root, NULL), t->height);
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
}
