/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by the parts of a backup: preparation (backup_prepare.c), and the rest (backup.c). */
#ifndef TIDEMARK_BACKUP_BACKUP_INTERNAL_H
#define TIDEMARK_BACKUP_BACKUP_INTERNAL_H

#include "backup/backup.h"
#include "backup/chain.h"
#include "backup/set.h"
#include "backup/source.h"

struct run {
    const struct backup_options *options;
    const char *set; /* id of the set; "": the disk is backed up alone */
    struct repository repository;
    struct source *source;
    const struct repository_entry *base; /* NULL: a full backup */
    char *reason;        /* why it is a full one, or everything is read; NULL: neither */
    bool compare;        /* everything is read, and compared with `base` */
    struct chain parent; /* of `base` */
    struct manifest manifest;
    struct repository_draft draft;
    int image_fd, sums_fd;
    char *image, *sums; /* their paths, for messages */
    bool view_failed;   /* the point in time cannot be read any more */
    bool committed;     /* the backup exists */
    bool unsettled;     /* the source has, or may have, something of this run */
    int64_t started_ns;
};

/* Disks that are backed up together. */
struct group {
    const struct backup_options *options;
    struct run *runs;
    struct source **sources; /* of the runs, in the same order */
    size_t count;
    struct set set;              /* its id is "" where a disk is backed up alone */
    char set_id[BACKUP_ID_SIZE]; /* kept by: */
    int set_kept;                /* see set_reserve(); -1: there is none */
    struct set_root_made made;   /* for the set */
    char *definition;            /* of the machine; NULL: none */
    int guard;                   /* see backup/guard.h; -1: there is none */
};

/* Open the sources and their repositories. *ret_group is to be cleared, also on failure. Yields. */
int group_co_open(const struct backup_options *options, struct group *ret_group, struct error *err);
/* Release everything. Yields. */
void group_co_clear(struct group *g);
/* For giving_up_begin(): ends connections to sources that are being made; no argument. */
void group_co_give_up_attempts(void *none);

/* The bitmap of the newest complete backup; NULL: there is none. */
static inline const char *run_last_bitmap(const struct run *run)
{
    const struct repository_entry *last = repository_last(&run->repository);

    return last ? last->manifest.bitmap : NULL;
}

/*
 * With source and repository open: put the source in order, decide what kind of backup to take, and
 * make its files. 0 or -errno. Yields.
 */
int run_co_prepare(struct run *run, struct error *err);
/*
 * Only the first part of that: check that the disk is the right one, and put the source in order.
 * Yields.
 */
int run_co_settle(struct run *run, struct error *err);

#endif
