/* SPDX-License-Identifier: Apache-2.0 */
/* Attributes of the file that a disk appears as. */
#include <errno.h>
#include <time.h>

#include "block/control.h"
#include "fuse/internal.h"
#include "loop/loop.h"

enum {
    /* What stat(2) counts in. */
    STAT_BLOCK = 512,
    /* Programs read in pieces of this size. */
    PREFERRED_SIZE = 4096,
};

/* --- what the node knows, on the main reactor ------------------------------------------------- */

struct space_call {
    struct fuse_disk *disk;
    uint64_t allocated;  /* bytes */
    uint64_t generation; /* of the writes */
};

/*
 * Counts as a request, so that the disk keeps its node meanwhile. Does not wait for the end of a
 * drain: the process that asks may be this one, which drains the node to make another export.
 */
static void co_ask_node(void *arg)
{
    struct space_call *c = arg;
    struct block_node *node;

    if (c->disk->drained) {
        return;
    }
    block_co_edge_enter(c->disk->edge);
    node = block_root_node(c->disk->config.root);
    if (block_co_allocated_size(node, &c->allocated) < 0) {
        c->allocated = block_node_size(node);
    }
    c->generation = block_node_write_generation(node);
    block_edge_leave(c->disk->edge);
}

static struct timespec now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_REALTIME, &t);
    return t;
}

/* Bytes that the disk takes. The node may be written by others, too: the file has changed then. */
static uint64_t co_look_at_node(struct fuse_disk *d)
{
    struct space_call call = {
        .disk = d, .allocated = d->seen_allocated, .generation = d->seen_generation};

    loop_co_call_on(reactor_main(), co_ask_node, &call);
    d->seen_allocated = call.allocated;
    if (call.generation != d->seen_generation) {
        d->seen_generation = call.generation;
        d->mtime = d->ctime = now();
    }
    return call.allocated;
}

static void answer_attributes(struct fuse_request *rq, uint64_t allocated)
{
    const struct fuse_disk *d = rq->disk;
    struct stat st = {
        .st_ino = FUSE_ROOT_ID,
        .st_mode = S_IFREG | d->mode,
        .st_nlink = 1,
        .st_uid = d->uid,
        .st_gid = d->gid,
        .st_size = (off_t)atomic_load(&d->size),
        .st_blksize = PREFERRED_SIZE,
        .st_blocks = (blkcnt_t)((allocated + STAT_BLOCK - 1) / STAT_BLOCK),
        .st_atim = d->atime,
        .st_mtim = d->mtime,
        .st_ctim = d->ctime,
    };

    fuse_answer_attr(rq, &st);
}

void fuse_co_getattr(struct fuse_request *rq)
{
    answer_attributes(rq, co_look_at_node(rq->disk));
}

/* --- changes ---------------------------------------------------------------------------------- */

/* Everything that may be set, and what QEMU lets a user set with this option only. */
#define SET_OWNER (FUSE_SET_ATTR_UID | FUSE_SET_ATTR_GID)
#define SET_TIMES                                                                                  \
    (FUSE_SET_ATTR_ATIME | FUSE_SET_ATTR_ATIME_NOW | FUSE_SET_ATTR_MTIME |                         \
     FUSE_SET_ATTR_MTIME_NOW | FUSE_SET_ATTR_CTIME)
#define SET_ANY (FUSE_SET_ATTR_MODE | FUSE_SET_ATTR_SIZE | SET_OWNER | SET_TIMES)

/* Nothing may let in a user whom the mount keeps out, or seem to allow writes. */
static int check_setting(const struct fuse_disk *d, const struct stat *to, unsigned set)
{
    if (set & ~(unsigned)SET_ANY || (set & SET_OWNER && !d->allow_other)) {
        return -EOPNOTSUPP;
    }
    if (set & FUSE_SET_ATTR_MODE && !d->config.writable &&
        to->st_mode & (S_IWUSR | S_IWGRP | S_IWOTH)) {
        return -EROFS;
    }
    if (set & FUSE_SET_ATTR_MODE && !d->allow_other && to->st_mode & (S_IRWXG | S_IRWXO)) {
        return -EPERM;
    }
    return set & FUSE_SET_ATTR_SIZE && !d->config.writable ? -EACCES : 0;
}

static void set_times(struct fuse_disk *d, const struct stat *to, unsigned set)
{
    if (set & FUSE_SET_ATTR_ATIME_NOW) {
        d->atime = now();
    } else if (set & FUSE_SET_ATTR_ATIME) {
        d->atime = to->st_atim;
    }
    if (set & FUSE_SET_ATTR_MTIME_NOW) {
        d->mtime = now();
    } else if (set & FUSE_SET_ATTR_MTIME) {
        d->mtime = to->st_mtim;
    }
}

static void set_attributes(struct fuse_disk *d, const struct stat *to, unsigned set)
{
    if (set & FUSE_SET_ATTR_MODE) {
        d->mode = to->st_mode & ~(mode_t)S_IFMT;
    }
    if (set & FUSE_SET_ATTR_UID) {
        d->uid = to->st_uid;
    }
    if (set & FUSE_SET_ATTR_GID) {
        d->gid = to->st_gid;
    }
    set_times(d, to, set);
    d->ctime = now();
}

void fuse_co_setattr(struct fuse_request *rq)
{
    struct fuse_disk *d = rq->disk;
    struct stat to = rq->setting;
    unsigned set = rq->flags & ~(unsigned)(FUSE_SET_ATTR_FORCE | FUSE_SET_ATTR_KILL_SUID |
                                           FUSE_SET_ATTR_KILL_SGID | FUSE_SET_ATTR_FILE |
                                           FUSE_SET_ATTR_KILL_PRIV | FUSE_SET_ATTR_OPEN |
                                           FUSE_SET_ATTR_TIMES_SET | FUSE_SET_ATTR_TOUCH);
    uint64_t allocated;
    int r = check_setting(d, &to, set);

    if (r < 0) {
        fuse_refuse(rq, r);
        return;
    }
    if (set & FUSE_SET_ATTR_SIZE) {
        r = fuse_disk_co_resize(d, (uint64_t)to.st_size);
        if (r < 0) {
            fuse_answer(rq, r);
            return;
        }
    }
    allocated = co_look_at_node(d);
    set_attributes(d, &to, set);
    answer_attributes(rq, allocated);
}

/* A file system with room for nothing but its file. */
void fuse_co_statfs(struct fuse_request *rq)
{
    struct statvfs st = {
        .f_bsize = PREFERRED_SIZE,
        .f_frsize = PREFERRED_SIZE,
        .f_blocks = (atomic_load(&rq->disk->size) + PREFERRED_SIZE - 1) / PREFERRED_SIZE,
        .f_files = 1,
        .f_namemax = 255,
    };

    fuse_answer_statfs(rq, &st);
}
