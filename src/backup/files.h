/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Files and directories as seen from the descriptor of their directory. Whoever can write there may have put a symbolic link,
 * a FIFO or a device in the place of a file: links are not followed, and only regular files are opened. What is made is
 * its owner's alone (files 0600, directories 0700).
 *
 * `shown` is the path for messages. Descriptors returned are the caller's. Nothing here yields; all of it may block.
 */
#ifndef TIDEMARK_BACKUP_FILES_H
#define TIDEMARK_BACKUP_FILES_H

#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"

/* "DIR/NAME", malloc'ed; NULL: no memory. */
char *files_join(const char *dir, const char *name);

/* A directory by a path that the user gave: links in it are followed. The descriptor, or -errno. */
int files_open_dir(const char *path, struct error *err);
/* One in a directory. */
int files_open_dir_at(int dir, const char *name, const char *shown, struct error *err);
/* The same, made first; -EEXIST if anything has that name. */
int files_make_dir_at(int dir, const char *name, const char *shown, struct error *err);

/* An existing file, to be read. -EINVAL if it is no regular file, -ELOOP if it is a link. */
int files_open_at(int dir, const char *name, const char *shown, struct error *err);
/* A new file, to be read and written. -EEXIST if anything has that name. */
int files_create_at(int dir, const char *name, const char *shown, struct error *err);
/* One that has no name yet. -errno; where the file system has no such, mostly -EOPNOTSUPP or -EISDIR. */
int files_create_unnamed_at(int dir);

/* All of a file of at most `max` bytes, NUL-terminated; *ret is malloc'ed. -EINVAL if it is longer. */
int files_read_at(int dir, const char *name, size_t max, const char *shown, char **ret,
                  size_t *ret_size, struct error *err);
/* A new file with this text, stable when it returns. */
int files_write_at(int dir, const char *name, const char *text, const char *shown,
                   struct error *err);

/* fsync(2) of a file or directory. */
int files_sync(int fd, const char *shown, struct error *err);

/*
 * Remove what has this name: a file or link itself, or a directory and the files in it. What can't be removed stays:
 * directories in the directory, among others.
 */
void files_remove_at(int dir, const char *name);

/* A path that opens the very file of a descriptor, whatever has happened to its name. */
#define FILES_SELF_SIZE 32
void files_self_path(int fd, char ret[static FILES_SELF_SIZE]);
/* In a message that names a file by that path, put what the user knows it by. */
void files_name_in_error(struct error *err, int fd, const char *shown);

/* `size` - 1 random letters and digits, and a NUL. -errno. */
int files_random_name(char *ret, size_t size, struct error *err);

#endif
