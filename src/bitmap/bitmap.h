/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Dirty bitmaps in memory: one bit per granule, `granularity` bytes of a disk.
 *
 * A bitmap is a sparse tree (tree.h). A summary bit is set if any bit below it may be set, so
 * iteration skips clean regions. A region without set bits takes no memory, nor does a region that
 * is set as a whole. What is set again and again is remembered (known.h).
 *
 * Concurrency: without a lock, any threads may call any functions at the same time, except those
 * that say "alone": for these the owner makes sure that no other call on the bitmap runs. A bit
 * that dirty_bitmap_set() has set is found from the return of that call until it is cleared. To
 * ensure that, setting sets the leaf, then the summaries above; clearing clears the summary, then
 * reads the leaf again and sets the summary back if it finds a bit (both sides sequentially
 * consistent); and a scan that overlaps with a clear does not rely on the summary.
 *
 * Offsets and lengths are bytes of the disk. Setting a part of a granule sets the granule. Clearing
 * a part of a granule leaves it alone, unless the part reaches from its beginning to the end of the
 * disk. None of these functions yields.
 */
#ifndef TIDEMARK_BITMAP_BITMAP_H
#define TIDEMARK_BITMAP_BITMAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "bitmap/known.h"

struct dirty_bitmap;

#define BITMAP_GRANULARITY_MIN 512u
#define BITMAP_GRANULARITY_MAX (2u * 1024 * 1024 * 1024)

/*
 * A bitmap without set bits, for a disk of `size` bytes. `granularity` is a power of two in the
 * range above. NULL if out of memory, or if an argument is out of range.
 */
struct dirty_bitmap *dirty_bitmap_new(uint64_t size, uint32_t granularity);

/* NULL is fine. Alone. */
void dirty_bitmap_free(struct dirty_bitmap *b);

/* The size of the disk, the granularity, in bytes, and the number of granules. */
uint64_t dirty_bitmap_size(const struct dirty_bitmap *b);
uint32_t dirty_bitmap_granularity(const struct dirty_bitmap *b);
uint64_t dirty_bitmap_granules(const struct dirty_bitmap *b);

/*
 * Whether [offset, offset + length) is set, by a look at what is remembered: false says nothing.
 * As dirty_bitmap_set() otherwise.
 */
static inline bool dirty_bitmap_is_known_set(const struct dirty_bitmap *b, uint64_t offset,
                                             uint64_t length)
{
    return bitmap_known_has((const struct bitmap_known *)b, offset, length);
}

/* One that only dirty_bitmap_is_known_set() may be called on, and that says false. */
const struct dirty_bitmap *dirty_bitmap_without_knowledge(void);

/* dirty_bitmap_set() of what is not known to be set. */
void dirty_bitmap_set_unknown(struct dirty_bitmap *b, uint64_t offset, uint64_t length);

/*
 * Set [offset, offset + length), cut at the size. Can't fail: if a leaf can't be allocated, its
 * whole region is dirty from then on. Called after the write that it records, also because bits
 * that are set already are not written again.
 */
static inline void dirty_bitmap_set(struct dirty_bitmap *b, uint64_t offset, uint64_t length)
{
    if (!dirty_bitmap_is_known_set(b, offset, length)) {
        dirty_bitmap_set_unknown(b, offset, length);
    }
}

/*
 * Clear [offset, offset + length), cut at the size. In a region that is set as a whole this may
 * need memory for a leaf; without memory the region stays dirty.
 */
void dirty_bitmap_clear(struct dirty_bitmap *b, uint64_t offset, uint64_t length);

/* Clear all bits. */
void dirty_bitmap_clear_all(struct dirty_bitmap *b);

/* Whether the granule at `offset` is dirty; false beyond the size. */
bool dirty_bitmap_get(const struct dirty_bitmap *b, uint64_t offset);

/*
 * Dirty bytes: dirty granules times the granularity, the last granule cut at the size. A counter,
 * without a scan; exact except for calls that change bits at the same time.
 */
