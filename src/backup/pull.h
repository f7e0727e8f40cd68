/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pull a point in time over NBD into a new qcow2 file: find out what to fetch, fetch it with many
 * requests in flight, and write compressed clusters and their checksums. Main reactor, in a
 * coroutine; yields.
 */
#ifndef TIDEMARK_BACKUP_PULL_H
#define TIDEMARK_BACKUP_PULL_H

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "base/progress.h"
#include "nbd/client.h"

struct pull_config {
    const struct socket_address *address;
    const struct nbd_client_tls *tls; /* NULL: in the clear */
    const char *export_name;
    const char *bitmap; /* fetch only what the bitmap marks; NULL: everything that is not zero */
    uint64_t disk_size;
    int image_fd;           /* an empty file that becomes the qcow2 image */
    const char *image_path; /* its path, for messages */
    const char *backing;    /* its backing file, relative to it; NULL for a full backup */
    int sums_fd;            /* an empty file that becomes the checksum file */
    const char *sums_path;  /* its path, for messages */
    enum progress_form progress;
    volatile sig_atomic_t *stop; /* becomes true when the user wants to stop; may be NULL */
    /* Called a few times a second; a negative result ends the pull with the error in `err`. */
    int (*watch)(void *arg, struct error *err);
    void *watch_arg;
    bool *view_failed; /* set when the export cannot be read any more */
};

struct pull_result {
    uint64_t changed; /* bytes marked by the bitmap, or not known to be zero */
    uint64_t moved;   /* bytes read over NBD */
};

/*
 * Pull. On success both files are complete and synced; on failure the caller removes them. -EINTR:
 * stopped.
 */
int pull_co_run(const struct pull_config *config, struct pull_result *ret_result,
                struct error *err);

#endif
