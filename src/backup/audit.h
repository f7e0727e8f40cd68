/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An audit: whether the bitmap of a disk has recorded all that changed since the last backup. A
 * checkpoint is made as for a backup; what the bitmap does not mark is read, and compared with the
 * checksums of the chain. Nothing is stored, and the bitmap goes on as if nothing had been.
 */
#ifndef TIDEMARK_BACKUP_AUDIT_H
#define TIDEMARK_BACKUP_AUDIT_H

#include <stddef.h>
#include <stdint.h>

#include "backup/backup.h"
#include "base/error.h"

#define AUDIT_AREAS_MAX 64u

struct audit_area {
    uint64_t offset, length; /* bytes */
};

struct audit_result {
    char id[BACKUP_ID_SIZE]; /* the backup that the disk was compared with */
    uint64_t marked;         /* bytes that the bitmap marks, and that were not compared */
    uint64_t compared;
    uint64_t missed; /* bytes that differ, and that the bitmap does not mark */
    /* The first of them, ascending, in whole clusters. */
    struct audit_area areas[AUDIT_AREAS_MAX];
    size_t count;
};

/*
 * Compare. Of `options` count those that say what and where to. -ENODATA: there is no backup, or no
 * bitmap that records since then. Main reactor, in a coroutine; yields.
 */
int audit_co_run(const struct backup_options *options, struct audit_result *ret_result,
                 struct error *err);

#endif
