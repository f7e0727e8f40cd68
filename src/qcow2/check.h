/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TIDEMARK_QCOW2_CHECK_H
#define TIDEMARK_QCOW2_CHECK_H

#include "block/driver.h"
#include "qcow2/state.h"

/*
 * Count the references to each cluster of the file, all but those to the refcount table and blocks themselves. *ret is malloc'ed and has
 * *ret_clusters elements. An image with errors in its metadata is refused with -EIO.
 */
int qcow2_co_count_references(struct qcow2 *q, uint32_t **ret, uint64_t *ret_clusters,
                              struct error *err);

/* A check that is going on. */
struct check {
    struct qcow2 *q;
    struct block_check_result *result;
    unsigned fix;
    uint32_t *counts;  /* references found, per cluster; saturates */
    uint64_t clusters; /* of the file */
    uint64_t used_end; /* index behind the last cluster that is referenced */
    unsigned complaints;
    bool inexact; /* some refcounts in the file are not those of `counts` */
    bool rebuild; /* the refcounts can't be put right where they are */
    uint64_t
        beyond_end; /* index behind the last cluster near the end of the file, or beyond it, that is referenced */
    /*
     * What is left to be read: L1 and bitmap tables are together no longer than the file, and one L1 table leads to no more L2
     * tables than the file has clusters. Where tables lie upon each other, a small file could take hours otherwise.
     */
    uint64_t table_bytes_left, l2_tables_left;
    bool table_changed; /* the L2 table at hand has to be written */
    uint64_t last_host; /* for fragmentation: where the next data cluster would be in order */
};

/* To standard error; the first of very many. */
void qcow2_complain(struct check *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* check_copied.c: compare, and repair, the COPIED flags of the active tables. Refcounts are put right before. */
int qcow2_co_check_copied(struct check *c);

#endif
