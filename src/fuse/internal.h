/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of this layer share. */
#ifndef TIDEMARK_FUSE_INTERNAL_H
#define TIDEMARK_FUSE_INTERNAL_H

#include <fuse_lowlevel.h>
#include <stdatomic.h>
#include <sys/stat.h>

#include "base/latency.h"
#include "base/list.h"
#include "co/sync.h"
#include "fuse/fuse.h"
#include "fuse/libfuse_lazy.h"
#include "fuse/tree.h"

/* Kinds of requests that are counted. */
enum fuse_kind {
    FUSE_KIND_READ,
    FUSE_KIND_WRITE,
    FUSE_KIND_ZEROES,
    FUSE_KIND_FLUSH,
    /* Everything that does not concern contents. */
    FUSE_KIND_OTHER,
    FUSE_KINDS
};

/* Figures of each kind. */
enum fuse_figure {
    FUSE_FIGURE_DONE,
    FUSE_FIGURE_BYTES,
    FUSE_FIGURE_FAILED,
    FUSE_FIGURE_INVALID,
    FUSE_FIGURES
};

/* Kinds that have a histogram come first. */
#define FUSE_LATENCIES FUSE_KIND_OTHER

/* Written by the thread of the disk's reactor alone, in the order of fuse_stats. */
struct fuse_counters {
    struct counter of[FUSE_KINDS][FUSE_FIGURES];
    struct histogram latency[FUSE_LATENCIES];
};

struct fuse_request;
/* Carry a request out and answer it. Yields. */
typedef void fuse_request_fn(struct fuse_request *rq);

/*
 * A message of the kernel and the request that it holds. The buffer belongs to libfuse's reader;
 * the data of a write stay there until the request has ended.
 */
struct fuse_request {
    struct list link; /* in disk->spare, while it is not in use */
    struct fuse_disk *disk;
    struct fuse_buf message;
    int64_t begun_ns;

    /* NULL: the message was answered by libfuse, or needs no answer. */
    fuse_req_t req;
    fuse_request_fn *co_handle;
    enum fuse_kind kind;
    uint64_t offset, length;
    union {
        const char *data;    /* of a write; in `message` */
        int mode;            /* of fallocate */
        int whence;          /* of lseek */
        struct stat setting; /* of setattr */
    };
    unsigned flags;    /* of open(2) for a write; FUSE_SET_ATTR_... of setattr */
    bool invalid;      /* the request was refused, and did not fail in the node */
    void *read_buffer; /* `read_size` bytes, aligned; NULL: none */
    size_t read_size;
};

struct fuse_disk {
    struct list link; /* of the main reactor: in the list of mounts */
    struct fuse_disk_config config;
    char *path; /* of the mountpoint, absolute and without symbolic links */
    struct block_edge *edge;
    struct reactor *reactor;
    struct fuse_session *session;
    bool allow_other; /* as mounted */
    bool mounted, published;
    bool drained; /* the node is, or is about to be */

    /* Bytes. */
    _Atomic uint64_t size;
    /* Requests of kinds other than OTHER that run. */
    atomic_size_t running;

    /* What follows belongs to `reactor`, once the disk is published. */
    int poll_set, bell; /* epoll of the session and of an eventfd that ends the wait */
    struct fuse_request *receiving;
    struct list spare;
    size_t spare_count;
    size_t in_flight; /* requests whose coroutines run */
    bool closing;     /* receive no more */
    bool receiver_ended;
    bool detached;      /* the descriptor of the session is closed, or about to be */
    struct co *waiter;  /* for receiver_ended or for in_flight; NULL: none */
    struct co *stalled; /* the receiver, at the limit of requests in flight; NULL: it is not */

    /* Held while the size is changed. */
    struct co_mutex resizing;

    /* Attributes that clients can change. */
    mode_t mode;
    uid_t uid;
    gid_t gid;
    struct timespec atime, mtime, ctime;
    uint64_t seen_generation; /* of the writes to the node, at `mtime` */
    uint64_t seen_allocated;  /* bytes of storage, when the node was last asked */

    struct fuse_counters counters;
};

extern const struct fuse_lowlevel_ops fuse_disk_ops;

