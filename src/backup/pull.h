/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pull a point in time into a new qcow2 file: find out what to fetch, fetch it with many
 * requests in flight, and write compressed clusters and their checksums. Main reactor, in a
 * coroutine; yields.
 */
#ifndef TIDEMARK_BACKUP_PULL_H
#define TIDEMARK_BACKUP_PULL_H

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

#include "backup/chain.h"
#include "backup/pull_input.h"
#include "base/error.h"
#include "base/progress.h"

struct pull_config {
    /* Only what its bitmap marks is fetched; without one everything that is not zero. */
    struct pull_input *input;
    /*
     * Store only what has another checksum in this chain, whose last backup is the parent. If the
     * input has a bitmap, data is read only where that marks it; zeroes are looked for there, or
     * everywhere if the disk has grown. NULL: store everything, and the input has no bitmap.
     */
    struct chain *parent;
    uint64_t disk_size;
    /*
     * Size that the disk had in the parent; what has been added since is fetched, whatever the
     * bitmap says. For a full backup 0.
     */
    uint64_t parent_size;
    int image_fd;                  /* an empty file that becomes the qcow2 image */
    const struct backup_key *seal; /* with which the files are encrypted; NULL: they are not */
    const char *image_path;        /* its path, for messages */
    const char *backing;           /* its backing file, relative to it; NULL for a full backup */
    int sums_fd;                   /* an empty file that becomes the checksum file */
    const char *sums_path;         /* its path, for messages */
    uint64_t rate;                 /* bytes read per second, at most; 0: no limit */
    enum progress_form progress;
    volatile sig_atomic_t *stop; /* becomes true when the user wants to stop; may be NULL */
    /* Called a few times a second; a negative result ends the pull with the error in `err`. */
    int (*watch)(void *arg, struct error *err);
    void *watch_arg;
    /* Set when the input cannot be read any more; not after a stop, which gives reads up. */
    bool *view_failed;
};

struct pull_result {
    /* Bytes different from the parent; without one, not known to be zero. */
    uint64_t changed;
    uint64_t moved; /* bytes read */
};

/*
 * Pull. On success both files are complete, and the caller syncs them (digest_co_complete()); on
 * failure the caller removes them. -EINTR: stopped.
 */
int pull_co_run(const struct pull_config *config, struct pull_result *ret_result,
                struct error *err);

#endif
