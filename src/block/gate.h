/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The gate: all I/O between layers goes through these functions, and no code calls another driver's
 * functions directly. Each call checks bounds, permissions and drain, aligns (read-modify-write), splits by the
 * limits of the node, falls back (zeroes by writing), marks dirty bitmaps and counts.
 *
 * Offsets and lengths are bytes, 64-bit. Run in a coroutine of any reactor; all `co_` functions may yield.
 * They return 0 or -errno and never a short count. Common errors: -EIO (also: beyond the end of the
 * node), -EPERM (edge lacks the permission), -EROFS, -ENOSPC, -ENOMEDIUM.
 */
#ifndef TIDEMARK_BLOCK_GATE_H
#define TIDEMARK_BLOCK_GATE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/iov.h"
#include "block/block.h"

#define BLOCK_REQ_FUA 1u         /* write, write_zeroes: stable when it returns */
#define BLOCK_REQ_MAY_UNMAP 2u   /* write_zeroes: space may be given back */
#define BLOCK_REQ_NO_FALLBACK 4u /* write_zeroes: -ENOTSUP rather than writing zeroes explicitly */
#define BLOCK_REQ_UNCHANGED                                                                        \
    8u /* the visible contents don't change: needs only WRITE_UNCHANGED, marks no bitmap */
#define BLOCK_REQ_COMPRESSED 16u /* pwritev: store compressed where the format can */
#define BLOCK_REQ_PREFETCH 32u   /* preadv: into caches only; iov is ignored */

/* Read [offset, offset + iov.size) into iov. */
int block_co_preadv(struct block_edge *edge, uint64_t offset, struct iov iov, unsigned flags);
int block_co_pread(struct block_edge *edge, uint64_t offset, void *buf, size_t size);

/* Write. The memory must not change until it returns. */
int block_co_pwritev(struct block_edge *edge, uint64_t offset, struct iov iov, unsigned flags);
int block_co_pwrite(struct block_edge *edge, uint64_t offset, const void *buf, size_t size,
                    unsigned flags);

/* Make it read as zeroes. */
int block_co_write_zeroes(struct block_edge *edge, uint64_t offset, uint64_t length,
                          unsigned flags);

/*
 * Copy between nodes without having the data in memory, where both lie plainly in files and the system can do it. *length
 * becomes how much was copied, which may be less. -ENOTSUP: it can't be done, and what the target has there is undefined:
 * read and write. The caller sees to it that the source does not change meanwhile.
 */
int block_co_copy_range(struct block_edge *from, uint64_t from_offset, struct block_edge *to,
                        uint64_t to_offset, uint64_t *length, unsigned flags);
/* The part of it that drivers use: from a node itself. */
int block_co_copy_from(struct block_edge *edge, uint64_t offset, struct block_node *source,
                       uint64_t source_offset, uint64_t length, unsigned flags);

/* The contents don't matter any more. A hint: what can't be discarded is left alone, and 0 is returned. */
int block_co_discard(struct block_edge *edge, uint64_t offset, uint64_t length);

/* All writes that were acknowledged before are stable when it returns 0. */
int block_co_flush(struct block_edge *edge);

/* --- block status ---------------------------------------------------------------------------------- */

#define BLOCK_STATUS_DATA 1u /* this layer has stored data here (reading costs I/O) */
#define BLOCK_STATUS_ZERO 2u /* reads as zeroes */
#define BLOCK_STATUS_ALLOCATED                                                                     \
    4u                         /* this layer decides the contents (data or zero), not its backing */
#define BLOCK_STATUS_OFFSET 8u /* `map` and `file` are valid: plain bytes lie at map in file */
#define BLOCK_STATUS_COMPRESSED 16u
#define BLOCK_STATUS_RECURSE                                                                       \
    32u /* set by drivers whose file child knows better about zeroes (raw, preallocated) */
#define BLOCK_STATUS_EOF 64u /* the extent ends at the end of the node */

struct block_status {
    unsigned flags;
    uint64_t length;         /* > 0, <= what was asked for */
    uint64_t map;            /* byte offset in `file` if BLOCK_STATUS_OFFSET */
    struct block_node *file; /* borrowed */
};

/*
 * Status at `offset` and how far (at most `length`) it holds, of the edge's node alone: an area that is not
 * ALLOCATED defers to the backing file. Filters are passed through. At or beyond the end: length 0 and EOF.
 */
int block_co_status(struct block_edge *edge, uint64_t offset, uint64_t length,
                    struct block_status *ret);

/*
 * Status as a reader of the whole chain sees it: allocated in the first layer that is. *ret_depth (may be NULL): 1 is the edge's node,
 * 2 its backing, ...; 0 if allocated nowhere (reads as zeroes). `base`: stop before this node (NULL: whole chain).
 */
int block_co_status_above(struct block_edge *edge, struct block_node *base, uint64_t offset,
                          uint64_t length, struct block_status *ret, int *ret_depth);

/*
 * Of these two the first says what block_co_status() has in ALLOCATED, the other what block_co_status_above() says of depth, and
 * both how far that holds (0: at or beyond the end). No file is asked for holes, so that they cost metadata only.
 */
int block_co_is_allocated(struct block_edge *edge, uint64_t offset, uint64_t length,
                          bool *ret_allocated, uint64_t *ret_length);
int block_co_depth(struct block_edge *edge, uint64_t offset, uint64_t length, int *ret_depth,
                   uint64_t *ret_length);

/* --- size -------------------------------------------------------------------------------------------- */

enum block_prealloc {
    BLOCK_PREALLOC_OFF,
    BLOCK_PREALLOC_METADATA,
    BLOCK_PREALLOC_FALLOC,
    BLOCK_PREALLOC_FULL
};

/*
 * For a format that holds its file alone: make it at least `size` bytes long, zeroes at the end; never shorter. Any reactor, no drain:
 * the caller sees to it that nobody writes beyond `size` meanwhile. Needs RESIZE. -ENOTSUP: only block_co_truncate() can, if anything.
 */
int block_co_extend(struct block_edge *edge, uint64_t size);
struct block_node *block_edge_node(const struct block_edge *edge); /* borrowed */
uint64_t block_edge_size(const struct block_edge *edge);

/*
 * Count as a request of the edge's root, as the functions above do by themselves: no drained section of it begins
 * before the leave. For what reads state of nodes without I/O, such as the bits of a bitmap. Not to be nested with
 * them or itself. Entering may yield.
 */
void block_co_edge_enter(struct block_edge *edge);
void block_edge_leave(struct block_edge *edge);

/* --- VM state: what a format keeps beside the disk. Main reactor; drains. -ENOTSUP if it keeps none ---------- */

/* What was never written is undefined; offsets have no end but the format's (-EFBIG). */
int block_co_preadv_vmstate(struct block_edge *edge, uint64_t offset, struct iov iov);
int block_co_pwritev_vmstate(struct block_edge *edge, uint64_t offset, struct iov iov);

/* --- point-in-time access (nodes that implement it: copy-before-write) ----------------------------- */

/* As preadv, status and discard, of the frozen contents. -EACCES where it may not be read, -ENOTSUP if the node has none. */
int block_co_preadv_snapshot(struct block_edge *edge, uint64_t offset, struct iov iov);
int block_co_snapshot_status(struct block_edge *edge, uint64_t offset, uint64_t length,
                             struct block_status *ret);
int block_co_discard_snapshot(struct block_edge *edge, uint64_t offset, uint64_t length);

#endif
