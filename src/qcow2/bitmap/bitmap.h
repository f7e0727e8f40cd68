/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Persistent bitmaps (specification, "Bitmaps"): the contract of this folder.
 *
 *   stored.c        bitmaps as the directory describes them: directory and tables
 *   mark.c          marking in use (R5)
 *   load.c          bitmaps at open
 *   read_bits.c     reading their bits
 *   reserve.c       clusters kept for bitmaps that are not stored yet
 *   store.c         storing all: bits.c, in_place.c, switch.c over attempt.c
 *   remove.c        whether a bitmap can be added; removing one
 *   size.c          before the size of the disk changes
 *   activity.c      the activity log: its begin, what the block layer asks of it
 *   activity_map.c  its map in the image: read, named by the header, given back
 *   joint.h         changes of the bitmaps of several images
 *   keep.c          adding bits to stored bitmaps while the image is in use
 *
 * All `co_` functions yield, and run on the main reactor unless stated. None is called with
 * bitmaps.mutex held. They return 0 or -errno, and fill `err` on failure, unless stated.
 */
#ifndef TIDEMARK_QCOW2_BITMAP_BITMAP_H
#define TIDEMARK_QCOW2_BITMAP_BITMAP_H

#include <stdbool.h>
#include <stdint.h>

#include "base/list.h"
#include "qcow2/header/format.h"

struct block_activity_range;
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
    /*
     * BITMAP_FLAG_ bits, as they are on disk. The main reactor reads them without the mutex while
     * another one sets the mark.
     */
    _Atomic uint32_t flags;
    uint8_t type;
    uint8_t granularity_bits;
    /* Extra data, kept as it is. */
    uint8_t *extra;
    uint32_t extra_size;
    /* File offset of the flags field in the directory. */
    uint64_t flags_position;
    /* The bitmap of the node; NULL if it was not loaded (unknown type or flags). */
    struct block_bitmap *loaded;
    /* It was in use at open, and the activity log says nothing of it. */
    bool is_void;
    /* It was added since the image was opened. */
    bool is_recent;
    /* What was dirty in excess at open. */
    struct qcow2_excess excess;
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
/*
 * Store all of them for the size that the node has now, and switch to the header that has this
 * size: one write. -ENOSPC, with nothing changed, if there is no space for new clusters.
 */
int qcow2_co_store_bitmaps_anew(struct qcow2 *q, struct error *err);
/*
 * The same while the image stays in use: the activity log and the marks stay. On failure what is
 * stored is what was stored before.
 */
int qcow2_co_commit_bitmaps(struct block_node *node, struct error *err);
/* Free the memory of bitmaps.stored, and of bitmaps.reserve. Neither yields. */
void qcow2_free_stored_bitmaps(struct qcow2 *q);
void qcow2_free_bitmap_reserve(struct qcow2 *q);

/* --- excess (excess.c): none yields --- */

/* Why a bitmap is a superset. The addresses are compared. */
extern const char qcow2_excess_crash[], qcow2_excess_no_space[], qcow2_excess_in_doubt[],
    qcow2_excess_unreadable[];

/* Fill in `excess` of all stored bitmaps, from what the header said. */
void qcow2_note_excess(struct qcow2 *q);
/* What a bitmap had at open counts for it when it is loaded. */
void qcow2_apply_excess(const struct stored_bitmap *s, struct block_bitmap *loaded);
/* What the header is to say: up to EXCESS_MAX records. Returns how many. */
unsigned qcow2_list_excess(struct qcow2 *q, struct qcow2_excess *ret_list);
/* Bytes; the greatest of them, 0 if there is none. */
uint64_t qcow2_greatest_excess(struct qcow2 *q);

/* --- requests --------------------------------------------------------------------------------- */

/*
 * Before a guest write while bitmaps.marked is false (R5): mark all bitmaps that record writes in
 * use, stably, and set bitmaps.marked. Any reactor.
 */
