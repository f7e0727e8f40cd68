/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of the backup job share. backup.h has the rules. */
#ifndef TIDEMARK_JOB_BACKUP_INTERNAL_H
#define TIDEMARK_JOB_BACKUP_INTERNAL_H

#include "co/sync.h"
#include "filter/cbw_job.h"
#include "job/backup.h"
#include "job/copy_loop.h"
#include "job/flush_behind.h"

struct backup {
    struct job *job;
    enum backup_sync sync;
    enum backup_bitmap_mode bitmap_mode;
    struct block_node *source, *target, *filter; /* each referenced */
    struct cbw_state *cbw;
    bool in_place;                         /* the filter is above the source */
    struct block_root *root, *target_root; /* of the filter, and of the target; NULL: not yet */
    struct block_bitmap *bitmap;           /* frozen; NULL: none */
    struct dirty_bitmap *todo;             /* for the copy loop */
    /* BACKUP_ALWAYS, of a job that has failed at work: what has not been copied for sure. */
    struct dirty_bitmap *left;
    bool has_run;
    /*
     * What the target does not store is zero, whoever opens it. Not so for a part of the disk: the
     * target may get the rest as its backing file afterwards.
     */
    bool target_alone;
    struct copy_loop_params loop;

    struct flush_behind flushes; /* of the target */
};

/* How the job copies; `todo` is not set yet. Does not yield. */
void backup_set_loop(struct backup *b, const struct backup_config *config);
/* The work of the driver. */
int backup_co_run(struct job *job, void *state, struct error *err);
/*
 * Note what has not been copied. What has been counts only if a flush makes it stable. Copies that
 * end after the note count as missing. Without memory nothing is noted.
 */
void backup_co_note_left(struct backup *b);

#endif
