/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A check under way, and what its parts share: reports, counting of references, reading of tables.
 *
 * A check runs in one coroutine. The `co_` functions yield.
 */
#ifndef TIDEMARK_QCOW2_CHECK_CONTEXT_H
#define TIDEMARK_QCOW2_CHECK_CONTEXT_H

#include "block/driver.h"
#include "qcow2/check/reference_counts.h"
#include "qcow2/image.h"
#include "qcow2/snapshot/snapshot.h"

/* At most this many findings are printed; further ones are only counted. */
#define CHECK_REPORTS_MAX 1000

struct check {
    struct qcow2 *q;
    struct block_check_result *result;
    /* BLOCK_CHECK_FIX_ bits: what is to be repaired. */
    unsigned fix;
    /* Findings reported so far, printed or not. */
    unsigned reports;

    /* --- the file --- */

    /* Bytes. */
    uint64_t file_size;
    /* Clusters of the file; one more if a structure begins in the last one and ends behind it. */
    uint64_t clusters;
    /* Index behind the last cluster that has a reference or a refcount. */
    uint64_t used_end;
    /* Index behind the last referenced cluster that lies beyond the end of the file; 0: none. */
    uint64_t beyond_end;
    /* The last extent for which block status was asked; holes are not read. */
    bool many_holes, extent_is_hole;
    uint64_t extent_begin, extent_end;

    /* --- references --- */

    /* References found to each cluster. */
    struct reference_counts *counts;
    /* A count stays at or below this. */
    uint64_t refcount_max;
    /* A reference found now counts for this many: see `snapshot_tables`. */
    uint32_t times;
    /* `counts` is incomplete for lack of memory. */
    bool out_of_memory;
    /* Corruptions that were counted because a cluster has more references than can be counted. */
    uint64_t overflows;

    /* --- L2 tables --- */

    /*
     * Snapshots share L2 tables. A small file could share them so often that reading each one for
     * each snapshot takes days. So the references of snapshots to each L2 table are counted first
     * (by the cluster of the table); then each table is read once, and each reference in it counts
     * `times`.
     */
    struct reference_counts *snapshot_tables;
    /*
     * How often each L2 table of the active disk was read: at most once by the count of references,
     * and once more by the check of COPIED flags.
     */
    struct reference_counts *active_tables;
    /* Only damaged images have tables that overlap. They are read up to this many bytes. */
    uint64_t overlap_bytes_left;
    /* Not all tables were read: a cluster without counted references may be referenced. */
    bool incomplete;
    /* The tables being read are those of the active disk, not of a snapshot. */
    bool active;
    /* The L2 table being read may be repaired; it was changed and has to be written. */
    bool table_writable, table_changed;
    /* Where the next data cluster would be if the data were not fragmented: a byte offset. */
    uint64_t next_in_order;

    /* --- findings --- */

    /* Some refcounts of the image differ from `counts`. */
    bool refcounts_differ;
    /* The refcounts can't be repaired where they are. */
    bool must_rebuild;
    /* A COPIED flag may be wrong even if no cluster is referenced twice. */
    bool flags_doubtful;
    /* Bytes of the snapshot table by its entries, which may reach beyond the end of the file. */
    uint64_t snapshot_table_size;
    /* Errors in the snapshot table that are repaired by writing it again. */
    unsigned snapshot_faults;
};

/*
 * Prepare the counts for a file as it is now. q, result, fix and refcount_max are set, the rest is
 * zero. -ENOMEM; call qcow2_check_release() in either case.
 */
int qcow2_co_check_init(struct check *c);
void qcow2_check_release(struct check *c);

/* --- reports ---------------------------------------------------------------------------------- */

/* Print a finding, unless CHECK_REPORTS_MAX were printed. */
void qcow2_check_report(struct check *c, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
/* The same, and count a corruption. */
void qcow2_check_report_corruption(struct check *c, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
/*
 * Corruptions found so far, less those that were counted with their weight already. A caller that
 * reads a shared table notes it before and after, and multiplies the difference by itself.
 */
static inline uint64_t qcow2_check_unweighted_corruptions(const struct check *c)
{
    return c->result->corruptions - c->overflows;
}

/* --- counting --------------------------------------------------------------------------------- */

/*
 * Count a reference (c->times of them) to each cluster of the bytes [offset, offset + length) of
 * the file. A range that ends a cluster or more past the end of the file is a corruption, and is
 * not counted. Sets c->out_of_memory.
 */
void qcow2_check_add_reference(struct check *c, uint64_t offset, uint64_t length);

/* --- reading ---------------------------------------------------------------------------------- */

/*
 * Whether the L2 table at `offset` may be repaired in place: no other metadata is known to lie
 * there. Otherwise a wrong L1 entry may name other metadata, which the repair would destroy.
 */
bool qcow2_check_may_repair_table(const struct check *c, uint64_t offset);
/*
 * Take `bytes` from c->overlap_bytes_left, to read tables that overlap others. If they are used up
 * the result is false, and the check is incomplete: one corruption is reported, with the name of
 * the tables (`what`) and the snapshot `s` (or NULL) to which they belong.
 */
bool qcow2_check_take_overlap(struct check *c, uint64_t bytes, const char *what,
                              const struct qcow2_snapshot *s);
/*
 * Whether the bytes are known to read as zeroes, because they are a hole or past the end of the
 * file.
 */
bool qcow2_co_check_is_hole(struct check *c, uint64_t offset, uint64_t size);
/*
 * Read `size` bytes at `offset` of the file. Bytes past the end of the file are zeroes. Reports
 * an error, counts a check error and returns -errno if they can't be read.
 */
int qcow2_co_check_read(struct check *c, uint64_t offset, void *buf, size_t size);
/*
 * Read a table of `entries` words of 8 bytes in pieces, and call `fn` with each piece in host byte
 * order. Holes and what lies past the end of the file are left out. What can't be read is
 * reported and counted. Returns 0, -ENOMEM, or the first error of `fn`.
 */
typedef int check_piece_fn(struct check *c, const uint64_t *entries, uint64_t count, void *arg);
int qcow2_co_check_read_table(struct check *c, uint64_t offset, uint64_t entries,
                              check_piece_fn *fn, void *arg);

#endif
