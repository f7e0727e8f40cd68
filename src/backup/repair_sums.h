/* SPDX-License-Identifier: Apache-2.0 */
/* Making a lost checksum file again, from the image. Main reactor; yields. */
#ifndef TIDEMARK_BACKUP_REPAIR_SUMS_H
#define TIDEMARK_BACKUP_REPAIR_SUMS_H

#include <signal.h>

#include "backup/repository.h"

/*
 * Replace the checksum file of a backup by one that is made from its image, if that is the one
 * which the manifest describes. Where no second file can be like the first one, in an encrypted
 * repository or for some full backups, the image has to be the one that the manifest describes, and
 * the manifest is replaced by one that describes the new file. -EBADMSG: the image is damaged;
 * other errors: it can't be read.
 */
int repair_co_make_sums(const struct repository *r, struct repository_entry *e,
                        volatile sig_atomic_t *stop, struct error *err);
/*
 * Whether the checksum file that is there agrees with the image about every cluster; the manifest
 * of `e` describes both files. -EBADMSG: it does not.
 */
int repair_co_prove_sums(const struct repository *r, const struct repository_entry *e,
                         volatile sig_atomic_t *stop, struct error *err);

#endif
