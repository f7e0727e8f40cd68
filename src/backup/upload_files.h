/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What uploads of repositories (upload.h) and of roots of sets (upload_root.h) share: addresses,
 * small files on an SSH server, and the mirror of a repository that is there. Functions block, and
 * run in the offload pool, unless said otherwise; they return 0 or -errno.
 */
#ifndef TIDEMARK_BACKUP_UPLOAD_FILES_H
#define TIDEMARK_BACKUP_UPLOAD_FILES_H

#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"
#include "ssh/remote_dir.h"
#include "ssh/remote_file.h"

/* Whether a target is an address ("sftp://...") and no path. Does not block. */
bool upload_is_address(const char *target);
/* -EINVAL: the address is malformed. *ret_target is to be cleared, also on failure. */
int upload_take_address(const char *address, struct ssh_target *ret_target, struct error *err);
/* The address of `name` in the directory of an address, malloc'ed. NULL: no memory. */
char *upload_join_address(const char *address, const char *name);
/*
 * In an error about a mirror, name the address instead; of a full disk, that of the mirror. NULL is
 * fine. Does not block.
 */
void upload_name_in_error(struct error *err, const char *mirror, const char *address);

/*
 * For giving_up_begin(): give up all connections 5 s after the first call. `stopped_ns` is an
 * int64_t, 0 at first. Main reactor.
 */
void upload_co_give_up(void *stopped_ns);

/* The contents of a small file; *ret_text is malloc'ed, with a NUL after them. -EINVAL: too long */
int upload_fetch_file(struct remote_dir *d, const char *name, size_t max, char **ret_text,
                      size_t *ret_size, struct error *err);
/* Make a file, or replace what it has, and sync it if the server can. */
int upload_put_file(struct remote_dir *d, const char *name, const void *data, size_t size,
                    struct error *err);

struct upload_mirror {
    struct remote_dir *remote;
    const char *dir; /* of the repository; "": that of the connection */
    int fd;          /* of the directory that becomes the mirror */
    bool no_backups; /* the description only */
    /* Called for each file; a failure ends the mirroring. NULL: nobody asks. */
    int (*alive)(void *arg, struct error *err);
    void *arg;
};

/*
 * Mirror a repository, the description and manifests only: `names` is what its directory has. A
 * manifest that cannot be read becomes a damaged backup.
 */
int upload_mirror_names(const struct upload_mirror *m, char **names, size_t count,
                        struct error *err);
/*
 * Mirror a file of each directory in `names` whose name is an id, in a directory of that name; one
 * that cannot be read, or has more than `max` bytes, leaves that empty.
 */
int upload_mirror_files(const struct upload_mirror *m, char *const *names, size_t count,
                        const char *file, size_t max, struct error *err);

#endif
