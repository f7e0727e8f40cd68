/* SPDX-License-Identifier: Apache-2.0 */
/* What bitmap*.c, check.c and resize.c share about bitmaps on disk. */
#ifndef TIDEMARK_QCOW2_BITMAP_BITMAP_H
#define TIDEMARK_QCOW2_BITMAP_BITMAP_H

#include "qcow2/image.h"

void qcow2_stored_bitmap_free(
    struct stored_bitmap *b); /* also takes it off its list; NULL is fine */
struct stored_bitmap *qcow2_find_stored(struct qcow2 *q, const char *name);
/* Entries that the table of a bitmap has: clusters of serialised bits. */
uint64_t qcow2_bitmap_table_entries(const struct qcow2 *q, uint64_t disk_size,
                                    unsigned granularity_bits);
/* -EFBIG, with a sentence, if a disk of that size would have a bitmap that is too large to be stored. */
int qcow2_check_bitmap_size(const struct qcow2 *q, uint64_t disk_size, const char *name,
                            uint32_t granularity, struct error *err);
/* Fill q->bitmaps.stored. */
int qcow2_co_read_bitmap_directory(struct qcow2 *q, struct error *err);
/* The table in host byte order, malloc'ed. -EINVAL if it lies nowhere valid. */
int qcow2_co_read_bitmap_table(struct qcow2 *q, const struct stored_bitmap *b, uint64_t **ret);
/* Its entries are as they may be, and name clusters of the file, all together no more than `budget`, which is lowered. -EINVAL */
int qcow2_check_bitmap_table(const struct qcow2 *q, const uint64_t *table, uint32_t entries,
                             uint64_t *budget);
/* What the tables and bits of all bitmaps together may take: see bitmap_load.c. */
uint64_t qcow2_bitmap_budget(const struct qcow2 *q);

/* Bytes of a directory entry. */
uint64_t qcow2_bitmap_entry_bytes(const char *name, uint32_t extra_size);
/* Mark one in use, stably. bitmap_mutex is held. */
int qcow2_co_mark_in_use_locked(struct qcow2 *q, struct stored_bitmap *b);

/* --- bitmap_reserve.c: room that is kept until bitmaps are stored; bitmap_mutex is held after the first three --- */
/* For all bitmaps of a disk of that size. What they have already is enough for those that are stored and do not outgrow it. */
int qcow2_co_reserve_bitmaps(struct qcow2 *q, uint64_t disk_size, struct error *err);
/* The disk does not grow: those that are stored have enough. */
void qcow2_co_unreserve_longer_tables(struct qcow2 *q);
/* Refcounts are counted anew, from what is referred to: there is nothing to be kept. Storing tries again. */
void qcow2_co_unreserve_bitmaps(struct qcow2 *q);
int qcow2_co_reserve_bitmaps_locked(struct qcow2 *q, uint64_t disk_size, struct error *err);
/* A bitmap that was not stored is gone. */
void qcow2_co_unreserve_bitmap(struct qcow2 *q, const char *name);
/* An attempt to store begins: nothing is used yet. What the last one wrote there, nothing refers to. */
void qcow2_bitmap_reserve_begin(struct qcow2 *q);
/* Where the table of bitmap `name` (NULL: the directory) has its place. false: nowhere. */
bool qcow2_co_bitmap_reserve_use(struct qcow2 *q, const char *name, uint64_t bytes,
                                 uint64_t *ret_offset);
/* The directory is where one was kept for bitmaps that are still not stored: keep another. If that fails, storing tries it again. */
void qcow2_co_bitmap_reserve_again(struct qcow2 *q);
/* All is stored: what was used belongs to the image, what was not is given back. */
void qcow2_co_bitmap_reserve_end(struct qcow2 *q);

/* --- for the driver; `co_` functions yield, on the main reactor except where said ---------------- */

/* Read the bitmap directory at open, and register the bitmaps with the node. */
int qcow2_co_load_bitmaps(struct qcow2 *q, struct error *err);

/* Store all persistent bitmaps that changed, and remove the in-use marks (R5). At close. */
int qcow2_co_store_bitmaps(struct qcow2 *q, struct error *err);

/* Mark persistent bitmaps in use before a guest's write, unless bitmaps.marked (R5). Any reactor. */
int qcow2_co_mark_bitmaps(struct qcow2 *q);

/* See the members of struct block_driver with these names. */
int qcow2_co_fetch_bitmap(struct block_node *node, struct block_bitmap *bitmap);
int qcow2_co_count_bitmap(struct block_node *node, const struct block_bitmap *bitmap,
                          uint64_t *ret);
int qcow2_co_can_store_bitmap(struct block_node *node, const char *name, uint32_t granularity,
                              struct error *err);
int qcow2_co_reserve_bitmap(struct block_node *node, const char *name, uint32_t granularity,
                            struct error *err);
int qcow2_co_remove_stored_bitmap(struct block_node *node, const char *name, struct error *err);
int qcow2_co_bitmap_will_change(struct block_node *node, struct block_bitmap *b, struct error *err);

/* Free the memory of bitmaps.stored and bitmaps.reserve. Neither yields. */
void qcow2_free_stored_bitmaps(struct qcow2 *q);
void qcow2_free_bitmap_reserve(struct qcow2 *q);

#endif
