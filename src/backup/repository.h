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
 *     .tidemark-work/            where it only grows: what otherwise is here and goes again
 *     .tidemark-tmp-<id>/        a backup in progress, or what is left of a killed run
 *     .tidemark-part-<id>/       a backup that a copy has not completed: the next copy continues it
 *     .tidemark-old-<id>/        a backup that is just being replaced: it counts until <id> exists
 *
 * The files of a complete backup are never changed; a prune may replace the whole directory by one
 * of the same point in time. Everything is opened by descriptors of directories
 * (backup/files.h), so nothing in a repository leads out of it. Reading needs no repository.json:
 * it can be written again from the manifests. Nothing here yields; most functions block for the
 * time that small files take. repository.c and repository_key.c read, repository_find.c finds,
 * repository_write.c makes new backups, repository_change.c replaces and removes them,
 * repository_describe.c writes repository.json.
 */
#ifndef TIDEMARK_BACKUP_REPOSITORY_H
#define TIDEMARK_BACKUP_REPOSITORY_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "backup/key.h"
#include "backup/manifest.h"
#include "base/error.h"

#define REPOSITORY_ID_SIZE 9 /* 8 hexadecimal digits and the NUL */
#define REPOSITORY_IMAGE "disk.qcow2"
#define REPOSITORY_SUMS "checksums"
#define REPOSITORY_MANIFEST "manifest.json"
#define REPOSITORY_TMP ".tidemark-tmp-"
#define REPOSITORY_OLD ".tidemark-old-"
#define REPOSITORY_PART ".tidemark-part-"
#define REPOSITORY_WORK ".tidemark-work"
#define REPOSITORY_FLEECE "fleece" /* in an unfinished backup: names its temporary image */

struct repository_entry {
    char id[BACKUP_ID_SIZE];
    struct manifest manifest; /* empty if damaged */
    char *problem;            /* a sentence; NULL if the manifest is sound */
    ino_t inode;              /* of its directory when it was read; 0: not known */
    bool denied;              /* damaged or not: this user may not read it */
};

struct repository {
    char *path; /* absolute */
    int fd;     /* the directory; -1 if not open */
    char id[REPOSITORY_ID_SIZE];
    char *place;                      /* path at the last backup; NULL: not known */
    char *former;                     /* earlier ids, separated by spaces; NULL: none */
    const struct backup_key *key;     /* that of `ring`; NULL: none */
    struct backup_key_ring *ring;     /* borrowed; NULL: that of the program */
    char key_check[SHA256_HEX_SIZE];  /* which key the repository has; "": none */
    struct backup_kdf kdf;            /* how that comes from a passphrase */
    bool encrypted;                   /* with `key`, which is not NULL then */
    bool append_only;                 /* backups are added, and nothing else changes */
    int work_fd;                      /* the directory of what changes then; -1: not open */
    char *problem;                    /* of repository.json, a sentence; NULL if it is sound */
    int lock_fd;                      /* -1 if not locked */
    bool is_new;                      /* this process has made it */
    bool has_new_directory;           /* and its directory */
    struct repository_entry *entries; /* oldest first; damaged ones where their ids put them */
    size_t count;
};

#define REPOSITORY_INIT ((struct repository){.fd = -1, .lock_fd = -1, .work_fd = -1})

/*
 * A repository may have a key (backup/key.h). Then it is written with this key only; and whoever
 * reads with it gets what somebody without the key has changed as damaged. -ENOKEY: the key is
 * missing; -EKEYREJECTED: another one is given, or the repository has none.
 *
 * It may also be encrypted. Then nothing can be read without the key, and every file but
 * repository.json is sealed (backup/stored.h); the image is a qcow2 image in that.
 */

/*
 * It may also be one that only grows: then nothing that has its final name is changed, replaced,
 * renamed or removed by any command, so that the file system or server that has it may refuse all
 * that.
 */

/* New repositories only grow. */
extern bool repository_new_append_only;

/* Whether there is a repository.json in the directory, of whatever contents. */
bool repository_is_described(const char *path);
/*
 * New repositories are encrypted, and only grow, if `r` does, for what belongs to it: another disk
 * of its machine.
 */
void repository_be_joined(const struct repository *r);

/* The key with which files are sealed; NULL: they are not. */
static inline const struct backup_key *repository_seal(const struct repository *r)
{
    return r->encrypted ? r->key : NULL;
}

/*
 * Open for reading. -ENOENT, -EINVAL (not a repository). Damaged backups are no error, but entries
 * with a problem; nor is a damaged or lost repository.json where there are backups.
 */
