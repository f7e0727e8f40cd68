/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The job "mirror": copies a node to another while guests read and write it, follows what they
 * write, and puts the other node in its place when it is completed. With the type "commit" it does
 * the same with an active image and the base of its backing chain.
 *
 *      users        users                      users
 *        |            |                          |
 *        |         filter ---------+             |
 *        |            |            |             |
 *      source       source       target        target    (source: unused)
 *
 *      before       while it runs              after block-job-complete
 *
 * The filter (filter/mirror_top.h) sees every write. What the target lacks is in its bitmap, which
 * the job works off. The job is ready when that is empty for the first time. From
 * block-job-complete (or a soft cancel) on, guests write both sides, whatever the copy mode, so
 * that the end comes, and the job may wait in PENDING. The end: drain, copy what is left in the
 * bitmap, flush the target, move the users to the target, all in one drained section.
 *
 * Main reactor; `co_` functions run in a coroutine and yield, with the control lock held.
 */
#ifndef TIDEMARK_JOB_MIRROR_H
#define TIDEMARK_JOB_MIRROR_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "job/job.h"

struct block_bitmap;
struct block_node;

#define MIRROR_GRANULARITY_MIN 512u
#define MIRROR_GRANULARITY_MAX (1u << 26)

/* What is copied; guests' writes follow in any case. */
enum mirror_sync {
    /* all that the source shows */
    MIRROR_SYNC_FULL,
    /* what is allocated above `base` */
    MIRROR_SYNC_TOP,
    /* nothing */
    MIRROR_SYNC_NONE,
    /* what is dirty in `bitmap` */
    MIRROR_SYNC_BITMAP
};

/* What becomes of the bits of `bitmap` that are in the target, on stable storage. */
enum mirror_bitmap_mode {
    /* cleared if the job succeeds */
    MIRROR_BITMAP_ON_SUCCESS,
    /* kept */
    MIRROR_BITMAP_NEVER,
    /* cleared in any case */
    MIRROR_BITMAP_ALWAYS
};

enum mirror_copy_mode {
    /* writes are copied later */
    MIRROR_COPY_BACKGROUND,
    /* a guest's write ends when it is in the source and in the target */
    MIRROR_COPY_WRITE_BLOCKING
};

/* For jobs that do more at their end. Each may be NULL. The control lock is held. */
struct mirror_hooks {
    /* The filter is being put on the source, within a graph change. */
    int (*co_attach)(void *arg, struct error *err);
    /* It is being taken out, or this is undone. May be called again. */
    void (*co_detach)(void *arg);
    /*
     * Source and target have the same contents, all is flushed, and all users are drained, just
     * before they move to the target: the last chance to fail.
     */
    int (*co_before_pivot)(void *arg, struct error *err);
    /* The users have moved, and are drained still. */
    void (*co_after_pivot)(void *arg);
    /* The job ends; `pivoted`: the users have moved. `arg` is not used again. */
    void (*co_done)(void *arg, bool pivoted);
};

struct mirror_params {
    /*
     * "mirror"; or "commit": `target` is in the backing chain of `source`, may be smaller (it
     * grows), and must be writable.
     */
    const char *type;
    /* No node is a parent of the source: its users are roots; except of a commit. */
    struct block_node *source, *target;
    enum mirror_sync sync;
    /* MIRROR_SYNC_TOP: of the source's chain; NULL: all of the chain. */
    struct block_node *base;
    /* MIRROR_SYNC_BITMAP: of the source, not busy. */
    struct block_bitmap *bitmap;
    enum mirror_bitmap_mode bitmap_mode;
    /*
     * NULL: the mirror cannot be restarted. Else, with MIRROR_SYNC_FULL: the name of a bitmap of
     * the source and of one of the target (docs/mirror.md); and that of a bitmap of the target with
     * what others have written there (NULL: nothing). 
     */
    const char *restart_bitmap, *restart_changes;
    /* The node whose users move to the target; NULL: the source. */
    struct block_node *replaces;
    /* NULL: generated. */
    const char *filter_name;
    /* Bytes; a power of two from MIRROR_GRANULARITY_MIN to _MAX; 0: chosen. */
    uint32_t granularity;
    /* Bytes of buffers; 0: 16 MiB. */
    uint64_t buf_size;
    enum mirror_copy_mode copy_mode;
    /* Zeroes may be holes in the target. */
    bool unmap;
    /* The target reads as zeroes now. */
    bool target_is_zero;
    /*
     * The target gets its backing node later (MIRROR_SYNC_TOP, _NONE): what the target has not
     * stored must not be taken for zeroes, and its clusters are filled as a whole.
     */
    bool backing_later;
    /*
     * The backing node that the target gets when the users move to it; NULL: it keeps its own. The
     * job takes a reference.
     */
    struct block_node *target_backing;
    /*
     * The target gets its backing node then, from what its image records, which may be there by
     * then only.
     */
    bool opens_backing;
    enum job_on_error on_source_error, on_target_error;
    /* NULL: none. `arg` is used until co_done. */
    const struct mirror_hooks *hooks;
    void *hooks_arg;
};

/*
 * Start a job. *ret_job may be NULL. On failure nothing has changed, and co_done of the hooks was
 * not called. -EINVAL, -EPERM (the nodes are in use otherwise), -EBUSY, -ENOMEM, errors of
 * job_new().
 */
int mirror_co_start(const struct job_config *config, const struct mirror_params *params,
                    struct job **ret_job, struct error *err);

/* The argument of job_change() for the type "mirror": the copy mode from now on. */
struct mirror_change {
    enum mirror_copy_mode copy_mode;
};

#endif
