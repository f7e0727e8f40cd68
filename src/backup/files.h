/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Files and directories, opened by the descriptor of their directory. Whoever can write there may
 * have put a symbolic link, a FIFO or a device in the place of a file: links are not followed, and
 * only regular files are opened. New files have mode 0600, new directories 0700.
 *
 * `shown` is the path for messages. Functions that open return a descriptor, which the caller owns,
 * or -errno. Nothing here yields; everything may block.
 */
#ifndef TIDEMARK_BACKUP_FILES_H
#define TIDEMARK_BACKUP_FILES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

/* "DIR/NAME", malloc'ed; NULL: no memory. */
char *files_join(const char *dir, const char *name);

/* Open a directory by a path that the user gave: links in the path are followed. */
int files_open_dir(const char *path, struct error *err);
/* Open a directory in a directory. */
int files_open_dir_at(int dir, const char *name, const char *shown, struct error *err);
/* Make a directory in a directory, and open it. -EEXIST if the name exists. */
int files_make_dir_at(int dir, const char *name, const char *shown, struct error *err);

/* Open a file to read it. -EINVAL if it is no regular file, -ELOOP if it is a link. */
int files_open_at(int dir, const char *name, const char *shown, struct error *err);
/* Make a file, to read and write it. -EEXIST if the name exists. */
int files_create_at(int dir, const char *name, const char *shown, struct error *err);
/* Open a file to read and write it, and make it if there is none. Errors as above. */
int files_reopen_at(int dir, const char *name, const char *shown, struct error *err);
/*
 * Make a file without a name. Where the file system has none, the error is mostly -EOPNOTSUPP or
 * -EISDIR.
 */
int files_create_unnamed_at(int dir);

/*
 * The contents of a file of at most `max` bytes, with a NUL after them; *ret_text is malloc'ed.
 * -EINVAL: the file is longer.
 */
int files_read_at(int dir, const char *name, size_t max, const char *shown, char **ret_text,
                  size_t *ret_size, struct error *err);
/* Make a file with this text, and sync it. -EEXIST if the name exists. */
int files_write_at(int dir, const char *name, const char *text, const char *shown,
                   struct error *err);
/* The same, with any bytes. */
int files_write_bytes_at(int dir, const char *name, const void *data, size_t size,
                         const char *shown, struct error *err);
/* The same, without a sync: for what is of no use after a crash. */
int files_write_temporary_at(int dir, const char *name, const void *data, size_t size,
                             const char *shown, struct error *err);

/* -EBADMSG unless the file has as many bytes as its manifest says. */
int files_check_size(int fd, const char *shown, uint64_t expected, struct error *err);
/* fsync(2) of a file or directory. */
int files_sync(int fd, const char *shown, struct error *err);
/*
 * The same of the directory that has the directory `path`. 0 as well if this process may not read
 * it: then another one has made `path`.
 */
int files_sync_parent(const char *path, struct error *err);

/*
 * Remove a file or link, or a directory and the files in it. What cannot be removed stays, such as
 * directories in the directory.
 */
void files_remove_at(int dir, const char *name);

#define FILES_SELF_SIZE 32
/* A path that opens the file of a descriptor, also after the file was renamed or removed. */
void files_self_path(int fd, char ret_text[static FILES_SELF_SIZE]);
/* In the message and hint of `err` (NULL is fine), replace one path by another. */
void files_replace_in_error(struct error *err, const char *old, const char *new);
/* The same, of the path of a descriptor by `shown`. */
void files_name_in_error(struct error *err, int fd, const char *shown);

/* `size` - 1 random letters and digits, and a NUL. 0 or -errno. */
int files_random_name(char *ret_text, size_t size, struct error *err);

#endif