int qcow2_co_mark_bitmaps(struct qcow2 *q);
/* The same, with the activity log before the marks: without it they say that bits are missing. */
int qcow2_co_mark_before_change(struct qcow2 *q);
/*
 * Before a change that the other bitmaps have already: mark those that should record and can't,
 * since their type is unknown or their bits can't be read.
 */
int qcow2_co_mark_unusable_bitmaps(struct qcow2 *q);

/* --- activity log ----------------------------------------------------------------------------- */

/*
 * The image becomes writable: make the log of the node, with the regions that are hot in the image.
 */
int qcow2_co_activity_open(struct qcow2 *q, struct error *err);
/*
 * The options of the image have changed; the node is drained. A log that is in the image stays
 * there until the bitmaps are stored. Does not yield.
 */
void qcow2_activity_set_options(struct qcow2 *q);
/* Wait until nothing becomes cold in the background, until block_activity_start(). */
void qcow2_co_pause_activity(struct qcow2 *q);
/* The image is released, or was completed and becomes read-only. */
void qcow2_activity_close(struct qcow2 *q);
/*
 * Read the map that the header names. NULL with *ret_size 0: the header names none. One that can't
 * be read, or does not suit the disk, counts as none, with a warning. The caller frees it. -ENOMEM
 */
int qcow2_co_read_activity(struct qcow2 *q, uint8_t **ret_map, struct error *err);
/* Whether an entry of the directory is one that the log says nothing of. Does not yield. */
bool qcow2_activity_ignores(const struct stored_bitmap *b);
/* The entries that the log says nothing of fit into the header. Does not yield. */
bool qcow2_activity_is_possible(struct qcow2 *q);
/*
 * Write the header again, since what the log says nothing of has changed. Any reactor.
 * bitmaps.mutex is held. -ENOSPC: there is no room for it.
 */
int qcow2_co_write_activity_header_locked(struct qcow2 *q);
/* Note the place of the map, for the next header: `size` 0: none. Does not yield. */
void qcow2_set_activity_map(struct qcow2 *q, uint64_t offset, uint64_t size);
/*
 * Take the log out of the header, stably, and free its clusters: what is marked in use then is
 * void after a crash. bitmaps.mutex is held.
 */
int qcow2_co_drop_activity_locked(struct qcow2 *q, struct error *err);
/* The header does not name the log any more: all bits are stored. bitmaps.mutex is held. */
void qcow2_co_activity_ended(struct qcow2 *q);

/* The driver's functions of these names: see struct block_driver. */
int qcow2_co_begin_activity(struct block_node *node);
bool qcow2_co_activity_has_room(struct block_node *node);
int qcow2_co_write_activity(struct block_node *node, uint64_t at, const void *buf, size_t size,
                            bool sync);
int qcow2_co_sync_activity(struct block_node *node);
int qcow2_co_store_bits_of(struct block_node *node, const struct block_activity_range *ranges,
                           size_t count);

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
void qcow2_disown_bitmap(struct block_bitmap *b);

/* --- resize and repair ------------------------------------------------------------------------ */

/*
 * Whether all bitmaps can follow the disk to `size` bytes. Reads their bits. -ENOTSUP with the name
 * of one that can't; `what` ("resize") is what can't be done then.
 */
int qcow2_co_check_bitmaps_fit(struct qcow2 *q, uint64_t size, const char *what, struct error *err);
/* Whether there are persistent bitmaps, and an activity log that makes them durable. */
bool qcow2_has_durable_bitmaps(const struct qcow2 *q);
/*
 * Write the header with the size that the node has now, and durable bitmaps for it: one write, so
 * that a crash finds both old or both new. Others, and those for which there is no space, are
 * marked in use before, and are to be stored afterwards.
 */
int qcow2_co_switch_with_bitmaps(struct qcow2 *q, struct error *err);
/* Mark all persistent bitmaps in use, stably, also those that do not record. */
int qcow2_co_mark_all_bitmaps(struct qcow2 *q, struct error *err);
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
