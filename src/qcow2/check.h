/* SPDX-License-Identifier: Apache-2.0 */
/* What the parts of the check share: check.c, check_contents.c, check_refcounts.c, check_copied.c, check_snapshots.c. */
#ifndef TIDEMARK_QCOW2_CHECK_H
#define TIDEMARK_QCOW2_CHECK_H

#include "block/driver.h"
#include "qcow2/counts.h"
#include "qcow2/state.h"

/*
 * Count the references to each cluster of the file, all but those to the refcount table and blocks themselves. *ret is the caller's to
 * free; *ret_clusters: of the file. An image with errors in its metadata is refused with -EIO.
 */
int qcow2_co_count_references(struct qcow2 *q, struct counts **ret, uint64_t *ret_clusters,
                              struct error *err);

/* Complaints that are printed; the rest is counted only. */
#define CHECK_COMPLAINTS_MAX 1000

/* A check that is going on. */
struct check {
    struct qcow2 *q;
    struct block_check_result *result;
    unsigned fix;
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
     * What is left to be read: L1 and bitmap tables are together no longer than the file, and one L1 table leads to no more L2
     * tables than the file has clusters, or a few. Where tables lie upon each other, a small file could take hours otherwise.
     */
    uint64_t table_bytes_left, l2_tables_left;
    bool table_changed; /* the L2 table at hand has to be written */
    uint64_t last_host; /* for fragmentation: where the next data cluster would be in order */
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
/* False, and told, if more tables are read than there can be. */
bool qcow2_check_take(struct check *c, uint64_t *left, uint64_t amount, const char *what);
/* Read; what lies behind the end of the file is zero. */
int qcow2_co_check_read(struct check *c, uint64_t offset, void *buf, size_t size);

/* check_contents.c: count all references but those of the refcount structures. */
int qcow2_co_check_contents(struct check *c);
/* An L1 table (host byte order) at `offset`, and all it leads to. */
int qcow2_co_count_l1(struct check *c, uint64_t offset, const uint64_t *l1, uint32_t entries);

/* check_snapshots.c: read the snapshot table anew, as far as it can be made out, to q->snapshots. */
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
