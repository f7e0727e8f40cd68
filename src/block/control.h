/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The control gate: operations on an image as a whole pass it, as I/O passes block/gate.h. No other
 * code calls a driver. For each operation the gate
 *
 *   finds the driver      the node's, or the first one below filters that has the operation; what
 *                         changes contents or size does not pass filters, which would not see that
 *   refuses               -ENOTSUP with a sentence, if there is none
 *   drains                the node that has the operation; not for questions (info, specific info)
 *   calls the driver
 *
 * All `co_` functions run in a coroutine of the main reactor and yield. They return 0 or -errno and
 * fill `err` (which may be NULL) on failure. The sentence has no prefix that names the command: the
 * caller adds one.
 */
#ifndef TIDEMARK_BLOCK_CONTROL_H
#define TIDEMARK_BLOCK_CONTROL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "block/block.h"
#include "block/gate.h"

struct json_object;

/*
 * --- questions -----------------------------------------------------------------------------------
 */

/* Result of block_co_get_info(), for `img info` and query-named-block-nodes. */
struct block_info {
    uint32_t cluster_size; /* bytes; 0: the format has no clusters */
    bool has_dirty_flag, dirty_flag, corrupt;
    bool encrypted;
    /* A cluster can be written once, and should be written as a whole. */
    bool writes_whole_clusters;
    /* The following are borrowed, and valid until the caller yields; NULL: none. */
    const char *backing_filename; /* as the image records it */
    const char *backing_format;   /* likewise */
    const char *compression_type;
};

/*
 * What a format knows of its image. -ENOTSUP: nothing; *ret_info is all zero then, and no sentence
 * is set.
 */
int block_co_get_info(struct block_node *node, struct block_info *ret_info);
/*
 * The format's part of `info`: {"type": ..., "data": ...} as QEMU's ImageInfoSpecific. A new
 * reference; NULL: none. Filters do not pass this question on.
 */
struct json_object *block_co_specific_info(struct block_node *node);
/*
 * Whether what the image of `node` does not store reads as zeroes for everybody: the node has no
 * backing node, and the image records no backing file. A user may have opened an image without the
 * backing file that it records; zeroes that the image does not store are not there for others then.
 */
bool block_co_stands_alone(struct block_node *node);
/* Bytes of storage that its files take, without what lies below; -ENOTSUP, -ETIMEDOUT: unknown. */
int block_co_allocated_size(struct block_node *node, uint64_t *ret_size);

/*
 * --- check and repair ----------------------------------------------------------------------------
 */

enum block_check_fix {
    BLOCK_CHECK_FIX_LEAKS = 1 << 0,
    BLOCK_CHECK_FIX_ERRORS = 1 << 1,
};

/* Result of block_co_check(); the figures of QEMU's ImageCheck. */
struct block_check_result {
    uint64_t corruptions, leaks, check_errors;
    uint64_t copied_flags; /* of the corruptions: COPIED flags that disagree with their refcounts */
    uint64_t corruptions_fixed, leaks_fixed;
    uint64_t image_end_offset;
    uint64_t total_clusters, allocated_clusters, fragmented_clusters, compressed_clusters;
};

/*
 * Check the metadata; `fix` says what to repair (enum block_check_fix). 0 also if errors were found
 * and counted.
 */
int block_co_check(struct block_node *node, unsigned fix, struct block_check_result *ret_result,
                   struct error *err);

/*
 * --- change of the image -------------------------------------------------------------------------
 */

/* Called now and then with the work that is done, of a total in the same unit. Must not yield. */
typedef void block_progress_fn(void *arg, uint64_t done, uint64_t total);

/*
 * Change creation options. Those that the format knows are taken from `opts`; others are -EINVAL.
 * `force` allows what may destroy data (the last key of an encrypted image). `progress` may be
 * NULL.
 */
int block_co_amend(struct block_node *node, struct options *opts, bool force,
                   block_progress_fn *progress, void *progress_arg, struct error *err);
/*
 * Keep other users of the file from what a later block_co_change_keys() changes, until
 * block_co_amend_end(): so that a job can refuse to start. -EPERM, -EAGAIN (image locks), -EACCES;
 * -ENOTSUP: the format has no keys.
 */
int block_co_amend_begin(struct block_node *node, struct error *err);
void block_co_amend_end(struct block_node *node);
/*
 * Change keys of encryption, with the options of block_co_amend(), while guests read and write.
 * Between the two above. -EINVAL, and others of the file.
 */
int block_co_change_keys(struct block_node *node, struct options *opts, bool force,
                         struct error *err);
/*
 * Flush a node, not as a request of a user: drains do not hold the flush back. For callers that
 * have the control lock: whoever drains the node may wait for that lock. 0 or -errno.
 */
int block_co_flush_node(struct block_node *node);
/*
 * Record another backing file (NULL: none) in the image. The nodes of the graph stay as they are.
 */
int block_co_change_backing(struct block_node *node, const char *filename, const char *format,
                            struct error *err);
/*
 * Put another node in the place of the backing node of `node`, the child "backing"; NULL: it has
 * none from now on. Its users never see it without. The image keeps what it records. The caller
 * keeps its reference. -EINVAL (a cycle), -EPERM: nothing has changed then.
 */
