/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A copy of a repository on an SSH server, over SFTP. What the server has is mirrored in a
 * temporary directory, manifests only; that is opened as a repository, so that all checks are those
 * of local ones. A backup is uploaded under another name, synced if the server can, and renamed.
 * The server's directory is a plain repository. It takes one copy at a time (upload_lock.h). Main
 * reactor; yields.
 */
#ifndef TIDEMARK_BACKUP_UPLOAD_H
#define TIDEMARK_BACKUP_UPLOAD_H

#include <signal.h>

#include "backup/repository.h"
#include "base/progress.h"

struct upload;

/*
 * Connect, and mirror. *ret_mirror is a locked repository, to be closed before the upload is.
 * Errors of remote_file_open(), upload_lock_take() and repository_open_mirror(). `stop` may be
 * NULL.
 */
int upload_co_open(const char *address, const struct repository *like, volatile sig_atomic_t *stop,
                   struct upload **ret_upload, struct repository *ret_mirror, struct error *err);
/* The path on the server. Borrowed. */
const char *upload_path(const struct upload *u);
/*
 * Show that the copy is alive from here to the end, while nothing else of this is called: for work
 * that takes long. Begin does not yield.
 */
void upload_keep_begin(struct upload *u);
void upload_co_keep_end(struct upload *u);

/* As repository_drop_parts(), on the server. */
void upload_co_drop_parts(struct upload *u, const struct repository *from);

/* Put the description of the mirror on the server. */
int upload_co_description(struct upload *u, const struct repository *mirror, struct error *err);

struct upload_backup {
    int dir;           /* holds its two files */
    const char *shown; /* the path of that, for messages */
    const struct manifest *manifest;
    bool replaces;                 /* there is a damaged one on the server */
    const struct backup_key *key;  /* NULL: none */
    const struct backup_key *seal; /* with which they are encrypted; NULL: they are not */
    struct progress *progress;     /* NULL: none */
    volatile sig_atomic_t *stop;   /* may be NULL */
};

/*
 * Upload a backup, in the place of a damaged one if need be. What an earlier run has left of it is
 * continued. -EBADMSG: the files are not those of the manifest. -EBUSY: another copy has begun.
 */
int upload_co_backup(struct upload *u, const struct upload_backup *backup, uint64_t *ret_written,
                     struct error *err);

/* Disconnect, and remove the mirror, which `err` does not name then. NULL is fine. Yields. */
void upload_co_close(struct upload *u, struct error *err);

#endif
