/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The gate: all I/O between layers passes these functions; no other code calls a driver. Each call
 * checks bounds, permissions and drain, aligns (read-modify-write), splits by the limits of the
 * node, falls back (writes zeroes as data), marks dirty bitmaps, counts (block/stats.h) and traces.
 *
 * Offsets and lengths are bytes, 64-bit. The functions run in a coroutine of any reactor; those
 * with `co_` in their names may yield. They return 0 or -errno and never a short count. Common
 * errors: -EIO (also: beyond the end of the node), -EPERM (the edge lacks the permission), -EROFS,
 * -ENOSPC, -ENOTSUP, -ENOMEDIUM.
 */
#ifndef TIDEMARK_BLOCK_GATE_H
#define TIDEMARK_BLOCK_GATE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/iov.h"
#include "block/block.h"

enum block_req_flags {
    /* Writes and write_zeroes: on stable storage when the call returns 0. */
    BLOCK_REQ_FUA = 1 << 0,
    /* write_zeroes: the space may be given back. */
    BLOCK_REQ_MAY_UNMAP = 1 << 1,
    /* write_zeroes: -ENOTSUP rather than writing zeroes as data. */
    BLOCK_REQ_NO_FALLBACK = 1 << 2,
    /* The visible contents stay the same: needs only WRITE_UNCHANGED, and marks no bitmap. */
    BLOCK_REQ_UNCHANGED = 1 << 3,
    /* pwritev: store compressed where the format can. */
    BLOCK_REQ_COMPRESSED = 1 << 4,
    /* preadv: into caches only; the iov is ignored. */
    BLOCK_REQ_PREFETCH = 1 << 5,
};

/* --- requests --------------------------------------------------------------------------------- */

/* Read [offset, offset + iov.size) into iov. */
int block_co_preadv(struct block_edge *edge, uint64_t offset, struct iov iov, unsigned flags);
int block_co_pread(struct block_edge *edge, uint64_t offset, void *buf, size_t size);

/* Where block_co_read_pages() puts pages. */
struct block_page_sink {
    /*
     * Take references to the pages of the page cache of `fd`, a file that can be spliced: bytes
     * [offset, offset + length). They are there: this does not wait for storage, and must not
     * yield. 0; -ENOTSUP: not all could be taken.
     */
    int (*take)(struct block_page_sink *sink, int fd, uint64_t offset, uint64_t length);
};

/*
 * Read [offset, offset + length) without a copy, for a reader who may see changes that others make
 * before it has looked: references to the pages go to the sink, in order. What is written to the
 * same place later may be seen through them, but never the contents of another place: a format does
 * not use space again while they are in its pages. -ENOTSUP: use block_co_preadv(): the data are
 * not in the page cache, not plainly in a file, or their constancy was promised; the sink may have
 * taken a part. Does not wait for storage, except for metadata.
 */
int block_co_read_pages(struct block_edge *edge, uint64_t offset, uint64_t length,
                        struct block_page_sink *sink);

/* Write. The memory must not change until the call returns. */
int block_co_pwritev(struct block_edge *edge, uint64_t offset, struct iov iov, unsigned flags);
int block_co_pwrite(struct block_edge *edge, uint64_t offset, const void *buf, size_t size,
                    unsigned flags);

/* Make the range read as zeroes. */
int block_co_write_zeroes(struct block_edge *edge, uint64_t offset, uint64_t length,
                          unsigned flags);

/*
 * Copy between nodes without having the data in memory, where both lie plainly in files and the
 * system can copy. *length becomes the number of bytes copied, which may be less. -ENOTSUP: this
 * can't be done, and the contents of the target range are undefined: read and write instead. The
 * caller makes sure that the source does not change meanwhile.
 */
int block_co_copy_range(struct block_edge *from, uint64_t from_offset, struct block_edge *to,
                        uint64_t to_offset, uint64_t *length, unsigned flags);
/* The part of it that drivers use: from a node. */
int block_co_copy_from(struct block_edge *edge, uint64_t offset, struct block_node *source,
                       uint64_t source_offset, uint64_t length, unsigned flags);

/* The contents don't matter any more. A hint: 0 also where nothing can be discarded. */
int block_co_discard(struct block_edge *edge, uint64_t offset, uint64_t length);

/* All writes that were acknowledged before the call are on stable storage when it returns 0. */
int block_co_flush(struct block_edge *edge);

/* --- block status ----------------------------------------------------------------------------- */

enum block_status_flags {
    /* This layer has stored data here (reading costs I/O). */
    BLOCK_STATUS_DATA = 1 << 0,
    /* Reads as zeroes. */
    BLOCK_STATUS_ZERO = 1 << 1,
    /* This layer decides the contents (data or zero), not its backing file. */
    BLOCK_STATUS_ALLOCATED = 1 << 2,
    /* `map` and `file` are valid: plain bytes lie at `map` in `file`. */
    BLOCK_STATUS_OFFSET = 1 << 3,
    BLOCK_STATUS_COMPRESSED = 1 << 4,
    /* Set by drivers whose child "file" knows more about zeroes (raw, preallocated clusters). */
    BLOCK_STATUS_RECURSE = 1 << 5,
    /* The extent ends at the end of the node. */
    BLOCK_STATUS_EOF = 1 << 6,
};

