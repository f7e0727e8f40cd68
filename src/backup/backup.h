/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the faces backup, backups, restore and verify do. All run on the main reactor, in a coroutine; `co_` functions
 * yield.
 */
#ifndef TIDEMARK_BACKUP_BACKUP_H
#define TIDEMARK_BACKUP_BACKUP_H

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "backup/manifest.h"
#include "backup/repository.h"
#include "backup/source.h"
#include "base/error.h"
#include "base/progress.h"

struct backup_options {
    const char *qmp_socket;
    const char *node;
    const char *dir;
    const char *fleece_dir;           /* for the temporary image; NULL: see backup/fleece.h */
    const char *nbd_uri;              /* of the daemon's NBD server; NULL: the daemon tells */
    const struct nbd_client_tls *tls; /* to reach it; NULL: in the clear */
    unsigned
        cbw_timeout_s; /* that a write of the guest waits for the temporary image; 0: for ever */
    bool full;         /* also where an incremental one is possible */
    bool same_disk;    /* the disk is that of the earlier backups, whatever it is called */
    enum progress_form progress;
    volatile sig_atomic_t *stop; /* becomes true when the user wants to end it; may be NULL */
};

/*
 * Take a backup. *ret gets its manifest (to be cleared by the caller). On failure the earlier backups are as they were, and
 * unless the daemon is gone its node and bitmaps are in order again. Whatever happens, writes of the guest go on. When
 * the backup is complete, but the daemon could not be put in order, that is no failure: `unsettled` says so.
 */
int backup_co_take(const struct backup_options *options, struct manifest *ret,
                   struct error *unsettled, struct error *err);

/* Only put in order what a run that was cut off has left in the daemon and the directory. */
int backup_co_abort(const struct backup_options *options, struct error *err);

/* What backups to any directory have in a daemon, on `node` (NULL: on all). *ret is to be cleared. */
int backup_co_leftovers(const char *qmp_socket, const char *node, struct source_leftovers *ret,
                        struct error *err);
/* Remove all that backups to this repository have there, bitmaps included. -EBUSY while one is under way. */
int backup_co_forget(const char *qmp_socket, const char *node, const char *repository,
                     struct error *err);

struct restore_options {
    const char *dir;
    const char *at;     /* id of the point in time; NULL: the newest */
    const char *target; /* see backup/target.h */
    const char *format; /* "raw", "qcow2" */
    bool force;         /* replace an existing file */
    enum progress_form progress;
    volatile sig_atomic_t *stop;
};

struct restore_result {
    char id[BACKUP_ID_SIZE];
    uint64_t virtual_size;
    uint64_t written; /* bytes of data; the rest is zeroes, and holes in the target */
    uint64_t duration_ms;
};

/* Write a point in time. Every cluster is compared with its checksum before it is written. -EBADMSG: one differs. */
int restore_co_run(const struct restore_options *options, struct restore_result *ret,
                   struct error *err);

/* What verify found out about one backup. */
struct verify_report {
    const char *id;
    uint64_t bytes;      /* of contents compared */
    const char *problem; /* NULL: sound */
};

struct verify_options {
    const char *dir;
    const char *at; /* this backup and those it builds on; NULL: all */
    enum progress_form progress;
    /* Once per backup, and for a repository.json with a problem (by that id). */
    void (*report)(const struct verify_report *report, void *arg);
    void *arg;
    volatile sig_atomic_t *stop;
};

struct verify_result {
    size_t damaged; /* backups that can't be restored, those included that build on a damaged one */
    bool description; /* repository.json has a problem */
};

/*
 * Check manifests, links, files, qcow2 structures and contents. Negative only when it could not be found out; -EINTR: stopped.
 */
int verify_co_run(const struct verify_options *options, struct verify_result *ret,
                  struct error *err);

#endif
