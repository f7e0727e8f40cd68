/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Granules of a bitmap that are known to be set: a cache, so that a write into what is dirty
 * already costs a load and a test. Part of bitmap.h.
 *
 * An entry has the granules of a group, of 32:
 *
 *     bits 0..31    the number of the group
 *     bits 32..63   the granules that are set
 *
 * The place of a group is its number modulo the number of entries. A bit is put in, under the
 * mutex, only when it was found in the tree under the same mutex. Whoever clears bits in the tree
 * takes them out afterwards, under the mutex, before he returns. So a bit that is found here was
 * set, and no clear of it had returned.
 */
#ifndef TIDEMARK_BITMAP_KNOWN_H
#define TIDEMARK_BITMAP_KNOWN_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define BITMAP_KNOWN_GROUP_SHIFT 5u

struct bit_tree;

struct bitmap_known_table {
    uint64_t mask; /* the number of entries, a power of two, less one */
    _Atomic uint64_t entry[];
};

struct bitmap_known {
    /* One without known bits, for all bitmaps, until there are enough hits. */
    _Atomic(struct bitmap_known_table *) table;
    unsigned shift; /* log2 of the granularity */
    /* How often a set has found its granule set, and not here; roughly. */
    atomic_uint hits;
    /* Guards what is written to the table. */
    pthread_mutex_t guard;
    bool empty; /* no bit was put in since all were taken out */
};

/* Of no bitmap, and without known bits. */
extern const struct bitmap_known bitmap_known_nothing;

/* For a bitmap of granules of 2^shift bytes. */
void bitmap_known_init(struct bitmap_known *k, unsigned shift);
void bitmap_known_destroy(struct bitmap_known *k);
/*
 * A set has found granule `bit` set, and its summary bits: remember what is set near it. Makes the
 * table when that has happened often. Without memory nothing is remembered.
 */
void bitmap_known_hit(struct bitmap_known *k, const struct bit_tree *tree, uint64_t bit);
/* Granules [first, end) were cleared in the tree. */
void bitmap_known_cleared(struct bitmap_known *k, uint64_t first, uint64_t end);
/* Bytes of the table. */
size_t bitmap_known_memory(const struct bitmap_known *k);

/* Whether [offset, offset + length) is in one granule that is known to be set. */
static inline bool bitmap_known_has(const struct bitmap_known *k, uint64_t offset, uint64_t length)
{
    const struct bitmap_known_table *table = atomic_load_explicit(&k->table, memory_order_acquire);
    unsigned shift = k->shift;
    uint64_t granule = offset >> shift, last = (offset + length - 1) >> shift;
    uint64_t group = granule >> BITMAP_KNOWN_GROUP_SHIFT;
    uint64_t entry = atomic_load(&table->entry[group & table->mask]);

    return last == granule && (uint32_t)entry == (uint32_t)group &&
           (entry >> (granule | 32) % 64 & 1);
}

#endif
