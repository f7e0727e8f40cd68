/* SPDX-License-Identifier: Apache-2.0 */
/* A growing vector of ranges of the file. No function yields. */
#ifndef TIDEMARK_QCOW2_TABLE_CLUSTER_RUNS_H
#define TIDEMARK_QCOW2_TABLE_CLUSTER_RUNS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Why a reference was removed; decides whether the space is returned to the file system. */
enum qcow2_freed {
    QCOW2_FREED_BY_WRITE,    /* the contents moved: kept, the next allocation takes it */
    QCOW2_FREED_BY_REQUEST,  /* discard or zeroing: pass-discard-request */
    QCOW2_FREED_BY_SNAPSHOT, /* pass-discard-snapshot */
    QCOW2_FREED_BY_OTHER,    /* tables that moved: pass-discard-other */
    QCOW2_FREED_BY_SHRINKING,
    QCOW2_FREED_KINDS,
};

/* Whole clusters, or the bytes of a compressed cluster. */
struct cluster_run {
    uint64_t offset; /* in the file, bytes */
    uint64_t length; /* bytes, > 0 */
    bool compressed; /* the clusters are shared with other compressed data: no hole is punched */
    enum qcow2_freed why;
};

/* Empty when zeroed. */
struct cluster_runs {
    struct cluster_run *runs;
    size_t count, capacity;
};

/* Append a run. 0 or -ENOMEM. */
int cluster_runs_add(struct cluster_runs *list, struct cluster_run run);

/* Free the memory; the vector is empty. */
void cluster_runs_clear(struct cluster_runs *list);

#endif