/* The coroutine on disk->reactor that receives. */
void fuse_disk_co_receive(void *disk);
/* On disk->reactor: end the receiver, let requests end for up to `patience_ns`, and detach. */
void fuse_disk_co_settle(struct fuse_disk *d, int64_t patience_ns);
/* On disk->reactor: wait until no request runs. */
void fuse_disk_co_wait_idle(struct fuse_disk *d);
/* Free all requests, which are spare. */
void fuse_disk_free_requests(struct fuse_disk *d);

/* --- answers ---------------------------------------------------------------------------------- */

/* Each ends the request, on disk->reactor; `r` is 0 or -errno. None yields. */
void fuse_answer(struct fuse_request *rq, int r);
void fuse_answer_data(struct fuse_request *rq, const void *data, size_t size);
void fuse_answer_written(struct fuse_request *rq, size_t size);
void fuse_answer_offset(struct fuse_request *rq, uint64_t offset);
void fuse_answer_attr(struct fuse_request *rq, const struct stat *st);
void fuse_answer_statfs(struct fuse_request *rq, const struct statvfs *st);
/* Refuse: -errno, and no fault of the node. */
void fuse_refuse(struct fuse_request *rq, int r);

/* --- requests --------------------------------------------------------------------------------- */

/* As fuse_request_fn: see there. */
void fuse_co_getattr(struct fuse_request *rq);
void fuse_co_setattr(struct fuse_request *rq);
void fuse_co_statfs(struct fuse_request *rq);
void fuse_co_read(struct fuse_request *rq);
void fuse_co_write(struct fuse_request *rq);
void fuse_co_flush(struct fuse_request *rq);
void fuse_co_fallocate(struct fuse_request *rq);
void fuse_co_lseek(struct fuse_request *rq);

/* Change the size of the node, if it is another than `size`. 0 or -errno. */
int fuse_disk_co_resize(struct fuse_disk *d, uint64_t size);
/* Make the node at least `size` bytes long, with space for what is added. 0 or -errno. */
int fuse_disk_co_allocate(struct fuse_disk *d, uint64_t size);
/* Make the node at least `size` bytes long, rounded up where its format wants that. 0 or -errno. */
int fuse_disk_co_grow(struct fuse_disk *d, uint64_t size);

/* --- mounting, of disks and of trees ---------------------------------------------------------- */

/* Load libfuse; its messages go to the log. -ENOENT ...: it is not installed. Does not yield. */
int fuse_load(struct error *err);
/* A session that is not mounted yet; the operations get `arg`. NULL: no memory. Does not yield. */
struct fuse_session *fuse_new_session(const char *options, const struct fuse_lowlevel_ops *ops,
                                      size_t ops_size, void *arg);
/*
 * The type of what is at the mountpoint, once a mount that a process left there when it died is
 * detached. 0, or an error of stat(2). Blocks.
 */
int fuse_look_at_mountpoint(const char *path, mode_t *ret_mode);

/* --- trees (fuse/tree.h) ---------------------------------------------------------------------- */

/* More requests stay in the queue of the kernel. */
#define FUSE_TREE_REQUESTS_MAX 64u

struct fuse_tree {
    struct fuse_tree_config config;
    struct fuse_session *session;
    struct fuse_buf message; /* the buffer belongs to libfuse's reader */
    bool mounted;
    bool detached; /* nobody can get an answer any more */
    int poll_set;  /* epoll of the session and of what ends it */
    size_t in_flight;
    struct co *waiter;   /* for a place for another request; NULL: none */
    struct list handles; /* files and directories that are open */
};

/* A directory as it was when it was opened. */
struct fuse_tree_list {
    struct tree_list_item {
        char *name;
        struct fuse_tree_entry entry;
    } * items;
    size_t count;
};

/* An open file or directory: what the kernel names it by is its address. */
struct fuse_tree_handle {
    struct list link; /* in tree->handles */
    uint64_t number;
    bool is_file;
    struct fuse_tree_file file;
    struct fuse_tree_list list;
};

extern const struct fuse_lowlevel_ops fuse_tree_session_ops;

/* Release what is open. Yields. */
void fuse_tree_co_close(struct fuse_tree *t, struct fuse_tree_handle *h);

/* --- figures ---------------------------------------------------------------------------------- */

/* Count a request that ends with `r`. */
void fuse_count(const struct fuse_request *rq, int r);

#endif
