/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Repositories that were read already, with the key of the program: many points in time of one
 * repository are opened one after the other, and each would read all manifests again. What was read
 * is used as long as the directory has not changed since. Main reactor.
 */
#ifndef TIDEMARK_BACKUP_REPOSITORY_SHARE_H
#define TIDEMARK_BACKUP_REPOSITORY_SHARE_H

#include "backup/repository.h"
#include "base/error.h"

/* Errors as repository_open(), which runs on the offload pool. Yields. */
int repository_co_share(const char *path, const struct repository **ret_repository,
                        struct error *err);
/* Release. NULL is fine. */
void repository_unshare(const struct repository *r);

/* As repository_open_with(), on the offload pool: the directory may hang. Yields. */
int repository_co_open_with(const char *path, struct backup_key_ring *ring,
                            struct repository *ret_repository, struct error *err);

/* While somebody holds them, the latest of each directory is kept without a user. */
void repositories_hold(void);
void repositories_let_go(void);

#endif
