/* SPDX-License-Identifier: Apache-2.0 */
#include "bitmap/known.h"

#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "bitmap/tree.h"

/* A table is made at this hit: most bitmaps have few. */
#define HITS_FOR_TABLE 64u
/* 1 MiB of entries, whose pages are used as needed: with granules of 64 KiB, 256 GiB of a disk. */
#define ENTRIES_MAX (128u * KiB)
/* What a group number has room for. */
#define GROUPS_MAX (1ull << 32)
/* Groups that contend for a place: it changes hands at one in this number of hits. */
#define HITS_FOR_PLACE 8u

/* Its only entry has group 0, and none of its bits. */
static struct bitmap_known_table no_table = {.mask = 0, .entry = {0}};

const struct bitmap_known bitmap_known_nothing = {.table = &no_table};

void bitmap_known_init(struct bitmap_known *k, unsigned shift)
{
    k->shift = shift;
    k->empty = true;
    atomic_init(&k->table, &no_table);
    atomic_init(&k->hits, 0);
    pthread_mutex_init(&k->guard, NULL);
}

void bitmap_known_destroy(struct bitmap_known *k)
{
    struct bitmap_known_table *table = atomic_load(&k->table);

    if (table != &no_table) {
        free(table);
    }
    pthread_mutex_destroy(&k->guard);
}

static size_t known_table_bytes(uint64_t entries)
{
    return sizeof(struct bitmap_known_table) + entries * sizeof(uint64_t);
}

size_t bitmap_known_memory(const struct bitmap_known *k)
{
    const struct bitmap_known_table *table = atomic_load(&k->table);

    return table == &no_table ? 0 : known_table_bytes(table->mask + 1);
}

static void make_table_locked(struct bitmap_known *k, const struct bit_tree *tree)
{
    uint64_t groups = div_round_up(tree->bits, 1u << BITMAP_KNOWN_GROUP_SHIFT), entries = 1;
    struct bitmap_known_table *table;

    while (entries < groups && entries < ENTRIES_MAX) {
        entries *= 2;
    }
    if (groups > GROUPS_MAX || tree->memory_limit < known_table_bytes(entries)) {
        return;
    }
    table = calloc(1, known_table_bytes(entries));
    if (table) {
        table->mask = entries - 1;
        atomic_store(&k->table, table);
    }
}

/*
 * The table is published before the tree is read, and a clear changes the tree before it reads
 * `table` (all sequentially consistent): one of the two sees what the other has done.
 */
static void remember_locked(struct bitmap_known *k, const struct bit_tree *tree, uint64_t bit)
{
    struct bitmap_known_table *table = atomic_load(&k->table);
    uint64_t group = bit >> BITMAP_KNOWN_GROUP_SHIFT;
    uint64_t bits = bit_tree_firm_word(tree, bit) >> (bit & 32);

    atomic_store(&table->entry[group & table->mask], bits << 32 | group);
    k->empty = false;
}

/* Whether this hit is worth the work. */
static bool is_worth_remembering(struct bitmap_known *k, uint64_t bit)
{
    struct bitmap_known_table *table = atomic_load(&k->table);
    unsigned every = HITS_FOR_TABLE, hits;

    if (table != &no_table) {
        uint64_t group = bit >> BITMAP_KNOWN_GROUP_SHIFT;
        uint64_t entry =
            atomic_load_explicit(&table->entry[group & table->mask], memory_order_relaxed);

        every = entry >> 32 == 0 || (uint32_t)entry == group ? 1 : HITS_FOR_PLACE;
    }
    /* Additions of other threads may be lost. */
    hits = atomic_load_explicit(&k->hits, memory_order_relaxed) + 1;
    atomic_store_explicit(&k->hits, hits, memory_order_relaxed);
    return hits % every == 0;
}

void bitmap_known_hit(struct bitmap_known *k, const struct bit_tree *tree, uint64_t bit)
{
    /* If somebody else is busy here, another hit will follow. */
    if (!is_worth_remembering(k, bit) || pthread_mutex_trylock(&k->guard) != 0) {
        return;
    }
    if (atomic_load(&k->table) == &no_table) {
        make_table_locked(k, tree);
    }
    if (atomic_load(&k->table) != &no_table) {
        remember_locked(k, tree, bit);
    }
    pthread_mutex_unlock(&k->guard);
}

/* Entries [first, first + count), modulo their number. */
static void forget_known_locked(struct bitmap_known *k, struct bitmap_known_table *table,
                                uint64_t first, uint64_t count)
{
    if (k->empty) {
        return;
    }
    for (uint64_t i = 1; i < count; i++) {
        atomic_store_explicit(&table->entry[(first + i) & table->mask], 0, memory_order_relaxed);
    }
    /* Before anything that the caller does next, together with those above. */
    atomic_store(&table->entry[first & table->mask], 0);
    k->empty = count > table->mask;
}

void bitmap_known_cleared(struct bitmap_known *k, uint64_t first, uint64_t end)
{
    struct bitmap_known_table *table = atomic_load(&k->table);
    uint64_t group = first >> BITMAP_KNOWN_GROUP_SHIFT;

    if (table != &no_table && first < end) {
        uint64_t groups = div_round_up(end, 1u << BITMAP_KNOWN_GROUP_SHIFT) - group;

        pthread_mutex_lock(&k->guard);
        forget_known_locked(k, table, group, MIN(groups, table->mask + 1));
        pthread_mutex_unlock(&k->guard);
    }
}