struct block_status {
    unsigned flags;          /* enum block_status_flags */
    uint64_t length;         /* > 0, at most what was asked for; 0 only at the end of the node */
    uint64_t map;            /* byte offset in `file` if BLOCK_STATUS_OFFSET */
    struct block_node *file; /* borrowed */
};

/*
 * Status at `offset`, and how far (at most `length`) it applies, in the edge's node alone: an area
 * that is not ALLOCATED defers to the backing file. Filters are passed. At or beyond the end:
 * length 0 and EOF.
 */
int block_co_status(struct block_edge *edge, uint64_t offset, uint64_t length,
                    struct block_status *ret_status);
/*
 * Status as a reader of the whole chain sees it: of the first layer that is allocated there.
 * *ret_depth (may be NULL): 1 is the edge's node, 2 its backing node, ...; 0 if no layer has the
 * area, which reads as zeroes. `base`: stop before this node (NULL: whole chain).
 */
int block_co_status_above(struct block_edge *edge, struct block_node *base, uint64_t offset,
                          uint64_t length, struct block_status *ret_status, int *ret_depth);
/*
 * The ALLOCATED of block_co_status(), and the depth of block_co_status_above(), with the length to
 * which they apply (0: at or beyond the end). Cost metadata only: no file is asked for holes.
 */
int block_co_is_allocated(struct block_edge *edge, uint64_t offset, uint64_t length,
                          bool *ret_allocated, uint64_t *ret_length);
int block_co_depth(struct block_edge *edge, uint64_t offset, uint64_t length, int *ret_depth,
                   uint64_t *ret_length);

/* Neighbouring bytes of a disk that are alike, as a reader of the whole chain sees them. */
struct block_run {
    uint64_t length; /* > 0 */
    unsigned flags;  /* of enum block_status_flags: DATA, ZERO and ALLOCATED, no other */
    int depth;       /* as *ret_depth of block_co_status_above() */
};

/*
 * As block_co_status_above() for the whole chain, for many areas in one call: *ret_count of them,
 * at most `max`, which follow each other from `offset` on, for at most `length` bytes. None: at or
 * beyond the end. Neighbours may be alike. `contents`: what the flags say is wanted, not only where
 * layers are allocated; without it no file is asked for holes.
 *
 * One call does a bounded amount of work, however long the areas are, and need not yield.
 */
int block_co_status_runs(struct block_edge *edge, bool contents, uint64_t offset, uint64_t length,
                         struct block_run *ret_runs, unsigned max, unsigned *ret_count);

/* --- size ------------------------------------------------------------------------------------- */

enum block_prealloc {
    BLOCK_PREALLOC_OFF,
    BLOCK_PREALLOC_METADATA,
    BLOCK_PREALLOC_FALLOC,
    BLOCK_PREALLOC_FULL
};

/*
 * For a format that holds its file alone: make the file at least `size` bytes long, with zeroes at
 * the end; never shorter. No drain: the caller makes sure that nobody writes beyond `size`
 * meanwhile. Needs RESIZE. -ENOTSUP: only block_co_truncate() (block/control.h) can, if anything.
 */
int block_co_extend(struct block_edge *edge, uint64_t size);

/*
 * Count as a request of the edge's root, as the functions above do by themselves: no drained
 * section of the root begins before the leave. For reading the state of nodes without I/O, such as
 * the bits of a bitmap. Must not be nested with those functions or with itself. Entering may yield.
 */
void block_co_edge_enter(struct block_edge *edge);
void block_edge_leave(struct block_edge *edge);
/* The same at once: false, and it does not count, if entering would wait. Does not yield. */
bool block_edge_try_enter(struct block_edge *edge);

/* --- VM state in the image of a disk. Main reactor; drains; -ENOTSUP: the format keeps none --- */

/* Bytes that were never written are undefined; only the format limits the offset (-EFBIG). */
int block_co_preadv_vmstate(struct block_edge *edge, uint64_t offset, struct iov iov);
int block_co_pwritev_vmstate(struct block_edge *edge, uint64_t offset, struct iov iov);

/* --- point-in-time access (copy-before-write) ------------------------------------------------- */

/*
 * As preadv, status and discard, of the contents of a point in time. -EACCES: they may not be read
 * there; -ENOTSUP: the node has none.
 */
int block_co_preadv_snapshot(struct block_edge *edge, uint64_t offset, struct iov iov);
int block_co_snapshot_status(struct block_edge *edge, uint64_t offset, uint64_t length,
                             struct block_status *ret_status);
int block_co_discard_snapshot(struct block_edge *edge, uint64_t offset, uint64_t length);

#endif
