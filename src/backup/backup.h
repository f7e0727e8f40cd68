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
#include "backup/quiesce.h"
#include "backup/repository.h"
#include "backup/set.h"
#include "backup/source.h"
#include "base/error.h"
#include "base/progress.h"

struct backup_options {
    struct source_options source;
    const char *dir;        /* of the disk's backups; of a set: its root (backup/set.h) */
    bool is_set;            /* also if there is only one disk */
    const char *definition; /* file that is kept with the set; NULL: none */
    struct quiesce_options quiesce;
    /* Command line of a guard (backup/guard.h), with room for two more words; NULL: none. */
    char **guard;
    bool compare;   /* read everything, also where a bitmap records what changed */
    bool full;      /* also where an incremental one is possible */
    bool same_disk; /* the disk is that of the earlier backups, whatever it is called */
    uint64_t rate;  /* bytes read from the source per second, at most; 0: no limit */
    enum progress_form progress;
    volatile sig_atomic_t *stop; /* becomes true when the user wants to end it; may be NULL */
};

struct backup_result {
    struct manifest *manifests; /* one for each disk */
    size_t count;
    struct set set; /* id "": the disk was backed up alone */
};

/* Release what it holds, and make it empty. */
void backup_result_clear(struct backup_result *r);
/*
 * Take a backup of a disk, or of several at one moment. *ret_result is to be cleared by the caller.
 * On failure the earlier backups are unchanged and, unless the daemon is gone, its nodes and
 * bitmaps are in order again. Writes of the guest continue in any case. When the backup is
 * complete, but something could not be put in order, the function succeeds and fills `unsettled`.
 */
int backup_co_take(const struct backup_options *options, struct backup_result *ret_result,
                   struct error *unsettled, struct error *err);

/* Only clean up what a killed run has left in the daemon and in the directory. */
int backup_co_abort(const struct backup_options *options, struct error *err);
/*
 * The work of a guard: wait for the end of a run by the pipe `fd`, and if it was killed, thaw the
 * guest and clean up. 0 also if another run does that.
 */
int backup_co_guard(const struct backup_options *options, int fd, struct error *err);

/*
 * What backups to any directory have in the daemon of options->qmp_socket, on `node` (NULL: on all
 * nodes). *ret_leftovers is to be cleared by the caller.
 */
int backup_co_leftovers(const struct source_options *options, const char *node,
                        struct source_leftovers *ret_leftovers, struct error *err);
/*
 * Remove everything that backups to this repository have in the daemon, bitmaps included. -EBUSY
 * while one is running.
 */
int backup_co_forget(const struct source_options *options, const char *node, const char *repository,
                     struct error *err);

struct restore_options {
    const char *dir;
    const char *at;     /* id of the point in time; NULL: the newest */
    const char *target; /* see backup/target.h; "-": standard output */
    const char *format; /* "raw", "qcow2" */
    bool force;         /* replace an existing file */
    /*
     * Add the restored disk to the daemon with this QMP socket, as a node of this name; both NULL:
     * no.
     */
    const char *qmp_socket, *node;
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
    uint64_t from;       /* offset on the disk from which this run compared them */
    const char *problem; /* NULL: sound */
    bool unread;         /* it could not be checked: whether it is damaged is not known */
};

struct verify_options {
    const char *dir;
    const char *at; /* this backup and those it builds on; NULL: all */
    /*
     * Stop after that time; begin with the backup whose last check is longest ago, and go on where
     * the last run was stopped. 0: verify all, in their order.
     */
    int64_t limit_ns;
    bool remember; /* record in the repository what was verified */
    enum progress_form progress;
    /* Once per backup, and for a repository.json with a problem (by that id). */
    void (*report)(const struct verify_report *report, void *arg);
    void *arg;
    volatile sig_atomic_t *stop;
};

struct verify_result {
    size_t damaged; /* backups that cannot be restored, also because they build on a damaged one */
    size_t unread;  /* backups that could not be checked */
    bool description; /* repository.json has a problem */
    size_t verified;
    size_t left;    /* that the time did not suffice for */
    int unrecorded; /* -errno if what was verified could not be recorded */
};

/*
 * Check manifests, links, files, qcow2 structures and contents. Damage is no failure. -EINTR:
 * stopped; other errors: the check could not be made.
 */
int verify_co_run(const struct verify_options *options, struct verify_result *ret_result,
                  struct error *err);

#endif
