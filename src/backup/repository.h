/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The directory that holds the backups of one disk:
 *
 *     repository.json            what it is; its random id is in the manifests, and in the name of
 *                                everything that a backup has in a daemon
 *     <id>/                      a backup; synced under another name, then renamed
 *         disk.qcow2             its clusters; the backing file of an incremental backup is
 *                                ../<parent>/disk.qcow2
 *         checksums              see backup/sums.h
 *         manifest.json          see backup/manifest.h
 *     .tidemark-lock             locked by the run that writes
 *     .tidemark-tmp-<id>/        a backup in progress, or what is left of a killed run
 *
 * A complete backup is never changed. Everything is opened by descriptors of directories
 * (backup/files.h), so nothing in a repository leads out of it. Reading needs no repository.json:
 * it can be written again from the manifests. Nothing here yields; most functions block for the
 * time that small files take. repository.c reads, repository_write.c writes.
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
#define REPOSITORY_FLEECE "fleece" /* in an unfinished backup: names its temporary image */

struct repository_entry {
    char id[BACKUP_ID_SIZE];
    struct manifest manifest; /* empty if damaged */
    char *problem;            /* a sentence; NULL if the manifest is sound */
};

struct repository {
    char *path; /* absolute */
    int fd;     /* the directory; -1 if not open */
    char id[REPOSITORY_ID_SIZE];
    char *former;                     /* earlier ids, separated by spaces; NULL: none */
    char *problem;                    /* of repository.json, a sentence; NULL if it is sound */
    int lock_fd;                      /* -1 if not locked */
    struct repository_entry *entries; /* oldest first; damaged ones where their ids put them */
    size_t count;
};

#define REPOSITORY_INIT ((struct repository){.fd = -1, .lock_fd = -1})

/*
 * Open for reading. -ENOENT, -EINVAL (not a repository). Damaged backups are no error, but entries
 * with a problem; nor is a damaged or lost repository.json where there are backups.
 */
int repository_open(const char *path, struct repository *ret_repository, struct error *err);

/*
 * Open for a new backup, and lock. The directory is made if it is absent, and a repository if it is
 * empty; what earlier runs left unfinished is removed. -EBUSY while another run holds the lock.
 */
int repository_open_to_write(const char *path, struct repository *ret_repository,
                             struct error *err);

/* Release, with the lock. */
void repository_close(struct repository *r);
#define REPOSITORY_AUTO(name)                                                                      \
    __attribute__((cleanup(repository_close))) struct repository name = REPOSITORY_INIT

/* The newest sound backup; NULL if there is none. */
const struct repository_entry *repository_last(const struct repository *r);
/* The newest backup if it is damaged, so that repository_last() is an earlier one; else NULL. */
const struct repository_entry *repository_damaged_last(const struct repository *r);
/*
 * The backup with this id, or with an id that begins so and no other does. `id` NULL: the newest,
 * which has to be sound. NULL with `err` set: there is none.
 */
const struct repository_entry *repository_find(const struct repository *r, const char *id,
                                               struct error *err);
/* The backup with exactly this id; NULL: there is none. */
const struct repository_entry *repository_get(const struct repository *r, const char *id);

/*
 * The chain from the full backup to `e`: *ret_entries is malloc'ed, of borrowed entries. Checks the
 * links: every parent exists, is sound, older and of the same size. 0 or -EINVAL.
 */
int repository_chain(const struct repository *r, const struct repository_entry *e,
                     const struct repository_entry ***ret_entry, size_t *ret_count,
                     struct error *err);

/* "<path>/<id>/<file>", malloc'ed, for messages; NULL: no memory. */
char *repository_file(const struct repository *r, const char *id, const char *file);
/* Open a file of a backup for reading. A descriptor that the caller owns, or -errno. */
int repository_open_file(const struct repository *r, const char *id, const char *file,
                         struct error *err);

/* --- a new backup, in a locked repository --- */

/* An unused id for the current time. */
void repository_new_id(const struct repository *r, char ret_text[static BACKUP_ID_SIZE]);
/* A sequence number higher than any that was used, as far as is known. */
uint64_t repository_next_sequence(const struct repository *r);

/* A backup in progress. */
struct repository_draft {
    char *path; /* while it is in progress, for messages */
    char *name; /* in the repository */
    int fd;     /* the directory */
};

#define REPOSITORY_DRAFT_INIT ((struct repository_draft){.fd = -1})

/*
 * Begin a backup: make its directory. *ret_draft is to be released with repository_discard(), also
 * on failure.
 */
int repository_begin(const struct repository *r, const char *id, struct repository_draft *ret_draft,
                     struct error *err);
/*
 * Write the manifest, sync everything, and give the directory its final name: from here on the
 * backup exists.
 */
int repository_commit(const struct repository *r, struct repository_draft *draft,
                      const struct manifest *m, struct error *err);
/* Release the draft; if the backup was not committed, remove it. */
void repository_discard(const struct repository *r, struct repository_draft *draft);

/*
 * Write repository.json again from the manifests. `new_id`: with another id, so that a copy of a
 * repository does not use the bitmaps of the original. *ret_repository is the repository, locked.
 */
int repository_repair(const char *path, bool new_id, struct repository *ret_repository,
                      struct error *err);

/* --- for repository_write.c --- */

#define REPOSITORY_DESCRIPTION "repository.json"
#define REPOSITORY_OWN_PREFIX ".tidemark-"
#define REPOSITORY_FORMAT "tidemark-repository"

/*
 * Open without the lock. `need_description`: a damaged repository.json is an error (-EINVAL, with a
 * hint).
 */
int repository_load(const char *path, bool need_description, struct repository *ret_repository,
                    struct error *err);
/* SHA-256 of the compact form of the JSON text, without the member "sha256". */
int repository_description_sha256(struct json_object *o, char ret_text[static SHA256_HEX_SIZE]);

#endif
