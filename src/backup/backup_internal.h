/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by the parts of a backup: preparation (backup_prepare.c), and the rest (backup.c). */
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
    char *reason;                        /* why it is a full one; NULL: it is not */
    struct manifest manifest;
    struct repository_draft draft;
    struct fleece fleece;
    int server_fd; /* lock that keeps other runs from stopping the NBD server; -1: not needed */
    int image_fd, sums_fd;
    char *image, *sums; /* their paths, for messages */
    bool view_failed;   /* the point in time cannot be read any more */
    int64_t started_ns;
};

/* The bitmap of the newest complete backup; NULL: there is none. */
static inline const char *run_last_bitmap(const struct run *run)
{
    const struct repository_entry *last = repository_last(&run->repository);

    return last ? last->manifest.bitmap : NULL;
}

/*
 * With the repository open: remove what a killed run has left in the daemon, decide what kind of
 * backup to take, and make its files. 0 or -errno. Yields.
 */
int run_co_prepare(struct run *run, struct qmp_client *qmp, struct error *err);
/*
 * Only the first part of that: check that the disk is the right one, and put the daemon in order.
 * Yields.
 */
int run_co_settle(struct run *run, struct qmp_client *qmp, struct error *err);

#endif
