/* SPDX-License-Identifier: Apache-2.0 */
/* What bitmap.c, bitmap_load.c, bitmap_store.c and check.c share about bitmaps on disk. */
#ifndef TIDEMARK_QCOW2_BITMAP_H
#define TIDEMARK_QCOW2_BITMAP_H

#include "qcow2/state.h"

void qcow2_stored_bitmap_free(
    struct stored_bitmap *b); /* also takes it off its list; NULL is fine */
struct stored_bitmap *qcow2_find_stored(struct qcow2 *q, const char *name);
/* Entries that the table of a bitmap has: clusters of serialised bits. */
uint64_t qcow2_bitmap_table_entries(const struct qcow2 *q, uint64_t disk_size,
                                    unsigned granularity_bits);
/* -EFBIG, with a sentence, if a disk of that size would have a bitmap that is too large to be stored. */
int qcow2_check_bitmap_size(const struct qcow2 *q, uint64_t disk_size, const char *name,
                            uint32_t granularity, struct error *err);
/* Fill q->stored_bitmaps. */
int qcow2_co_read_bitmap_directory(struct qcow2 *q, struct error *err);
/* The table in host byte order, malloc'ed. -EINVAL if it lies nowhere valid. */
int qcow2_co_read_bitmap_table(struct qcow2 *q, const struct stored_bitmap *b, uint64_t **ret);
/* Its entries are as they may be, and name clusters of the file, all together no more than `budget`, which is lowered. -EINVAL */
int qcow2_check_bitmap_table(const struct qcow2 *q, const uint64_t *table, uint32_t entries,
                             uint64_t *budget);
/* What the tables and bits of all bitmaps together may take: see bitmap_load.c. */
uint64_t qcow2_bitmap_budget(const struct qcow2 *q);

#endif
