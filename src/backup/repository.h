/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The directory that holds the backups of one disk:
 *
 *     repository.json            what it is; its random id is in the name of everything left in a daemon, and in manifests
 *     <id>/                      a backup; made under another name and renamed when it is complete and stable
 *         disk.qcow2             its clusters; backing file ../<parent>/disk.qcow2 if it is incremental
 *         checksums              see backup/sums.h
 *         manifest.json          see backup/manifest.h
 *     .tidemark-lock             locked by the run that writes
 *     .tidemark-tmp-<id>/        a backup in the making, or what is left of a run that was cut off
 *
 * A complete backup is never changed. All is opened by descriptors of directories (backup/files.h), so nothing in a
 * repository leads out of it. Reading needs no repository.json: what it says can be made anew from the manifests.
 * None of these functions yields; they do block, for the time of small files. Reading: repository.c, writing:
 * repository_write.c.
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
#define REPOSITORY_FLEECE "fleece" /* in an unfinished backup: where its temporary image is */

struct repository_entry {
    char id[BACKUP_ID_SIZE];
    struct manifest manifest; /* empty if damaged */
    char *problem;            /* a sentence; NULL if the manifest is sound */
};

struct repository {
    char *path; /* absolute */
    int fd;     /* the directory; -1 if not open */
    char id[REPOSITORY_ID_SIZE];
    char *former;                     /* ids that it had before, separated by spaces; NULL: none */
    char *problem;                    /* of repository.json, a sentence; NULL if it is sound */
    int lock_fd;                      /* -1 if not locked */
    struct repository_entry *entries; /* oldest first; damaged ones where their ids put them */
    size_t count;
};

#define REPOSITORY_INIT ((struct repository){.fd = -1, .lock_fd = -1})

/*
 * Open for reading. -ENOENT, -EINVAL (not a repository). Damaged backups are no error, but entries with a problem; nor is
 * a damaged or lost repository.json where there are backups.
 */
int repository_open(const char *path, struct repository *ret, struct error *err);

/*
 * Open for a new backup: the directory is made if it is absent, a repository if it is empty, and what earlier
 * runs left unfinished is removed. -EBUSY while another run has it.
 */
int repository_open_to_write(const char *path, struct repository *ret, struct error *err);

void repository_close(struct repository *r);
#define REPOSITORY_AUTO(name)                                                                      \
    __attribute__((cleanup(repository_close))) struct repository name = REPOSITORY_INIT

/* The newest sound backup; NULL if there is none. */
const struct repository_entry *repository_last(const struct repository *r);
/* The newest backup if it is damaged, so that repository_last() is an earlier one; else NULL. */
const struct repository_entry *repository_damaged_last(const struct repository *r);
/* By id, or by a beginning that only one has. NULL: the newest, which has to be sound. */
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

/* "<path>/<id>/<file>", malloc'ed, for messages; NULL: no memory. */
char *repository_file(const struct repository *r, const char *id, const char *file);
/* Open a file of a backup for reading. A descriptor of the caller, or -errno. */
int repository_open_file(const struct repository *r, const char *id, const char *file,
                         struct error *err);

/* --- a new backup, in a locked repository --- */

/* An id for now that is not taken. */
void repository_new_id(const struct repository *r, char ret[static BACKUP_ID_SIZE]);
/* Higher than any that was given out, as far as can be known. */
uint64_t repository_next_sequence(const struct repository *r);

/* A backup in the making. */
struct repository_draft {
    char *path; /* while it is unfinished, for messages */
    char *name; /* in the repository */
    int fd;     /* the directory */
};

#define REPOSITORY_DRAFT_INIT ((struct repository_draft){.fd = -1})

/* Make the directory for it. *ret is to be released with repository_discard(), also on failure. */
int repository_begin(const struct repository *r, const char *id, struct repository_draft *ret,
                     struct error *err);
/* Write the manifest, make all stable, and give the directory its final name: from here on the backup exists. */
int repository_commit(const struct repository *r, struct repository_draft *draft,
                      const struct manifest *m, struct error *err);
/* Release; if the backup is still unfinished, remove it. */
void repository_discard(const struct repository *r, struct repository_draft *draft);

/*
 * Make repository.json anew from what the manifests say. `new_id`: with another id, so that a copy of a repository does not
 * use the bitmaps of the one it was copied from. *ret is the repository, locked.
 */
int repository_repair(const char *path, bool new_id, struct repository *ret, struct error *err);

/* --- for repository_write.c --- */

#define REPOSITORY_DESCRIPTION "repository.json"
#define REPOSITORY_OWN_PREFIX ".tidemark-"
#define REPOSITORY_FORMAT "tidemark-repository"

/* Everything but the lock. `need_description`: a damaged one is an error (-EINVAL, with a hint). */
int repository_load(const char *path, bool need_description, struct repository *ret,
                    struct error *err);
/* Of the JSON text's compact form without the member "sha256". */
int repository_description_sha256(struct json_object *o, char ret[static DIGEST_HEX_SIZE]);

#endif
