/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Overlap checks: no write may hit metadata of a corrupt image.
 *
 * A set holds the clusters of all metadata, with a bit for each kind of metadata that a cluster
 * is. It is looked up before every write of guest data or tables (tables may overlap as well). A
 * look-up takes no lock and mostly reads one slot of an array, so it is done for every write in
 * place.
 *
 *   metadata is made, or moves  --(note)-->  its bit is set      (the set may have stale bits,
 *                                                                 but never lacks one)
 *   a write finds a bit set  --(compare with the tables)-->  true: verdict "corrupt", -EIO
 *                                                       \->  stale: the bit is cleared
 *
 * Bits are changed under q->lock. A set that has become too small is replaced; the old one is freed
 * only at close, since somebody may still be reading it.
 */
#ifndef TIDEMARK_QCOW2_TABLE_OVERLAP_H
#define TIDEMARK_QCOW2_TABLE_OVERLAP_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct qcow2;
struct overlap_set;

/* Kinds of metadata; the options of QAPI's Qcow2OverlapCheckFlags have these names. */
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

/*
 * The values of the option `overlap-check`: kinds that need no search of tables, kinds that need no
 * reading of tables, all kinds.
 */
#define OVERLAP_CONSTANT                                                                           \
    (OVERLAP_BIT(OVERLAP_MAIN_HEADER) | OVERLAP_BIT(OVERLAP_ACTIVE_L1) |                           \
     OVERLAP_BIT(OVERLAP_REFCOUNT_TABLE) | OVERLAP_BIT(OVERLAP_SNAPSHOT_TABLE) |                   \
     OVERLAP_BIT(OVERLAP_BITMAP_DIRECTORY))
#define OVERLAP_CACHED                                                                             \
    (OVERLAP_CONSTANT | OVERLAP_BIT(OVERLAP_ACTIVE_L2) | OVERLAP_BIT(OVERLAP_REFCOUNT_BLOCK) |     \
     OVERLAP_BIT(OVERLAP_INACTIVE_L1))
#define OVERLAP_ALL (OVERLAP_CACHED | OVERLAP_BIT(OVERLAP_INACTIVE_L2))

struct overlap_guard {
    unsigned kinds;                  /* OVERLAP_BIT() of what is checked; constant after open */
    struct overlap_set *_Atomic set; /* NULL: nothing is checked */
    /* -errno if a snapshot's L1 table could not be read: which clusters to protect is not known. */
    int unreadable;
    bool refused; /* a write was refused for that reason */
};

/*
 * Begin to guard the kinds in q->guard.kinds, at open; header and tables are in memory. Does
 * nothing on a read-only image. Yields. -ENOMEM.
 */
int qcow2_co_overlap_init(struct qcow2 *q);
/* Free all sets. Does not yield. */
void qcow2_overlap_destroy(struct qcow2 *q);

/*
 * Note metadata that is, or is about to be, at [offset, offset + length) of the file. Without
 * memory it is not guarded. The note functions do not yield.
 */
void qcow2_overlap_note_locked(struct qcow2 *q, enum overlap_kind kind, uint64_t offset,
                               uint64_t length);
/* Note all that the header references, and the L1 tables of snapshots. */
void qcow2_overlap_note_header_locked(struct qcow2 *q);
/* Note every L2 table that the `entries` of an L1 table, in host byte order, reference. */
void qcow2_overlap_note_tables_locked(struct qcow2 *q, enum overlap_kind kind, const uint64_t *l1,
                                      uint32_t entries);
/* Note every refcount block. */
void qcow2_overlap_note_refblocks_locked(struct qcow2 *q);

/*
 * Whether the set has a kind other than `ignore` (bits) at [offset, offset + length), which may be
 * stale. Any thread, no lock; does not yield.
 */
bool qcow2_overlap_is_suspect(const struct qcow2 *q, uint64_t offset, uint64_t length,
                              unsigned ignore);
/*
 * Before a write to [offset, offset + length) of the file, length > 0, by the owner of the kinds
 * `ignore` (bits): 0, or -EIO with a verdict if it would hit other metadata. Yields to read
 * snapshots' L1 tables. The first function wants q->lock, the second takes it if needed.
 */
int qcow2_co_overlap_check_locked(struct qcow2 *q, uint64_t offset, uint64_t length,
                                  unsigned ignore);
int qcow2_co_overlap_check(struct qcow2 *q, uint64_t offset, uint64_t length, unsigned ignore);
/* Whether the cluster at `offset` is metadata, or may be. Records no verdict. Yields. */
bool qcow2_co_overlap_hits_locked(struct qcow2 *q, uint64_t offset);

#endif
