/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The steps of storing bitmaps. Only for this folder.
 *
 * bitmaps.mutex and bitmaps.bits_mutex are held. The `co_` functions yield.
 */
#ifndef TIDEMARK_QCOW2_BITMAP_STORE_H
#define TIDEMARK_QCOW2_BITMAP_STORE_H

#include "qcow2/bitmap/stored.h"

/* A table to be written over the stored one. */
struct waiting_table {
    struct list link;  /* in bitmap_store.tables */
    uint64_t *entries; /* big-endian */
    size_t bytes;
    uint64_t offset; /* in the file */
};

/*
 * One attempt to write another directory: with all bitmaps as they are now, or without one of them.
 */
struct bitmap_store {
    /* The new directory: of struct stored_bitmap. */
    struct list entries;
    /* The first entry of a bitmap that was added since the image was opened; NULL: none was. */
    struct stored_bitmap *first_recent;
    /* Clusters that were allocated; freed if the attempt fails. */
    struct cluster_runs made;
    /* Clusters that are no longer used; freed once the attempt has succeeded. */
    struct cluster_runs old;
    /* A bitmap is new, or its table has moved: the directory has to be written as well. */
    bool moved;
    /*
     * The image stays in use: the new directory has the marks of bitmaps that record, and the
     * header still names the activity log.
     */
    bool stays_in_use;
    /* Where the new directory was written; 0, 0: it is empty. */
    uint64_t directory_offset, directory_size;

    /* --- for storing in place: see in_place.c --- */

    bool in_place;
    /* File offset of a cluster for the new directory; 0: one is allocated. */
    uint64_t place;
    /* An allocation has failed for lack of space. */
    bool no_room;
    /* Tables on disk may refer to clusters of `made`. */
    bool written;
    /*
     * Of struct waiting_table: tables to be written once the refcounts of what they name are
     * stable.
     */
    struct list tables;
};

/* The table of a bitmap as it is going to be, and as it is stored. */
struct bitmap_tables {
    struct block_bitmap *bitmap;
    /* Host byte order; NULL: none. `now` is big-endian once it is about to be written. */
    uint64_t *now, *before;
    uint64_t now_entries, before_entries;
    /*
     * Buffers of a cluster: the bits of one entry, as they are to be stored and as they are stored.
     */
    uint8_t *bits, *stored;
    /* Bytes of the disk that are going to be stored as dirty and are not. */
    uint64_t overstated;
    /* Bytes of the disk that may be stored as dirty and are not: their bits can't be read. */
    uint64_t unreadable;
};

/* --- attempt.c -------------------------------------------------------------------------------- */

/* Make an attempt ready. Does not yield. */
void qcow2_store_begin(struct qcow2 *q, struct bitmap_store *st);
/* Free what the attempt leaves, by its `result`, and its memory. Returns `result`. */
int qcow2_co_store_end(struct qcow2 *q, struct bitmap_store *st, int result);
/* Free clusters to which an old directory referred; the list is empty then. */
void qcow2_co_free_replaced(struct qcow2 *q, struct cluster_runs *old);
/* Append clusters to a list. Out of memory: they leak. Does not yield. */
void qcow2_store_add_run(struct cluster_runs *list, uint64_t offset, uint64_t length);
/* Give back the clusters of st->made from run `first` on. Nothing on disk refers to them. */
void qcow2_co_store_give_back(struct qcow2 *q, struct bitmap_store *st, size_t first);
/*
 * Allocate contiguous clusters, and write `size` bytes of data to them, with zeroes up to the end
 * of the last one. *ret_offset is their file offset. -ENOSPC and others, with nothing allocated.
 */
int qcow2_co_store_write_new(struct qcow2 *q, struct bitmap_store *st, const void *data,
                             size_t size, uint64_t *ret_offset);
/*
 * The same in the clusters that were kept for the table of bitmap `name` (NULL: the directory), if
 * there are any.
 */
int qcow2_co_store_write_reserved(struct qcow2 *q, struct bitmap_store *st, const char *name,
                                  const void *data, size_t size, uint64_t *ret_offset);
/*
 * Whether bitmap `b` is to be stored, since its bits or flags differ from what is on disk: `s`, or
 * NULL if it was never stored. Does not yield.
 */
