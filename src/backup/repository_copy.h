/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A second repository with the backups of a first one, or some of them. It has an id of its own, so
 * that backups to either do not disturb the other; and each may be pruned by rules of its own. Each
 * run copies what is new. A backup whose parent the copy does not have is merged with those between
 * on the way (backup/merge.h). The SHA-256 of every file is compared with the manifest; a file that
 * was cut short by a kill is continued. Main reactor; yields.
 */
#ifndef TIDEMARK_BACKUP_REPOSITORY_COPY_H
#define TIDEMARK_BACKUP_REPOSITORY_COPY_H

#include <signal.h>

#include "backup/repository.h"
#include "base/progress.h"

struct repository_copy_options {
    const char *from;
    const char *to;         /* a directory, or sftp://[USER@]HOST[:PORT]/PATH */
    const char *at;         /* only this backup; NULL: see `last` */
    uint64_t last;          /* at most N, the newest; 0: all */
    const char *const *ids; /* only these; NULL: see above */
    size_t id_count;
    enum progress_form progress;
    volatile sig_atomic_t *stop; /* may be NULL */
};

struct repository_copy_result {
    size_t copied;               /* backups that are new in the copy */
    size_t merged;               /* of them, those that were merged with what they build on */
    size_t present;              /* those that were there */
    size_t damaged;              /* those that cannot be restored, and were left out */
    uint64_t bytes;              /* of files written */
    char id[REPOSITORY_ID_SIZE]; /* of the copy */
};

/*
 * Copy. -EBADMSG: a file of the source is damaged; -EINVAL: the target is no copy of this
 * repository; -EBUSY: a run writes to it. What was copied before a failure stays.
 */
int repository_copy_co_run(const struct repository_copy_options *options,
                           struct repository_copy_result *ret_result, struct error *err);

#endif