int repository_open(const char *path, struct repository *ret_repository, struct error *err);
/* The same with a key of its own; NULL: that of the program. */
int repository_open_with(const char *path, struct backup_key_ring *ring,
                         struct repository *ret_repository, struct error *err);

/*
 * Open for a new backup, and lock. The directory is made if it is absent, and a repository if it is
 * empty; what earlier runs left unfinished is removed. -EBUSY while another run holds the lock;
 * -EINVAL: it is a copy of one that still exists, and has the same id.
 */
int repository_open_to_write(const char *path, struct repository *ret_repository,
                             struct error *err);

/*
 * Remove what opening has made, the repository and its directory, if that is all there is: for a
 * run that fails. `r` is locked, and is only to be closed after that. What existed before stays.
 */
void repository_unmake(struct repository *r);

/* As above, for another purpose than a backup: no directory and no repository is made. */
int repository_open_existing(const char *path, struct repository *ret_repository,
                             struct error *err);

/*
 * As repository_open_to_write(), for a copy of `like`: what an earlier copy has left unfinished
 * stays. A new one has the key of `like`, and is encrypted if that is.
 */
int repository_open_to_copy(const char *path, const struct repository *like,
                            struct repository *ret_repository, struct error *err);
/*
 * The same for a mirror of such a copy: its path says nothing, and one that a killed run has left
 * elsewhere is no repository.
 */
int repository_open_mirror(const char *path, const struct repository *like,
                           struct repository *ret_repository, struct error *err);
/* Remove the unfinished copies of backups that `from` does not have any more. `r` is locked. */
void repository_drop_parts(const struct repository *r, const struct repository *from);
/*
 * Note that backups of another repository, and of those that it was before, belong to this one.
 * `r` is locked.
 */
int repository_accept(struct repository *r, const struct repository *other, struct error *err);

/*
 * -EACCES if this user may not read a backup: those of another user are no damaged ones, because of
 * which a full one would be taken, or a copy would lack them.
 */
int repository_refuse_denied(const struct repository *r, struct error *err);
/* -EPERM if it only grows; `what` can't be done then: "it is not pruned". */
int repository_may_change(const struct repository *r, const char *what, struct error *err);
/* Make it one that only grows, or one that can be changed. Locked. */
int repository_set_append_only(struct repository *r, bool append_only, struct error *err);

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
 * Whether a sound backup of the list is gone, or was replaced, since the list was read: by a prune.
 * Reads the repository again.
 */
bool repository_was_changed(const struct repository *before);

/*
 * The chain from the full backup to `e`: *ret_entries is malloc'ed, of borrowed entries. Checks the
 * links: every parent exists, is sound, older and of the same size. 0 or -EINVAL.
 */
int repository_chain(const struct repository *r, const struct repository_entry *e,
                     const struct repository_entry ***ret_entry, size_t *ret_count,
                     struct error *err);

/*
 * The backup that `e`, an incremental one, builds on: one link of that chain. *ret_parent is
 * borrowed. 0 or -EINVAL.
 */
int repository_check_parent(const struct repository *r, const struct repository_entry *e,
                            const struct repository_entry **ret_parent, struct error *err);

/* "<path>/<id>/<file>", malloc'ed, for messages; NULL: no memory. */
char *repository_file(const struct repository *r, const char *id, const char *file);
/* Open the directory of a backup. A descriptor that the caller owns, or -errno. */
int repository_open_backup(const struct repository *r, const char *id, struct error *err);
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
    char *path;                    /* while it is in progress, for messages */
    char *name;                    /* in `dir` */
    int dir;                       /* of the repository, or of what changes in it; borrowed */
    int fd;                        /* the directory */
    const struct backup_key *seal; /* see repository_seal() */
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
/* Its second half, after repository_write_manifest(): needs no more room. */
int repository_commit_written(const struct repository *r, struct repository_draft *draft,
                              const struct manifest *m, struct error *err);
/* Like repository_begin(), but goes on with what repository_leave_part() has left. */
int repository_begin_part(const struct repository *r, const char *id,
                          struct repository_draft *ret_draft, struct error *err);
/* Keep the files of a draft for the next run; it is still to be released. */
void repository_leave_part(struct repository_draft *draft);
/* Like repository_commit(), and adds an entry to `r`, so that all others may move. */
int repository_commit_new(struct repository *r, struct repository_draft *draft,
                          const struct manifest *m, struct error *err);
