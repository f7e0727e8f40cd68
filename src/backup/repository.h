/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The directory that holds the backups of one disk:
 *
 *     repository.json            what it is; its random id is in the name of everything left in a daemon
 *     <id>/                      a backup; made under another name and renamed when it is complete and stable
 *         disk.qcow2             its clusters; backing file ../<parent>/disk.qcow2 if it is incremental
 *         checksums              see backup/sums.h
 *         manifest.json          see backup/manifest.h
 *     .tidemark-lock             locked by the run that writes
 *     .tidemark-tmp-<id>/        a backup in the making, or what is left of a run that was cut off
 *
 * A complete backup is never changed. None of these functions yields; they do block, for the time of small files.
 */
#ifndef TIDEMARK_BACKUP_REPOSITORY_H
#define TIDEMARK_BACKUP_REPOSITORY_H

#include <stdbool.h>
#include <stddef.h>

#include "backup/manifest.h"
#include "base/error.h"

#define REPOSITORY_ID_SIZE 9 /* 8 hexadecimal digits and the NUL */
#define REPOSITORY_IMAGE "disk.qcow2"
#define REPOSITORY_SUMS "checksums"
#define REPOSITORY_MANIFEST "manifest.json"
#define REPOSITORY_TMP ".tidemark-tmp-"

struct repository_entry {
    char id[BACKUP_ID_SIZE];
    struct manifest manifest; /* empty if damaged */
    char *problem;            /* a sentence; NULL if the manifest is sound */
};

struct repository {
    char *path; /* absolute */
    char id[REPOSITORY_ID_SIZE];
    int lock_fd;                      /* -1 if not locked */
    struct repository_entry *entries; /* oldest first, damaged ones at the beginning */
    size_t count;
};

#define REPOSITORY_INIT ((struct repository){.lock_fd = -1})

/*
 * Open for reading. -ENOENT, -EINVAL (not a repository). Damaged backups are no error, but entries with a problem.
 */
int repository_open(const char *path, struct repository *ret, struct error *err);

/*
 * Open for a new backup: the directory is made if it is absent, a repository if it is empty, and what earlier
 * runs left unfinished is removed. -EBUSY while another run has it.
 */
int repository_open_locked(const char *path, struct repository *ret, struct error *err);

void repository_close(struct repository *r);
#define REPOSITORY_AUTO(name)                                                                      \
    __attribute__((cleanup(repository_close))) struct repository name = REPOSITORY_INIT

/* The newest sound backup; NULL if there is none. */
const struct repository_entry *repository_last(const struct repository *r);
/* By id, or by a beginning that only one has. NULL: the newest sound one. */
const struct repository_entry *repository_find(const struct repository *r, const char *id,
                                               struct error *err);
/* Exactly this id; NULL if there is none. */
const struct repository_entry *repository_get(const struct repository *r, const char *id);

/*
 * From the full backup to `e`. *ret is malloc'ed, of borrowed entries. Checks the links: every parent is there, sound,
 * older and of the same size. -EINVAL.
 */
int repository_chain(const struct repository *r, const struct repository_entry *e,
                     const struct repository_entry ***ret, size_t *ret_count, struct error *err);

/* "<path>/<id>/<file>", malloc'ed; NULL: no memory. */
char *repository_file(const struct repository *r, const char *id, const char *file);

/* --- a new backup, in a locked repository --- */

/* An id for now that is not taken. */
void repository_new_id(const struct repository *r, char ret[static BACKUP_ID_SIZE]);
uint64_t repository_next_sequence(const struct repository *r);
/* Make the directory for it; *ret (malloc'ed) is its path while it is unfinished. */
int repository_begin(const struct repository *r, const char *id, char **ret, struct error *err);
/* Write the manifest, make all stable, and give the directory its final name: from here on the backup exists. */
int repository_commit(const struct repository *r, const char *tmp_path, const struct manifest *m,
                      struct error *err);
/* Remove an unfinished backup. */
void repository_discard(const char *tmp_path);

#endif
