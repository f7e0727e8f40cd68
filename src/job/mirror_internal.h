/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of the mirror job share. mirror.h has the whole. */
#ifndef TIDEMARK_JOB_MIRROR_INTERNAL_H
#define TIDEMARK_JOB_MIRROR_INTERNAL_H

#include "base/list.h"
#include "filter/mirror_top.h"
#include "job/mirror.h"

struct block_root;

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

    uint64_t chunk; /* of copies, and bytes of a buffer; a multiple of the granularity */
    struct list free_buffers;
};

/* A buffer of `chunk` bytes; NULL: no memory. */
void *mirror_get_buffer(struct mirror *s);
void mirror_put_buffer(struct mirror *s, void *buffer);

/*
 * Put the filter above the source, and begin to follow. On failure nothing has changed. Control
 * lock.
 */
int mirror_co_insert(struct mirror *s, struct error *err);
/* Take the filter out again, without a pivot. The filter may be gone already. Control lock. */
void mirror_co_remove(struct mirror *s);
/*
 * Make the target equal to the source, with everything drained, and flushed: then either move the
 * users to the target (`pivot`), or let the target alone from now on. Control lock.
 */
int mirror_co_conclude(struct mirror *s, bool pivot, struct error *err);
/* After a failure: what the target has, as the bitmap is to say. Control lock. */
void mirror_co_give_up_bitmap(struct mirror *s);
/* Flush the target, as a request of the job. */
int mirror_co_flush_target(struct mirror *s);

#endif