/*
 * Like repository_commit(), for a backup that exists: the draft takes its place in one step, and
 * the old files become what repository_discard() removes. Whoever reads sees the old backup or the
 * new one; their points in time have to be the same.
 */
int repository_replace(struct repository *r, struct repository_draft *draft,
                       const struct manifest *m, struct error *err);
/*
 * Remove a backup: it is gone, or whole. -EBUSY: another backup builds on it. Its entry stays in
 * `r`, as a damaged one.
 */
int repository_remove(struct repository *r, const char *id, struct error *err);
/* Release the draft; if the backup was not committed, remove it. */
void repository_discard(const struct repository *r, struct repository_draft *draft);

/*
 * Open for a repair, and lock: damage is no error. What killed runs have left is removed. Errors as
 * those of repository_open_to_write().
 */
int repository_open_to_repair(const char *path, struct repository *ret_repository,
                              struct error *err);
/*
 * Give the program's key to a repository that has none, or another one: all manifests and the
 * description are authenticated as they are now. Locked; loaded again.
 */
int repository_open_to_sign(const char *path, struct repository *ret_repository, struct error *err);
int repository_sign(struct repository *r, struct error *err);
/*
 * Write repository.json again from the manifests, and load the repository again. `new_id`: with
 * another id, so that a copy of a repository does not use the bitmaps of the original.
 */
int repository_describe(struct repository *r, bool new_id, struct error *err);

/* --- for the other parts --- */

/* The text of a manifest, with the code of the key if there is one; malloc'ed. NULL: no memory. */
char *repository_manifest_text(const struct backup_key *key, const struct backup_key *seal,
                               const struct manifest *m);
/* The bytes of its file, sealed or not; malloc'ed. -ENOMEM, -EIO. */
int repository_manifest_data(const struct backup_key *key, const struct backup_key *seal,
                             const struct manifest *m, uint8_t **ret_data, size_t *ret_size);
/* The place of a repository in its description, sealed: base64, malloc'ed. NULL: no memory. */
char *repository_seal_place(const struct repository *r);
char *repository_open_place(const struct repository *r, const char *sealed);
/*
 * Replace the manifest of a backup in one step, with the code of the key if there is one. Locked;
 * the entries stay as they are.
 */
int repository_rewrite_manifest(const struct repository *repository, const struct manifest *m,
                                struct error *err);
/* Write the manifest of a draft, and make its directory stable. */
int repository_write_manifest(const struct repository *r, const struct repository_draft *draft,
                              const struct manifest *m, struct error *err);

/* Write repository.json. */
int repository_write_description(struct repository *r, struct error *err);
/* Give it a random id. */
int repository_make_id(struct repository *r, struct error *err);
/* Give it the key of the program, if there is one. */
int repository_take_key(struct repository *r, struct error *err);
/* Load into a repository that is open and locked; the lock is kept. */
int repository_load_under_lock(struct repository *r, bool need_description, struct error *err);
/* Whether the code in a JSON object is that of the key; it is removed from `o`. */
bool repository_code_is_right(const struct backup_key *key, struct json_object *o);
/* Whether the text of a manifest has the right code. -EINVAL. */
int repository_check_code(const struct backup_key *key, const char *text, const char *shown,
                          struct error *err);
/*
 * Whether the program has the key with which the repository is encrypted. Without a description
 * that is `described`, only whether it has one.
 */
int repository_judge_encryption(const struct repository *r, bool described, struct error *err);
/* Whether the program has the key of the repository; for writing, it needs to. */
int repository_judge_key(const struct repository *r, bool write, struct error *err);

#define REPOSITORY_DESCRIPTION "repository.json"
#define REPOSITORY_OWN_PREFIX ".tidemark-"
#define REPOSITORY_NEW_DESCRIPTION REPOSITORY_OWN_PREFIX REPOSITORY_DESCRIPTION
#define REPOSITORY_FORMAT "tidemark-repository"
#define REPOSITORY_CIPHER "aes-256-gcm"

/*
 * Open without the lock. `need_description`: a damaged repository.json is an error (-EINVAL, with a
 * hint).
 */
int repository_load(const char *path, bool need_description, struct repository *ret_repository,
                    struct error *err);
/* The same, whatever key it has. */
int repository_load_unproved(const char *path, bool need_description,
                             struct repository *ret_repository, struct error *err);
/* SHA-256 of the compact form of the JSON text, without the member "sha256". */
int repository_description_sha256(struct json_object *o, char ret_text[static SHA256_HEX_SIZE]);

#endif
