/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Keeping writes off the metadata of an image that is corrupt.
 *
 * A set has the cluster of every piece of metadata, with bits for what it is. It is asked before everything that is
 * written: guest data, and tables (which may lie upon others). Asking takes no lock and looks at one place of an array, as a
 * rule, so it can be done for each write in place.
 *
 *   metadata is made, or moves --(note)--> bit set             the set may know too much, never too little
 *   a write finds a bit        --(look at the tables)--> true:  the image is marked corrupt, -EIO
 *                                                   \--> stale: bit cleared
 *
 * Stores happen under the image's lock, or while nobody else uses the image. A set that has become too small is replaced;
 * those before it stay until the end, since somebody may be reading there.
 */
#ifndef TIDEMARK_QCOW2_TABLE_OVERLAP_H
#define TIDEMARK_QCOW2_TABLE_OVERLAP_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct qcow2;
struct overlap_set;

/* What metadata is; the options of QAPI's Qcow2OverlapCheckFlags have these names. */
enum overlap_kind {
    OVERLAP_MAIN_HEADER,
    OVERLAP_ACTIVE_L1,
    OVERLAP_ACTIVE_L2,
    OVERLAP_REFCOUNT_BLOCK,
    OVERLAP_REFCOUNT_TABLE,
    OVERLAP_SNAPSHOT_TABLE,
    OVERLAP_INACTIVE_L1,
    OVERLAP_INACTIVE_L2,
    OVERLAP_BITMAP_DIRECTORY,
    OVERLAP_KINDS,
};
#define OVERLAP_BIT(kind) (1u << (kind))

/* The values of `overlap-check`: what needs no search, what needs no reading, all. */
#define OVERLAP_CONSTANT                                                                           \
    (OVERLAP_BIT(OVERLAP_MAIN_HEADER) | OVERLAP_BIT(OVERLAP_ACTIVE_L1) |                           \
     OVERLAP_BIT(OVERLAP_REFCOUNT_TABLE) | OVERLAP_BIT(OVERLAP_SNAPSHOT_TABLE) |                   \
     OVERLAP_BIT(OVERLAP_BITMAP_DIRECTORY))
#define OVERLAP_CACHED                                                                             \
    (OVERLAP_CONSTANT | OVERLAP_BIT(OVERLAP_ACTIVE_L2) | OVERLAP_BIT(OVERLAP_REFCOUNT_BLOCK) |     \
     OVERLAP_BIT(OVERLAP_INACTIVE_L1))
#define OVERLAP_ALL (OVERLAP_CACHED | OVERLAP_BIT(OVERLAP_INACTIVE_L2))

struct overlap_guard {
    unsigned kinds;                  /* bits of what is checked; constant after open */
    struct overlap_set *_Atomic set; /* NULL: nothing is checked */
    int unreadable; /* -errno if an L1 table of a snapshot could not be read: what it protects is not known */
    bool refused; /* a write was, for that reason */
};

/* Begin to guard `q->guard.kinds`; all tables are in memory. Does nothing on a read-only image. Yields. -ENOMEM */
int qcow2_co_overlap_init(struct qcow2 *q);
void qcow2_overlap_destroy(struct qcow2 *q);

/* Metadata is, or is about to be, at [offset, offset + length). Out of memory: it is not guarded. */
void qcow2_overlap_note_locked(struct qcow2 *q, enum overlap_kind kind, uint64_t offset,
                               uint64_t length);
/* The same for everything that the header leads to in one step, and for the L1 tables of snapshots. */
void qcow2_overlap_note_header_locked(struct qcow2 *q);
/* Every L2 table of `l1` (host byte order). */
void qcow2_overlap_note_tables_locked(struct qcow2 *q, enum overlap_kind kind, const uint64_t *l1,
                                      uint32_t entries);
void qcow2_overlap_note_refblocks_locked(struct qcow2 *q);

/* Whether there is anything but `ignore` (bits) at [offset, offset + length), as far as the set knows. Any thread, no lock. */
bool qcow2_overlap_is_suspect(const struct qcow2 *q, uint64_t offset, uint64_t length,
                              unsigned ignore);
/*
 * Before a write to [offset, offset + length) of the file by the owner of the kinds `ignore`: 0, or -EIO if it would hit
 * other metadata; the image is marked corrupt then. May yield. The first for those who hold the image's lock.
 */
int qcow2_co_overlap_check_locked(struct qcow2 *q, uint64_t offset, uint64_t length,
                                  unsigned ignore);
int qcow2_co_overlap_check(struct qcow2 *q, uint64_t offset, uint64_t length, unsigned ignore);
/* Whether the cluster at `offset` is metadata, or may be; nothing is marked. */
bool qcow2_co_overlap_hits_locked(struct qcow2 *q, uint64_t offset);

#endif
