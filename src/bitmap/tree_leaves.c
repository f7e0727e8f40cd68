/* SPDX-License-Identifier: Apache-2.0 */
#include "bitmap/tree_leaves.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* Each block has twice the leaves of the one before, from 16 KiB to 2 MiB. */
#define LEAVES_MIN 4u
#define LEAVES_MAX 512u
/* Made present at once. */
#define LEAVES_SOON 32u

/* --- blocks ----------------------------------------------------------------------------------- */

struct bit_tree_block {
    struct bit_tree_block *next;
    struct bit_tree_node *leaves;
    unsigned count;
    atomic_uint used; /* may exceed `count` */
};
static_assert(sizeof(struct bit_tree_node) == 4096, "a leaf is a page");

static size_t block_bytes(const struct bit_tree_block *block)
{
    return block->count * sizeof(struct bit_tree_node);
}

static void block_free(struct bit_tree_block *block)
{
    (void)munmap((void *)block->leaves, block_bytes(block));
    free(block);
}

static struct bit_tree_block *block_new(struct bit_tree_block *next)
{
    struct bit_tree_block *block = malloc(sizeof(*block));
    void *map;

    if (!block) {
        return NULL;
    }
    block->next = next;
    block->count = next ? MIN(next->count * 2, LEAVES_MAX) : LEAVES_MIN;
    atomic_init(&block->used, 0);
    map =
        mmap(NULL, block_bytes(block), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED) {
        free(block);
        return NULL;
    }
    block->leaves = map;
    return block;
}

static struct bit_tree_node *take_leaf(struct bit_tree_block *block, bool soon)
{
    unsigned i = block ? atomic_fetch_add(&block->used, 1) : 0;

    if (!block || i >= block->count) {
        return NULL;
    }
    if (soon && i % LEAVES_SOON == 0) {
        /* Only saves time: kernels before 5.14 do not know it. */
        (void)madvise((void *)&block->leaves[i],
                      MIN(LEAVES_SOON, block->count - i) * sizeof(*block->leaves),
                      MADV_POPULATE_WRITE);
    }
    return &block->leaves[i];
}

/* --- spare leaves: a stack, linked by their first word ---------------------------------------- */

static node_slot *next_of(struct bit_tree_node *leaf)
{
    return &leaf->child[0];
}

/* Leaves from `first` to `last`. */
static void push(struct bit_tree_leaves *l, struct bit_tree_node *first, struct bit_tree_node *last)
{
    struct bit_tree_node *top = atomic_load(&l->spare);

    do {
        atomic_store(next_of(last), top);
    } while (!atomic_compare_exchange_strong(&l->spare, &top, first));
}

/* Takes all and puts back all but one: nobody else can change a stack that is taken. */
static struct bit_tree_node *pop(struct bit_tree_leaves *l)
{
    struct bit_tree_node *leaf = atomic_load(&l->spare) ? atomic_exchange(&l->spare, NULL) : NULL;
    struct bit_tree_node *rest = leaf ? atomic_load(next_of(leaf)) : NULL, *last = rest;

    if (rest) {
        while (atomic_load(next_of(last))) {
            last = atomic_load(next_of(last));
        }
        push(l, rest, last);
    }
    if (leaf) {
        atomic_store(next_of(leaf), NULL);
    }
    return leaf;
}

/* --- leaves ----------------------------------------------------------------------------------- */

struct bit_tree_node *bit_tree_leaf_new(struct bit_tree_leaves *l, bool soon)
{
    struct bit_tree_node *leaf = pop(l);

    while (!leaf) {
        struct bit_tree_block *block = atomic_load(&l->blocks), *fresh;

        leaf = take_leaf(block, soon);
        if (leaf) {
            break;
        }
        fresh = block_new(block);
        if (!fresh) {
            return NULL;
        }
        if (!atomic_compare_exchange_strong(&l->blocks, &block, fresh)) {
            block_free(fresh);
        }
    }
    return leaf;
}

void bit_tree_leaf_give(struct bit_tree_leaves *l, struct bit_tree_node *leaf)
{
    memset((void *)leaf, 0, sizeof(*leaf));
    push(l, leaf, leaf);
}

void bit_tree_leaves_free(struct bit_tree_leaves *l)
{
    struct bit_tree_block *block = atomic_exchange(&l->blocks, NULL);

    atomic_store(&l->spare, NULL);
    while (block) {
        struct bit_tree_block *next = block->next;

        block_free(block);
        block = next;
    }
}

void bit_tree_leaves_swap(struct bit_tree_leaves *a, struct bit_tree_leaves *b)
{
    atomic_store(&b->blocks, atomic_exchange(&a->blocks, atomic_load(&b->blocks)));
    atomic_store(&b->spare, atomic_exchange(&a->spare, atomic_load(&b->spare)));
}
