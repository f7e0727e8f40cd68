/* SPDX-License-Identifier: Apache-2.0 */
/*
 * When each backup of a repository was verified, and how far a check that was cut short has come:
 * the file `.tidemark-verified` of the repository. It says where to go on, and what monitoring
 * shows; nothing else trusts it. An entry counts only as long as the manifest of the backup names
 * the same image. Nothing here yields; everything may block.
 */
#ifndef TIDEMARK_BACKUP_VERIFIED_H
#define TIDEMARK_BACKUP_VERIFIED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "backup/repository.h"
#include "base/error.h"

struct verified_entry {
    int64_t at;        /* seconds since 1970 of the last whole check; 0: there was none */
    bool sound;        /* what that check has found */
    uint64_t position; /* clusters that a check which was cut short has compared; 0: none was */
};

/* Whether the last whole check has found damage, in the backup or in one that it builds on. */
static inline bool verified_found_damage(const struct verified_entry *e)
{
    return e->at && !e->sound;
}

/* An entry for each backup of the repository, in the same order. */
struct verified {
    struct verified_entry *list; /* owned */
    size_t count;
};

/* Load; what can't be read counts as never verified. -ENOMEM. */
int verified_load(const struct repository *r, struct verified *ret_verified);
/* Release. */
void verified_clear(struct verified *v);
#define VERIFIED_AUTO(name) __attribute__((cleanup(verified_clear))) struct verified name = {0}

/* Replace the file. -EROFS and the like: the repository can't be written. */
int verified_store(const struct repository *r, const struct verified *v, struct error *err);

#endif
