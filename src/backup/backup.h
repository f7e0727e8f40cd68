/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The work of the faces backup, backups, restore and verify. All functions run on the main reactor,
 * in a coroutine, and yield. They return 0 or -errno and fill `err` on failure.
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
    const char *nbd_uri;              /* of the daemon's NBD server; NULL: ask the daemon */
    const struct nbd_client_tls *tls; /* to reach it; NULL: in the clear */
    /* Limit of the time that a guest's write waits for the temporary image; 0: none. */
    unsigned cbw_timeout_s;
    bool full;      /* also where an incremental one is possible */
    bool same_disk; /* the disk is that of the earlier backups, whatever it is called */
    enum progress_form progress;
    volatile sig_atomic_t *stop; /* becomes true when the user wants to end it; may be NULL */
};

/*
 * Take a backup. *ret_manifest gets its manifest, to be cleared by the caller. On failure the
 * earlier backups are unchanged and, unless the daemon is gone, its node and bitmaps are in order
 * again. Writes of the guest continue in any case. When the backup is complete, but the daemon
 * could not be put in order, the function succeeds and fills `unsettled`.
 */
int backup_co_take(const struct backup_options *options, struct manifest *ret_manifest,
                   struct error *unsettled, struct error *err);

/* Only clean up what a killed run has left in the daemon and in the directory. */
int backup_co_abort(const struct backup_options *options, struct error *err);

/*
 * What backups to any directory have in a daemon, on `node` (NULL: on all nodes). *ret_leftovers is
 * to be cleared by the caller.
 */
int backup_co_leftovers(const char *qmp_socket, const char *node,
                        struct source_leftovers *ret_leftovers, struct error *err);
/*
 * Remove everything that backups to this repository have in the daemon, bitmaps included. -EBUSY
 * while one is running.
 */
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

/*
 * Write a point in time. Every cluster is compared with its checksum before it is written;
 * -EBADMSG: one differs.
 */
int restore_co_run(const struct restore_options *options, struct restore_result *ret_result,
                   struct error *err);

/* What verify has found out about one backup. */
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
    size_t damaged; /* backups that cannot be restored, also because they build on a damaged one */
    bool description; /* repository.json has a problem */
};

/*
 * Check manifests, links, files, qcow2 structures and contents. Damage is no failure. -EINTR:
 * stopped; other errors: the check could not be made.
 */
int verify_co_run(const struct verify_options *options, struct verify_result *ret_result,
                  struct error *err);

#endif
