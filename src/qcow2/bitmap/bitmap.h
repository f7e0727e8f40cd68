/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Persistent bitmaps (specification, "Bitmaps"): the contract of this folder.
 *
 *   stored.c        bitmaps as the directory describes them: directory and tables
 *   mark.c          marking in use (R5)
 *   load.c          bitmaps at open; reading their bits
 *   reserve.c       clusters kept for bitmaps that are not stored yet
 *   store.c         storing all: bits.c, in_place.c, switch.c over attempt.c
 *   remove.c        whether a bitmap can be added; removing one
 *
 * All `co_` functions yield, and run on the main reactor unless stated. None is called with
 * bitmaps.mutex held. They return 0 or -errno, and fill `err` on failure, unless stated.
 */
#ifndef TIDEMARK_QCOW2_BITMAP_BITMAP_H
#define TIDEMARK_QCOW2_BITMAP_BITMAP_H

#include <stdint.h>

#include "base/list.h"

struct block_bitmap;
struct block_node;
struct error;
struct qcow2;

/* A bitmap as the directory on disk describes it. */
struct stored_bitmap {
    struct list link; /* in bitmaps.stored */
    char *name;
    /* The table: file offset and number of entries (8 bytes each). */
    uint64_t table_offset;
    uint32_t table_entries;
    /* BITMAP_FLAG_ bits, as they are on disk. */
    uint32_t flags;
    uint8_t type;
    uint8_t granularity_bits;
    /* Extra data, kept as it is. */
    uint8_t *extra;
    uint32_t extra_size;
    /* File offset of the flags field in the directory. */
    uint64_t flags_position;
    /* The bitmap of the node; NULL if it was not loaded (unknown type or flags). */
    struct block_bitmap *loaded;
};

/* --- open and close --------------------------------------------------------------------------- */

/*
 * Read the directory, and add the bitmaps to the node without their bits. A bitmap that can't be
 * used is added as inconsistent, or only kept in bitmaps.stored if its type or flags are unknown.
 * -EINVAL if the directory is invalid.
 */
int qcow2_co_load_bitmaps(struct qcow2 *q, struct error *err);
/*
 * Store all persistent bitmaps that are not stored as they are, and remove the in-use marks (R5).
 * On failure what is on disk stays marked, and a later call can succeed. Does nothing on a
 * read-only image.
 */
int qcow2_co_store_bitmaps(struct qcow2 *q, struct error *err);
/* Free the memory of bitmaps.stored, and of bitmaps.reserve. Neither yields. */
void qcow2_free_stored_bitmaps(struct qcow2 *q);
void qcow2_free_bitmap_reserve(struct qcow2 *q);

/* --- requests --------------------------------------------------------------------------------- */

/*
 * Before a guest write while bitmaps.marked is false (R5): mark all bitmaps that record writes in
 * use, stably, and set bitmaps.marked. Any reactor.
 */
int qcow2_co_mark_bitmaps(struct qcow2 *q);

/* --- operations on one bitmap ----------------------------------------------------------------- */

/*
 * The driver's functions of these names: see struct block_driver. The node is drained, except for
 * the first two.
 */
int qcow2_co_fetch_bitmap(struct block_node *node, struct block_bitmap *bitmap);
int qcow2_co_count_bitmap(struct block_node *node, const struct block_bitmap *bitmap,
                          uint64_t *ret_bytes);
int qcow2_co_bitmap_will_change(struct block_node *node, struct block_bitmap *bitmap,
                                struct error *err);
int qcow2_co_can_store_bitmap(struct block_node *node, const char *name, uint32_t granularity,
                              struct error *err);
int qcow2_co_reserve_bitmap(struct block_node *node, const char *name, uint32_t granularity,
                            struct error *err);
int qcow2_co_remove_stored_bitmap(struct block_node *node, const char *name, struct error *err);

/* --- resize and repair ------------------------------------------------------------------------ */

/*
 * -EFBIG if a bitmap with `granularity` (bytes, a power of two) of a disk of `disk_size` bytes
 * would be too large to be stored. Does not yield.
 */
int qcow2_check_bitmap_size(const struct qcow2 *q, uint64_t disk_size, const char *name,
                            uint32_t granularity, struct error *err);
/*
 * Reserve what all bitmaps need to be stored for a disk of `disk_size` bytes. Bitmaps that are
 * stored and whose tables are long enough need nothing. On failure (-ENOSPC and others) the reserve
 * may have grown.
 */
int qcow2_co_reserve_bitmaps(struct qcow2 *q, uint64_t disk_size, struct error *err);
/*
 * Undo the above when the disk does not grow after all: bitmaps that are stored need no longer
 * tables.
 */
void qcow2_co_unreserve_longer_tables(struct qcow2 *q);
/*
 * Give back the whole reserve. For a caller that counts refcounts again from references, which the
 * reserve does not have. Storing then allocates what it needs.
 */
void qcow2_co_unreserve_bitmaps(struct qcow2 *q);

#endif
