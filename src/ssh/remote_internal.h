/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by files (remote_file.c) and directories (remote_dir.c) on an SSH server. */
#ifndef TIDEMARK_SSH_REMOTE_INTERNAL_H
#define TIDEMARK_SSH_REMOTE_INTERNAL_H

#include "ssh/libssh_lazy.h"
#include "ssh/remote_file.h"

struct remote_file {
    ssh_session session;
    sftp_session sftp;
    sftp_file file;
    char *path;
    bool shares; /* the connection is that of a directory */
};

/* Load the library, connect and authenticate. The session is released with `f` in any case. */
int remote_file_start_session(struct remote_file *f, const struct ssh_target *t, struct error *err);
/* Connect, authenticate and start SFTP. What it has made is closed by remote_file_close(). */
int remote_file_connect(struct remote_file *f, const struct ssh_target *t, struct error *err);
/* Open a file over the connection that `f` has. `mode`: of a new file. */
int remote_file_open_path(struct remote_file *f, const char *path, int flags, unsigned mode,
                          struct error *err);

#endif
