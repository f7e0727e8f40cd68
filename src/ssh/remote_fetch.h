/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Many small files of a directory on an SSH server, with requests for a number of them in flight:
 * one after the other each file takes four answers of the server. Section numbers are those of
 * draft-ietf-secsh-filexfer-02, SFTP version 3.
 */
#ifndef TIDEMARK_SSH_REMOTE_FETCH_H
#define TIDEMARK_SSH_REMOTE_FETCH_H

#include <stddef.h>

#include "base/error.h"
#include "ssh/remote_dir.h"

struct remote_fetch {
    const char *const *names; /* relative to the directory */
    size_t count;
    size_t max; /* bytes of a file */
    /*
     * Called for each file, in any order, on the same thread. `r` is 0, -EACCES, or -EINVAL: it
     * can't be opened, or is larger than `max`. The text is borrowed, and has a NUL at its end.
     * Returns 0, or -errno to end with, with `err` filled.
     */
    int (*take)(void *arg, size_t index, int r, const char *text, size_t size, struct error *err);
    void *arg;
};

/*
 * Fetch all. Blocks, as the functions of remote_dir.h do. -EOPNOTSUPP: the server permits no second
 * channel of the connection, and nothing was fetched; -EIO: a file can't be read, the connection is
 * lost, or what the server says is no SFTP; -ENOMEM; what `take` returns.
 */
int remote_dir_fetch(struct remote_dir *d, const struct remote_fetch *fetch, struct error *err);

#endif
