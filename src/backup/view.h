/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Backups as a tree of files, for a mount (fuse/tree.h):
 *
 *     [DISK/]                   a directory of backups, where the view is of several of them
 *         ID/                   a point in time; its time is that of the directory
 *             disk.raw          the disk as it was then
 *             partition-1.ext4  the same for a partition, by its file system ("raw": not known)
 *             problem.txt       instead, if it is damaged: what is wrong
 *     [sets/ID/DISK]            links to the backups that a set has
 *
 * Reads are those of the driver tidemark-backup: compared with their checksums. A point in time is
 * opened when something in it is used; what is known of its layers stays for the next one. Backups
 * that are new appear when a directory is listed, or when they are asked for by name.
 *
 * Main reactor.
 */
#ifndef TIDEMARK_BACKUP_VIEW_H
#define TIDEMARK_BACKUP_VIEW_H

#include "base/error.h"
#include "fuse/tree.h"

struct backup_view;

/*
 * A view of a directory of backups, or of all that are below a directory. -ENOENT: there are none;
 * others as repository_open(). Damage of single backups is no error; it is logged. Does not yield,
 * but blocks for the time that small files take.
 */
int backup_view_open(const char *path, struct backup_view **ret_view, struct error *err);
/* Release. NULL is fine. Yields. */
void backup_view_co_free(struct backup_view *v);
/* The directory, absolute and without symbolic links. Borrowed. Does not yield. */
const char *backup_view_path(const struct backup_view *v);

/* What is in it; `arg` is the view. */
extern const struct fuse_tree_ops backup_view_ops;

#endif
