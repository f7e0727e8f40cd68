/* SPDX-License-Identifier: Apache-2.0 */
/* What the parts of the check share: check.c, check_contents.c, check_refcounts.c, check_copied.c, check_snapshots.c. */
#ifndef TIDEMARK_QCOW2_CHECK_CHECK_H
#define TIDEMARK_QCOW2_CHECK_CHECK_H

#include "block/driver.h"
#include "qcow2/check/reference_counts.h"
#include "qcow2/snapshot/snapshot.h"
#include "qcow2/image.h"

/*
 * Count the references to each cluster of the file, all but those to the refcount table and blocks themselves, up to `refcount_max`. *ret is
 * the caller's to free; *ret_clusters: of the file. An image with errors in its metadata, or more references, is refused with
 * -EIO.
 */
int qcow2_co_count_references(struct qcow2 *q, uint64_t refcount_max, struct counts **ret,
                              uint64_t *ret_clusters, struct error *err);

/* block_driver.co_check: `fix` has bits of BLOCK_CHECK_FIX_... The node is drained. Yields. */
int qcow2_co_check(struct block_node *node, unsigned fix, struct block_check_result *ret,
                   struct error *err);

/* Complaints that are printed; the rest is counted only. */
#define CHECK_COMPLAINTS_MAX 1000

/* A check that is going on. */
struct check {
    struct qcow2 *q;
    struct block_check_result *result;
    unsigned fix;
    uint64_t refcount_max; /* what is not more than this is counted */
    struct counts *counts; /* references found, per cluster */
    uint64_t file_size;
    uint64_t
        clusters; /* of the file, and one more if something that begins in the file reaches into it */
    uint64_t used_end; /* index behind the last cluster that is referenced or has a refcount */
    unsigned complaints;
    bool out_of_memory;  /* `counts` is not complete */
    bool inexact;        /* some refcounts in the file are not those of `counts` */
    bool rebuild;        /* the refcounts can't be put right where they are */
    bool flags_doubtful; /* a COPIED flag may be wrong even if nothing is referenced twice */
    bool active;         /* the tables at hand are the active ones, not a snapshot's */
    uint64_t
        beyond_end; /* index behind the last cluster near the end of the file, or beyond it, that is referenced */
    /*
     * Snapshots share tables, and a small file could have them in such numbers that walking each by itself takes days. So it is
     * first counted how often each L2 table is referenced by snapshots, and then each is walked once, its references
     * counted `times` at once. What only a damaged image has, tables that lie across each other, is read up to a limit.
     */
    struct counts *tables; /* references of snapshots to L2 tables, by their clusters */
    struct counts *walked; /* L2 tables of the active disk that were */
    uint32_t times;
    uint64_t
        overflows; /* corruptions that were counted because a number of references was too large */
    uint64_t again_left; /* bytes of tables that may be read although they lie across others */
    bool incomplete;     /* not all was read: what is not counted may be referenced all the same */
    /* The last extent of the file that was asked for; nothing is read from holes. */
    bool many_holes, extent_is_hole;
    uint64_t extent_begin, extent_end;
    bool table_writable; /* the L2 table at hand may be repaired */
    bool table_changed;  /* it has to be written */
    uint64_t last_host;  /* for fragmentation: where the next data cluster would be in order */
    uint64_t snapshot_table_size; /* as its entries say, which may be beyond the end of the file */
    unsigned snapshot_faults;     /* of the snapshot table; writing it anew puts them right */
};

/* To standard error; the first of very many. */
void qcow2_complain(struct check *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* The same for what counts as a corruption. */
void qcow2_complain_corrupt(struct check *c, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

/* A reference to the bytes [offset, offset + length) of the file. */
void qcow2_check_count(struct check *c, uint64_t offset, uint64_t length);
/*
 * Whether the L2 table at `offset` may be repaired in place: it is one, not other metadata that a broken L1 entry points to. That would be
 * lost for good by a repair of what only looks like entries.
 */
bool qcow2_check_may_repair_table(const struct check *c, uint64_t offset);
/* Let `amount` be read that lies across other tables. False, and once told by `what` (of a snapshot, or NULL), if that was too often. */
bool qcow2_check_take(struct check *c, uint64_t *left, uint64_t amount, const char *what,
                      const struct qcow2_snapshot *s);
/* Bytes of the file that are known to be zero without being read. */
bool qcow2_co_check_is_hole(struct check *c, uint64_t offset, uint64_t size);
/*
 * Read a table of `entries` words of 8 bytes in pieces, leaving out what is not there and what are holes: `fn` gets each piece in host byte
 * order. What can't be read is told and counted. -ENOMEM, or what fn returns.
 */
typedef int check_piece_fn(struct check *c, const uint64_t *entries, uint64_t count, void *arg);
int qcow2_co_check_read_table(struct check *c, uint64_t offset, uint64_t entries,
                              check_piece_fn *fn, void *arg);
/* Read; what lies behind the end of the file is zero. */
int qcow2_co_check_read(struct check *c, uint64_t offset, void *buf, size_t size);

/* check_contents.c: count all references but those of the refcount structures. */
int qcow2_co_check_contents(struct check *c);
/* A piece of the L1 table of a snapshot: counted are its references to L2 tables, but what these refer to only by the next. */
check_piece_fn qcow2_co_count_snapshot_l1;
int qcow2_co_count_snapshot_tables(struct check *c);

/* check_snapshots.c: read the snapshot table anew, as far as it can be made out, to q->snapshots.list. */
int qcow2_co_check_snapshot_table(struct check *c, struct error *err);
/* Put right what the above complained about. The clusters of the old table are leaked. */
int qcow2_co_fix_snapshot_table(struct check *c, struct error *err);
int qcow2_co_check_snapshots(struct check *c);

/* check_refcounts.c: after all else was counted. */
void qcow2_check_refcount_structures(struct check *c);
/* Compare the refcounts with the references, and put right what `fix` says. */
int qcow2_co_check_refcounts(struct check *c, unsigned fix);

/* check_copied.c: compare, and repair, the COPIED flags of the active tables. Refcounts are put right before. */
int qcow2_co_check_copied(struct check *c);

#endif
