/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A file on an SSH server. All functions of remote_file.c block, are run on the offload pool, and by one thread at a time for
 * each file: a session of libssh is not for several.
 */
#ifndef TIDEMARK_SSH_REMOTE_FILE_H
#define TIDEMARK_SSH_REMOTE_FILE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "base/iov.h"
#include "block/options.h"

#define SSH_DEFAULT_PORT "22"

/* How the server proves who it is. */
enum host_key_check { HOST_KEY_UNCHECKED, HOST_KEY_HASH, HOST_KEY_KNOWN_HOSTS };
enum host_key_hash { HOST_KEY_MD5, HOST_KEY_SHA1, HOST_KEY_SHA256 };

struct ssh_target {
    char *host, *port, *path;
    char *user; /* NULL: as libssh finds it, that is who we are */
    enum host_key_check check;
    enum host_key_hash hash_type;
    char *hash; /* hexadecimal; for HOST_KEY_HASH */
};

/* --- target.c: main reactor; neither yields --- */

/* ssh://[USER@]HOST[:PORT]/PATH[?host_key_check=no|yes|TYPE:HASH] to options. -EINVAL */
int ssh_target_parse_filename(const char *filename, struct options *opts, struct error *err);
/* Take the options of BlockdevOptionsSsh, or QEMU's older flat ones. -EINVAL. Clear *ret in any case. */
int ssh_target_take(struct options *opts, struct ssh_target *ret, struct error *err);
void ssh_target_clear(struct ssh_target *t);
/* The URI, malloc'ed; NULL if out of memory. */
char *ssh_target_filename(const struct ssh_target *t);

/* --- remote_file.c --- */

struct remote_file;

/*
 * Connect, authenticate, open. `flags`: O_RDONLY or O_RDWR, with O_CREAT and O_TRUNC to make it. -EACCES where the server does not
 * permit that; -errno with a sentence.
 */
int remote_file_open(const struct ssh_target *t, int flags, struct remote_file **ret,
                     struct error *err);
void remote_file_close(struct remote_file *f); /* NULL is fine */
/* Bytes. -EINVAL if it is no regular file. */
int remote_file_size(struct remote_file *f, uint64_t *ret, struct error *err);
/* What lies beyond the end of the file is filled with zeroes. -EIO */
int remote_file_read(struct remote_file *f, uint64_t offset, struct iov iov);
int remote_file_write(struct remote_file *f, uint64_t offset, struct iov iov);
/* Whether the server can make it stable: fsync@openssh.com. */
bool remote_file_can_sync(const struct remote_file *f);
int remote_file_sync(struct remote_file *f);
int remote_file_resize(struct remote_file *f, uint64_t size);

#endif
