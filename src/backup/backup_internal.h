/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by the halves of a backup: getting ready (backup_prepare.c), and the rest (backup.c). */
#ifndef TIDEMARK_BACKUP_BACKUP_INTERNAL_H
#define TIDEMARK_BACKUP_BACKUP_INTERNAL_H

#include "backup/backup.h"
#include "backup/fleece.h"
#include "backup/source.h"

struct run {
    const struct backup_options *options;
    struct repository repository;
    struct source source;
    struct source_state state;
    const struct repository_entry *base; /* NULL: a full backup */
    char *reason;                        /* why it is a full one */
    struct manifest manifest;
    struct repository_draft draft;
    struct fleece fleece;
    int server_fd; /* keeps runs of other disks from stopping the NBD server; -1: nobody would */
    int image_fd, sums_fd;
    char *image, *sums; /* their paths, for messages */
    bool view_failed;   /* the point in time could not be read any more */
    int64_t started_ns;
};

/* The bitmap of the newest complete backup; NULL: there is none. */
static inline const char *run_last_bitmap(const struct run *run)
{
    const struct repository_entry *last = repository_last(&run->repository);

    return last ? last->manifest.bitmap : NULL;
}

/*
 * With the repository open: remove what a run that was cut off has left in the daemon, decide what kind of backup it is to be,
 * and make its files. Yields.
 */
int run_co_prepare(struct run *run, struct qmp_client *qmp, struct error *err);
/* The first part of it only: see whether it is the right disk, and put the daemon in order. Yields. */
int run_co_settle(struct run *run, struct qmp_client *qmp, struct error *err);

#endif