uint64_t dirty_bitmap_count(const struct dirty_bitmap *b);

/*
 * Find the first dirty extent in [offset, end); *ret_offset and *ret_length are in bytes. The
 * extent may begin at `offset` inside a granule; it is cut at `end` and at the size. False if there
 * is none.
 */
bool dirty_bitmap_next_dirty(const struct dirty_bitmap *b, uint64_t offset, uint64_t end,
                             uint64_t *ret_offset, uint64_t *ret_length);

/*
 * Whether `offset`, which is below `end` and the size, is dirty. *ret_length is for how many bytes,
 * at least 1, the answer holds, at most up to `end` and the size.
 */
bool dirty_bitmap_status(const struct dirty_bitmap *b, uint64_t offset, uint64_t end,
                         uint64_t *ret_length);

/* A walk through a bitmap from its beginning to its end, faster than dirty_bitmap_status(). */
struct dirty_bitmap_walk {
    const struct dirty_bitmap *bitmap;
    /* The bits that were read last, and the first of them. */
    uint64_t first;
    uint64_t words[512];
    bool loaded;
};

/* dirty_bitmap_status() for offsets that grow. Bits that are set meanwhile may be seen or not. */
bool dirty_bitmap_walk_status(struct dirty_bitmap_walk *w, uint64_t offset, uint64_t end,
                              uint64_t *ret_length);

/*
 * Set in `dest` everything that is dirty in `src`, cut at the size of `dest`. The granularities may
 * differ. Returns 0, or -ENOMEM if more than that had to be set.
 */
int dirty_bitmap_merge(struct dirty_bitmap *dest, const struct dirty_bitmap *src);
/* As above, faster: nobody else changes `dest` meanwhile (others may read it). */
int dirty_bitmap_merge_alone(struct dirty_bitmap *dest, const struct dirty_bitmap *src);

/* A copy with the same size, granularity, bits and memory limit. NULL if out of memory. */
struct dirty_bitmap *dirty_bitmap_clone(const struct dirty_bitmap *b);
/*
 * The same with all that is dirty in `more` (which may be NULL), too: as a clone and a merge into
 * it, in less time.
 */
struct dirty_bitmap *dirty_bitmap_clone_merged(const struct dirty_bitmap *b,
                                               const struct dirty_bitmap *more);

/* Exchange the contents of two bitmaps of the same size and granularity. Alone. */
void dirty_bitmap_swap(struct dirty_bitmap *a, struct dirty_bitmap *b);

/*
 * Change the size. Bits beyond it are lost, and added granules are clean. Returns 0; -EFBIG above
 * INT64_MAX, or -ENOMEM, and then nothing has changed. Alone.
 */
int dirty_bitmap_resize(struct dirty_bitmap *b, uint64_t new_size);

/*
 * The serialized form is that of the qcow2 specification, "Bitmap data": one bit per granule,
 * granule 0 in the least significant bit of the first byte. `first` is a granule, a multiple of 8.
 */

/*
 * Write granules [first, first + 8 * size) to `buf`, `size` bytes; zeroes past the end. Returns
 * whether any of them is dirty.
 */
bool dirty_bitmap_serialize(const struct dirty_bitmap *b, uint64_t first, uint8_t *buf,
                            size_t size);

/*
 * Set the granules whose bits are set in `buf`, `size` bytes; bits past the end are ignored.
 * Returns 0, or -ENOMEM if more than that had to be set.
 */
int dirty_bitmap_deserialize(struct dirty_bitmap *b, uint64_t first, const uint8_t *buf,
                             size_t size);

/* Bytes of memory that the bitmap takes now. */
size_t dirty_bitmap_memory(const struct dirty_bitmap *b);

/*
 * Limit the memory for bits, in bytes (SIZE_MAX at first). At the limit the bitmap behaves as if
 * memory had run out; it keeps what it has. Alone.
 */
void dirty_bitmap_set_memory_limit(struct dirty_bitmap *b, size_t bytes);

#endif
