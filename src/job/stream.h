/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The job "stream": copies into an image what the images between it and a base have, while guests
 * use it, and then makes the base its backing file (QAPI schema of QEMU: block-stream).
 *
 * Main reactor. `co_` functions run in a coroutine and yield.
 */
#ifndef TIDEMARK_JOB_STREAM_H
#define TIDEMARK_JOB_STREAM_H

#include "job/chain.h"
#include "job/job.h"

struct stream_params {
    /* Its image gets the data; it may be a filter on that. */
    struct block_node *device;
    /*
     * The last node of the chain that is not needed afterwards, which has the base as its child.
     * NULL: `device` has no backing file, and there is nothing to do. It may be `device`.
     */
    struct block_node *above_base;
    /* What the image records as its backing file; NULL: the name of the base. */
    const char *backing_file;
    /* Record the format of a base that has none of its own as "raw". */
    bool mask_protocol;
    enum job_on_error on_error;
    /* Of the filter that the job puts on `device`; NULL: a generated name. */
    const char *filter_name;
};

/*
 * Whether jobs use the nodes that a stream changes or takes out of the chain: -EBUSY, with a
 * sentence. `above_base`: NULL if there is no backing file.
 */
int stream_check_nodes(struct block_node *device, struct block_node *above_base, struct error *err);
/*
 * Make the job and put its filter on `device`. Within a graph change, whose permissions the caller
 * settles; `device` is drained. Then stream_start(), or job_co_discard() within the same change.
 * Strings are copied. -EBUSY: a node is used by another job. Errors of job_new().
 */
int stream_co_new(const struct stream_params *params, const struct job_config *config,
                  struct job **ret_job, struct error *err);
/*
 * Let it run. The image of `device` has been made writable by `writable`, which becomes the job's.
 */
void stream_start(struct job *job, struct chain_writable *writable);

#endif
