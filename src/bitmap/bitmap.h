/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Dirty bitmaps in memory: one bit per `granularity` bytes of a disk.
 *
 * A tree of summaries over a sparse leaf level (tree.h): a summary bit is set if any bit below it
 * may be set. Leaves are allocated when a bit in them is first set, so a set-free region costs no
 * memory, nor does one set as a whole; iteration skips clean regions by the summaries.
 *
 * Concurrency: everything but what says otherwise below may run in any threads at one time without
 * a lock. Setting sets the leaf, then its summaries; clearing a summary clears it, then scans the
 * leaf again and sets it back if a bit appeared (both sides sequentially consistent), and a scan
 * that overlaps that does not trust the summary: so a bit is found from when its set() has
 * returned until it is cleared.
 * dirty_bitmap_resize(), _swap() and _free() need the owner to have stopped everything else.
 *
 * Offsets and lengths are bytes of the disk; a partial granule counts whole when set,
 * and is left alone when cleared unless it is covered fully (or up to the end of the disk).
 */
#ifndef TIDEMARK_BITMAP_BITMAP_H
#define TIDEMARK_BITMAP_BITMAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct dirty_bitmap;

#define BITMAP_GRANULARITY_MIN 512u
#define BITMAP_GRANULARITY_MAX (2u * 1024 * 1024 * 1024)

/* `size` in bytes, `granularity` a power of two in the range above. NULL if out of memory or out of
 * range. */
struct dirty_bitmap *dirty_bitmap_new(uint64_t size, uint32_t granularity);
void dirty_bitmap_free(struct dirty_bitmap *b); /* NULL is fine */

uint64_t dirty_bitmap_size(const struct dirty_bitmap *b);
uint32_t dirty_bitmap_granularity(const struct dirty_bitmap *b);

/*
 * Mark [offset, offset + length); clipped to the size. Cannot fail: when a leaf can't be allocated
 * its whole region reads as dirty from then on. To be called once the write it records has landed:
 * bits that are set already are only looked at.
 */
void dirty_bitmap_set(struct dirty_bitmap *b, uint64_t offset, uint64_t length);

/*
 * Clearing a part of a region that takes no memory (set as a whole, or for want of a leaf)
 * allocates a leaf; when that can't be had, the region stays dirty.
 */
void dirty_bitmap_clear(struct dirty_bitmap *b, uint64_t offset, uint64_t length);
void dirty_bitmap_clear_all(struct dirty_bitmap *b);

/* Whether the granule at `offset` is dirty. */
bool dirty_bitmap_get(const struct dirty_bitmap *b, uint64_t offset);

/*
 * Dirty bytes: granules times granularity, the last one cut at the size. Costs nothing, and is
 * exact but for calls that are setting or clearing bits meanwhile.
 */
uint64_t dirty_bitmap_count(const struct dirty_bitmap *b);

/*
 * The next dirty extent that begins in [offset, end): *ret_offset and *ret_length in bytes (the
 * start may be `offset` itself in the midst of a granule; the length is cut at `end` and at the
 * size). False if there is none.
 */
bool dirty_bitmap_next_dirty(const struct dirty_bitmap *b, uint64_t offset, uint64_t end,
                             uint64_t *ret_offset, uint64_t *ret_length);

/* The state at `offset` and for how many bytes it lasts (at most to `end` and the size; > 0).
 * offset < size. */
bool dirty_bitmap_status(const struct dirty_bitmap *b, uint64_t offset, uint64_t end,
                         uint64_t *ret_length);

/* dest |= src, any granularities and sizes (clipped to dest). 0 or -ENOMEM (dest then a superset at
 * best). */
int dirty_bitmap_merge(struct dirty_bitmap *dest, const struct dirty_bitmap *src);

/* A copy with the same size, granularity and bits; NULL if out of memory. */
struct dirty_bitmap *dirty_bitmap_clone(const struct dirty_bitmap *b);

/* Exchange the contents of two bitmaps of the same geometry. Owner excludes all others. */
void dirty_bitmap_swap(struct dirty_bitmap *a, struct dirty_bitmap *b);

/* New size; bits beyond it are lost, growth is clean. 0 or -ENOMEM (then unchanged). Owner excludes
 * all others. */
int dirty_bitmap_resize(struct dirty_bitmap *b, uint64_t new_size);

/*
 * Serialised form as the qcow2 specification's "Bitmap data": one bit per granule, granule 0 in the
 * least significant bit of the first byte. `first` is a granule number and a multiple of 8.
 */
/* Bytes that granules [first, first + granules) take: (granules + 7) / 8. Total granules of the
 * bitmap: */
uint64_t dirty_bitmap_granules(const struct dirty_bitmap *b);
/* Write granules [first, first + 8 * size) (zero past the end) to buf. True if any bit is set. */
bool dirty_bitmap_serialize(const struct dirty_bitmap *b, uint64_t first, uint8_t *buf,
                            size_t size);
/* OR the bits of buf into the bitmap; bits past the end are ignored. 0 or -ENOMEM. */
int dirty_bitmap_deserialize(struct dirty_bitmap *b, uint64_t first, const uint8_t *buf,
                             size_t size);

/* Bytes of memory it uses now. */
size_t dirty_bitmap_memory(const struct dirty_bitmap *b);

/*
 * At most about this many bytes for bits (SIZE_MAX at first); beyond, all is as if memory had run
 * out. What is in use already stays. Owner excludes all others.
 */
void dirty_bitmap_set_memory_limit(struct dirty_bitmap *b, size_t bytes);

#endif
