/* SPDX-License-Identifier: Apache-2.0 */
/* What bitmap_store.c and bitmap_in_place.c share. */
#ifndef TIDEMARK_QCOW2_BITMAP_STORE_H
#define TIDEMARK_QCOW2_BITMAP_STORE_H

#include "qcow2/bitmap/bitmap.h"

/* One attempt to store all bitmaps that are stale. */
struct bitmap_store {
    struct list entries;   /* of struct stored_bitmap: the directory as it shall be */
    struct free_list made; /* new clusters: to be freed if it fails */
    struct free_list old;  /* what is not used any more: to be freed once it is done */
    bool moved; /* a bitmap is new, or its table lies elsewhere: a new directory is wanted */
    /* In place: see bitmap_in_place.c. */
    bool in_place;
    uint64_t place;     /* a cluster for the directory; 0: it gets another one */
    bool no_room;       /* for one more cluster */
    bool written;       /* something on disk may refer to what was made */
    struct list tables; /* of struct waiting_table: written once what they name has its refcounts */
};

/* What the table of a bitmap shall be, and what it was when it was stored the last time. */
struct bitmap_tables {
    struct block_bitmap *bitmap;
    uint64_t *now, *before; /* host byte order; `now` is big-endian once it is to be written */
    uint64_t now_entries, before_entries;
    uint8_t *bits, *stored; /* a cluster each */
    uint64_t overstated;    /* bytes that are stored as dirty and are not */
};

/* --- bitmap_store.c --- */
void qcow2_garbage_add(struct free_list *g, uint64_t offset, uint64_t length);
/* New clusters in one piece, filled with `size` bytes and zeroes up to the end of the last. */
int qcow2_co_bitmap_write_new(struct qcow2 *q, struct bitmap_store *st, const void *data,
                              size_t size, uint64_t *ret_offset);
/* Its bits or flags in memory are not those on disk, and it is to be stored. */
bool qcow2_bitmap_is_stale(const struct stored_bitmap *s, const struct block_bitmap *b);
/* The entries become q->bitmaps.stored. */
void qcow2_adopt_entries(struct qcow2 *q, struct list *entries);

/* --- bitmap_in_place.c --- */
/* Before anything is overwritten: room for bitmaps that were never stored, and marks for those that were. */
int qcow2_co_in_place_begin(struct qcow2 *q, struct error *err);
/* t->bits, which are not what is stored as entry `i`. Sets t->now[i]. */
int qcow2_co_in_place_bits(struct qcow2 *q, struct bitmap_store *st, struct bitmap_tables *t,
                           uint64_t i);
/* t->now, of bitmap `s`. false, with nothing done: it needs another place. */
bool qcow2_co_in_place_table(struct qcow2 *q, struct bitmap_store *st, struct bitmap_tables *t,
                             const struct stored_bitmap *s);
/* One of the clusters of bits in st->old, of a bitmap that is removed, becomes st->place. -ENOSPC if it has none. */
int qcow2_co_in_place_directory(struct qcow2 *q, struct stored_bitmap *gone,
                                struct bitmap_store *st);
/* All tables, stably. */
int qcow2_co_in_place_write_tables(struct qcow2 *q, struct bitmap_store *st);
/* Lengths of tables, and the flags without the marks. Then the entries are q->bitmaps.stored. */
int qcow2_co_in_place_finish(struct qcow2 *q, struct bitmap_store *st);
void qcow2_in_place_free_tables(struct bitmap_store *st);

#endif
