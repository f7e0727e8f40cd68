/* SPDX-License-Identifier: Apache-2.0 */
/* A file on an SSH server. */
#ifndef TIDEMARK_SSH_REMOTE_FILE_H
#define TIDEMARK_SSH_REMOTE_FILE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "base/iov.h"
#include "block/options.h"
#include "schema/schema.h"

#define SSH_DEFAULT_PORT "22"

/* --- target.c: which file on which server; main reactor; nothing here yields ---------------- */

/* How the server is identified. */
enum host_key_check {
    /* Not at all. */
    HOST_KEY_UNCHECKED,
    /* By a hash of its key. */
    HOST_KEY_HASH,
    /* By the user's known_hosts. */
    HOST_KEY_KNOWN_HOSTS,
};

enum host_key_hash {
    HOST_KEY_MD5,
    HOST_KEY_SHA1,
    HOST_KEY_SHA256,
};

/* Strings are owned. */
struct ssh_target {
    char *host, *port, *path;
    /* NULL: libssh chooses, that is, the user who runs the program. */
    char *user;
    enum host_key_check check;
    enum host_key_hash hash_type;
    /* Hexadecimal, for HOST_KEY_HASH. */
    char *hash;
};

/* ssh://[USER@]HOST[:PORT]/PATH[?host_key_check=no|yes|TYPE:HASH] to options. -EINVAL, -ENOMEM. */
int ssh_target_parse_filename(const char *filename, struct options *opts, struct error *err);
/* BlockdevOptionsSsh */
extern const struct schema_type ssh_options_type;

/*
 * Take the options of BlockdevOptionsSsh, or QEMU's older flat ones. -EINVAL, -ENOMEM. The caller
 * clears *ret_target in any case.
 */
int ssh_target_take(struct options *opts, struct ssh_target *ret_target, struct error *err);
/* Release what it owns, and empty it. */
void ssh_target_clear(struct ssh_target *t);
/* The URI; the caller frees it. NULL: out of memory. */
char *ssh_target_filename(const struct ssh_target *t);

/* --- remote_file.c -------------------------------------------------------------------------- */

/*
 * The user does not wait any longer for servers that do not answer: cut all connections of this
 * process, so that what waits for them fails. Any thread; does not yield.
 */
void remote_give_up_all(void);

/*
 * All of these block, and run on the offload pool; for each file on one thread at a time, since a
 * session of libssh cannot be shared by threads. Offsets and sizes are bytes.
 */

struct remote_file;

/*
 * Connect, authenticate, open. `flags`: O_RDONLY or O_RDWR, with O_CREAT and O_TRUNC to create the
 * file. -EACCES: the server does not permit it, or is not the one that was expected. -EPERM: it
 * refuses the user. Others: -errno with a sentence.
 */
int remote_file_open(const struct ssh_target *t, int flags, struct remote_file **ret_file,
                     struct error *err);
/* Close the file and the connection. NULL is fine. */
void remote_file_close(struct remote_file *f);
/* -EINVAL: the file is no regular file. -EFBIG: the size is impossible. -EIO. */
int remote_file_size(struct remote_file *f, uint64_t *ret_size, struct error *err);
/*
 * Read or write all of the vector; beyond the end of the file zeroes are read. -EACCES, -EROFS,
 * -EIO.
 */
int remote_file_read(struct remote_file *f, uint64_t offset, struct iov iov);
int remote_file_write(struct remote_file *f, uint64_t offset, struct iov iov);
/* Whether the server has fsync@openssh.com, which remote_file_sync() needs. */
bool remote_file_can_sync(const struct remote_file *f);
/* Sync the file to stable storage. -EIO. */
int remote_file_sync(struct remote_file *f);
/* -EACCES, -EROFS, -EIO. */
int remote_file_resize(struct remote_file *f, uint64_t size);

#endif
