/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Persistent bitmaps of images that leave a backing chain, merged into those of an image that
 * stays: a commit writes images into one below them, a rebase takes images out from under one.
 * Afterwards every differential that could be computed with the old chain can be computed with the
 * new one, exactly or as a superset (docs/bitmaps.md).
 *
 *     collect (each image that leaves) -> check (the image that stays) -> mark (what the copying
 *     moves past an image) -> store (when the data is in place)
 *
 * For coroutines of the main reactor. All `co_` functions yield; the others do not.
 */
#ifndef TIDEMARK_COPY_CHAIN_BITMAPS_H
#define TIDEMARK_COPY_CHAIN_BITMAPS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "block/block.h"

struct chain_bitmap;

/* Start with {0}. */
struct chain_bitmaps {
    struct chain_bitmap *list; /* owned; one per bitmap and image */
    size_t count;
    /* The greatest size that the images know of, in bytes. */
    uint64_t greatest;
    /* Set it before the first collect: bitmaps that are not persistent count too. */
    bool all;
};

/*
 * Add copies of the persistent bitmaps (or all) of `node`, which is image number `depth` of the
 * chain, counted from the top image, number 1. `size` is that of the disk that they are merged for,
 * in bytes. An inconsistent bitmap, which no differential can use, is left out with a warning in
 * the log. -ENOMEM, or an error of reading a bitmap.
 */
int chain_bitmaps_co_collect(struct chain_bitmaps *c, struct block_node *node, int depth,
                             uint64_t size, struct error *err);
/*
 * Check, before anything is written, whether `to` can store the bitmaps. A bitmap that the format
 * of `to` cannot store is dropped with a warning in the log; the image that it came from keeps it.
 * -EEXIST: `to` has an inconsistent bitmap of such a name, and merging into it would make it look
 * complete.
 */
int chain_bitmaps_co_check(struct chain_bitmaps *c, struct block_node *to, struct error *err);
/*
 * Record that image number `depth` stores [offset, offset + length), in bytes: writing that range
 * to an image below would have marked the enabled bitmaps of that image.
 */
void chain_bitmaps_mark(struct chain_bitmaps *c, uint64_t offset, uint64_t length, int depth);
/* Whether chain_bitmaps_mark() would ever mark anything. */
bool chain_bitmaps_want_marks(const struct chain_bitmaps *c);
/* Mark [offset, offset + length) in all bitmaps. */
void chain_bitmaps_mark_all(struct chain_bitmaps *c, uint64_t offset, uint64_t length);
/*
 * Merge everything into the bitmaps of the same names of `to`, which are added where they do not
 * exist. A bitmap that was enabled in any of the images is enabled in `to`. -errno of adding,
 * merging or enabling; the error names the bitmap.
 */
int chain_bitmaps_co_store(const struct chain_bitmaps *c, struct block_node *to, struct error *err);
/* Free what is held, and leave `c` empty. */
void chain_bitmaps_clear(struct chain_bitmaps *c);

#endif
