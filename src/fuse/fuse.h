/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A node as a regular file, by FUSE (libfuse 3): a disk that is mounted on an existing file, whose
 * contents are hidden as long. Reads of other processes never come from the page cache, since
 * others may write the node.
 *
 *   fuse_disk_co_mount --> fuse_disk_publish --> fuse_disk_co_unmount --> fuse_disk_co_free
 *            |                                                                   ^
 *            +-------------------------------------------------------------------+
 *
 * All of these run on the main reactor; those with `co_` yield. Requests run on one other reactor,
 * each in a coroutine. A process that opens the file before it is published waits.
 */
#ifndef TIDEMARK_FUSE_FUSE_H
#define TIDEMARK_FUSE_FUSE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/counters.h"
#include "base/error.h"
#include "block/block.h"
#include "block/gate.h"

struct fuse_disk;
struct latency_set;
struct reactor;

/* Whether users other than the owner of this process may use the file. */
enum fuse_allow_other {
    /* If the system permits that. */
    FUSE_ALLOW_OTHER_AUTO,
    FUSE_ALLOW_OTHER_OFF,
    FUSE_ALLOW_OTHER_ON,
};

struct fuse_disk_config {
    /* A regular file; symbolic links are followed. Copied. */
    const char *mountpoint;
    enum fuse_allow_other allow_other;
    bool writable;
    /* Writes past the end enlarge the node. */
    bool growable;
    /* Every write is on stable storage before it is answered. */
    bool writethrough;
    /* On the node. Borrowed until co_free. */
    struct block_root *root;
    /* Where requests run; NULL: one of the reactors that this layer makes. */
    struct reactor *reactor;
    /* Latencies that a user asked for. Borrowed. */
    struct latency_set *latencies;
    /*
     * Change the size of the node to `size` bytes. `grow_only`: a node that has them stays as it
     * is, since somebody else may have enlarged it. Called on the main reactor; 0 or -errno.
     */
    int (*co_resize)(void *arg, uint64_t size, bool grow_only, enum block_prealloc prealloc);
    /* A request failed in the node; see export_note_io_error(). Any thread; does not yield. */
    void (*on_error)(void *arg, const char *request, uint64_t offset, uint64_t length, int error);
    void *arg;
};

/*
 * Mount. -EEXIST: this process has mounted a disk there. -ENOENT, -EACCES ...: of stat(2). -EINVAL:
 * the mountpoint is no regular file. -EIO: the mount failed. A mount that a process left which has
 * died is removed first.
 */
int fuse_disk_co_mount(const struct fuse_disk_config *config, struct fuse_disk **ret_disk,
                       struct error *err);
/* Answer requests from now on. Does not yield. */
void fuse_disk_publish(struct fuse_disk *d);
/* The node has this size now, and is drained. Does not yield. */
void fuse_disk_set_size(struct fuse_disk *d, uint64_t size);
/* A drain of the node begins, or has ended. Does not yield. */
void fuse_disk_set_drained(struct fuse_disk *d, bool drained);
/*
 * Begin no new request, let those in flight end, and unmount. Requests that take longer than a
 * second do not keep the mount: their clients get an error, as do all that have the file open.
 * Returns when no request runs any more. Once, after publish.
 */
void fuse_disk_co_unmount(struct fuse_disk *d);
/* Release the disk; unmounts one that was not published. */
void fuse_disk_co_free(struct fuse_disk *d);

/* How many requests run that a client waits for. Does not yield. */
size_t fuse_disk_requests(const struct fuse_disk *d);

/* What a disk counts, and how many values these are. */
extern const struct stat_desc fuse_stats[];
/* Fill a value for each place in fuse_stats. */
void fuse_disk_read_stats(const struct fuse_disk *d, uint64_t *ret_values);

#endif
