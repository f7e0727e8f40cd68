/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Partitions of a backup that are known from an earlier one: a backup that holds nothing of what
 * was read to find the partitions of one that it builds on has the same. So a list of many points
 * in time opens the files of each backup once, and not those of its whole chain for each.
 */
#ifndef TIDEMARK_BACKUP_VOLUMES_INHERIT_H
#define TIDEMARK_BACKUP_VOLUMES_INHERIT_H

#include <stdbool.h>

#include "backup/repository.h"
#include "backup/volumes.h"

/* What is known of a backup, borrowed until the caller yields; NULL: nothing. Does not yield. */
typedef const struct volumes *volumes_known(void *arg, const struct repository_entry *e);

/*
 * Look for the volumes of the backup `id` of the repository in `path`. True: *ret_volumes is a copy
 * of those of the nearest earlier one that is known. False: none is, or a backup after that has
 * changed something there, has another size of the disk, or can't be read; then who wants to know
 * has to open the backup. Main reactor; yields.
 */
bool volumes_co_inherit(const char *path, const char *id, volumes_known *known, void *arg,
                        struct volumes *ret_volumes);

#endif
