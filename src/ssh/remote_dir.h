/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A directory on an SSH server, over one connection. All of these block, and run on the offload
 * pool, for each directory and its files on one thread at a time. Names are relative to the
 * directory, and may have slashes. Functions return 0 or -errno.
 */
#ifndef TIDEMARK_SSH_REMOTE_DIR_H
#define TIDEMARK_SSH_REMOTE_DIR_H

#include <stddef.h>

#include "base/error.h"
#include "ssh/remote_file.h"

struct remote_dir;

/* Connect, and make the directory (mode 0700) if there is none. Errors of remote_file_open(). */
int remote_dir_open(const struct ssh_target *t, struct remote_dir **ret_dir, struct error *err);
/* Close the connection; all files have to be closed. NULL is fine. */
void remote_dir_close(struct remote_dir *d);

/* The names in a directory, without "." and ".."; "" is the directory itself. */
int remote_dir_list(struct remote_dir *d, const char *name, char ***ret_names, size_t *ret_count,
                    struct error *err);
/* Free such a list. */
void remote_dir_free_names(char **names, size_t count);

/* Make a directory with mode 0700, and sync its parent; one that exists is fine. */
int remote_dir_make(struct remote_dir *d, const char *name, struct error *err);
/*
 * Rename a file or directory. An existing file is replaced, if need be in two steps; a directory is
 * not.
 */
int remote_dir_rename(struct remote_dir *d, const char *from, const char *to, struct error *err);
/*
 * Sync a directory, so that the names in it are stable; "" is the directory itself. 0 as well if
 * the server can't: nothing is known then.
 */
int remote_dir_sync(struct remote_dir *d, const char *name, struct error *err);
/* Remove a file, or a directory with the files in it. What is not there is fine. */
void remote_dir_remove(struct remote_dir *d, const char *name);

/*
 * Open a file, with `flags` as remote_file_open(); new ones have mode 0600. To be closed by
 * remote_file_close() before the directory is.
 */
int remote_dir_open_file(struct remote_dir *d, const char *name, int flags,
                         struct remote_file **ret_file, struct error *err);

#endif
