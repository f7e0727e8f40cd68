/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of the mirror job share. mirror.h has the whole. */
#ifndef TIDEMARK_JOB_MIRROR_INTERNAL_H
#define TIDEMARK_JOB_MIRROR_INTERNAL_H

#include "base/list.h"
#include "co/sync.h"
#include "filter/mirror_top.h"
#include "job/flush_behind.h"
#include "job/mirror.h"

struct block_drain;
struct block_root;

/* What a mirror that can be restarted has in addition (mirror_restart.c). */
struct mirror_restart {
    char *name, *changes_name;    /* owned; NULL: the mirror cannot be restarted; no such bitmap */
    struct block_bitmap *pending; /* of the source */
    struct dirty_bitmap *bits;    /* of it */
    bool taken;
    bool fresh;   /* it was added by this job */
    bool sending; /* something may have been written to the target */
    /* A flush has failed: a later success does not say that the target has what was sent before. */
    bool doubtful;
    int64_t settled_ns;
    int64_t noted_ns; /* when the image got the bits last */
};

/* Whether a mirror that is not ready catches up with guests (mirror_copy.c). */
struct mirror_passes {
    uint64_t offset; /* of the latest piece: the next pass begins where that becomes less */
    uint64_t least;  /* bytes that were left after the best pass */
    int64_t least_ns;
    unsigned since; /* passes */
    bool warned;
};

/* The state of the job. Main reactor. */
struct mirror {
    struct job *job;
    /* What the job was started with. Its nodes are referenced by the job. */
    struct mirror_params params;
    struct block_node *filter; /* referenced; NULL: gone */
    struct mirror_top *top;
    struct block_root *root; /* on the filter; NULL: released */

    /* The mode that the user wants. */
    enum mirror_copy_mode copy_mode;
    /* The filter blocks, and no write is in flight that began before that. */
    bool settled;
    bool ready;
    /* Nothing is being copied. */
    bool idle;
    /* The job comes to its end, by block-job-complete, or by a soft cancel. */
    bool completing, stopping;
    bool bitmap_taken;
    bool pivoted;
    /* The users move to a base that is larger. */
    bool grows;
    /* After a soft cancel: the target is a copy of the moment, and is left alone. */
    bool concluded;
    struct mirror_restart restart;

    uint64_t chunk; /* of copies, and bytes of a buffer; a multiple of the granularity */
    struct list free_buffers;

    struct mirror_passes passes;
    struct flush_behind flushes; /* of the target */
    /* A flush has failed since the target last had all that was sent for sure. */
    bool doubtful;
};

/* A buffer of `chunk` bytes; NULL: no memory. */
void *mirror_get_buffer(struct mirror *s);
void mirror_put_buffer(struct mirror *s, void *buffer);
/* Free those that are not in use. */
void mirror_free_buffers(struct mirror *s);
/* Of a struct mirror: whether the job is cancelled. */
bool mirror_is_cancelled(const void *mirror);

/*
 * Put the filter above the source, and begin to follow. On failure nothing has changed. Control
 * lock.
 */
int mirror_co_insert(struct mirror *s, struct error *err);
/*
 * Whether nobody sees a change when a node with the contents of `from` replaces `replaces`. Does
 * not yield.
 */
bool mirror_may_replace(struct block_node *from, const struct block_node *replaces);
/*
 * The job ends without success: guests wait for the target no longer. What they write is recorded
 * still if the user's bitmap will say what the target has. Does not yield.
 */
void mirror_let_guests_go(struct mirror *s);
/*
 * Drain the filter; the caller ends that. A guest's write in flight may wait for a target that
 * hangs: guests go on from time to time, and at once when the job is cancelled: false, and nothing
 * is drained.
 */
bool mirror_co_stop_guests(struct mirror *s);
/* The same for `count` nodes: of each the caller ends the drain. */
bool mirror_co_stop_nodes(struct mirror *s, struct block_node *const *nodes, size_t count);
/* The same for the source, except for the root of the job; ended by block_drain_end_but(). */
bool mirror_co_stop_others(struct mirror *s, struct block_drain *drain);
/* Take the filter out again, without a pivot. The filter may be gone already. Control lock. */
void mirror_co_remove(struct mirror *s);
/*
 * Make the target equal to the source, with everything drained, and flushed: then either move the
 * users to the target (`pivot`), or let the target alone from now on. Control lock, which is paused
 * while the target is written. -ECANCELED: the job was cancelled meanwhile.
 */
int mirror_co_conclude(struct mirror *s, bool pivot, struct error *err);
/* After a failure: what the target has, as the bitmap is to say. Control lock. */
void mirror_co_give_up_bitmap(struct mirror *s);
/* Flush the target, as a request of the job. */
int mirror_co_flush_target(void *mirror);
/*
 * By the policy for errors of the target; also for an error of a flush behind. 1: it succeeds again
 * after a failure, but the target may have lost what was sent before: all of that is to be copied
 * again.
 */
int mirror_co_flush_or_fail(struct mirror *s);
/*
 * Copy what is dirty in a part of the disk, in bytes (end 0: all of it), until nothing is left, or
 * in one pass. Errors of copy_loop_co_run().
 */
int mirror_co_copy_range(struct mirror *s, uint64_t begin, uint64_t end, bool one_pass);

/* --- restart: none of these does anything for a mirror that cannot be restarted --------------- */

/*
 * Find or add the bitmap of the source, before the filter begins to follow. Control lock. -EINVAL
 * (disabled), -EBUSY, -EROFS, errors of block_co_bitmap_add().
 */
int mirror_restart_co_begin(struct mirror *s, struct error *err);
/* Give the bitmap back; remove it if the target has taken over. Control lock. */
void mirror_restart_co_end(struct mirror *s);
/* From the state of the target to the first moment in which nothing is missing there. */
int mirror_restart_co_run(struct mirror *s, struct error *err);
/* Now and then while the job is ready, with no piece in flight: clear bits of the bitmap. */
int mirror_restart_co_idle(struct mirror *s);
/* All is drained, and the target is flushed: the bitmap keeps what is still to be copied. */
void mirror_restart_settle(struct mirror *s);

#endif
