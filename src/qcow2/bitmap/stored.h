/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Stored bitmaps in memory, their directory and tables. Only for this folder.
 *
 * bitmaps.mutex is held, or the image is being opened or closed. The `co_` functions yield.
 */
#ifndef TIDEMARK_QCOW2_BITMAP_STORED_H
#define TIDEMARK_QCOW2_BITMAP_STORED_H

#include "qcow2/bitmap/bitmap.h"
#include "qcow2/image.h"

/* Free all bitmaps of a list. */
void qcow2_stored_bitmap_free_list(struct list *list);
/*
 * A new bitmap with the fields of `b` (NULL: all zero) and a name, on no list. NULL if out of
 * memory.
 */
struct stored_bitmap *qcow2_stored_bitmap_copy(const struct stored_bitmap *b, const char *name);
/* The bitmap of that name in bitmaps.stored; NULL if there is none. Borrowed. */
struct stored_bitmap *qcow2_find_stored(struct qcow2 *q, const char *name);

/* Bytes of a directory entry, with padding. */
uint64_t qcow2_bitmap_entry_bytes(const char *name, uint32_t extra_size);
/*
 * Read the directory to bitmaps.stored. -EINVAL if it is invalid; bitmaps.stored then has the
 * entries before the invalid one.
 */
int qcow2_co_read_bitmap_directory(struct qcow2 *q, struct error *err);

/* Entries in the table of a bitmap, which are clusters of serialised bits. */
uint64_t qcow2_bitmap_table_entries(const struct qcow2 *q, uint64_t disk_size,
                                    unsigned granularity_bits);
/*
 * The table in host byte order, which the caller frees by free(). -EINVAL if it lies outside the
 * file, is misaligned or too long; -ENOMEM; the error of the read.
 */
int qcow2_co_read_bitmap_table(struct qcow2 *q, const struct stored_bitmap *b,
                               uint64_t **ret_table);
/*
 * Bytes that the tables and bits of all bitmaps together may take: the size of the file, since they
 * do not overlap in a valid image. So a small file with overlapping tables can't cause more reads
 * or allocations.
 */
uint64_t qcow2_bitmap_budget(const struct qcow2 *q);
/*
 * Check a bitmap table: entries valid and inside the file. Subtracts the table and the clusters
 * that it uses from *budget (bytes). -EINVAL if it is invalid or over budget.
 */
int qcow2_check_bitmap_table(const struct qcow2 *q, const uint64_t *table, uint32_t entries,
                             uint64_t *budget);

/*
 * Read the bits of a bitmap to memory, unless they are there, for a caller that holds bits_mutex:
 * what is stored is about to be overwritten.
 */
int qcow2_co_read_bits_locked(struct qcow2 *q, struct block_bitmap *bitmap);

/* Whether its type, flags and granularity are known. Other bitmaps are kept as they are. */
bool qcow2_bitmap_is_known(const struct stored_bitmap *b);
/* Whether its table has the length for the size of the disk. */
bool qcow2_bitmap_fits_disk(const struct qcow2 *q, const struct stored_bitmap *b);
/*
 * Read its table, and check it: *ret_table is the caller's. *budget are the bytes of the file that
 * tables may still name. -EINVAL, -ENOMEM, errors of reading.
 */
int qcow2_co_read_checked_table(struct qcow2 *q, const struct stored_bitmap *b, uint64_t *budget,
                                uint64_t **ret_table);
/* Set in `bits` what the map of the activity log has. Returns by how many bytes more is dirty. */
uint64_t qcow2_set_hot_regions(const struct qcow2 *q, const uint8_t *hot,
                               struct dirty_bitmap *bits);
/*
 * The bits of an entry of a directory, with the hot regions of the map `hot` (NULL: none) if it is
 * one that records. The caller frees *ret_bits. -EINVAL, -ENOMEM, errors of reading.
 */
int qcow2_co_read_bits_of(struct qcow2 *q, const struct stored_bitmap *b, const uint8_t *hot,
                          struct dirty_bitmap **ret_bits);

/* Mark one bitmap in use, stably, unless it is marked. */
int qcow2_co_mark_in_use_locked(struct qcow2 *q, struct stored_bitmap *b);

#endif