int block_co_set_backing_node(struct block_node *node, struct block_node *backing,
                              struct error *err);
/*
 * Add a node, which nobody uses, to the children of `parent`; or take the child of that name out.
 * For nodes that can have any number of children, as a quorum. Its users see it drained meanwhile.
 * Sentences are those of QEMU's x-blockdev-change. On failure nothing changes.
 */
int block_co_add_child(struct block_node *parent, struct block_node *child, struct error *err);
int block_co_del_child(struct block_node *parent, const char *name, struct error *err);
/*
 * Change the size of the edge's node to `size` bytes; what is added reads as zeroes. Bitmaps get
 * the new size. Needs RESIZE. -EPERM, -EFBIG
 */
int block_co_truncate(struct block_edge *edge, uint64_t size, enum block_prealloc prealloc,
                      struct error *err);
/*
 * The greatest size, in bytes, that the disk had as far as the image, without its backing files, or
 * the whole chain knows: at least what it has. What a disk gains below that is a change. None of
 * these yields.
 */
uint64_t block_node_greatest_size(const struct block_node *node);
uint64_t block_node_greatest_size_of_chain(const struct block_node *node);
/* The disk of the image had `size` bytes once: kept with its bitmaps. */
void block_node_remember_size(struct block_node *node, uint64_t size);

/*
 * Whether the node may be resized by itself: -EBUSY if a node above would not see the new size, or
 * has a bitmap that is in use. Filters that change nothing see it, and raw nodes on a whole file.
 * Does not yield.
 */
int block_node_check_resize(const struct block_node *node, struct error *err);
/*
 * Report the size of a drained node to the owners of roots, and to the nodes above that have its
 * size, whose bitmaps follow.
 */
void block_report_size(struct block_node *node);
/*
 * Forget all contents: the disk reads as its backing file. Bitmaps keep their bits. On stable
 * storage when it returns 0.
 */
int block_co_make_empty(struct block_node *node, struct error *err);

/* --- internal snapshots: `id_or_name` is looked up as an ID first, then as a name ------------- */

/* By the names of QEMU's SnapshotInfo. */
struct block_snapshot_info {
    char id[128], name[256];
    uint64_t vm_state_size;       /* bytes */
    uint32_t date_sec, date_nsec; /* since the epoch, UTC */
    uint64_t vm_clock_nsec;
    uint64_t disk_size; /* bytes */
    uint64_t icount;    /* UINT64_MAX: none */
};

/* What a snapshot records of the machine that has the disk. */
struct block_snapshot_vm {
    uint64_t state_size; /* bytes of VM state (block_co_pwritev_vmstate()), from offset 0 */
    uint64_t clock_nsec; /* how long the machine has run */
};

/* Make one of the disk as it is. `name` may be empty; the format chooses an ID. */
int block_co_snapshot_create(struct block_node *node, const char *name, struct error *err);
/*
 * Likewise, of a disk of a machine. The VM state is in the snapshot then, and no longer with the
 * disk.
 */
int block_co_snapshot_create_vm(struct block_node *node, const char *name,
                                const struct block_snapshot_vm *vm, struct error *err);
/* The disk becomes what it was then. -ENOENT */
int block_co_snapshot_apply(struct block_node *node, const char *id_or_name, struct error *err);
/* -ENOENT */
int block_co_snapshot_delete(struct block_node *node, const char *id_or_name, struct error *err);
/* *ret_list: an array of *ret_count, to be freed with free(); its strings are inside it. */
int block_co_snapshot_list(struct block_node *node, struct block_snapshot_info **ret_list,
                           size_t *ret_count, struct error *err);
/*
 * Likewise of the image of `node` itself, as known now: nothing is drained. -ENOTSUP: the format
 * has none. Does not yield, unlike the others here.
 */
int block_co_own_snapshots(struct block_node *node, struct block_snapshot_info **ret_list,
                           size_t *ret_count);
/*
 * A read-only node shows the snapshot from now on. `id` or `name` may be NULL; both must match if
 * both are given. -ENOENT
 */
int block_co_snapshot_show(struct block_node *node, const char *id, const char *name,
                           struct error *err);

/* --- persistent bitmaps (block/bitmaps.h has the named bitmaps of a node) --------------------- */

/* Whether the format of `node` itself can store bitmaps at all. Does not yield. */
bool block_node_stores_bitmaps(const struct block_node *node);
/*
 * 0 if a bitmap of that name and granularity (bytes) can be made persistent in the image of `node`
 * itself.
 */
int block_co_can_store_bitmap(struct block_node *node, const char *name, uint32_t granularity,
                              struct error *err);
/*
 * Take the space that storing such a bitmap needs, which is about to be added. -ENOSPC now rather
 * than when it is stored. Filters are not passed. The caller has drained the node.
 */
int block_co_reserve_bitmap(struct block_node *node, const char *name, uint32_t granularity,
                            struct error *err);
/*
 * Remove a stored bitmap, also one that was not loaded. 1, or 0 if the image has none of that name.
 * Filters are not passed.
 */
int block_co_remove_stored_bitmap(struct block_node *node, const char *name, struct error *err);

#endif
