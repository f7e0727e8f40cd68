/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is known to be wrong with each backup of a repository, without reading any contents: its
 * manifest, the links of its chain, and what the last verification has found (backup/verified.h).
 * For lists and for monitoring; whoever reads a backup compares it anyway. Nothing here yields;
 * everything may block.
 */
#ifndef TIDEMARK_BACKUP_CONDITION_H
#define TIDEMARK_BACKUP_CONDITION_H

#include <stddef.h>
#include <stdint.h>

#include "backup/repository.h"
#include "backup/verified.h"

#define CONDITION_TIME_SIZE sizeof("2026-11-20T09:30:00Z")

/* Of each backup of the repository, in the same order. */
struct condition {
    char **problems; /* a sentence; NULL: nothing is known to be wrong */
    size_t count;
    size_t damaged; /* how many have a problem */
    struct verified verified;
};

/* -ENOMEM. *ret_condition is to be cleared, also on failure. */
int condition_read(const struct repository *r, struct condition *ret_condition);
void condition_clear(struct condition *c);
#define CONDITION_AUTO(name) __attribute__((cleanup(condition_clear))) struct condition name = {0}

/* The time of an entry of verified.h, in UTC. */
void condition_time(int64_t at, char ret_text[static CONDITION_TIME_SIZE]);

#endif
