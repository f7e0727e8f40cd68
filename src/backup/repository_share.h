/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Repositories that were read already, with the key of the program: many points in time of one
 * repository are opened one after the other, and each would read all manifests again. What was read
 * is used as long as the directory has not changed since. Main reactor; nothing here yields.
 */
#ifndef TIDEMARK_BACKUP_REPOSITORY_SHARE_H
#define TIDEMARK_BACKUP_REPOSITORY_SHARE_H

#include "backup/repository.h"
#include "base/error.h"

/* Errors as repository_open(). */
int repository_share(const char *path, const struct repository **ret_repository, struct error *err);
/* Release. NULL is fine. */
void repository_unshare(const struct repository *r);

/* While somebody holds them, the latest of each directory is kept without a user. */
void repositories_hold(void);
void repositories_let_go(void);

#endif