bool qcow2_bitmap_is_stale(const struct stored_bitmap *s, const struct block_bitmap *b);
/* Replace bitmaps.stored by `entries`, which is empty afterwards. Does not yield. */
void qcow2_adopt_entries(struct qcow2 *q, struct list *entries);

/* --- store.c ---------------------------------------------------------------------------------- */

/* Write bits and tables of all bitmaps as they are now: the entries of the new directory. */
int qcow2_co_build_directory(struct qcow2 *q, struct bitmap_store *st);
/* The bitmaps are stored as they are. */
void qcow2_note_stored_locked(struct qcow2 *q);

/* --- bits.c ----------------------------------------------------------------------------------- */

/*
 * Write bits and table of bitmap `b`, and set the fields of `ret_entry`, its entry in the new
 * directory. `s`: as it is stored, or NULL.
 */
int qcow2_co_store_bits(struct qcow2 *q, struct bitmap_store *st, struct block_bitmap *b,
                        const struct stored_bitmap *s, struct stored_bitmap *ret_entry);
/*
 * Append to `old` all clusters that bitmap `b` uses, the table last. A table that can't be read
 * leaks them.
 */
void qcow2_co_collect_clusters(struct qcow2 *q, const struct stored_bitmap *b,
                               struct cluster_runs *old);

/* --- in_place.c ------------------------------------------------------------------------------- */

/*
 * Before anything is overwritten: reserve clusters for bitmaps that were never stored, and mark
 * those that were, stably.
 */
int qcow2_co_in_place_begin(struct qcow2 *q, struct error *err);
/*
 * Bytes of the disk that are not dirty, and are stored as dirty if entry `i` of the bitmap becomes
 * "all dirty". `bits`: a cluster, those of the entry. Does not yield.
 */
uint64_t qcow2_bitmap_clean_bytes(const struct qcow2 *q, const struct block_bitmap *b,
                                  const uint8_t *bits, uint64_t i);
/*
 * Store t->bits, which differ from what is stored as entry `i`, and set t->now[i]: over the old
 * bits, or in a new cluster, or as "all dirty".
 */
int qcow2_co_in_place_bits(struct qcow2 *q, struct bitmap_store *st, struct bitmap_tables *t,
                           uint64_t i);
/*
 * Queue t->now (big-endian), to be written over the table of bitmap `s`; the memory is the queue's
 * then. False, with nothing done, if the table needs other clusters.
 */
bool qcow2_co_in_place_table(struct qcow2 *q, struct bitmap_store *st, struct bitmap_tables *t,
                             const struct stored_bitmap *s);
/*
 * For a removal: take one of the clusters of bits in st->old, which are those of the bitmap `gone`,
 * as st->place. -ENOSPC if it has none.
 */
int qcow2_co_in_place_directory(struct qcow2 *q, struct stored_bitmap *gone,
                                struct bitmap_store *st);
/* Commit, then write all queued tables, and sync. */
int qcow2_co_in_place_write_tables(struct qcow2 *q, struct bitmap_store *st);
/*
 * Write the fields of each stored bitmap to the directory, without the marks, and sync. The entries
 * become bitmaps.stored.
 */
int qcow2_co_in_place_finish(struct qcow2 *q, struct bitmap_store *st);

/* --- switch.c --------------------------------------------------------------------------------- */

/*
 * Replace bitmaps.stored by st->entries, on disk (R3) and in memory. On failure nothing changes,
 * unless it is unknown which directory the header names: then the image takes no more writes.
 */
int qcow2_co_switch_directory(struct qcow2 *q, struct bitmap_store *st, struct error *err);
/* Its two steps: write the directory; and, once all that it names is stable, switch (R1, R3). */
int qcow2_co_write_directory(struct qcow2 *q, struct bitmap_store *st);
/* `joint`: what the same header says of a joint change (joint.h). */
int qcow2_co_switch_to_written(struct qcow2 *q, struct bitmap_store *st,
                               enum qcow2_joint_state joint, struct error *err);
/* Switch, but for the header, which says so when it is written next. Does not yield. */
void qcow2_switch_in_memory(struct qcow2 *q, struct bitmap_store *st);

#endif
