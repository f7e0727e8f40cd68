/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A tree of directories and read-only files, by FUSE (libfuse 3). Who mounts it says by functions
 * what is in it. The contents of a file are those of a node, or of a part of it, or a text; they
 * never change, so the kernel may keep what was read as long as the file is open.
 *
 * Everything runs on the main reactor, each request in a coroutine.
 */
#ifndef TIDEMARK_FUSE_TREE_H
#define TIDEMARK_FUSE_TREE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"
#include "block/block.h"

struct fuse_tree;
struct fuse_tree_list;

#define FUSE_TREE_ROOT 1u

struct fuse_tree_entry {
    uint64_t number; /* never given to another entry; FUSE_TREE_ROOT: the root */
    mode_t type;     /* S_IFDIR, S_IFREG or S_IFLNK */
    uint64_t size;   /* bytes of a file, or of the target of a link */
    int64_t mtime;   /* seconds since 1970 */
};

struct fuse_tree_file {
    struct block_edge *edge; /* NULL: the contents are `text` */
    uint64_t offset, size;   /* bytes, in the node */
    const char *text;        /* borrowed until co_close; `size` bytes */
};

/* All get `arg` of the tree, and return 0 or -errno. Those with `co_` may yield. */
struct fuse_tree_ops {
    /* An entry that was found or listed before, or the root. */
    int (*look)(void *arg, uint64_t number, struct fuse_tree_entry *ret_entry);
    /* The entry of that name. -ENOENT. */
    int (*co_find)(void *arg, uint64_t directory, const char *name,
                   struct fuse_tree_entry *ret_entry);
    /* Call fuse_tree_list_add() for each entry. */
    int (*co_list)(void *arg, uint64_t directory, struct fuse_tree_list *list);
    /* What a link leads to. Borrowed until the next call that yields; NULL: it is no link. */
    const char *(*target)(void *arg, uint64_t link);
    int (*co_open)(void *arg, uint64_t file, struct fuse_tree_file *ret_file);
    /* Once for each co_open(). */
    void (*co_close)(void *arg, uint64_t file);
};

/* Add an entry to what co_list() returns. -ENOMEM. */
int fuse_tree_list_add(struct fuse_tree_list *list, const char *name,
                       const struct fuse_tree_entry *entry);

struct fuse_tree_config {
    const char *mountpoint; /* a directory; symbolic links are followed */
    bool allow_other;       /* users other than the owner of this process may read everything */
    const struct fuse_tree_ops *ops;
    void *arg;
};

/*
 * Mount. -ENOTDIR: the mountpoint is no directory; -EIO: the mount failed. A mount that a process
 * left which has died is removed first. Yields.
 */
int fuse_tree_co_mount(const struct fuse_tree_config *config, struct fuse_tree **ret_tree,
                       struct error *err);
/*
 * Answer requests until `end_fd` can be read, or somebody has unmounted the tree. Then unmount, and
 * wait until no request runs any more. Who has files open gets errors from then on. Once. Yields.
 */
void fuse_tree_co_serve(struct fuse_tree *t, int end_fd);
/* Release; unmounts a tree that was not served. NULL is fine. Yields. */
void fuse_tree_co_free(struct fuse_tree *t);

#endif
