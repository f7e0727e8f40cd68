/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by files (remote_file.c) and directories (remote_dir.c) on an SSH server. */
#ifndef TIDEMARK_SSH_REMOTE_INTERNAL_H
#define TIDEMARK_SSH_REMOTE_INTERNAL_H

#include "base/list.h"
#include "ssh/libssh_lazy.h"
#include "ssh/remote_file.h"

/* A connection that remote_give_up_all() cuts. */
struct remote_cut {
    struct list link;
    int fd; /* a duplicate of the session's, which libssh may close at any time */
    bool listed;
};

struct remote_file {
    ssh_session session;
    struct remote_cut cut;
    sftp_session sftp;
    sftp_file file;
    char *path;
    bool shares; /* the connection is that of a directory */
};

struct remote_dir {
    struct remote_file connection; /* without a file */
    char *path;
};

/* The path of a name in a directory; "" is the directory. malloc'ed; NULL: no memory. */
char *remote_dir_path_of(const struct remote_dir *d, const char *name);

/* Load the library, connect and authenticate. The session is released with `f` in any case. */
int remote_file_start_session(struct remote_file *f, const struct ssh_target *t, struct error *err);
/* Disconnect and free the session, if there is one. */
void remote_file_end_session(struct remote_file *f);
/* Connect, authenticate and start SFTP. What it has made is closed by remote_file_close(). */
int remote_file_connect(struct remote_file *f, const struct ssh_target *t, struct error *err);
/* Open a file over the connection that `f` has. `mode`: of a new file. */
int remote_file_open_path(struct remote_file *f, const char *path, int flags, unsigned mode,
                          struct error *err);

#endif
