/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One backup from several that follow each other: it has the point in time of the last one, and
 * holds what they hold together. It builds on what the first one builds on, and is a full one if
 * that is. Every cluster is compared with its checksum on the way. Main reactor; yields.
 */
#ifndef TIDEMARK_BACKUP_MERGE_H
#define TIDEMARK_BACKUP_MERGE_H

#include <signal.h>

#include "backup/repository.h"
#include "base/progress.h"

struct merge_config {
    const struct repository *from;
    const struct repository_entry *const *entries; /* the oldest first; at least one */
    size_t count;
    const struct repository *to; /* locked; may be `from` */
    enum progress_form progress;
    volatile sig_atomic_t *stop; /* may be NULL */
};

/*
 * Make the files of the merged backup in a draft of `to`, and its manifest: neither is committed.
 * *ret_draft is to be released with repository_discard(), *ret_manifest to be cleared, both also on
 * failure. -EBADMSG: one of the backups is damaged; -EINTR: stopped.
 */
int merge_co_run(const struct merge_config *config, struct repository_draft *ret_draft,
                 struct manifest *ret_manifest, struct error *err);

#endif
