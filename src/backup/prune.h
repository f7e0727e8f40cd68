/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Removal of backups, so that every backup that is kept stays the same point in time. What a
 * removed backup holds and a later one still needs goes over to that one: both are merged into a
 * new directory, which takes the place of the later one in a single step (backup/merge.h). Only
 * then are the files removed that nobody builds on any more, the newest first. So a kill at any
 * moment leaves every kept backup whole; the next run goes on. Main reactor; yields.
 */
#ifndef TIDEMARK_BACKUP_PRUNE_H
#define TIDEMARK_BACKUP_PRUNE_H

#include <signal.h>

#include "backup/repository.h"
#include "backup/retention.h"
#include "base/progress.h"

struct prune_item;

struct prune_options {
    const char *dir;
    struct retention keep;     /* if it is not set, all is kept but `remove` */
    const char *const *remove; /* ids, or their beginnings; borrowed */
    size_t remove_count;
    /*
     * Of a disk of sets: what becomes of the sets, which decides about their backups; those of
     * other sets are removed, unless they are newer than all of these. NULL: sets do not count.
     */
    const struct prune_item *sets;
    size_t set_count;
    uint64_t max_chain; /* a longer chain gets another full backup, made of its own; 0: no limit */
    bool dry_run;
    enum progress_form progress;
    volatile sig_atomic_t *stop; /* may be NULL */
};

enum prune_fate {
    PRUNE_KEPT,
    PRUNE_REMOVED,
    PRUNE_DAMAGED, /* cannot be restored; left as it is, and not counted by any rule */
};

struct prune_item {
    char id[BACKUP_ID_SIZE];
    int64_t time; /* seconds since the epoch; INT64_MIN: not known */
    enum prune_fate fate;
    unsigned reasons;  /* rules that keep it: 1 << enum retention_rule */
    bool newest;       /* kept because the next backup builds on it */
    char *problem;     /* why it cannot be restored, or must be kept; NULL mostly */
    size_t takes_over; /* backups that are merged into it */
    bool becomes_full;
};

struct prune_result {
    struct prune_item *items; /* the oldest first */
    size_t count;
    size_t removed, damaged;
    uint64_t stored_before, stored_after; /* bytes; equal in a dry run */
};

/*
 * Prune. -EBUSY: a run writes to the repository, or a backup named in `remove` has to stay;
 * -EBADMSG: a backup that would have to be merged is damaged. What was done until a failure stays
 * done. *ret_result is to be cleared, also on failure.
 */
int prune_co_run(const struct prune_options *options, struct prune_result *ret_result,
                 struct error *err);
void prune_result_clear(struct prune_result *r);

#endif
