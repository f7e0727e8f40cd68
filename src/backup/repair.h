/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What can be made again in a repository: the description, from the manifests; the checksum file of
 * a backup, from its image, if the result, or in an encrypted repository the image, is what the
 * manifest says; the manifest of a backup, from its two files, if these agree about every cluster.
 * Everything else can't, and is named. Main reactor; yields.
 */
#ifndef TIDEMARK_BACKUP_REPAIR_H
#define TIDEMARK_BACKUP_REPAIR_H

#include <signal.h>

#include "backup/repository.h"

struct repair_options {
    const char *dir;
    bool sign;                   /* give it the key of the program, as it is now */
    bool new_id;                 /* give the repository another id */
    int append_only;             /* 1: make it one that only grows; 0: end that; -1: neither */
    volatile sig_atomic_t *stop; /* may be NULL */
};

/* Something that was wrong. */
struct repair_item {
    char id[BACKUP_ID_SIZE]; /* of the backup, or of the set; "": the description */
    const char *file;        /* its name */
    char *problem;           /* what was wrong, or why it can't be mended: a sentence */
    bool repaired;
};

struct repair_result {
    char *path;
    char id[REPOSITORY_ID_SIZE];
    size_t backups;
    size_t sets; /* of a root of sets, which has no id and no backups of its own; else 0 */
    struct repair_item *items;
    size_t count, unrepaired;
};

/*
 * Repair. Of a root of sets only their descriptions, with `sign` (backup/set_sign.h). -EINVAL: no
 * repository, or there is nothing to repair; -EBUSY: a run writes to it.
 * *ret_result is to be cleared, also on failure.
 */
int repair_co_run(const struct repair_options *options, struct repair_result *ret_result,
                  struct error *err);
void repair_result_clear(struct repair_result *r);
/* Add an item; `file` is static. -ENOMEM. */
int repair_result_add(struct repair_result *r, const char *id, const char *file,
                      const char *problem, bool repaired);

#endif
